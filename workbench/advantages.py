"""Advantage estimators: how much better each completion was than what was to be expected.

`ESTIMATORS` and `AGGREGATIONS` are tables: a name, the function, its formula and paper, the settings it reads.
`estimate` runs the one that the settings name. A reward is NaN where no reward function applied: such a row stays
out of every mean and deviation and gets advantage 0. Standard deviations have n - 1 in the denominator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""added to a standard deviation before dividing by it, as in TRL"""


@dataclass(frozen=True)
class Rewards:
    """What N completions earned."""

    total: Tensor
    """(N,) NaN where no reward function applied"""
    group: Sequence[int]
    """(N,) which completions share a prompt"""
    parts: Tensor | None = None
    """(N, K) of each reward function, without its weight; NaN where it did not apply"""
    weights: Tensor | None = None
    """(K,)"""


@dataclass(frozen=True)
class Estimator:
    """A row of a table below: `function(rewards, settings)` gives (N,), NaN where a row teaches nothing."""

    function: Callable[[Rewards, Any], Tensor]
    formula: str
    paper: str
    reads: tuple[str, ...] = ()
    """settings"""
    compares: bool = True
    """compares completions of one prompt, so that it takes two of each"""


def shaped(reward: Tensor, settings: Any, kl: Tensor | None = None) -> Tensor:
    """The reward that is compared, (N,): clamped to `reward_clip_range`, then less `beta` * `kl`, as TRL's RLOO.

    `kl` (N,): sum over a completion's tokens of log-prob of the old policy - that of the reference (k1, in nats).
    """
    if settings.reward_clip_range is not None:
        reward = reward.clamp(*settings.reward_clip_range)
    return reward if kl is None else reward - settings.beta * kl


def estimate(rewards: Rewards, settings: Any) -> Tensor:
    """The advantages (N,), by `settings.advantage_estimator`; whitened over the batch where
    `normalize_advantages`: A <- (A - mean) / (std + 1e-4) over the rows that have one."""
    advantage = ESTIMATORS[settings.advantage_estimator].function(rewards, settings)
    if settings.normalize_advantages:
        advantage = _whitened(advantage)
    return torch.nan_to_num(advantage, nan=0.0)


def group_relative(reward: Tensor, group: Sequence[int], scale: str = "group") -> tuple[Tensor, Tensor]:
    """A_i = (R_i - mean of its group) / (std + 1e-4); std over the "group", the whole "batch", or "none".

    reward (N,), NaN where no reward function applied: such rows get advantage 0. A deviation of fewer than two
    scored rows is 0. Returns the advantages (N,) and `spread` (G,).
    Shao et al. 2024 (arXiv 2402.03300) for "group"; Liu et al. 2025 (arXiv 2508.08221) for "batch"; Liu et al.
    2025 (arXiv 2503.20783) for "none".
    """
    spreads = spread(reward, group)
    advantage = torch.zeros_like(reward)  # (N,)
    everything = _std(reward[~reward.isnan()])
    for g, members in enumerate(_members(reward, group)):
        known = reward[members & ~reward.isnan()]
        if not len(known):
            continue
        deviation = {"group": spreads[g], "batch": everything, "none": None}[scale]
        centred = reward[members] - _mean(known)
        advantage[members] = centred if deviation is None else centred / (deviation + STD_FLOOR)
    return torch.nan_to_num(advantage, nan=0.0), spreads


def spread(reward: Tensor, group: Sequence[int]) -> Tensor:
    """The standard deviation (G,) of each distinct group, in order of appearance; 0 for fewer than two scored rows.

    Under the estimators that compare within a group, one with 0 teaches nothing.
    """
    deviations = [_std(reward[members & ~reward.isnan()]) for members in _members(reward, group)]
    return torch.stack(deviations) if deviations else reward.new_zeros(0)


def _group(rewards: Rewards, settings: Any) -> Tensor:
    return AGGREGATIONS[settings.multi_objective_aggregation].function(rewards, settings)


def _sum_then_normalize(rewards: Rewards, settings: Any) -> Tensor:
    made = group_relative(rewards.total, rewards.group, settings.scale_rewards)[0]
    return made.masked_fill(rewards.total.isnan(), torch.nan)  # whitening must not count rows without a reward


def _normalize_then_sum(rewards: Rewards, settings: Any) -> Tensor:
    columns = [group_relative(part, rewards.group)[0] for part in rewards.parts.T]  # K of (N,), 0 where NaN
    total = torch.stack(columns, -1) @ rewards.weights  # (N,)
    return _whitened(total.masked_fill(rewards.total.isnan(), torch.nan))


def _leave_one_out(rewards: Rewards, settings: Any) -> Tensor:
    reward, made = rewards.total, torch.full_like(rewards.total, torch.nan)  # (N,)
    for members in _members(reward, rewards.group):
        known = reward[members & ~reward.isnan()]
        if len(known) > 1:
            # the same as R_i less the mean of the others
            made[members] = (reward[members] - _mean(known)) * len(known) / (len(known) - 1)
    return made


def _batch_mean(rewards: Rewards, settings: Any) -> Tensor:
    return rewards.total - rewards.total[~rewards.total.isnan()].mean()


def _no_baseline(rewards: Rewards, settings: Any) -> Tensor:
    return rewards.total.clone()


def _members(reward: Tensor, group: Sequence[int]) -> list[Tensor]:
    """Per distinct group, in order of appearance, which rows are its own (N,)."""
    index = torch.as_tensor(list(group), device=reward.device)
    return [index == g for g in dict.fromkeys(group)]


def _mean(values: Tensor) -> Tensor:
    """The mean; of equal values that value to the last digit, so that a group of equals gets advantages of 0 and not
    of a rounding error, whose sign would count in what is clipped."""
    return values[0] if bool((values == values[0]).all()) else values.mean()


def _whitened(values: Tensor) -> Tensor:
    """(value - mean) / (std + 1e-4) over those that are there. What only rounding left of a difference is 0: its sign
    would count in what is clipped."""
    known = values[~values.isnan()]
    if not len(known):
        return values
    centred = values - known.mean()
    rounding = torch.finfo(values.dtype).eps * len(known) * known.abs().max()
    return centred.masked_fill(centred.abs() <= rounding, 0.0) / (_std(known) + STD_FLOOR)


def _std(values: Tensor) -> Tensor:
    """Sample standard deviation; 0 for fewer than two values, and for equal ones."""
    if len(values) > 1 and not bool((values == values[0]).all()):
        return values.std()
    return torch.zeros((), dtype=values.dtype, device=values.device)


ESTIMATORS: dict[str, Estimator] = {
    "group": Estimator(
        _group,
        "A_i = (R_i - mean of the group) / (std + 1e-4)",
        "Shao et al. 2024, arXiv 2402.03300",
        ("scale_rewards", "multi_objective_aggregation"),
    ),
    "rloo": Estimator(
        _leave_one_out,
        "A_i = R_i - mean of the other rewards of the group",
        "Ahmadian et al. 2024, arXiv 2402.14740",
    ),
    "reinforce": Estimator(
        _batch_mean, "A_i = R_i - mean of the batch", "Williams 1992, Machine Learning 8", compares=False
    ),
    "none": Estimator(_no_baseline, "A_i = R_i", "Williams 1992, Machine Learning 8", compares=False),
}
"""by `advantage_estimator`"""

AGGREGATIONS: dict[str, Estimator] = {
    "sum_then_normalize": Estimator(
        _sum_then_normalize,
        "R = sum_k w_k r_k, then as `scale_rewards` says: A = (R - mean of the group) / (std + 1e-4), with the std of"
        " the 'group', of the 'batch', or no division ('none')",
        "'group': Shao et al. 2024, arXiv 2402.03300; 'batch': Liu et al. 2025, arXiv 2508.08221; 'none': Liu et al."
        " 2025, arXiv 2503.20783",
        ("scale_rewards",),
    ),
    "normalize_then_sum": Estimator(
        _normalize_then_sum,
        "S = sum_k w_k (r_k - mean of the group) / (std of r_k in the group + 1e-4);"
        " A = (S - mean of the batch) / (std of the batch + 1e-4)",
        "GDPO, arXiv 2601.05242",
    ),
}
"""by `multi_objective_aggregation`, of the estimator `group`"""
