"""Rewards and tasks of the policy variants, and the temperature by its entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import workbench as wb
from tests.models import tiny_policy
from workbench.analyses.entropy_temperature import crossing, entropy_temperature
from workbench.errors import DataError, RewardError, SettingError
from workbench.rewards.reference import refer, resolve
from workbench.rewards.steps import valid
from workbench.tasks.classify import classify


def length(reward, right, n):
    return reward(["7" if right else "8"], answer=["7"], completion_ids=[[0] * n])[0]


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [(True, 0, 2.0), (True, 50, 1.5), (False, 50, -5.0), (False, 0, -10.0), (True, 99, 1.000247), (False, 100, -10.0),
     (True, 100, -10.0), (True, 140, -10.0)],
)  # fmt: skip
def test_the_length_cosine(right, n, expected):
    assert length(wb.rewards.length_cosine(100, correct="number"), right, n) == pytest.approx(expected, abs=1e-5)


def test_the_length_cosine_without_a_price_past_the_limit():
    reward = wb.rewards.length_cosine(100, exceed=None, correct="number")
    assert [length(reward, False, n) for n in (100, 250)] == pytest.approx([0.0, 0.0])
    assert [length(reward, True, n) for n in (100, 250)] == pytest.approx([1.0, 1.0])
    assert resolve(refer(reward)) == reward
    with pytest.raises(SettingError, match="correct='nmber' is not one of"):
        wb.rewards.length_cosine(100, correct="nmber")


def test_every_token_of_a_repeated_ngram_has_a_price():
    reward = wb.rewards.repeated_tokens(ngram=2, penalty=-0.05)
    assert reward.penalties([1, 2, 3, 1, 2, 4]) == [0, 0, 0, -0.05, -0.05, 0]
    assert reward.penalties([1, 1, 1, 1]) == [0, -0.05, -0.05, -0.05], "overlapping ones count once for a token"
    assert reward(completion_ids=[[1, 2, 3, 1, 2, 4], [1], []]) == pytest.approx([-0.1, 0, 0])
    assert wb.rewards.repeated_tokens()(completion_ids=[list(range(40)) * 2]) == pytest.approx([-2.0])
    with pytest.raises(SettingError, match="must not be above 0"):
        wb.rewards.repeated_tokens(penalty=0.05)


GOOD = "### Rationales: add\n### Step 1: 3 + 4 = 7\n### Step 2: So it IS seven\n### The final answer is: 7"


def test_step_grpo_adds_partial_credit():
    reward = wb.rewards.step_grpo(correct="number")
    keys = [["3 + 4", ["is 7", "is seven"], "carry", ["10", "ten"]]]
    logged = {}
    broken = GOOD.replace("Step 2", "Step 3")
    found = reward([broken], answer=["7"], key_steps=keys, log_metric=logged.__setitem__)
    assert found == pytest.approx([1.05]) and logged["step_grpo/key_steps"] == 0.5 and logged["step_grpo/valid"] == 0
    assert reward([GOOD], answer=["7"], key_steps=keys) == pytest.approx([2.05])
    assert reward([GOOD.replace("is: 7", "is: 8")], answer=["7"], key_steps=keys) == pytest.approx([1.05])
    assert reward(["7 and 3 + 4"], answer=["7"], key_steps=[["3 + 4"]]) == pytest.approx([0.0]), "no step says it"
    assert resolve(refer(reward)) == reward


def test_key_steps_by_case_and_place():
    reward = wb.rewards.key_steps()
    assert reward([GOOD], key_steps=[["SO IT IS SEVEN", "3 + 4 = 7"]]) == [1.0]
    assert reward([GOOD], key_steps=[["add"]]) == [0.0], "the rationale is no step"
    assert reward([GOOD, GOOD], key_steps=[None, []]) == [None, 0.0]
    assert reward([GOOD], key_steps=[{"Steps": ["3 + 4", "nine"]}]) == [0.5]
    with pytest.raises(RewardError, match="key_steps must be a list"):
        reward([GOOD], key_steps=["3 + 4"])


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        (GOOD, True),
        (GOOD.replace("Step 1", "Step 0"), False),
        (GOOD.replace("### Step", "Step"), False),
        ("### Step 1: a", False),
        ("### The final answer is: 7\n### Step 1: a", False),
        ("### Step 2: a\n### Step 1: b\n### The final answer is: 7", False),
    ],
)
def test_valid_steps(text, fine):
    assert valid(text, ["### Rationales:"] if text == GOOD else []) is fine
    assert not valid(text, ["### Image Description:"])


# -- classification

TEXTS, LABELS = ["purrs", "barks", "meows", "growls"] * 2, ["cat", "dog"] * 4


def test_a_sentence_is_right_with_thinking_and_wrong_without():
    direct, thinking = (classify(TEXTS, LABELS, thinking=flag) for flag in (False, True))
    (whole,), (tagged, form) = direct.rewards, thinking.rewards
    assert whole(["The answer is cat", "cat", "Cat", "cat "], answer=["cat"] * 4) == [0, 1, 0, 0]
    said = "<think>it purrs</think>\n<answer> Cat </answer>"
    assert tagged([said, "cat", "<answer>dog</answer>"], answer=["cat"] * 3) == [1, 1, 0]
    assert form([said, "<answer>cat</answer>", said + "."]) == [1, 0, 0]
    assert thinking.verdict == "tagged_label" and tagged.extract(said) == "cat"
    prompts = [task.rows[0]["prompt"] for task in (direct, thinking)]
    assert all("One of: cat, dog." in prompt for prompt in prompts)
    assert prompts[0].endswith("directly output the answer.\n") and "<think>" in prompts[1]


def test_few_examples_of_each_class_and_other_classes(tmp_path):
    few = classify(TEXTS, LABELS, per_class=2, seed=1)
    assert sorted(row["answer"] for row in few.rows) == ["cat", "cat", "dog", "dog"]
    assert few.rows.to_list() == classify(TEXTS, LABELS, per_class=2, seed=1).rows.to_list()
    assert {row["answer"] for row in classify(TEXTS, LABELS, classes=["dog"]).rows} == {"dog"}
    path = tmp_path / "rows.csv"
    path.write_text("text,label\npurrs,cat\nbarks,dog\n")
    task = wb.task("classify", path=path, thinking=False, chat=True)
    assert len(task) == 2 and task.rows[1]["answer"] == "dog" and task.rows[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"texts": ["a"], "labels": ["x", "y"]}, DataError, "1 texts and 2 labels"),
        ({"texts": ["a", ""], "labels": ["x", "y"]}, DataError, "text 1 must be text"),
        ({"texts": ["a"], "labels": [None]}, DataError, "text 0 has no label"),
        ({"texts": ["a"], "labels": ["x"], "classes": ["x", "z"]}, DataError, "no text has the class 'z'"),
        ({"texts": ["a"], "labels": ["x"], "per_class": 4}, DataError, "per_class=4 asks for more"),
        ({"texts": ["a"], "labels": ["x"], "question": "which?"}, SettingError, "with {text} in it"),
        ({}, SettingError, "needs texts and labels"),
        ({"texts": ["a"], "labels": ["x"], "split": "test"}, SettingError, "no splits"),
    ],
)
def test_what_cannot_be_classified(given, error, match):
    with pytest.raises(error, match=match):
        wb.task("classify", **given)


# -- the temperature by its entropy


def test_entropy_rises_with_the_temperature_and_a_temperature_is_found(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    taus = (0.3, 0.6, 1.0)
    found = entropy_temperature(policy, ["a", "b"], 3.0, temperatures=taus, n=8, max_new_tokens=12)
    entropies = found.frame["entropy"].tolist()
    assert entropies == sorted(entropies) and len(set(entropies)) == 3
    one = policy.sample(["a", "b"], n=8, max_new_tokens=12, temperature=0.6)
    scored = policy.score(one.prompt, one.ids, temperature=0.6)
    mean = np.concatenate([np.asarray(e) for e in scored.entropy]).mean()
    assert entropies[1] == pytest.approx(float(mean), abs=1e-4)
    x = found["temperature"]
    assert entropies[0] < 3.0 < entropies[2] and taus[0] < x < taus[2]
    assert np.interp(x, taus, entropies) == pytest.approx(3.0, abs=0.01)
    assert found.figure.data and "temperature" in repr(found)
    low = entropy_temperature(policy, ["a"], 9.0, temperatures=(0.3, 0.5), n=1, max_new_tokens=2)
    assert low["temperature"] == 0.5 and "Sweep higher ones" in low.notes[0]


def test_a_uniform_policy_has_the_entropy_of_its_vocabulary(tmp_path):
    policy = tiny_policy(tmp_path / "model")
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    found = entropy_temperature(policy, ["a"], 1.0, temperatures=(0.5, 2.0), n=2, max_new_tokens=4)
    assert found.frame["entropy"].tolist() == pytest.approx([math.log(260)] * 2, abs=1e-5)


def test_where_a_line_crosses():
    assert crossing([0.5, 1.0, 1.5], [0.1, 0.2, 0.4], 0.3) == pytest.approx(1.25)
    assert crossing([0.5, 1.0], [0.1, 0.2], 0.3) is None


@pytest.mark.parametrize(
    ("target", "taus", "match"),
    [(0.0, (0.5, 1), "above 0"), (0.3, (1.0,), "two or more"), (0.3, (0, 1), "two or more")],
)
def test_sweeps_that_make_no_sense(target, taus, match, tmp_path):
    policy = tiny_policy(tmp_path / "model")
    with pytest.raises(SettingError, match=match):
        entropy_temperature(policy, ["a"], target, temperatures=taus)
