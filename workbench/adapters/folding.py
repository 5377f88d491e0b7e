"""Adapters folded into the weights for the length of a sampling: one matrix product a layer instead of three.

Within `folded(model)` each float32 or float64 LoRA layer (Hu et al. 2021, arXiv 2106.09685) computes with
W + scaling * B A. On a CPU a weight of up to `TURNED` bytes is laid out with its inputs along the rows, with or without
an adapter: small batches go through such a product 1.2 to 2 times as fast (larger weights gain nothing). The model's
own tensors are never touched: only the layers' `forward` is another one in the block, and is put back also after an
error.

Left as they are: half-precision layers (the sum would round a small update away), quantised ones, adapters that are no
plain sum (DoRA and other variants, biases of B), merged ones and layers with hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from workbench.forwards import replaced
from workbench.memory import free_bytes

EXACT = (torch.float32, torch.float64)
SHARE = 0.25
"""of a GPU's free memory that folded weights may take"""
MOST = 4 << 30
"""bytes of folded weights at most, on a device that cannot say what is free"""
TURNED = 6 << 20
"""bytes of a weight up to which a CPU multiplies faster when it is turned round"""
PAYS = 8
"""tokens a row from which it pays: folding takes about as long as one or two of them"""
KEPT = 256 << 20
"""bytes of buffers that are kept for the next time (what stands in them is never used again)"""
_buffers: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
"""by layer"""


@dataclass
class _Fold:
    """A layer to fold: `weight` (out, in) and what comes on top of it, scaling, B and A of each active adapter."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    parts: list[tuple[float, Tensor, Tensor]]

    def bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()


@contextmanager
def folded(model: nn.Module, tokens: int = PAYS) -> Iterator[None]:
    """Within the block layers of `model` compute with folded weights; afterwards they are as they were.

    Weights must not change within it. For fewer `tokens` a row than pay, and where the copies do not fit comfortably,
    the model runs as it is.
    """
    folds = list(_folds(model)) if tokens >= PAYS else []
    size = sum(fold.bytes() for fold in folds)
    if size > _room(next(model.parameters()).device):
        folds = []
    try:
        with torch.no_grad():
            forwards = {fold.layer: partial(_forward, _sum(fold), fold.bias) for fold in folds}
        with replaced(forwards):
            yield
    finally:
        if size > KEPT:
            for fold in folds:
                _buffers.pop(fold.layer, None)


def forget(model: nn.Module) -> None:
    """Lets go of the buffers that are kept for `model`."""
    for module in model.modules():
        _buffers.pop(module, None)


def _forward(weight: Tensor, bias: Tensor | None, x: Tensor, *args: Any, **inputs: Any) -> Tensor:
    return linear(x, weight, bias)


def _sum(fold: _Fold) -> Tensor:
    """The weight (out, in) with its parts, in a buffer of the layer's own."""
    turned = _gains(fold.weight)
    base = fold.weight.t() if turned else fold.weight
    made = _buffers.get(fold.layer)
    if made is None or (made.shape, made.dtype, made.device) != (base.shape, base.dtype, base.device):
        made = _buffers[fold.layer] = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    made.copy_(base)
    for scaling, b, a in fold.parts:
        made.addmm_(*((a.t(), b.t()) if turned else (b, a)), alpha=scaling)
    return made.t() if turned else made


def _folds(model: nn.Module) -> Iterator[_Fold]:
    from peft.tuners.lora.layer import Linear as LoraLinear
    from transformers.pytorch_utils import Conv1D

    within: set[nn.Module] = set()
    for module in model.modules():  # a layer comes before what is in it
        if type(module) is LoraLinear:
            within.update(module.modules())
            base = module.get_base_layer()
            if type(base) in (nn.Linear, Conv1D) and _is_plain_sum(module) and _is_free(module) and _is_free(base):
                weight = base.weight.t() if type(base) is Conv1D else base.weight
                if (parts := _parts(module)) or _gains(weight):
                    yield _Fold(module, weight, base.bias, parts)
        elif type(module) is nn.Linear and module not in within:
            if module.weight.dtype in EXACT and _gains(module.weight) and _is_free(module):
                yield _Fold(module, module.weight, module.bias, [])


def _is_plain_sum(layer: Any) -> bool:
    """Whether a LoRA layer is W + scaling * B A, all of it in a precision in which that is exact enough."""
    used = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    weights = [layer.get_base_layer().weight]
    weights += [part[name].weight for name in used for part in (layer.lora_A, layer.lora_B)]
    variants = any(name in layer.lora_variant or layer.lora_bias[name] for name in used)
    same = weights[0].dtype in EXACT and len({weight.dtype for weight in weights}) == 1
    return same and not variants and not layer.merged


def _parts(layer: Any) -> list[tuple[float, Tensor, Tensor]]:
    used = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    return [(layer.scaling[name], layer.lora_B[name].weight, layer.lora_A[name].weight) for name in used]


def _gains(weight: Tensor) -> bool:
    """Whether products with this weight are faster when it is turned round."""
    return weight.device.type == "cpu" and weight.numel() * weight.element_size() <= TURNED


def _is_free(module: nn.Module) -> bool:
    """Whether a module has no hooks and its class's own forward."""
    return "forward" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks


def _room(device: torch.device) -> int:
    return int(SHARE * free_bytes(device)) if device.type == "cuda" else MOST
