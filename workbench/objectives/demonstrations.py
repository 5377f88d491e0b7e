"""Losses of demonstrations beside rollouts: imitation, off-policy policy gradients, and both in one (SRFT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.objectives import Metrics, mean_over
from workbench.objectives.likelihood import likelihood
from workbench.objectives.policy_gradient import LOSS_TYPES, policy_gradient
from workbench.objectives.surrogates import SURROGATES, Surrogate, Terms


def imitation(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, entropy_coef: float = 0.0
) -> tuple[Tensor, Metrics]:
    """The mean over all tokens of -log p - entropy_coef * entropy: cross-entropy with an entropy bonus.

    totals: `tokens`. It needs the score `entropy` where the coefficient is not 0.
    """
    mask = scores.mask.to(scores.logprob.dtype)
    loss = -(scores.logprob * mask).sum() / totals["tokens"]
    if entropy_coef:
        loss = loss - entropy_coef * (scores.entropy * mask).sum() / totals["tokens"]
    return loss, {"nll": mean_over(-scores.logprob, mask), "entropy": mean_over(scores.entropy, mask)}


def with_hints(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    settings: Any,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """The policy gradient, and `hint_coef` times the cross-entropy of the rows that are hints.

    columns: those of `policy_gradient`, whose `keep` is 0 for hints, and `hint` (B,), by which the summed loss of a
    hint's tokens is multiplied: 1 / the number of all hint tokens, 0 for completions.
    """
    weight = columns["hint"].to(scores.logprob.dtype)[:, None]  # (B, 1)
    # old and reference log-probs are not known of hints; as if they were those of now, no ratio can overflow
    now, known = scores.logprob.detach(), ("old_logprob", "ref_logprob")
    filled = {name: torch.where(weight != 0, now, columns[name].to(now.dtype)) for name in known if name in columns}
    columns = {**columns, **filled}
    loss, metrics = policy_gradient(scores, columns, totals, settings=settings, entropy_coef=entropy_coef)
    hints = scores.mask.to(weight.dtype) * (weight != 0)  # (B, T)
    loss = loss - settings.hint_coef * (scores.logprob * hints * weight).sum()
    return loss, metrics | {"hint/nll": mean_over(-scores.logprob, hints)}


def off_policy(logprob: Tensor, advantage: Tensor, shaping: float = 0.0) -> Tensor:
    """-rho A of tokens that a demonstrator wrote, taken to be sure of each: rho = p / 1; no clip.

    With `shaping` g, rho / (rho + g): unlikely tokens gain more of the gradient (LUFFY, Yan et al. 2025, arXiv
    2504.14945).
    """
    ratio = logprob.exp()
    return -(ratio / (ratio + shaping) if shaping else ratio) * advantage


def entropy_weighted(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    settings: Any,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """SRFT's sum of three losses; all rows of the update at once, as its weights follow from their mean entropy.

    columns: those of `policy_gradient`; `demonstration` (B,) 1 for demonstrations; `right` (B,) of completions 1 where
    right, -1 where wrong, 0 where nothing is known.
    """
    dtype = scores.logprob.dtype
    shown = columns["demonstration"].to(dtype)[:, None]  # (B, 1)
    mask = scores.mask.to(dtype) * columns["keep"].to(dtype)[:, None]  # (B, T)
    own, given = mask * (1 - shown), mask * shown
    entropy = (scores.entropy.detach() * own).sum() / own.sum().clamp(min=1.0)
    first = settings.imitation * torch.exp(entropy if settings.imitation_rises else -entropy)
    second = (settings.right_weight or 0.0) * torch.exp(entropy)
    right = columns["right"].to(dtype)[:, None]
    signed = torch.where(right > 0, second, right)  # (B, 1): + of right rows, -1 of wrong ones

    def mixed(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
        if settings.right_weight is None:
            loss, metrics = SURROGATES[LOSS_TYPES[settings.loss_type].surrogate].function(terms, settings)
        else:
            loss, metrics = likelihood(replace(terms, advantage=signed), settings)
        theirs = settings.off_policy * off_policy(terms.logprob, terms.advantage, settings.shaping)
        return torch.where(shown > 0, theirs, loss), metrics

    surrogate = Surrogate(mixed, "", "", ())
    loss, metrics = policy_gradient(
        scores, columns, totals, settings=settings, entropy_coef=entropy_coef, surrogate=surrogate
    )
    nll = -(scores.logprob * given).sum() / given.sum().clamp(min=1.0)
    metrics |= {
        "entropy": mean_over(scores.entropy, own),
        "srft/imitation_loss": mean_over(-scores.logprob, given),
        "srft/imitation_weight": (first.detach(), torch.ones_like(first)),
    }
    if settings.right_weight is not None:
        metrics["srft/right_weight"] = second.detach(), torch.ones_like(second)
    return loss + first * nll, metrics
