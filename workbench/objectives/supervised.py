"""Supervised fine-tuning: losses of the trained tokens, and how they become one number.

`LOSSES` is the table of token losses by TRL's names, `REDUCTIONS` says what their weighted sum is divided by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from workbench.objectives import Metrics, mean_over
from workbench.objectives.reductions import Reduction


def likelihood(scores) -> Tensor:
    return -scores.logprob


def dynamic(scores) -> Tensor:
    return -scores.logprob.detach().exp() * scores.logprob


@dataclass(frozen=True)
class Loss:
    """The loss of each token (B, T), its formula (p: the token's probability, sg: no gradient) and its paper."""

    token: Callable[..., Tensor]
    formula: str
    paper: str


LOSSES = {
    "nll": Loss(likelihood, "-log p", "maximum likelihood"),
    "dft": Loss(dynamic, "-sg(p) log p", "dynamic fine-tuning, Wu et al. 2025, arXiv 2508.05629"),
}
"""token losses, by `loss_type`"""


def by_token(loss: Tensor, trained: Tensor, totals: Mapping[str, float]) -> Tensor:
    return loss.sum() / totals["tokens"]


def by_weight(loss: Tensor, trained: Tensor, totals: Mapping[str, float]) -> Tensor:
    return loss.sum() / totals["weight"]


def by_row(loss: Tensor, trained: Tensor, totals: Mapping[str, float]) -> Tensor:
    return (loss.sum(1) / trained.sum(1).clamp(min=1)).sum() / totals["rows"]


REDUCTIONS = {
    "token": Reduction(by_token, "sum(w * loss) / number of trained tokens of the update"),
    "weight": Reduction(by_weight, "sum(w * loss) / sum(w) over the update"),
    "row": Reduction(by_row, "mean over the update's rows of sum(w * loss) / number of the row's trained tokens"),
}
"""how weighted token losses (B, T), 0 where `trained` is, become one number, by `loss_reduction`"""


def weighted(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    loss_type: str = "nll",
    smoothing: float = 0.0,
    reduction: str = "token",
    weigh: Callable[..., tuple[Tensor, Metrics]] | None = None,
) -> tuple[Tensor, Metrics]:
    """The reduced loss of `LOSSES[loss_type]` over the trained tokens.

    columns: `weight` (B, T), 0 where a token is context. totals: `tokens` (trained), `weight` (their sum), `rows`,
    all of the whole update, so that every trained token counts the same however the rows are split (as in TRL with
    gradient accumulation). `smoothing` e spreads that share of each target over the vocabulary of V tokens, as
    transformers' LabelSmoother does: (1 - e) * loss + e * mean over V of -log p (Szegedy et al. 2015, arXiv
    1512.00567); it needs the score `mean_logprob`. `weigh(scores, columns, loss, trained)` gives further weights
    (B, T), by which the losses are multiplied while the totals stay, and metrics of its own. Metrics:
    mean_token_accuracy, entropy, and `nll`, the plain mean over the trained tokens, whatever the loss.
    """
    weight = columns["weight"].to(scores.logprob.dtype)  # (B, T)
    trained = weight != 0  # (B, T)
    loss = LOSSES[loss_type].token(scores)  # (B, T)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * scores.mean_logprob
    more: Metrics = {}
    if weigh is not None:
        further, more = weigh(scores, columns, loss, trained)
        loss = further * loss
    loss = weight * loss
    total = REDUCTIONS[reduction].function(loss, trained, totals)
    metrics = {
        "mean_token_accuracy": mean_over(scores.top1.to(scores.logprob.dtype), trained),
        "entropy": mean_over(scores.entropy, trained),
        "nll": mean_over(-scores.logprob, trained),
    }
    return total, metrics | more
