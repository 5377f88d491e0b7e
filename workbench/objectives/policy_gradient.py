"""Policy-gradient losses: a surrogate for each token, a KL term, a reduction to one number, an entropy bonus.

`LOSS_TYPES` says which surrogate and which reduction a `loss_type` stands for; the parts are tables of their own
(`surrogates.SURROGATES`, `reductions.REDUCTIONS`, `kl.KL`). The loss is

    reduce(surrogate * kept * weight + beta * KL) - entropy_coef * mean entropy

with `kept` 0 for tokens of low entropy (`top_entropy_quantile`) and for rows that are off-policy
(`off_policy_mask_threshold`), and `weight` the correction for the sampler. Values are TRL 1.16's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.objectives import Metrics, Objective, mean_over, most_of
from workbench.objectives.kl import KL
from workbench.objectives.reductions import REDUCTIONS
from workbench.objectives.sampler import gap
from workbench.objectives.surrogates import SURROGATES, Surrogate, Terms, ratio_of


@dataclass(frozen=True)
class LossType:
    """A row of the table below."""

    surrogate: str
    reduction: str
    corrects_kl: bool = True
    """reads `use_bias_correction_kl`"""


LOSS_TYPES: dict[str, LossType] = {
    "dapo": LossType("clip", "dapo"),
    "grpo": LossType("clip", "grpo"),
    "bnpo": LossType("clip", "bnpo"),
    "dr_grpo": LossType("clip", "dr_grpo"),
    "luspo": LossType("clip", "luspo"),
    "cispo": LossType("cispo", "dapo"),
    "sapo": LossType("sapo", "grpo"),
    "vespo": LossType("vespo", "dapo"),
    # TRL's GMPOTrainer takes the KL estimate as it stands
    "gmpo": LossType("gmpo", "grpo", corrects_kl=False),
}
"""one name picks surrogate and reduction, as in TRL"""


def objective(settings: Any, entropy_coef: float | None = None, surrogate: Surrogate | None = None) -> Objective:
    """The objective of one update; `entropy_coef` as it stands now, where it moves (None: the setting); `surrogate`:
    another one than that of `loss_type`.

    It couples rows where `top_entropy_quantile` compares the tokens of the whole update (TRL: of each micro-batch).
    """
    coef = settings.entropy_coef if entropy_coef is None else entropy_coef
    return Objective(
        partial(policy_gradient, settings=settings, entropy_coef=coef, surrogate=surrogate),
        needs=frozenset({"entropy"} if rewards_entropy(settings) else ()),
        coupled=settings.top_entropy_quantile < 1,
    )


def rewards_entropy(settings: Any) -> bool:
    """Whether the loss has an entropy bonus (its coefficient may be 0 for now, where it is adaptive)."""
    return bool(settings.use_adaptive_entropy or settings.entropy_coef)


def policy_gradient(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    settings: Any,
    entropy_coef: float = 0.0,
    surrogate: Surrogate | None = None,
) -> tuple[Tensor, Metrics]:
    """columns: `advantage` (B,) or (B, T); `keep` (B,) 0 for rows left out; `old_logprob` (B, T) unless the old
    policy is the current one; `ref_logprob` (B, T) where the loss has a KL term; `sampler_logprob` (B, T) where
    known; `sampler_weight` (B, T) or (B,), the correction (`objectives.sampler`).
    totals: `rows`, `tokens` (of rows that are kept), `tokens_share`, `max_tokens`: see `objectives.reductions`.
    """
    loss, terms, metrics = _token_losses(scores, columns, settings, surrogate)
    reduced = REDUCTIONS[LOSS_TYPES[settings.loss_type].reduction].function(loss, terms.mask, totals)
    if rewards_entropy(settings):
        share = reduced.detach() * totals["rows"], reduced.new_tensor(float(len(terms.mask)))
        metrics["policy_loss"] = share
        reduced = reduced - entropy_coef * _mean_entropy(scores.entropy, terms, totals, settings)
    return reduced, metrics


def token_shares(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, settings: Any, entropy_coef: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Each token's share (B, T) of the loss that `policy_gradient` makes of the same, and 1 (B, T) for those in it.

    The shares add up to the loss: reductions and the mean of the entropy are linear in the numbers of the tokens, so
    a share is a number times the slope there. Where the loss has one number for a row, its tokens share it evenly.
    """
    loss, terms, _ = _token_losses(scores, columns, settings)
    reduce = REDUCTIONS[LOSS_TYPES[settings.loss_type].reduction].function
    shares = _shares(loss.expand_as(terms.mask), lambda values: reduce(values, terms.mask, totals))
    if rewards_entropy(settings):
        bonus = _shares(scores.entropy, lambda values: _mean_entropy(values, terms, totals, settings))
        shares = shares - entropy_coef * bonus
    return shares, terms.active


def _shares(values: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        leaf = values.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(linear(leaf), leaf)
    return leaf.detach() * slope


def _token_losses(
    scores, columns: Mapping[str, Tensor], settings: Any, surrogate: Surrogate | None = None
) -> tuple[Tensor, Terms, Metrics]:
    """The losses (B, T) or (B, 1) before they are reduced, what they are made of, and metrics."""
    kind = LOSS_TYPES[settings.loss_type]
    surrogate = surrogate or SURROGATES[kind.surrogate]
    terms, old = _terms(scores, columns, settings)
    loss, metrics = surrogate.function(terms, settings)  # (B, T) or (B, 1)
    if settings.off_policy_mask_threshold is not None:
        loss = loss * on_policy(terms, columns.get("sampler_logprob", old), settings.off_policy_mask_threshold)
    if not surrogate.per_row:
        loss = loss * terms.active
    if terms.weight is not None and not surrogate.weighs_sampler:
        loss = loss * terms.weight
    metrics["entropy"] = mean_over(scores.entropy, terms.mask)
    if settings.top_entropy_quantile < 1:
        metrics["entropy/trained_tokens"] = mean_over(scores.entropy, terms.active)
    if settings.beta and not settings.kl_in_reward:
        kl = KL[settings.kl_estimator].function(terms.logprob, columns["ref_logprob"].to(terms.logprob.dtype))
        # rho's gradient counts: it makes the gradient that of the KL itself
        kl = kl * terms.ratio if settings.use_bias_correction_kl and kind.corrects_kl else kl  # (B, T)
        loss = loss + settings.beta * kl
        metrics["kl"] = mean_over(kl, terms.mask)
    if "sampler_logprob" in columns and "old_logprob" not in columns:
        metrics |= sampling_metrics(old, columns["sampler_logprob"], terms.mask)
    return loss, terms, metrics


def _terms(scores, columns: Mapping[str, Tensor], settings: Any) -> tuple[Terms, Tensor]:
    """What the surrogate is made of, and the old log-probs (B, T)."""
    logprob = scores.logprob  # (B, T)
    dtype, level = logprob.dtype, settings.importance_sampling_level
    mask = scores.mask.to(dtype) * columns["keep"].to(dtype)[:, None]  # (B, T)
    active = mask
    if settings.top_entropy_quantile < 1:
        active = mask * high_entropy(scores.entropy.detach(), mask, settings.top_entropy_quantile)
    old = columns["old_logprob"].to(dtype) if "old_logprob" in columns else logprob.detach()
    log_ratio = logprob - old
    weight = columns.get("sampler_weight")
    made = Terms(
        logprob,
        log_ratio,
        ratio_of(log_ratio, mask, level),
        _column(columns["advantage"].to(dtype)),
        mask,
        active,
        by_row=level != "token",
        weight=None if weight is None else _column(weight.to(dtype)),
    )
    return made, old


def _column(values: Tensor) -> Tensor:
    """(B,) as (B, 1); (B, T) as it is."""
    return values[:, None] if values.dim() == 1 else values


def high_entropy(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """(B, T) 1 for the `share` of the masked tokens with the highest entropy (Wang et al. 2025, arXiv 2506.01939).

    Those at or above the quantile 1 - share, interpolated linearly; so for a small share the highest one stays.
    """
    known = entropy[mask.bool()]
    if not len(known):
        return torch.zeros_like(mask)
    return (entropy >= torch.quantile(known, 1 - share)).to(mask.dtype) * mask


def on_policy(terms: Terms, behaviour: Tensor, threshold: float) -> Tensor:
    """(B, 1) 0 for rows with a negative advantage and mean_t (behaviour - logprob) above `threshold`
    (DeepSeek-V3.2, arXiv 2512.02556, eq. 9). `behaviour` (B, T): the sampler's log-probs, else the old ones; one
    that is not known (NaN) counts as equal."""
    drift = torch.nan_to_num(behaviour - terms.logprob.detach(), nan=0.0)  # (B, T)
    mean = (drift * terms.mask).sum(-1, keepdim=True) / terms.mask.sum(-1, keepdim=True).clamp(min=1.0)
    return ((terms.advantage >= 0) | (mean <= threshold)).to(terms.mask.dtype)


def sampling_metrics(old: Tensor, sampler: Tensor, mask: Tensor) -> Metrics:
    """Mean and largest |old - sampler| in nats over the tokens whose log-prob the sampler gave."""
    known = mask * (~sampler.isnan()).to(mask.dtype)
    distance = gap(old.detach(), sampler.to(old.dtype), known).abs()
    return {
        "sampling/sampling_logp_difference/mean": mean_over(distance, known),
        "sampling/sampling_logp_difference/max": most_of(distance),
    }


def _mean_entropy(entropy: Tensor, terms: Terms, totals: Mapping[str, float], settings: Any) -> Tensor:
    """The mean over the tokens that train, in the whole update, whatever the reduction of the loss.

    TRL takes the mean of each micro-batch, and then the mean of those.
    """
    if settings.top_entropy_quantile < 1:  # all rows of the update are here
        return (entropy * terms.active).sum() / terms.active.sum().clamp(min=1.0)
    return (entropy * terms.mask).sum() / max(totals["tokens"], 1.0)
