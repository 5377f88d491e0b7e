"""Group advantages against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.advantages import group_relative

NAN = float("nan")


def advantages(reward: list[float], group: list[int] | None = None, scale: str = "group"):
    values = torch.tensor(reward, dtype=torch.float64)
    made, spread = group_relative(values, group or [0] * len(reward), scale)
    return made.tolist(), spread.tolist()


def test_one_right_of_four():
    made, spread = advantages([1, 0, 0, 0])
    assert made == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=5e-5)
    assert spread == [pytest.approx(0.5)]  # variance (9 + 1 + 1 + 1) / 16 / 3


def test_two_right_of_four():
    made, spread = advantages([1, 0, 0, 1])
    assert made == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=5e-5)
    assert spread == [pytest.approx(math.sqrt(1 / 3))]


def test_equal_rewards_teach_nothing():
    assert advantages([0.3, 0.3, 0.3]) == ([0, 0, 0], [0])


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
