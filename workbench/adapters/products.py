"""A weight as a CPU multiplies few rows with it fastest: its outputs in blocks of 32.

A matrix product of few rows reads the weight once; what else it costs is mostly to bring the weight into the shape
that the processor's inner loop takes, which MKL does at every call. Blocks of 32 outputs, (out / 32, in, 32), have that
shape from the start: for 8 to 32 rows a product takes 0.55 to 0.75 of the time, for hundreds as long as it did.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 32
"""outputs of a block; 16 and 64 are slower at 8 to 32 rows"""


class Weight:
    """A weight (out, in): `data` is that, or blocks of its outputs, (out / BLOCK, in, BLOCK)."""

    def __init__(self, data: Tensor):
        self.data = data

    @property
    def blocks(self) -> bool:
        return self.data.dim() == 3

    @property
    def inputs(self) -> int:
        return self.data.shape[1]

    def split(self, outs: Sequence[int]) -> list[Weight]:
        """Weights of so many outputs each, one after the other; views."""
        return [Weight(part) for part in self.data.split([n // BLOCK if self.blocks else n for n in outs])]

    def set(self, weight: Tensor, parts: Sequence[tuple[float, Tensor, Tensor]] = ()) -> None:
        """Become `weight` (out, in) + the sum of scaling * B A over `parts`."""
        if not self.blocks:
            self.data.copy_(weight)
            for scaling, b, a in parts:
                self.data.addmm_(b, a, alpha=scaling)
            return
        self.data.copy_(_blocks(weight))
        for scaling, b, a in parts:
            self.data.baddbmm_(a.t().expand(len(self.data), -1, -1), _blocks(b), alpha=scaling)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., out) for `x` (..., in)."""
        if not self.blocks:
            return torch.nn.functional.linear(x, self.data, bias)
        made = self.apart(x.reshape(-1, self.inputs)).transpose(0, 1)
        if bias is not None:
            made = torch.add(made, bias.view(-1, BLOCK), out=made.new_empty(made.shape))
        return made.reshape(*x.shape[:-1], self.data.shape[0] * BLOCK)

    def apart(self, x: Tensor) -> Tensor:
        """The product of `x` (rows, in) block by block, (blocks, rows, BLOCK)."""
        return torch.bmm(x.expand(len(self.data), -1, -1), self.data)


def takes_blocks(weights: Sequence[Tensor]) -> bool:
    """Whether each of these weights (out, in) can be cut into blocks on its own."""
    return all(len(weight) % BLOCK == 0 for weight in weights)


def _blocks(weight: Tensor) -> Tensor:
    """(out, in) as (out / BLOCK, in, BLOCK), a view."""
    return weight.unflatten(0, (-1, BLOCK)).transpose(1, 2)
