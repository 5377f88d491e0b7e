"""Ranking losses over several answers of one question, by the mean log-prob of each.

`CONSTRAINTS` is the table of AFT's forms (Wang et al. 2023, arXiv 2309.02144): what keeps the scores of worse answers
from being pushed down without end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.objectives import Metrics, mean_of, mean_over
from workbench.objectives.pairs import answer_mask


@dataclass(frozen=True)
class Constraint:
    """A row of the table: `terms(better, worse, floor)` are the exponents of each ordered pair (pairs,)."""

    terms: Callable[[Tensor, Tensor, Tensor], list[Tensor]]
    formula: str


CONSTRAINTS = {
    "none": Constraint(lambda better, worse, floor: [worse - better], "exp(s_n - s_p)"),
    "detached": Constraint(lambda better, worse, floor: [worse.detach() - better], "exp(sg(s_n) - s_p)"),
    "boundary": Constraint(
        lambda better, worse, floor: [worse - better, 2 * floor - worse - better],
        "exp(s_n - s_p) + exp(2 B - s_n - s_p), B = sg(least s_p) - margin",
    ),
}
"""by `constraint`: what is summed over the pairs of a better answer p and a worse one n"""


def ranking_loss(score: Tensor, quality: Tensor, constraint: str = "detached", margin: float = 0.15) -> Tensor:
    """log(1 + the sum of CONSTRAINTS[constraint] over all pairs of answers of which one is better) of one question.

    score (N,) mean log-prob of each answer; quality (N,): an answer is better than another whose quality is lower. The
    floor B of an answer is the least score among those that are better than it, less `margin`; no gradient flows
    through it. 0 where no answer is better than another.
    """
    better = quality[:, None] > quality[None, :]  # (N, N) row better than column
    if not better.any():
        return score.sum() * 0.0
    first, second = better.nonzero(as_tuple=True)  # (pairs,)
    least = score.detach()[:, None].masked_fill(~better, torch.inf).min(0).values - margin  # (N,) inf: none is better
    terms = CONSTRAINTS[constraint].terms(score[first], score[second], least[second])
    return torch.logsumexp(torch.cat([score.new_zeros(1), *terms]), 0)


def aligned(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    supervised: Callable[..., tuple[Tensor, Metrics]],
    weight: float,
    constraint: str,
    margin: float,
) -> tuple[Tensor, Metrics]:
    """A supervised loss plus `weight` times the mean over questions of `ranking_loss`.

    columns: `answer` (B, T), 1 on the tokens of the answer; `question` (B,), the number of the row's question in the
    update, from 0; `quality` (B,); and what `supervised` reads, whose rows are the answers of quality 1. All rows of
    the update come at once: it is coupled. Metrics beside the supervised ones: ranking_loss; scores/right,
    scores/wrong, the mean log-prob a token of answers of quality 1 and of others; assessment_accuracy, the share of
    pairs in which the better answer scores higher.
    """
    right = columns["quality"] >= 1  # (B,) the rows of `supervised`
    loss, metrics = supervised(scores, columns, {**totals, "rows": max(float(right.sum()), 1.0)})
    mask = answer_mask(scores, columns)  # (B, T)
    score = (scores.logprob * mask).sum(-1) / mask.sum(-1).clamp(min=1)  # (B,)
    question, quality = columns["question"], columns["quality"]  # (B,)
    groups = [question == number for number in question.unique()]
    each = torch.stack([ranking_loss(score[rows], quality[rows], constraint, margin) for rows in groups])  # (Q,)
    pairs = (question[:, None] == question[None, :]) & (quality[:, None] > quality[None, :])  # (B, B)
    return loss + weight * each.mean(), metrics | {
        "ranking_loss": mean_of(each),
        "scores/right": mean_over(score, right),
        "scores/wrong": mean_over(score, ~right),
        "assessment_accuracy": mean_over((score[:, None] > score[None, :]).to(score.dtype), pairs),
    }
