"""Training on real data, GSM8K: what is learned carries over to held-out questions.

`gsm8k_folder` (tests/conftest.py) names the data, and skips these tests where there is none.
"""

from __future__ import annotations

import json

import pytest

import workbench as wb
from tests.models import tiny_policy

pytestmark = pytest.mark.slow

RIGHT, WRONG = ("175b_finetuning", "175b_verification"), ("6b_verification",)
LONGEST = 600
"""characters of an answer; a few run on far beyond that"""


def read(path, limit: int | None = None) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file][:limit]


def test_sft_lowers_the_held_out_loss(gsm8k_folder, tmp_path):
    train, held_out = read(gsm8k_folder / "train.jsonl", 512), read(gsm8k_folder / "test.jsonl", 64)
    rename = {"question": "prompt", "answer": "completion"}
    rows, unseen = wb.rows(train, rename=rename), wb.rows(held_out, rename=rename)
    run = wb.sft(
        wb.load("tiny", dtype="float32", device="cpu"), rows, eval_dataset=unseen, steps=32, batch_size=16, lr=1e-3,
        max_length=96, truncation_mode="keep_end", eval_steps=32, out=tmp_path / "sft",
    )  # fmt: skip
    run.run()
    loss = run.metrics["eval/loss"].dropna()
    assert list(loss.index) == [0, 32]
    assert loss[32] < loss[0] - 2  # nats a token
    accuracy = run.metrics["eval/mean_token_accuracy"]
    assert accuracy[32] > accuracy[0] + 0.1


def pairs(records: list[dict]) -> list[dict]:
    """A right answer of the large model and a wrong one of the small model to the same question, both real.

    The two differ in their number of steps: a trait of the models that a few hundred pairs can show to a model
    that cannot calculate.
    """
    return [
        {"prompt": record["question"].split(". ")[-1] + "\n", "chosen": right, "rejected": wrong}
        for record in records
        for right in (record[name]["solution"] for name in RIGHT if record[name]["is_correct"])
        for wrong in (record[name]["solution"] for name in WRONG if not record[name]["is_correct"])
        if max(len(right), len(wrong)) < LONGEST and right.count("\n") != wrong.count("\n")
    ]


def test_dpo_tells_right_answers_from_wrong_ones_to_held_out_questions(gsm8k_folder, tmp_path):
    records = read(gsm8k_folder / "example_model_solutions.jsonl")
    train, held_out = pairs(records[:880]), pairs(records[880:])
    assert len(train) == 190 and len(held_out) == 87
    # near-uniform at the start, so that it can learn little but what right answers are made of
    policy = tiny_policy(tmp_path / "model", initializer_range=0.02, max_position_embeddings=1024)
    run = wb.dpo(
        policy, train, eval_dataset=held_out, steps=12, batch_size=32, lr=1e-3, max_length=512, eval_steps=12,
        out=tmp_path / "dpo",
    )  # fmt: skip
    run.run()
    last = run.metrics.loc[12]
    assert last["eval/rewards/accuracies"] > 0.6  # 0.72 to 0.78 with other seeds
    assert last["eval/loss"] < 0.65 < run.metrics.loc[0, "eval/loss"]
    assert last["eval/rewards/margins"] > 0
