"""The demo: GRPO on the shipped model, headless, in about a minute. `workbench demo` and `make demo` run it."""

from __future__ import annotations

import os
from pathlib import Path

import workbench as wb

SETTINGS = dict(steps=45, prompts_per_step=8, group_size=8, max_new_tokens=40, lr=5e-4, eval_steps=15)
HELD_OUT = 40
"""held-out prompts; each is answered eight times at every evaluation"""


def run_demo(*, out: str | os.PathLike = "runs/demo", seed: int = 0, steps: int | None = None) -> Path:
    """Train the shipped model on small sums with GRPO, print what happens, and write a report.

    Returns the path of the report, a self-contained HTML file in the run's folder.
    """
    from workbench.views.report import write_report

    policy = wb.load("tiny").attach(wb.LoRA(r=16))
    train = wb.task("sums", size=512, seed=seed)
    held_out = wb.task("sums", size=HELD_OUT, seed=seed, split="test")
    settings = SETTINGS | ({} if steps is None else {"steps": steps})
    run = wb.grpo(policy, train, eval_dataset=held_out, seed=seed, out=out, **settings)
    print(
        f"GRPO on {policy.origin.model!r}: {len(train)} sums to train on, {len(held_out)} held out,"
        f" {settings['steps']} steps."
    )
    print(f"Everything is recorded in {run.folder}.\n")

    prompts = [row["prompt"] for row in held_out.rows[:3]]
    before = policy.sample(prompts, n=1, max_new_tokens=settings["max_new_tokens"], seed=seed)
    print(f"{'step':>4} {'reward':>7} {'accuracy':>9} {'dead groups':>12} {'entropy':>8} {'tokens':>7} {'seconds':>8}")
    for step in run:
        if step.index == 1:
            print_line(0, run.metrics.loc[0], run.store.steps()["seconds"][0])
        if step.index % 5 == 0 or step.index in (1, settings["steps"]):
            print_line(step.index, step.metrics, step.seconds)
    after = policy.sample(prompts, n=1, max_new_tokens=settings["max_new_tokens"], seed=seed)

    for i, prompt in enumerate(prompts):
        print(f"\n{prompt}\n  before: {one_line(before.text[i])}\n  after:  {one_line(after.text[i])}")
    accuracy = run.metrics["eval/accuracy"].dropna()
    seconds = run.store.steps()["seconds"].sum()
    print(f"\nHeld-out accuracy {accuracy.iloc[0]:.1%} -> {accuracy.iloc[-1]:.1%} in {seconds:.0f} s of steps.")
    report = write_report(run.store, run.folder / "report.html")
    print(f"Report: {report}\nLook again: wb.open({str(run.folder)!r}).  Lessons: workbench lab")
    return report


def print_line(step: int, metrics, seconds: float) -> None:
    """One line of the progress table; what a step did not measure stays blank."""

    def cell(name: str, width: int, form: str) -> str:
        value = metrics.get(name)
        return f"{value:{width}{form}}" if value is not None and value == value else " " * width

    print(
        f"{step:4d} {cell('reward', 7, '.3f')} {cell('eval/accuracy', 9, '.1%')}"
        f" {cell('frac_reward_zero_std', 12, '.0%')} {cell('entropy', 8, '.3f')}"
        f" {cell('completions/mean_length', 7, '.1f')} {seconds:8.2f}",
        flush=True,
    )


def one_line(text: str) -> str:
    """A completion on one line, with control characters made visible."""
    return repr(text)[1:-1]
