"""Surrogates: what the policy gradient minimises for each token, or for each row as a whole.

The ratio rho is exp(logprob - old_logprob), for each token or one for each row, by `importance_sampling_level`:

token         rho_t = exp(d_t), d = logprob - old_logprob (PPO, Schulman et al. 2017, arXiv 1707.06347)
sequence      rho = exp(mean over the row's tokens of d_t) (GSPO, Zheng et al. 2025, arXiv 2507.18071)
sequence_sum  rho = exp(sum over the row's tokens of d_t): the ratio of the probabilities of the whole completions
              (RLOO, Ahmadian et al. 2024, arXiv 2402.14740, as in TRL's RLOOTrainer)

A function here gives the loss, (B, T) or (B, 1) where a row has one, and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.objectives import Metrics, least_of, mean_of, mean_over, most_of


@dataclass(frozen=True)
class Terms:
    """What a surrogate is made of."""

    logprob: Tensor
    """(B, T) differentiable"""
    log_ratio: Tensor
    """(B, T) logprob - old_logprob"""
    ratio: Tensor
    """(B, T) or (B, 1), by `importance_sampling_level`"""
    advantage: Tensor
    """(B, 1) or (B, T)"""
    mask: Tensor
    """(B, T) 1 for the tokens of rows that count"""
    active: Tensor
    """(B, T) the mask without tokens of low entropy, where `top_entropy_quantile` leaves those out"""
    by_row: bool = False
    """whether the ratio is one number a row"""
    weight: Tensor | None = None
    """(B, T) or (B, 1): the correction for the sampler, where there is one"""


@dataclass(frozen=True)
class Surrogate:
    """A row of the table below: `function(terms, settings)` gives the loss and metrics."""

    function: Callable[[Terms, Any], tuple[Tensor, Metrics]]
    formula: str
    paper: str
    reads: tuple[str, ...]
    """settings"""
    per_row: bool = False
    """one number a row that sees to tokens left out by itself"""
    weighs_sampler: bool = False
    """has the correction for the sampler inside; the others are multiplied by it"""
    note: str = ""


def ratio_of(log_ratio: Tensor, mask: Tensor, level: str) -> Tensor:
    """(B, T), or (B, 1) at the level of sequences. A row without tokens has the ratio 1."""
    if level == "token":
        return torch.exp(log_ratio)
    summed = (log_ratio * mask).sum(-1, keepdim=True)  # (B, 1)
    if level == "sequence":
        summed = summed / mask.sum(-1, keepdim=True).clamp(min=1.0)
    return torch.exp(summed)


def upper(settings: Any) -> float:
    """`epsilon_high`, or `epsilon` where it is not given."""
    return settings.epsilon if settings.epsilon_high is None else settings.epsilon_high


def clip(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A); with `delta` the first rho is at most delta."""
    low, high = 1 - settings.epsilon, 1 + upper(settings)
    inside = torch.clamp(terms.ratio, low, high)
    ratio = terms.ratio if settings.delta is None else torch.clamp(terms.ratio, max=settings.delta)
    loss = -torch.min(ratio * terms.advantage, inside * terms.advantage)
    return loss, clip_ratios(ratio < low, ratio > high, terms, terms.by_row)


def cispo(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """min(rho, epsilon_high) A logprob, no gradient through the first factor: tokens are never dropped."""
    most = upper(settings)
    loss = -torch.clamp(terms.ratio, max=most).detach() * terms.advantage * terms.logprob
    cut = (terms.ratio > most) & (terms.advantage > 0)
    return loss, {"cispo_clip_ratio": _mean(cut, terms.mask, terms.by_row)}


def sapo(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """(4 / k) sigmoid(k (rho - 1)) A, k = sapo_temperature_pos where A > 0, else sapo_temperature_neg."""
    k = _by_sign(terms.advantage > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg, like=terms.ratio)
    return -torch.sigmoid(k * (terms.ratio - 1)) * 4 / k * terms.advantage, {}


def gmpo(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """exp(mean over the row's tokens of the clipped log-ratio) A; epsilon and epsilon_high are of log-ratios."""
    low, high, advantage = -settings.epsilon, upper(settings), terms.advantage
    # as PPO's min: only the side on which the objective would go on growing is cut
    cut = torch.where(advantage > 0, terms.log_ratio.clamp(max=high), terms.log_ratio.clamp(min=low))  # (B, T)
    loss = -ratio_of(cut, terms.active, "sequence") * advantage  # (B, 1)
    return loss, clip_ratios(terms.log_ratio < low, terms.log_ratio > high, terms, by_row=False)


LOG_LEAST = math.log(1e-8)
LOG_MOST = 20.0


def vespo(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """phi(w) A logprob, no gradient through phi = e^l w^k e^(-l w), w the ratio of whole completions.

    The correction for the sampler goes into w. Log-ratios are held to [log 1e-8, 20], those of tokens to +-20.
    """
    with torch.no_grad():
        log_w = (terms.log_ratio.clamp(-LOG_MOST, LOG_MOST) * terms.mask).sum(-1, keepdim=True)  # (B, 1)
        if terms.weight is not None:
            log_weight = torch.log(terms.weight).clamp(LOG_LEAST, LOG_MOST)
            if log_weight.shape == terms.mask.shape:  # else one for the row
                log_weight = log_weight * terms.mask
            log_w = log_w + log_weight.sum(-1, keepdim=True)
        log_w = log_w.clamp(LOG_LEAST, LOG_MOST)
        good = terms.advantage >= 0
        k = _by_sign(good, settings.vespo_k_pos, settings.vespo_k_neg, like=log_w)
        fall = _by_sign(good, settings.vespo_lambda_pos, settings.vespo_lambda_neg, like=log_w).clamp(min=1e-4)
        phi = torch.exp(fall + k * log_w - fall * torch.exp(log_w))
        phi = phi.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # (B, 1)
    return -phi * terms.advantage * terms.logprob, {"vespo/phi_seq_mean": _mean(phi, terms.mask, by_row=True)}


def clip_ratios(below: Tensor, above: Tensor, terms: Terms, by_row: bool) -> Metrics:
    """The shares of tokens (of rows, where a row has one ratio) that the clip cuts, and over rows their extremes."""
    low, high = below & (terms.advantage < 0), above & (terms.advantage > 0)
    return {
        "clip_ratio/low_mean": _mean(low, terms.mask, by_row),
        "clip_ratio/low_min": least_of(_of_rows(low, terms.mask, by_row)),
        "clip_ratio/high_mean": _mean(high, terms.mask, by_row),
        "clip_ratio/high_max": most_of(_of_rows(high, terms.mask, by_row)),
        "clip_ratio/region_mean": _mean(low | high, terms.mask, by_row),
    }


def _mean(values: Tensor, mask: Tensor, by_row: bool):
    """Over tokens; over all rows, those left out too, where a row has one value (as in TRL)."""
    values = values.to(mask.dtype)
    return mean_of(values[:, 0]) if by_row else mean_over(values, mask)


def _of_rows(values: Tensor, mask: Tensor, by_row: bool) -> Tensor:
    """(B,) the mean over the tokens of each row; NaN for a row without any."""
    values = values.to(mask.dtype)
    return values[:, 0] if by_row else (values * mask).sum(-1) / mask.sum(-1)


def _by_sign(good: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """`yes` where `good`, else `no`, in the precision of `like`."""
    return torch.where(good, like.new_tensor(yes), like.new_tensor(no))


_SAPO = ("importance_sampling_level", "sapo_temperature_pos", "sapo_temperature_neg")
_VESPO = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")

SURROGATES: dict[str, Surrogate] = {
    "clip": Surrogate(
        clip,
        "-min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A); with delta: -min(min(rho, delta) A, ...)",
        "Schulman et al. 2017, arXiv 1707.06347; epsilon_high: Yu et al. 2025, arXiv 2503.14476; delta: INTELLECT-2,"
        " arXiv 2505.07291",
        ("importance_sampling_level", "epsilon", "epsilon_high", "delta"),
    ),
    "cispo": Surrogate(
        cispo,
        "-sg(min(rho, epsilon_high)) A logprob",
        "MiniMax-M1, arXiv 2506.13585; without the lower bound: ScaleRL, arXiv 2510.13786",
        ("importance_sampling_level", "epsilon_high"),
        note="epsilon_high is the cap itself, not 1 + epsilon_high",
    ),
    "sapo": Surrogate(sapo, "-(4 / k) sigmoid(k (rho - 1)) A, k by the sign of A", "SAPO, arXiv 2511.20347", _SAPO),
    "gmpo": Surrogate(
        gmpo,
        "-exp(mean_t c_t) A, c = min(d, epsilon_high) where A > 0, else max(d, -epsilon), d = logprob - old_logprob",
        "GMPO, arXiv 2507.20673",
        ("epsilon", "epsilon_high"),
        per_row=True,
        note="the clip is in log space; the paper's range is 0.4 on both sides",
    ),
    "vespo": Surrogate(
        vespo,
        "-sg(phi(w)) A logprob, phi(w) = e^l w^k e^(-l w), w the ratio of whole completions, k and l by the sign of A",
        "VESPO, arXiv 2602.10693",
        _VESPO,
        weighs_sampler=True,
    ),
}
"""losses of a token or row with ratio rho and advantage A; sg stops the gradient"""
