"""Self-judgment: pairs sampled and judged by the start of the run, and learnt from by DPO."""

from __future__ import annotations

import math

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from tests.runs import assert_same_metrics, assert_same_weights, weights
from workbench import judges
from workbench.errors import DataError, SettingError
from workbench.judges.local import Verdict
from workbench.launch import launch
from workbench.methods.preference import self_judgment
from workbench.sampling.rollouts import Rollouts


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    made = tiny_policy(tmp_path_factory.mktemp("model"), lora=True, max_position_embeddings=1024)
    made._start = {name: p.clone() for name, p in made.params().items()}
    return made


def letters(completions, **columns):
    return [float(sum(map(ord, text)) % 2) for text in completions]


def task(rewards=(letters,)):
    return wb.Task([{"prompt": f"Say {i}:", "answer": i} for i in range(8)], rewards=list(rewards))


def start(policy, out, data=None, **settings):
    given = dict(steps=3, batch_size=3, max_new_tokens=6, lr=1e-2, least_mass=0.0, seed=3, snapshot_steps=100)
    return launch("self_judgment", policy.reset(), data or task(), out, None, given | settings, None)


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    run = start(policy, tmp_path_factory.mktemp("whole") / "run")
    steps, after = [], []
    for step in run:
        steps.append(step)
        after.append(weights(run))
    return run, steps, after, run.metrics


def test_each_step_samples_two_and_judges_them(whole):
    _, steps, _, metrics = whole
    for step in steps:
        made = step.rollouts
        assert len(made) == 6 and made.group == [0, 0, 1, 1, 2, 2]
        assert set(made.rewards) == {"letters", "judge"}
        sums = np.array(made.rewards["judge"])
        assert (sums[0::2] + sums[1::2]).tolist() == pytest.approx([1, 1, 1])
        assert made.reward.tolist() == made.rewards["judge"].tolist()
        assert step.metrics["judge/none_share"] == 0 and 0 < step.metrics["judge/mass"] < 1
    assert metrics["loss"].iloc[1] == pytest.approx(math.log(2), abs=1e-6), "DPO begins at the start"
    assert (metrics["judge/pairs"].iloc[1:] == 3).all()


def test_the_judge_is_the_start_of_the_run(policy, whole):
    """Also after two updates."""
    run, steps, _, _ = whole
    judge = judges.model(policy.reset(), least_mass=0.0)
    made = steps[2].rollouts
    again = judge.prefer(made.prompt[0::2], made.text[0::2], made.text[1::2])
    assert again == pytest.approx(made.rewards["judge"][0::2].tolist(), abs=1e-5)
    run.engine.hold()
    now = judges.model(policy, least_mass=0.0).prefer(made.prompt[0::2], made.text[0::2], made.text[1::2])
    assert max(abs(a - b) for a, b in zip(now, again, strict=True)) > 1e-3
    policy.reset()


def test_the_chosen_answer_is_the_one_the_judge_likes(whole):
    made = whole[1][0].rollouts
    data = self_judgment.pairs_of(made)
    for pair, group in zip(data.items, range(3), strict=True):
        likes = int(made.reward[2 * group] < 0.5)
        assert pair.chosen == made.ids[2 * group + likes] and pair.rejected == made.ids[2 * group + 1 - likes]
        assert pair.prompt == made.prompt_ids[2 * group]


def test_a_replay_neither_samples_nor_judges(whole, monkeypatch):
    run, _, after, _ = whole

    def no(*args, **how):
        raise AssertionError("a replay samples, or judges")

    monkeypatch.setattr(type(run.engine.policy), "sample_prompts", no)
    monkeypatch.setattr(self_judgment, "read", no)
    run.engine.memory.clear()
    for step in (2, 1):
        assert_same_weights(run.engine.restore(step).params, after[step - 1])


def test_it_goes_back_and_on(policy, whole, tmp_path):
    _, _, after, metrics = whole
    run = start(policy, tmp_path / "run")
    next(iter(run))
    run.stop()
    again = wb.resume(tmp_path / "run", policy=policy.reset(), rewards=[letters])
    for _ in again:
        again.engine._loop = None
    assert_same_weights(weights(again), after[-1])
    assert_same_metrics(again.metrics, metrics)


def test_what_has_no_verdict_teaches_nothing(policy, tmp_path, monkeypatch):
    found = [Verdict(0.7, 0.7, 0.7, 0.9), Verdict(None), Verdict(0.5, 0.5, 0.5, 0.9)]
    monkeypatch.setattr(self_judgment.ModelJudge, "compare", lambda judge, *asked: found)
    run = start(policy, tmp_path / "run", steps=1)
    step = next(iter(run))
    assert step.metrics["judge/pairs"] == 1 and step.metrics["judge/none_share"] == pytest.approx(1 / 3)
    assert math.isnan(step.rollouts.reward[2]) and math.isnan(step.rollouts.reward[3])
    assert step.rollouts.advantage.tolist() == pytest.approx([0.4, -0.4, 0, 0, 0, 0])
    monkeypatch.setattr(self_judgment.ModelJudge, "compare", lambda judge, *asked: [Verdict(None)] * 3)
    run = start(policy, tmp_path / "none", steps=2)
    before = weights(run)
    with pytest.warns(UserWarning, match="no verdict on any pair"):
        list(run)
    assert_same_weights(weights(run), before)
    run.engine.memory.clear()
    run.engine.restore(2)


def test_metrics_of_the_judge_by_hand():
    verdicts = [Verdict(0.7, 0.9, 0.5, 0.4), Verdict(0.2, 0.4, 0.1, 0.2), Verdict(None), Verdict(0.6, 0.6, 0.6, 0.6)]
    right = np.array([1, 0, 1, 0, 1, 0, 1, 1], dtype=float)
    found = self_judgment.described(verdicts, right)
    # place one gets 0.9 and 0.5, 0.4 and 0.9, 0.6 and 0.4
    assert found == pytest.approx({
        "judge/none_share": 0.25, "judge/mass": 0.3, "judge/accuracy": 0.5,
        "judge/position_bias": (0.2 + 0.15 + 0.0) / 3,
    })  # fmt: skip


def test_a_judge_that_says_neither_is_not_followed(policy, tmp_path):
    with pytest.warns(UserWarning, match="no verdict on any pair"):
        step = next(iter(start(policy, tmp_path / "run", least_mass=0.9)))
    assert step.metrics["judge/none_share"] == 1 and math.isnan(step.metrics["loss"])


def test_looking_ahead_rescoring_and_the_report(policy, whole, tmp_path):
    run, steps, _, _ = whole
    given = Rollouts.of(["Say 1:"] * 2, [" yes", " no"], rewards=[0.2, 0.9])
    assert run.gradients(given).norm() > 0
    with pytest.raises(DataError, match="no pair"):
        run.gradients(Rollouts.of(["Say 1:"] * 2, [" yes", " no"], rewards=[1, 1]))
    again = run.rescore([letters])
    assert set(np.sign(again["advantage"])) <= {-1, 0, 1} and again["flips"].dtype == bool
    run.report(tmp_path / "report.html")
    policy.reset()


def test_held_out_prompts(policy, tmp_path):
    run = launch(
        "self_judgment", policy.reset(), task(), tmp_path / "run", task(),
        dict(steps=1, batch_size=2, max_new_tokens=4, least_mass=0.0, num_generations_eval=2), None,
    )  # fmt: skip
    list(run)
    assert 0 <= run.metrics.loc[0, "eval/accuracy"] <= 1


def test_settings_and_tasks_that_do_not_go(policy, tmp_path):
    def judge(completions, **columns):
        return [0.0 for _ in completions]

    with pytest.raises(SettingError, match="a reward named 'judge'"):
        start(policy, tmp_path / "a", task([judge]))
    with pytest.raises(SettingError, match="no {second}"):
        start(policy, tmp_path / "b", judge_prompt="{prompt} {first}")
    with pytest.raises(SettingError, match="one begins as the other"):
        start(policy, tmp_path / "c", judge_options=(" A", " AB"))
    with pytest.raises(SettingError, match="new ones"):
        start(policy, tmp_path / "d", precompute_ref_log_probs=True)
    with pytest.raises(DataError, match="needs a Task"):
        start(policy, tmp_path / "e", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert not (tmp_path / "a").exists()


def test_jsft_teaches_the_judge_and_the_run_follows_it(policy, tmp_path):
    """Both stages: rows that say that the longer of two answers is better."""
    pairs = [{"prompt": f"Say {i}:", "chosen": f" {i}{i}{i}{i}", "rejected": f" {i}"} for i in range(8)]
    prompt = judges.JudgePrompt(compare="{prompt}\n1:{first}\n2:{second}\n", lead="", options=("x", "y"))
    rows = judges.judge_rows(pairs, prompt, answers=False)
    taught = wb.sft(policy.reset(), rows, steps=30, batch_size=16, lr=1e-2, out=tmp_path / "jsft")
    list(taught)
    judge = judges.model(policy, prompt=prompt)
    there = judge.prefer(["Say 3:"] * 2, [" 3333", " 3"], [" 3", " 3333"])
    assert there[0] > 0.5 > there[1] and there[0] + there[1] == pytest.approx(1, abs=1e-6)
    settings = dict(judge_prompt=prompt.compare, judge_lead="", judge_options=prompt.options, least_mass=0.01)
    given = dict(steps=1, batch_size=2, max_new_tokens=4, lr=1e-3) | settings
    step = next(iter(launch("self_judgment", policy, task(), tmp_path / "run", None, given, None)))
    assert step.metrics["judge/mass"] > 0.3 and step.metrics["judge/none_share"] == 0
    assert step.metrics.get("loss", 0) == pytest.approx(math.log(2), abs=1e-5) or step.metrics["judge/pairs"] == 0
    policy.reset()
