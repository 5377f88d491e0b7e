"""Preference losses on single answers, each labelled desirable or not. Names are TRL 1.16's (`KTOConfig`).

h is the log-ratio of an answer, its summed log-prob under the policy minus that under the reference (nats); s is 1
for a desirable answer and -1 for another; z is the baseline of the update (see `workbench.methods.kto`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.objectives import Metrics, mean_over


@dataclass(frozen=True)
class UnpairedLoss:
    """A row of the table: `function(h (B,), s (B,), z, beta)` gives (B,); `baseline`: it reads z."""

    function: Callable[[Tensor, Tensor, float, float], Tensor]
    formula: str
    paper: str
    baseline: bool


UNPAIRED: dict[str, UnpairedLoss] = {
    "kto": UnpairedLoss(
        lambda h, s, z, beta: 1 - torch.sigmoid(beta * s * (h - z)),
        "1 - σ(β (h - z)) for a desirable answer, 1 - σ(β (z - h)) for another",
        "KTO: Ethayarajh et al. 2024, arXiv 2402.01306",
        baseline=True,
    ),
    "apo_zero_unpaired": UnpairedLoss(
        lambda h, s, z, beta: 1 - torch.sigmoid(beta * s * h),
        "1 - σ(β h) for a desirable answer, σ(β h) for another",
        "APO-zero on single answers: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
        baseline=False,
    ),
}
"""every loss on labelled answers, by the name that `loss_type` takes"""


def unpaired(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    loss_type: str,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Tensor, Metrics]:
    """The mean over rows of weight times loss.

    columns: `ref_logprob` (B, T), `desirable` (B,) 1 or 0. totals: `rows`, and `kl`, the baseline z, a constant of
    the whole update. A metric of one kind of answers is a mean over that kind; it is NaN where there is none.
    """
    row = UNPAIRED[loss_type]
    mask = scores.mask.to(scores.logprob.dtype)  # (B, T)
    logp = (scores.logprob * mask).sum(-1)  # (B,)
    ratio = logp - (columns["ref_logprob"].to(logp.dtype) * mask).sum(-1)  # (B,)
    desirable = columns["desirable"].to(logp.dtype)  # (B,)
    weight = desirable_weight * desirable + undesirable_weight * (1 - desirable)
    each = weight * row.function(ratio, 2 * desirable - 1, totals["kl"], beta)  # (B,)
    metrics = {
        "rewards/chosen": mean_over(beta * ratio, desirable),
        "rewards/rejected": mean_over(beta * ratio, 1 - desirable),
        "logps/chosen": mean_over(logp, desirable),
        "logps/rejected": mean_over(logp, 1 - desirable),
        "entropy": mean_over(scores.entropy, mask),
    }
    return each.sum() / totals["rows"], metrics
