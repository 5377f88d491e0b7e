"""Advantages against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.advantages import Rewards, estimate, group_relative, shaped, spread
from workbench.settings import make

NAN = float("nan")


def advantages(reward: list[float], group: list[int] | None = None, scale: str = "group"):
    values = torch.tensor(reward, dtype=torch.float64)
    made, spread = group_relative(values, group or [0] * len(reward), scale)
    return made.tolist(), spread.tolist()


def estimated(reward: list[float], group: list[int] | None = None, parts=None, weights=None, **settings) -> list[float]:
    """By `estimate`; `parts` are (N, K)."""
    made = Rewards(
        torch.tensor(reward, dtype=torch.float64),
        group or [0] * len(reward),
        None if parts is None else torch.tensor(parts, dtype=torch.float64),
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )
    return estimate(made, make("grpo", settings)).tolist()


def test_one_right_of_four():
    made, spread = advantages([1, 0, 0, 0])
    assert made == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=5e-5)
    assert spread == [pytest.approx(0.5)]  # variance (9 + 1 + 1 + 1) / 16 / 3


def test_two_right_of_four():
    made, spread = advantages([1, 0, 0, 1])
    assert made == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=5e-5)
    assert spread == [pytest.approx(math.sqrt(1 / 3))]


def test_equal_rewards_teach_nothing():
    assert advantages([0.3, 0.3, 0.3]) == ([0, 0, 0], [0])  # their sum is not 3 x 0.3 in floating point
    assert estimated([0.85] * 3, advantage_estimator="rloo") == [0, 0, 0]


def test_rewards_equal_but_for_rounding_give_no_large_advantages():
    made, _ = advantages([0.1 + 0.2, 0.3, 0.3])  # apart by 6e-17
    assert max(map(abs, made)) < 1e-11


def test_no_scaling():
    assert advantages([1, 0, 0, 0], scale="none") == ([0.75, -0.25, -0.25, -0.25], [pytest.approx(0.5)])


def test_scaling_by_the_batch():
    # means 0.5 and 2; the batch 1, 0, 3, 1 has mean 1.25 and variance (0.0625 * 2 + 1.5625 + 3.0625) / 3
    made, spread = advantages([1, 0, 3, 1], [0, 0, 1, 1], "batch")
    std = math.sqrt(4.75 / 3) + 1e-4
    assert made == pytest.approx([0.5 / std, -0.5 / std, 1 / std, -1 / std])
    assert spread == pytest.approx([math.sqrt(0.5), math.sqrt(2)])  # still those of the groups


def test_a_row_without_reward_stays_out_of_mean_and_spread():
    made, spread = advantages([1, NAN, 0, 0])
    std = math.sqrt(1 / 3)
    assert made == pytest.approx([2 / 3 / (std + 1e-4), 0, -1 / 3 / (std + 1e-4), -1 / 3 / (std + 1e-4)])
    assert spread == [pytest.approx(std)]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_single_scored_row_teaches_nothing(scale):
    made, spread = advantages([NAN, 5.0, NAN, 1.0, 2.0], [0, 0, 0, 1, 1], scale)
    assert made[:3] == [0, 0, 0] and spread[0] == 0
    assert made[3] == -made[4] < 0


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_no_reward_at_all(scale):
    assert advantages([NAN, NAN], scale=scale) == ([0, 0], [0])


def test_uneven_groups_in_any_order():
    made, spread = advantages([1, 10, 0, 30, 20], [7, 2, 7, 2, 2])
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert made == pytest.approx([half, -10 / (10 + 1e-4), -half, 10 / (10 + 1e-4), 0])
    assert spread == pytest.approx([math.sqrt(0.5), 10])  # group 7 comes first


def test_a_group_of_one():
    assert advantages([3.0, 1.0], [0, 1]) == ([0, 0], [0, 0])


def test_shifting_and_scaling_rewards():
    made, _ = advantages([1, 2, 4])
    moved, _ = advantages([101, 102, 104])
    assert moved == pytest.approx(made)
    larger, _ = advantages([1e6, 2e6, 4e6])
    assert larger == pytest.approx([a * (1 + 1e-4 / math.sqrt(7 / 3)) for a in made], rel=1e-9)


def test_the_reward_is_not_changed():
    reward = torch.tensor([1.0, NAN, 0.0])
    group_relative(reward, [0, 0, 0])
    assert reward[0] == 1 and reward[1].isnan() and reward[2] == 0


def test_the_group_estimator_is_group_relative():
    for scale in ("group", "batch", "none"):
        found = estimated([1, 0, 3, 1], [0, 0, 1, 1], scale_rewards=scale)
        assert found == advantages([1, 0, 3, 1], [0, 0, 1, 1], scale)[0]


def test_leave_one_out():
    assert estimated([1, 0, 0, 0], advantage_estimator="rloo") == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    # two groups, mixed; 5 - 1 and 1 - 5, 2 - (4 + 6) / 2 and so on
    found = estimated([5, 2, 1, 4, 6], [0, 1, 0, 1, 1], advantage_estimator="rloo")
    assert found == pytest.approx([4, -3, -4, 0, 3])


def test_leave_one_out_without_some_rewards():
    found = estimated([1, NAN, 0, 3, NAN], [0, 0, 0, 1, 1], advantage_estimator="rloo")
    assert found == pytest.approx([1, 0, -1, 0, 0]), "a single scored row has no other to be compared with"


def test_batch_mean_and_no_baseline():
    assert estimated([1, 0, NAN, 5], [0, 0, 1, 1], advantage_estimator="reinforce") == pytest.approx([-1, -2, 0, 3])
    assert estimated([1, 0, NAN, 5], [0, 0, 1, 1], advantage_estimator="none") == [1, 0, 0, 5]
    assert estimated([7.0], advantage_estimator="reinforce", group_size=1) == [0]
    assert estimated([NAN, NAN], advantage_estimator="reinforce") == [0, 0]


def test_normalised_advantages():
    # leave-one-out 1, -1, and nothing for the third; mean 0, std sqrt(2)
    settings = {"advantage_estimator": "rloo", "normalize_advantages": True}
    size = 1 / (math.sqrt(2) + 1e-4)
    assert estimated([1, 0, NAN], **settings) == pytest.approx([size, -size, 0])
    # without a baseline: mean 2, std sqrt(2)
    settings["advantage_estimator"] = "none"
    assert estimated([1, NAN, 3], **settings) == pytest.approx([-size, 0, size])
    # in the group, undivided: 1, -1 and nothing again
    settings |= {"advantage_estimator": "group", "scale_rewards": "none"}
    assert estimated([3, 1, NAN], **settings) == pytest.approx([size, -size, 0])
    assert estimated([NAN, NAN], **settings) == [0, 0]


WHITENED = [
    {"normalize_advantages": True},
    {"normalize_advantages": True, "advantage_estimator": "rloo"},
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.parametrize("settings", WHITENED, ids=str)
def test_equal_rewards_teach_nothing_after_whitening(settings):
    """The mean over the batch is 0 but for rounding, which must not give a group of equals a sign."""
    reward = [1.1, -0.2, 0.25, 0.3, *[0.85] * 4, NAN, 2.05, -1.0, 0.75]
    found = estimated(reward, [0] * 4 + [1] * 4 + [2] * 4, [[r] for r in reward], [1.0], **settings)
    assert found[4:9] == [0] * 5 and found[0] > 0.5
    assert sum(found) == pytest.approx(0, abs=1e-9)


def test_each_reward_normalised_then_summed():
    # one group of two, two rewards: 1 and 0 (std sqrt(1/2)), 10 and 20 (std sqrt(50)); weights 1 and 0.5
    first, second = 0.5 / (math.sqrt(0.5) + 1e-4), 5 / (math.sqrt(50) + 1e-4)
    total = first - 0.5 * second
    size = total / (total * math.sqrt(2) + 1e-4)
    how = {"multi_objective_aggregation": "normalize_then_sum"}
    found = estimated([6, 10], parts=[[1, 10], [0, 20]], weights=[1, 0.5], **how)
    assert found == pytest.approx([size, -size])
    # the third row has no second reward: that counts 0; the fourth has none at all
    parts = [[1, 10], [0, 20], [0.5, NAN], [NAN, NAN]]
    found = estimated([6, 10, 0.5, NAN], [0, 0, 0, 0], parts, [1.0, 1.0], **how)
    s = [0.5 / 0.5001 - second, -0.5 / 0.5001 + second, 0.0]
    std = math.sqrt(sum(x * x for x in s) / 2) + 1e-4
    assert found == pytest.approx([s[0] / std, s[1] / std, 0, 0])


def test_what_is_compared():
    reward = torch.tensor([3.0, -2.0, 0.5, NAN], dtype=torch.float64)
    settings = make("grpo", {"reward_clip_range": [-1, 1]})
    assert shaped(reward, settings)[:3].tolist() == [1, -1, 0.5] and shaped(reward, settings)[3].isnan()
    settings = make("grpo", {"preset": "rloo", "beta": 0.5})
    assert shaped(reward, settings, torch.tensor([1.0, -1.0, 0.0, 0.0]))[:3].tolist() == [2.5, -1.5, 0.5]
    assert reward[0] == 3


def test_spread_of_each_group():
    reward = torch.tensor([1, 3, 2, 2, 2, NAN], dtype=torch.float64)
    assert spread(reward, [4, 4, 1, 1, 1, 2]).tolist() == pytest.approx([math.sqrt(2), 0, 0])
