"""What a step's completions say before any update: numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench.methods.rounds import describe
from workbench.sampling.rollouts import Rollouts
from workbench.views import curves


def sampled(rewards: list, lengths: list[int], entropy: list[list[float]] | None = None) -> Rollouts:
    made = Rollouts.of(["p"] * len(rewards), ["c"] * len(rewards), rewards=rewards)
    made.ids = [list(range(n)) for n in lengths]
    made.entropy = [np.array(values, dtype="f4") for values in entropy or []]
    return made


def test_the_correlation_of_reward_and_length():
    # deviations -1, 0, 1 and -2, 1, 1: 3 / sqrt(2 * 6)
    assert describe(sampled([0, 1, 2], [1, 4, 4]))["reward_length_corr"] == pytest.approx(3 / 12**0.5)
    assert describe(sampled([0, 1, 2], [9, 5, 1]))["reward_length_corr"] == pytest.approx(-1)
    # a completion without a reward does not count
    assert describe(sampled([0, None, 1, 2], [1, 99, 4, 4]))["reward_length_corr"] == pytest.approx(3 / 12**0.5)


@pytest.mark.parametrize(
    "rewards, lengths",
    [([1, 1, 1], [1, 2, 3]), ([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]), ([0, 1, 2], [4, 4, 4]), ([None, None, 1], [1, 2, 3])],
)
def test_there_is_no_correlation_where_rewards_or_lengths_are_equal(rewards, lengths):
    assert "reward_length_corr" not in describe(sampled(rewards, lengths))


def test_the_band_of_entropies_is_over_all_tokens_of_the_step():
    # 0, 1, ..., 10 over two completions of unequal length: the 10th percentile is 1, the 90th 9
    made = describe(sampled([0, 1], [3, 8], [[10, 0, 5], [1, 2, 3, 4, 6, 7, 8, 9]]))
    assert (made["entropy/p10"], made["entropy/p90"]) == (1, 9)
    # between tokens the percentile is interpolated: 0.1 and 0.9 of the way from 1 to 3
    made = describe(sampled([0, 1], [1, 1], [[1], [3]]))
    assert (made["entropy/p10"], made["entropy/p90"]) == (pytest.approx(1.2), pytest.approx(2.8))


def test_completions_that_were_given_have_no_entropies():
    assert not [name for name in describe(sampled([0, 1], [1, 2])) if name.startswith("entropy")]


def test_what_a_step_warns_of_is_an_event_of_it_once(tmp_path):
    def silent(completions, **kwargs):
        return [None] * len(completions)

    policy = tiny_policy(tmp_path / "model", lora=True)
    task = wb.Task([{"prompt": f"Say {i}:"} for i in range(4)], rewards=[silent])
    run = wb.grpo(policy, task, steps=3, prompts_per_step=2, group_size=2, max_new_tokens=3, out=tmp_path / "run")
    with pytest.warns(UserWarning, match="none of the 4 completions has a reward"):
        run.run()
    read = curves.Curves(run.store)
    read.refresh()
    ((event,),) = [[e for e in read.events if e["kind"] == "warning"]]
    assert event["step"] == 1 and event["text"].startswith("none of the 4 completions has a reward")
    assert curves.mark_of("warning", {}) == "warning"
