"""Adapters folded into the weights for the length of a sampling: one matrix product a layer instead of three.

Within `folded(model)` each layer that is a plain sum (see `workbench.adapters.sums`) computes with the weight that it
sums to, and decoder layers of the usual build take one token in few operations (see `workbench.adapters.blocks`). The
model's own tensors are never touched: only the layers' `forward` is another one in the block, and is put back also
after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.adapters import blocks, sums
from workbench.adapters.products import Weight
from workbench.forwards import replaced
from workbench.memory import free_bytes

SHARE = 0.25
"""of a GPU's free memory that folded weights may take"""
MOST = 4 << 30
"""bytes of folded weights at most on other devices, and no more than half of what is free"""
PAYS = 8
"""tokens a row from which it pays: folding takes about as long as one or two of them"""
ROWS = 2
"""rows from which weights are laid out in blocks: through those a single row is slower"""
KEPT = 256 << 20
"""bytes of buffers that are kept for the next time (what stands in them is never used again)"""


@contextmanager
def folded(model: nn.Module, tokens: int = PAYS, rows: int = ROWS) -> Iterator[None]:
    """Within the block layers of `model` compute with folded weights; afterwards they are as they were.

    Weights must not change within it. `tokens` a row and `rows`: how many it is for. For fewer tokens than pay, and
    where the copies do not fit comfortably, the model runs as it is.
    """
    built, groups = _planned(model, tokens, rows)
    try:
        with torch.no_grad():
            weights = sums.made(model, groups, rows >= ROWS)
            forwards = {
                part.layer: partial(_forward, weight, part.bias)
                for owner, group in groups
                for part, weight in zip(group, weights[owner].split([len(p.weight) for p in group]), strict=True)
            }
            with replaced(forwards):
                forwards |= blocks.forwards(model, built, weights)
        with replaced(forwards):
            yield
    finally:
        if _size(groups) > KEPT:
            sums.forget(model)


def size(model: nn.Module, tokens: int = PAYS, rows: int = ROWS) -> int:
    """Bytes of the weights that `folded` makes."""
    return _size(_planned(model, tokens, rows)[1])


def _planned(
    model: nn.Module, tokens: int, rows: int
) -> tuple[list[blocks.Block], list[tuple[nn.Module, list[sums.Sum]]]]:
    """Decoder layers that may take one token in few operations, and all weights to make: what owns them, what they
    sum."""
    found = sums.find(model) if tokens >= PAYS else {}
    built = blocks.found(model, found)
    within = {part.layer for block in built for group in block.groups.values() for part in group}
    groups = [(owner, group) for block in built for owner, group in block.groups.items()]
    others = [part for layer, part in found.items() if layer not in within]
    groups += [(part.layer, [part]) for part in others if part.parts]
    # of what has no adapter a copy is made for its layout alone
    more = [(part.layer, [part]) for part in others if not part.parts and rows >= ROWS and sums.can_be_cut([part])]
    room = _room(next(model.parameters()).device)
    for chosen in (groups + more, groups):
        if _size(chosen) <= room:
            return built, chosen
    return [], []


def _size(groups: list[tuple[nn.Module, list[sums.Sum]]]) -> int:
    return sum(part.bytes() for _, group in groups for part in group)


def _forward(weight: Weight, bias: Tensor | None, x: Tensor, *args: Any, **inputs: Any) -> Tensor:
    return weight(x, bias)


def _room(device: torch.device) -> int:
    free = free_bytes(device)
    if device.type == "cuda":
        return int(SHARE * free)
    return MOST if free is None else min(MOST, free // 2)
