"""bfloat16 mixed precision: the trunk computes in bfloat16, everything that is kept stays in float32.

Weights, their gradients and the optimiser are float32; layers run under torch's autocast (Micikevicius et al. 2017,
arXiv 1710.03740; bfloat16 needs no loss scaling); the head's logits, the log-probs and the loss are float32 again. It
holds for updates, for the log-probs that losses compare (old and reference) and for held-out losses. Sampling stays in
the weights' own precision: its draws are the same with and without.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workbench import trunk
from workbench.errors import SettingError

DTYPES = (torch.float32, torch.bfloat16)
"""of weights that can be computed with in bfloat16"""


@contextmanager
def mixed(model: nn.Module, on: bool) -> Iterator[None]:
    """Within the block the trunk of `model` (all of it, where it cannot be cut) computes in bfloat16 and returns
    the precision of its weights; afterwards, also after an error, it is as it was. With `on` False nothing changes."""
    if not on:
        yield
        return
    base = trunk.base_of(model)
    module = base if trunk.of(model) is None else base.base_model
    before, plain = module.__dict__.get("forward"), module.forward
    kind = next(model.parameters()).device.type

    def forward(*args: Any, **inputs: Any) -> Any:
        with torch.autocast(kind, torch.bfloat16):
            output = plain(*args, **inputs)
        for name in ("last_hidden_state", "logits"):
            if torch.is_tensor(getattr(output, name, None)):
                setattr(output, name, getattr(output, name).to(base.dtype))
        return output

    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def computes(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices itself; others would emulate them, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def check(policy: Any, on: bool) -> None:
    """Raises SettingError, before any work, where `bf16=True` cannot be or would not pay."""
    if not on:
        return
    if not computes(policy.device):
        where = f"this CPU ({platform.machine()})" if policy.device.type == "cpu" else policy.device.type
        raise SettingError(
            f"bf16=True: {where} has no bfloat16 arithmetic (on CPUs AMX or AVX512-BF16) and would be slower with it"
            " than in float32. Leave bf16 out."
        )
    if policy.origin.quantize is not None:
        raise SettingError(
            "bf16=True: a quantised model computes in the precision it was loaded for. Leave bf16 out and load it with"
            " wb.load(..., dtype='bfloat16')."
        )
    dtype = trunk.base_of(policy.model).dtype
    if dtype not in DTYPES:
        raise SettingError(
            f"bf16=True: the weights are {str(dtype).removeprefix('torch.')}. Load them with dtype='float32', or leave"
            " bf16 out."
        )
