"""Actor and critic: advantages from values, and the loss that trains both.

V_t is what a value head says before token t, from the hidden state whose logits emit that token; past the end it is 0.
Everything here is over (B, T) with a mask that is 1 on the tokens of a row and then 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.objectives import Metrics, Objective, mean_over, policy_gradient
from workbench.objectives.reductions import REDUCTIONS

VARIANCE_FLOOR = 1e-8
"""added to a variance before its root divides, as in TRL's former PPOTrainer"""


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """Generalised advantages (B, T) (Schulman et al. 2015, arXiv 1506.02438).

    d_t = r_t + gamma V_{t+1} - V_t, and A_t = d_t + gamma lam A_{t+1}, both 0 past the end. The return is A + V.
    """
    reward, value = reward * mask, value * mask
    made, after, later = [], torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + gamma * later - value[:, t]  # (B,)
        after = delta + gamma * lam * after
        later = value[:, t]
        made.append(after)
    return torch.stack(made[::-1], 1) if made else reward


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the masked tokens, var with n - 1; 0 elsewhere. Of equal values only 0 is
    left."""
    count = mask.sum()
    mean = (values * mask).sum() / count.clamp(min=1.0)
    centred = (values - mean) * mask
    variance = (centred**2).sum() / (count - 1).clamp(min=1.0)
    return centred * torch.rsqrt(variance + VARIANCE_FLOOR)


def explained_variance(returns: Tensor, value: Tensor, mask: Tensor) -> float:
    """1 - var(return - V) / var(return) over the masked tokens: 1 where the values foretell the returns, 0 where they
    do no better than their mean, less where worse; NaN where all returns are equal."""
    kept = mask.bool()
    spread = returns[kept].var(correction=0)
    return float(1 - (returns - value)[kept].var(correction=0) / spread) if kept.any() and spread > 0 else float("nan")


def value_losses(value: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """(B, T) 0.5 max((V - R)^2, (clip(V, V_old +- clip) - R)^2), and where it is the clipped one: no gain from going
    further than `clip` at once. None: the plain square."""
    loss = (value - returns) ** 2
    if clip is None:
        return 0.5 * loss, torch.zeros_like(loss)
    held = (torch.minimum(torch.maximum(value, old - clip), old + clip) - returns) ** 2
    return 0.5 * torch.max(loss, held), (held > loss).to(loss.dtype)


def objective(settings: Any, entropy_coef: float | None = None) -> Objective:
    """The policy gradient of `settings`, and `vf_coef` times the loss of the values, reduced in the same way."""
    policy = policy_gradient.objective(settings, entropy_coef)
    return Objective(
        partial(actor_critic, policy=policy, settings=settings), policy.needs | {"value"}, coupled=policy.coupled
    )


def actor_critic(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, policy: Objective, settings: Any
) -> tuple[Tensor, Metrics]:
    """columns: those of the policy gradient, with `advantage` (B, T); `old_value`, `return` (B, T); `valued` (B,), 0
    for rows that teach the values nothing. totals: the same."""
    loss, metrics = policy(scores, columns, totals)
    value, old, returns = scores.value, columns["old_value"], columns["return"]  # (B, T)
    dtype = loss.dtype
    mask = scores.mask.to(dtype) * columns["keep"].to(dtype)[:, None]
    each, clipped = value_losses(value.to(dtype), old, returns, settings.cliprange_value)
    each = each * columns["valued"][:, None]
    reduce = REDUCTIONS[policy_gradient.LOSS_TYPES[settings.loss_type].reduction].function
    values = reduce(each, mask, totals)
    rows = loss.new_tensor(float(len(mask)))
    metrics |= {name: (part.detach() * totals["rows"], rows) for name, part in
                (("policy_loss", loss), ("value_loss", values))}  # fmt: skip
    if settings.cliprange_value is not None:
        metrics["value_clip_ratio"] = mean_over(clipped, mask)
    return loss + settings.vf_coef * values, metrics
