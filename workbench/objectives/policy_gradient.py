"""Policy-gradient losses: a surrogate per token, a KL term, and a reduction to one number.

With rho = exp(logprob - old_logprob) the clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347) is
min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A); GRPO (Shao et al. 2024, arXiv 2402.03300) takes A from the
group, and adds beta times the "k3" estimate of the KL to the reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.objectives import Metrics, mean_over


def clipped(
    scores,
    columns: Mapping[str, Tensor],
    totals: Mapping[str, float],
    *,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    correct_kl: bool = True,
) -> tuple[Tensor, Metrics]:
    """columns: `advantage` (B,); `keep` (B,) 0 for rows left out; `old_logprob` (B, T) unless the old policy is
    the current one; `ref_logprob` (B, T) when beta > 0; `sampler_logprob` (B, T) where known, for a metric.
    totals: see `reduce`. `correct_kl` multiplies the KL estimate by rho, so that its gradient is the one of the
    KL itself also where the old policy is the current one (DeepSeek-V3.2, arXiv 2512.02556).
    """
    logprob = scores.logprob  # (B, T)
    mask = scores.mask.to(logprob.dtype) * columns["keep"].to(logprob.dtype)[:, None]  # (B, T)
    advantage = columns["advantage"].to(logprob.dtype)[:, None]  # (B, 1)
    old = columns["old_logprob"].to(logprob.dtype) if "old_logprob" in columns else logprob.detach()
    ratio = torch.exp(logprob - old)  # (B, T)
    inside = torch.clamp(ratio, 1 - epsilon_low, 1 + epsilon_high)
    token_loss = -torch.min(ratio * advantage, inside * advantage)  # (B, T)

    low = (ratio < 1 - epsilon_low) & (advantage < 0)
    high = (ratio > 1 + epsilon_high) & (advantage > 0)
    metrics = {
        "entropy": mean_over(scores.entropy, mask),
        "clip_ratio/low_mean": mean_over(low.to(logprob.dtype), mask),
        "clip_ratio/high_mean": mean_over(high.to(logprob.dtype), mask),
        "clip_ratio/region_mean": mean_over((low | high).to(logprob.dtype), mask),
    }
    if beta:
        kl = k3(logprob, columns["ref_logprob"].to(logprob.dtype))  # (B, T)
        kl = kl * ratio if correct_kl else kl
        token_loss = token_loss + beta * kl
        metrics["kl"] = mean_over(kl, mask)
    if "sampler_logprob" in columns:
        gap = (old.detach() - columns["sampler_logprob"].to(logprob.dtype)).abs()
        metrics["sampling/sampling_logp_difference/mean"] = mean_over(gap, mask)
    return reduce(token_loss, mask, totals, loss_type), metrics


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = ref - policy; >= 0."""
    d = ref_logprob - logprob
    return torch.exp(d) - d - 1


def reduce(token_loss: Tensor, mask: Tensor, totals: Mapping[str, float], loss_type: str) -> Tensor:
    """(B, T) losses as one number.

    dapo     sum / `tokens_share`: the tokens of the whole sampling over the updates of a pass, as TRL 1.16 does;
             the paper (Yu et al. 2025, arXiv 2503.14476) divides by the tokens of the update
    bnpo     sum / `tokens` of the update
    grpo     mean over `rows` of the row's token mean (Shao et al. 2024)
    dr_grpo  sum / (`rows` * `max_tokens`) (Liu et al. 2025, arXiv 2503.20783)
    """
    summed = (token_loss * mask).sum(-1)  # (B,)
    if loss_type == "dapo":
        return summed.sum() / totals["tokens_share"]
    if loss_type == "bnpo":
        return summed.sum() / max(totals["tokens"], 1.0)
    if loss_type == "grpo":
        return (summed / mask.sum(-1).clamp(min=1.0)).sum() / totals["rows"]
    if loss_type == "dr_grpo":
        return summed.sum() / (totals["rows"] * totals["max_tokens"])
    raise ValueError(f"unknown loss_type {loss_type!r}")
