"""Advantage estimators: how much better each completion was than its group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""added to a standard deviation before dividing by it, as in TRL"""


def group_relative(reward: Tensor, group: Sequence[int], scale: str = "group") -> tuple[Tensor, Tensor]:
    """A_i = (R_i - mean of its group) / (std + 1e-4); std over the "group", the whole "batch", or "none".

    reward (N,), NaN where no reward function applied: such rows stay out of mean and std and get advantage 0.
    Standard deviations have n - 1 in the denominator (one scored row: 0). Returns the advantages (N,) and, per
    distinct group in order of appearance, the standard deviation (G,): a group with 0 teaches nothing.
    Shao et al. 2024 (arXiv 2402.03300) for "group"; Liu et al. 2025 (arXiv 2503.20783) for "none".
    """
    order = list(dict.fromkeys(group))
    index = torch.tensor([order.index(g) for g in group], device=reward.device)  # (N,)
    advantage = torch.zeros_like(reward)  # (N,)
    spread = torch.zeros(len(order), dtype=reward.dtype, device=reward.device)  # (G,)
    everything = _std(reward[~reward.isnan()])
    for g in range(len(order)):
        members = index == g
        known = reward[members & ~reward.isnan()]
        if not len(known):
            continue
        spread[g] = _std(known)
        deviation = {"group": spread[g], "batch": everything, "none": None}[scale]
        centred = reward[members] - known.mean()
        advantage[members] = centred if deviation is None else centred / (deviation + STD_FLOOR)
    return torch.nan_to_num(advantage, nan=0.0), spread


def _std(values: Tensor) -> Tensor:
    """Sample standard deviation; 0 for fewer than two values."""
    return values.std() if len(values) > 1 else torch.zeros((), dtype=values.dtype, device=values.device)
