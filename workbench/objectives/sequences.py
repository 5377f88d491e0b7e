"""Supervised losses in which the tokens of a row depend on each other: weights from the row's likelihood, and losses of
whole rows, a row's own answer among others included.

`importance` and `propagated` are weights for `supervised.weighted(weigh=...)`; `preferred` and `discriminated` are
losses of their own. In all of them s is a row's log-prob over its trained tokens, `trained` (B, T) says which those
are, and `columns["weight"]` (B, T) is the weight that rows bring along.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.objectives import Metrics, mean_of, mean_over, most_of


def row_mean(values: Tensor, trained: Tensor) -> Tensor:
    """(B,): the mean of `values` (B, T) over each row's `trained` tokens."""
    mask = trained.to(values.dtype)
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def importance(
    scores, columns: Mapping[str, Tensor], loss: Tensor, trained: Tensor, *, level: str, exponent: float, clip: tuple
) -> tuple[Tensor, Metrics]:
    """Weights (B, T) by how much likelier the policy finds a row, or a token, than the reference does.

    r_t = log p - log p_ref (`columns["ref_logprob"]`); level 'sequence': w = exp(exponent * mean over the row of r_t),
    the same for all its tokens; 'token': w_t = exp(exponent * r_t); both within `clip`, and no gradient goes through
    them. Metrics: importance/mean, importance/max (per row or token), importance/clipped (the share at a bound).
    """
    ratio = scores.logprob.detach() - columns["ref_logprob"]  # (B, T)
    if level == "sequence":
        ratio = row_mean(ratio, trained)[:, None]  # (B, 1)
    raw = (exponent * ratio).exp()
    weight = raw.clamp(*clip)
    counted = trained if level == "token" else trained.any(1, keepdim=True)
    metrics = {
        "importance/mean": mean_over(weight, counted),
        "importance/clipped": mean_over((raw != weight).to(raw.dtype), counted),
        "importance/max": most_of(weight.masked_fill(~counted, torch.nan)),
    }
    return weight, metrics


def discounted(values: Tensor, gamma: float) -> Tensor:
    """(B, T): at t the sum over j >= t of gamma^(j - t) * values_j; in log2 T steps, each doubling the reach."""
    reach = 1
    while reach < values.shape[1]:
        values = values + gamma**reach * F.pad(values[:, reach:], (0, reach))
        reach *= 2
    return values


def propagated(
    scores, columns: Mapping[str, Tensor], loss: Tensor, trained: Tensor, *, gamma: float, detach: bool
) -> tuple[Tensor, Metrics]:
    """Weights (B, T) by what follows a token: c_t = sum over j >= t of gamma^(j - t) * loss_j within the row, scaled to
    a mean of 1 over its trained tokens. `detach`: no gradient goes through them. gamma 0 is a switch: all are 1.

    Metrics: propagation/first, the mean weight of each row's first trained token.
    """
    if gamma == 0:
        return torch.ones_like(loss), {}
    mask = trained.to(loss.dtype)
    total = discounted((loss.detach() if detach else loss) * mask, gamma) * mask  # (B, T)
    weight = total * mask.sum(1, keepdim=True) / total.sum(1, keepdim=True).clamp(min=torch.finfo(loss.dtype).tiny)
    first = weight.gather(1, trained.to(torch.uint8).argmax(1, keepdim=True))[:, 0]  # (B,)
    return weight, {"propagation/first": mean_over(first, trained.any(1))}


def preferred(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, beta: float, gamma: float
) -> tuple[Tensor, Metrics]:
    """-log sigmoid(beta * (s - a) + gamma), s the policy's mean log-prob of a row and a = `columns["aligned"]` (B,) a
    panel's: the mean over the update's rows (totals: `rows`).

    The gradient of a row is that of its mean loss times beta * sigmoid(-(beta * (s - a) + gamma)). Weights of tokens
    count within s, that of a row multiplies its loss. Metrics: nll, mean_token_accuracy, entropy of trained tokens;
    row_weight, that factor; margin, s - a; rewards/accuracies, the share of rows with s > a.
    """
    weight = columns["weight"].to(scores.logprob.dtype)  # (B, T)
    trained = weight != 0
    score = (weight * scores.logprob).sum(1) / weight.sum(1)  # (B,)
    margin = score - columns["aligned"]
    loss = row_mean(weight, trained) * F.softplus(-(beta * margin + gamma))
    metrics = token_metrics(scores, trained) | {
        "margin": mean_of(margin),
        "row_weight": mean_of(beta * torch.sigmoid(-(beta * margin + gamma))),
        "rewards/accuracies": mean_of((margin > 0).to(margin.dtype)),
    }
    return loss.sum() / totals["rows"], metrics


def discriminated(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, negatives: int, mean: bool
) -> tuple[Tensor, Metrics]:
    """-s(gold) + mean over its negatives of weight * s(negative): the mean over units, each a row and its `negatives`.

    `columns["share"]` (B,) is -1 for the gold answer of a row and the weight of a negative over their number. s is the
    sum of log-probs, or with `mean` their mean. A row's own weight multiplies the loss of its unit. Metrics: nll,
    mean_token_accuracy, entropy of the gold tokens; logps/chosen and logps/rejected, s of gold answers and negatives.
    """
    weight, share = columns["weight"].to(scores.logprob.dtype), columns["share"]  # (B, T), (B,)
    trained, gold = weight != 0, share < 0
    per_row = trained.sum(1).clamp(min=1) if mean else 1
    score = (weight * scores.logprob).sum(1) / per_row  # (B,)
    plain = (scores.logprob.detach() * trained).sum(1) / per_row
    metrics = token_metrics(scores, trained & gold[:, None]) | {
        "logps/chosen": mean_over(plain, gold),
        "logps/rejected": mean_over(plain, ~gold),
    }
    return (share * score).sum() * (1 + negatives) / totals["rows"], metrics


def token_metrics(scores, trained: Tensor) -> Metrics:
    """What every supervised loss tells of its trained tokens."""
    return {
        "mean_token_accuracy": mean_over(scores.top1.to(scores.logprob.dtype), trained),
        "entropy": mean_over(scores.entropy, trained),
        "nll": mean_over(-scores.logprob, trained),
    }
