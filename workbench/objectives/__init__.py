"""Objectives: pure functions of tensors. Token scores and batch columns in; loss and metrics out.

An objective is called once per micro-batch as `objective(scores, columns, totals)`; one whose rows depend on each
other (`coupled`) is called once per update, on all of its rows.

scores   `logprob`, `entropy` (B, T) of the scored tokens, differentiable (the entropy only where it is needed);
         `mask`, `top1` (B, T); and the other scores that the objective says it needs
columns  what the rows bring along: (B,) or (B, T), padded with 0
totals   the normalisers of the whole update (rows, tokens, weight, ...), so that the losses of its
         micro-batches add up to the loss of the update whatever the split

It returns `(loss, metrics)`; a metric is a `(sum, count)` pair, and the update's metric is the ratio of the
added sums and counts; or it is an `Extreme`, the least or the largest. What the columns and totals are called
stands in each objective's docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extreme:
    """A metric that is the least or the largest of some values; NaN where there are none."""

    value: Tensor | float
    largest: bool


Metrics = dict[str, tuple[Tensor, Tensor] | Extreme]


@dataclass(frozen=True)
class Objective:
    """A loss, and what it asks of the update.

    needs    scores beyond the log-probs: "entropy" (its gradient too), "mean_logprob", "log_sum_sq"
             (see `scoring.TokenScores`)
    coupled  whether the loss of a row depends on other rows than those of its own unit (a sort or a quantile
             over the batch): micro-batches cannot be added up then, and the update scores all rows first
    """

    function: Callable[..., tuple[Tensor, Metrics]]
    needs: frozenset[str] = frozenset()
    coupled: bool = False

    def __call__(self, scores, columns, totals) -> tuple[Tensor, Metrics]:
        return self.function(scores, columns, totals)


def mean_over(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`values` where `mask`, as a (sum, count) pair."""
    mask = mask.to(values.dtype)
    return (values.detach() * mask).sum(), mask.sum()


def mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """A (sum, count) pair over all entries."""
    values = values.detach()
    return values.sum(), torch.tensor(float(values.numel()), dtype=values.dtype, device=values.device)


def least_of(values: Tensor) -> Extreme:
    """The least of `values`, NaN aside."""
    return Extreme(values.detach().nan_to_num(nan=math.inf).min(), largest=False)


def most_of(values: Tensor) -> Extreme:
    """The largest of `values`, NaN aside."""
    return Extreme(values.detach().nan_to_num(nan=-math.inf).max(), largest=True)


def finish(*parts: Mapping[str, tuple | Extreme]) -> dict[str, float]:
    """The metrics of an update from those of its micro-batches: ratios of the added (sum, count) pairs, least and
    largest of extremes; NaN where nothing was counted."""
    made = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part[name] for part in parts if name in part]
        if isinstance(found[0], Extreme):
            extreme = (max if found[0].largest else min)(float(one.value) for one in found)
            made[name] = extreme if math.isfinite(extreme) else math.nan
            continue
        total, count = sum(float(one[0]) for one in found), sum(float(one[1]) for one in found)
        made[name] = total / count if count else math.nan
    return made
