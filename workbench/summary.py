"""A policy in a few lines: what it is, how large, what of it trains and what it is held in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from workbench import quantisation, trunk
from workbench.text import scaled

if TYPE_CHECKING:
    from workbench.policy import Policy

COUNTS = ("", "K", "M", "B")

def of(policy: Policy) -> str:
    """What `repr(policy)` shows."""
    base, origin, adapter = trunk.base_of(policy.model), policy.origin, policy.adapter
    total = sum(_count(p) for p in policy.model.parameters())
    trained = 0 if origin.quantize and adapter is None else sum(t.numel() for t in policy.params().values())
    kind = "the whole model trains" if adapter is None else str(adapter.peft_type.value)
    if adapter is None and origin.quantize:
        kind = "nothing trains until an adapter is attached"
    rank = getattr(adapter, "r", None)
    rank = f" r={rank}" if isinstance(rank, int) else ""
    quantize = f"{quantisation.name_of(origin.quantize)}, computing in " if origin.quantize else ""
    size = quantisation.in_words(policy.memory())
    lines = [
        f"<Policy {origin.model} ({type(base).__name__})",
        f"  parameters  {scaled(total, COUNTS)}, of which {scaled(trained, COUNTS)} train "
        f"({100 * trained / max(total, 1):.3g} %)",
        f"  adapter     {'none; ' if adapter is None else ''}{kind}{rank}",
        f"  weights     {quantize}{origin.dtype} on {policy.device}, {size}, held by: {policy.holder}",
        *(f"  note        {note}" for note in policy.notes),
    ]
    return "\n".join(lines) + ">"


def _count(p: nn.Parameter) -> int:
    state = getattr(p, "quant_state", None)  # a 4-bit weight stores two numbers a byte
    return int(np.prod(state.shape)) if state is not None else p.numel()
