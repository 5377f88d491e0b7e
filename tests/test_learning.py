"""The shipped model learns by every method, through the public calls: a new format by SFT, a habit by DPO and GRPO."""

from __future__ import annotations

import re

import pytest

import workbench as wb
from workbench.demo import run_demo
from workbench.tasks.sums import correct, make_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny").attach(wb.LoRA(r=16))


def held_out(reward) -> wb.Task:
    return wb.Task(make_rows(32, split="test"), rewards=[reward])


def worked_out(row: dict) -> str:
    """The sum of a row step by step, with the answer in a form the model has never seen."""
    first, *rest = (int(number) for number in re.findall(r"[+-]?\d+", row["sum"]))
    lines = []
    for term in rest:
        lines.append(f"{first}{term:+d}={first + term}")
        first += term
    return " " + "\n".join(lines) + f"\n<answer>{first}</answer>"


def tagged(completions, answer, **kwargs):
    """1.0 where the completion ends in <answer>n</answer> with the right n."""
    found = [re.search(r"<answer>(-?\d+)</answer>\Z", text) for text in completions]
    return [float(match is not None and int(match[1]) == n) for match, n in zip(found, answer, strict=True)]


def test_sft_teaches_a_new_format(policy, tmp_path):
    rows = [{"prompt": row["prompt"], "completion": worked_out(row)} for row in make_rows(960, seed=1)]
    policy.reset()
    run = wb.sft(
        policy, rows, steps=60, batch_size=16, lr=2e-3, eval_dataset=held_out(tagged), eval_steps=60,
        num_generations_eval=4, max_new_tokens=40, out=tmp_path / "r",
    )  # fmt: skip
    list(run)
    accuracy = run.metrics["eval/accuracy"].dropna()
    assert accuracy[0] < 0.05 and accuracy[60] > 0.35
    assert run.store.steps()["seconds"].sum() < 60


def test_dpo_teaches_a_habit(policy, tmp_path):
    policy.reset()
    source = make_rows(200, seed=2)
    drawn = policy.sample([row["prompt"] for row in source], n=4, max_new_tokens=40)
    pairs = []
    for i, row in enumerate(source):
        texts = drawn.text[4 * i : 4 * i + 4]
        right = correct(texts, [row["answer"]] * 4)
        chosen = [text for text, r in zip(texts, right, strict=True) if r and "=" in text]
        rejected = [text for text, r in zip(texts, right, strict=True) if not r]
        if chosen and rejected:
            pairs.append({"prompt": row["prompt"], "chosen": chosen[0], "rejected": rejected[0]})
    run = wb.dpo(
        policy, pairs, steps=30, batch_size=16, lr=3e-4, beta=0.5, eval_dataset=held_out(correct), eval_steps=30,
        num_generations_eval=4, max_new_tokens=40, out=tmp_path / "r",
    )  # fmt: skip
    list(run)
    accuracy = run.metrics["eval/accuracy"].dropna()
    assert accuracy[30] > accuracy[0] + 0.2
    assert run.metrics["rewards/accuracies"].iloc[-5:].mean() > 0.9


def test_the_demo_shows_learning_and_writes_a_report(tmp_path, capsys):
    """Cut to a third of its steps; `make demo` runs all of them."""
    report = run_demo(out=tmp_path / "demo", steps=15)
    run = wb.open(tmp_path / "demo")
    accuracy = run.metrics["eval/accuracy"].dropna()
    assert 0.2 < accuracy[0] < 0.45 and accuracy[15] > accuracy[0] + 0.15
    said = capsys.readouterr().out
    assert "before:" in said and "after:" in said and f"-> {accuracy[15]:.1%}" in said
    page = report.read_text("utf-8")
    assert "<title>demo" in page and "http://" not in page.split("<main")[1].split("<script")[0]
