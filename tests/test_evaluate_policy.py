"""`wb.evaluate`, and the held-out metrics of a run on a task: the same numbers, each from its definition."""

from __future__ import annotations

import functools
from decimal import Decimal

import numpy as np
import pytest

import workbench as wb
from tests.models import tiny_policy
from workbench import evaluation

N = 4


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def task():
    return wb.task("sums", size=90, split="test")


@pytest.fixture(scope="module")
def found(policy, task):
    return wb.evaluate(policy, task, n=N, max_new_tokens=24)


def test_metrics_follow_from_the_rollouts(found, task):
    rollouts = found.rollouts
    right = rollouts.rewards["correct"].reshape(90, N)  # 90 x 4 > 256: two chunks
    assert rollouts.group == rollouts.row == [row for row in range(90) for _ in range(N)]
    assert rollouts.sample == list(range(N)) * 90
    assert rollouts.prompt == [row["prompt"] for row in task.rows for _ in range(N)]
    assert found.accuracy == found["accuracy"] == right.mean() and 0.05 < found.accuracy < 0.95
    assert found["pass@4"] == right.any(axis=1).mean()
    assert found["pass@1"] == pytest.approx(found.accuracy)
    assert list(found.curve("pass")) == list(found.curve("maj")) == [1, 2, 3, 4]
    assert found["maj@1"] == pytest.approx(found.accuracy)
    assert found.accuracy < found["maj@4"] < found["pass@4"]
    assert found["completions/mean_length"] == np.mean([len(ids) for ids in rollouts.ids])
    assert repr(found).startswith("<Evaluation of 90 prompts, 4 completions each: accuracy ")


def test_the_vote_is_on_what_the_verdict_extracts(found, task):
    answers = [task.rewards[0].extract(text) for text in found.rollouts.text]
    assert None in answers and len(set(answers)) > 10
    votes = [answers[i : i + N] for i in range(0, len(answers), N)]
    values = []
    for row, vote in zip(task.rows, votes, strict=True):
        cast = [answer for answer in vote if answer is not None]
        most = max(map(cast.count, cast), default=0)
        winners = {answer for answer in cast if cast.count(answer) == most}
        values.append((int(row["answer"]) in winners) / len(winners) if winners else 0.0)
    assert found["maj@4"] == pytest.approx(np.mean(values))


def test_a_run_evaluates_to_the_same_numbers(found, policy, task, tmp_path):
    run = wb.grpo(
        wb.load("tiny", dtype="float32", device="cpu"), wb.task("sums", size=8), steps=1, lr=0.0, prompts_per_step=1,
        group_size=2, max_new_tokens=24, num_generations_eval=N, eval_dataset=task, out=tmp_path / "run",
    )  # fmt: skip
    list(run)
    stored = run.metrics.loc[0]
    for name in ("accuracy", "reward", "pass@4", "maj@4", "entropy", "completions/mean_length"):
        assert stored[f"eval/{name}"] == pytest.approx(found[name]), name
    assert "eval/pass@2" not in stored and "eval/unjudged" not in stored


def test_a_supervised_run_can_be_held_to_a_task(tmp_path):
    policy = tiny_policy(tmp_path / "model", lora=True)
    held_out = wb.Task([{"prompt": "1", "answer": "3"}, {"prompt": "2", "answer": "4"}], [wb.rewards.number])
    settings = dict(max_new_tokens=4, num_generations_eval=3, eval_dataset=held_out)
    run = wb.sft(policy, [{"prompt": "1", "completion": "3"}], steps=1, lr=0.0, out=tmp_path / "run", **settings)
    list(run)
    found = wb.evaluate(policy, held_out, n=3, max_new_tokens=4)
    for name in ("accuracy", "pass@3", "maj@3", "entropy"):
        assert run.metrics.loc[1, f"eval/{name}"] == pytest.approx(found[name]), name


def test_the_seed_keys_the_draws(policy, task):
    few = task.rows[:6]
    small = wb.Task(few, task.rewards)
    texts = [wb.evaluate(policy, small, n=2, max_new_tokens=16, seed=seed).rollouts.text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    greedy = wb.evaluate(policy, small, n=2, max_new_tokens=16, temperature=0).rollouts.text
    assert greedy[::2] == greedy[1::2]


def test_parts_and_what_was_not_judged(tmp_path):
    """Several rewards: a mean each. A verdict of None leaves the sample out, and is told. No extract: no vote."""

    def odd(completions, sample_of, log_metric, **kwargs):
        log_metric("asked", len(completions))
        return [None if name == "b" else 1.0 for name in sample_of]

    def size(completions, **kwargs):
        return [2.0] * len(completions)

    rows = [{"prompt": "x", "sample_of": name} for name in "aab"]
    policy = tiny_policy(tmp_path / "model")
    found = wb.evaluate(policy, wb.Task(rows, [odd, size], weights={"size": 0.5}), n=2, max_new_tokens=3)
    assert found["unjudged"] == pytest.approx(1 / 3)
    assert found.accuracy == found["pass@2"] == 1.0 and found.curve("maj") == {}
    assert found["rewards/odd/mean"] == 1.0 and found["rewards/size/mean"] == 2.0
    assert found["reward"] == pytest.approx((4 * 2.0 + 2 * 1.0) / 6) and found["asked"] == 6


def test_a_partial_keeps_what_the_function_extracts(tmp_path):
    verdict = functools.partial(wb.rewards.number, extra=1)
    found = wb.evaluate(
        tiny_policy(tmp_path / "model"), wb.Task([{"prompt": "1", "answer": "3"}], [verdict]), n=2, max_new_tokens=3
    )
    assert set(found.curve("maj")) == {1, 2}


def test_what_makes_no_sense(policy, task):
    for make, words in [
        (lambda: wb.evaluate(task, task), "takes a policy.*Got Task"),
        (lambda: wb.evaluate(policy, [{"prompt": "a"}]), "takes a Task.*Got list"),
        (lambda: wb.evaluate(policy, task, n=0), "n=0 must be a whole number of at least 1"),
        (lambda: wb.evaluate(policy, task, seed=-1), "seed=-1 must be"),
        (lambda: wb.evaluate(policy, task, top_p=0.0, n=1), "top_p"),
        (lambda: wb.evaluate(policy, task, max_new_tokens=0, n=1), "max_new_tokens"),
    ]:
        with pytest.raises(wb.SettingError, match=words):
            make()


# GSM8K by its own verdict


def test_gsm8k_votes_on_numbers(gsm8k_folder):
    task = wb.task("gsm8k", path=gsm8k_folder, split="test", size=2)
    assert [row["answer"] for row in task.rows] == ["18", "3"]
    texts = [r"so \boxed{18} in 3 days", "#### 18.00", "The answer is 20", "no idea"]
    texts += ["It is -3", "3.", "#### 3,000", "The answer is 3 cups."]
    table = task.score([""] * 8, texts, None, {"answer": ["18"] * 4 + ["3"] * 4})
    assert table.total.tolist() == [1, 1, 0, 0, 0, 1, 0, 1]
    answers = [task.rewards[0].extract(text) for text in texts]
    assert answers == [Decimal(18), Decimal(18), Decimal(20), None, Decimal(-3), Decimal(3), Decimal(3000), Decimal(3)]
    found = evaluation.metrics(table.total, table.total, [0] * 4 + [1] * 4, ks=(4,), answers=answers)
    assert found["eval/maj@4"] == 1.0 and found["eval/pass@4"] == 1.0 and found["eval/accuracy"] == 0.5


def test_gsm8k_verdicts_are_the_published_ones(gsm8k_folder):
    """4 models' solutions of the test set, each published with whether it is right; and every worked answer."""
    import json

    tasks = {split: wb.task("gsm8k", path=gsm8k_folder, split=split) for split in ("train", "test")}
    for task in tasks.values():
        assert set(wb.rewards.number(task.rows.column("worked"), task.rows.column("answer"))) == {1.0}
    answer = {row["prompt"]: row["answer"] for row in tasks["test"].rows}
    with open(gsm8k_folder / "example_model_solutions.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    texts = [record[model]["solution"] for record in records for model in models]
    wanted = [record[model]["is_correct"] for record in records for model in models]
    found = wb.rewards.number(texts, [answer[record["question"]] for record in records for _ in models])
    assert len(found) == 5276 and [value == 1.0 for value in found] == wanted


def test_gsm8k_answers_need_a_number(tmp_path):
    from workbench.tasks.gsm8k import reference_answer

    assert reference_answer("9 * 2\n#### 1,007") == "1007" and reference_answer("#### -3") == "-3"
    assert reference_answer("#### none") is None and reference_answer("18") is None
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "so\\n#### many"}\n')
    with pytest.raises(wb.DataError, match="does not end in '#### <number>'"):
        wb.task("gsm8k", path=path)
