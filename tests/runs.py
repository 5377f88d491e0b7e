"""Small runs of every method for the tests: `make_run("grpo", folder, ...)`, and what to compare of two runs."""

from __future__ import annotations

import torch

import workbench as wb
from tests.models import tiny_policy

METHODS = ("sft", "dpo", "grpo")
WORDS = ("red", "green", "blue", "seven", "apples", "of the", "morning", "x", "a longer answer here", "no")


def rows_for(method: str, n: int = 12) -> list[dict]:
    if method == "sft":
        return [{"prompt": f"Say {i}:", "completion": f" {WORDS[i % 10]} {i}"} for i in range(n)]
    if method == "dpo":
        return [
            {"prompt": f"Say {i}:", "chosen": f" {WORDS[i % 10]}", "rejected": f" {WORDS[(i + 3) % 10]}!"}
            for i in range(n)
        ]
    return [{"prompt": f"Say {i}:", "answer": i} for i in range(n)]


def letters(completions, **kwargs):
    """A reward that differs within almost every group of random completions."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def make_run(method: str, folder, policy=None, out="run", **settings):
    """A run over a tiny random model with a LoRA adapter that is not zero. Two updates a step in GRPO, with KL."""
    policy = policy or tiny_policy(folder / "model", lora=True)
    common = dict(steps=6, lr=1e-2, seed=3, snapshot_steps=3, out=folder / out) | settings
    if method == "grpo":
        task = wb.Task(rows_for("grpo"), rewards=[letters])
        common = dict(prompts_per_step=3, group_size=4, max_new_tokens=6, beta=0.05, num_iterations=2) | common
        return wb.grpo(policy, task, **common)
    common = dict(batch_size=4) | common
    return getattr(wb, method)(policy, rows_for(method), **common)


def weights(run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.engine.state.params.items()}


def assert_same_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_metrics(a, b, first: int = 1) -> None:
    """Two metric frames are bit-equal from step `first` on."""
    a, b = a.loc[first:], b.loc[first:]
    assert list(a.index) == list(b.index) and set(a.columns) == set(b.columns)
    assert a.equals(b[a.columns]), (a - b[a.columns]).abs().max().sort_values().tail(5)
