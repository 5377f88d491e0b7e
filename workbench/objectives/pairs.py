"""From token scores to the few numbers of each pair that preference losses read.

Row 2i of a batch is the chosen answer of pair i, row 2i + 1 the rejected one. L is the summed log-prob of an answer's
tokens (nats, stop token included), h = L - L_ref, D = h of the chosen answer minus h of the rejected one, l = L over
the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairScores:
    """What pair losses read, each (P,). The reference's numbers are there only where a loss needs them."""

    chosen: Tensor
    """L of the chosen answer; with `ld_alpha`, tokens past the shorter answer's length count so much"""
    rejected: Tensor
    chosen_length: Tensor
    """scored tokens"""
    rejected_length: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    chosen_score: Tensor | None = None
    """h of the chosen answer, or what another f-divergence makes of it"""
    rejected_score: Tensor | None = None
    nll: Tensor | None = None
    """-L of the chosen answer, scaled so that the mean over the update is the mean over its chosen tokens"""
    text_nll: Tensor | None = None
    """the same over the tokens of prompt and chosen answer"""

    @property
    def chosen_ratio(self) -> Tensor:
        """h of the chosen answer."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """h of the rejected answer."""
        return self.rejected - self.ref_rejected

    @property
    def difference(self) -> Tensor:
        """D."""
        return self.chosen_score - self.rejected_score

    @property
    def mean_difference(self) -> Tensor:
        """h_c / n_c - h_r / n_r."""
        return self.chosen_score / self.chosen_length - self.rejected_score / self.rejected_length

    @property
    def chosen_mean(self) -> Tensor:
        """l of the chosen answer."""
        return self.chosen / self.chosen_length

    @property
    def rejected_mean(self) -> Tensor:
        """l of the rejected answer."""
        return self.rejected / self.rejected_length


LARGEST = 80.0
"""exponents of the α-divergence are cut here, as in TRL: float32 ends soon after"""


def _alpha(h: Tensor, coef: float) -> Tensor:
    if abs(coef - 1) < 1e-6:  # its limit
        return h
    return torch.expm1(((coef - 1) * h).clamp(max=LARGEST)) / (coef - 1)


DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda h, coef: h,
    "forward_kl": lambda h, coef: -torch.expm1(-h),
    "js_divergence": lambda h, coef: math.log(2) + F.logsigmoid(h),
    "alpha_divergence": _alpha,
}
"""f'(exp h) by f-divergence (f-DPO: Wang et al. 2023, arXiv 2309.16240); the second argument is its α"""


def answer_mask(scores, columns: Mapping[str, Tensor]) -> Tensor:
    """1 on the tokens of answers: (B, T). `answer` marks them where prompts are scored, too."""
    mask = scores.mask.to(scores.logprob.dtype)
    return mask * columns["answer"] if "answer" in columns else mask


def pair_scores(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    ld_alpha: float | None = None,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> PairScores:
    """The numbers of each pair.

    columns: `ref_logprob` (B, T) where a loss needs it; `answer` (B, T), 0 on prompt tokens, where those are scored.
    totals: `pairs`, `chosen_tokens` (of answers), `text_tokens` (of prompts and chosen answers). `ld_alpha`: LD-DPO
    (Liu et al. 2024, arXiv 2409.06411). `f_divergence_type`: see DIVERGENCES.
    """
    mask = answer_mask(scores, columns)  # (B, T)
    length = mask.sum(-1)  # (B,)
    counted = mask  # (B, T)
    if ld_alpha is not None:
        shared = torch.minimum(length[0::2], length[1::2]).repeat_interleave(2)  # (B,)
        counted = torch.where(mask.cumsum(-1) <= shared[:, None], mask, ld_alpha * mask)
    logp = (scores.logprob * counted).sum(-1)  # (B,)
    known = {}
    if "ref_logprob" in columns:
        ref = (columns["ref_logprob"].to(logp.dtype) * counted).sum(-1)  # (B,)
        score = DIVERGENCES[f_divergence_type](logp - ref, f_alpha_divergence_coef)  # (B,)
        known = {
            "ref_chosen": ref[0::2],
            "ref_rejected": ref[1::2],
            "chosen_score": score[0::2],
            "rejected_score": score[1::2],
        }
    answer = -(scores.logprob * mask)[0::2].sum(-1)  # (P,)
    text = -(scores.logprob * scores.mask)[0::2].sum(-1)  # (P,)
    return PairScores(
        chosen=logp[0::2],
        rejected=logp[1::2],
        chosen_length=length[0::2].clamp(min=1),
        rejected_length=length[1::2].clamp(min=1),
        nll=answer * (totals["pairs"] / totals["chosen_tokens"]),
        text_nll=text * (totals["pairs"] / totals["text_tokens"]),
        **known,
    )


def agreement(scores, columns: Mapping[str, Tensor]) -> Tensor:
    """WPO's weight of a pair (Zhou et al. 2024, arXiv 2406.11827, eq. 2): w_c w_r, no gradient, (P,).

    w = exp(mean over the answer of log p(token) - log sum over the vocabulary of p²).
    """
    mask = answer_mask(scores, columns)  # (B, T)
    aligned = (scores.logprob.detach() - scores.log_sum_sq) * mask
    weight = torch.exp(aligned.sum(-1) / mask.sum(-1).clamp(min=1))  # (B,)
    return weight[0::2] * weight[1::2]
