"""Objectives: pure functions of tensors. Token scores and batch columns in; loss and metrics out.

An objective is called once per micro-batch as `objective(scores, columns, totals)`.

scores   `logprob`, `entropy` (B, T) of the trained tokens, differentiable; `mask`, `top1` (B, T)
columns  what the rows bring along: (B,) or (B, T), padded with 0
totals   the normalisers of the whole update (rows, tokens, weight, ...), so that the losses of its
         micro-batches add up to the loss of the update whatever the split

It returns `(loss, metrics)`; a metric is a `(sum, count)` pair, and the update's metric is the ratio of the
added sums and counts. What the columns and totals are called stands in each objective's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor]]
Objective = Callable[..., tuple[Tensor, Metrics]]


def mean_over(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`values` where `mask`, as a (sum, count) pair."""
    mask = mask.to(values.dtype)
    return (values.detach() * mask).sum(), mask.sum()


def mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """A (sum, count) pair over all entries."""
    values = values.detach()
    return values.sum(), torch.tensor(float(values.numel()), dtype=values.dtype, device=values.device)


def finish(metrics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The ratios of (sum, count) pairs; NaN where nothing was counted."""
    return {name: total / count if count else float("nan") for name, (total, count) in metrics.items()}
