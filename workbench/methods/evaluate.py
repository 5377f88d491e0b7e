"""Evaluation on held-out data: losses on rows, accuracy and pass@k on a task."""

from __future__ import annotations

import numpy as np

from workbench import keys, rewards
from workbench.evaluation import accuracy, mean_pass_at_k
from workbench.methods.context import Context
from workbench.sampling.rollouts import Rollouts
from workbench.update import Outcome

CHUNK = 256
"""completions sampled at once"""


def as_eval(outcome: Outcome) -> dict[str, float]:
    """The outcome's metrics under eval/..."""
    return {f"eval/{name}": value for name, value in outcome.metrics.items()}


def evaluate_task(ctx: Context, prepared) -> dict[str, float]:
    """Sample `num_generations_eval` completions of each held-out prompt and score them.

    eval/accuracy  share of completions that the task's verdict calls right (pass@1)
    eval/pass@n    share of prompts that n draws would solve at least once: the unbiased estimate of Chen et al.
                   2021 (arXiv 2107.03374), here with all n drawn
    eval/reward, eval/completions/mean_length, eval/completions/clipped_ratio, eval/entropy

    A completion's draws are keyed by its row and number, not by the step: successive evaluations differ by
    what the policy learned and by nothing else.
    """
    task, n = prepared.task, ctx.settings.num_generations_eval
    rollouts = []
    rows = list(range(len(prepared.prompts)))
    per_chunk = max(1, CHUNK // n)
    for first in range(0, len(rows), per_chunk):
        chunk = [(row, 0) for row in rows[first : first + per_chunk]]
        made = sample(ctx, prepared, chunk, n, ("eval",))
        score(ctx, task, made)
        rollouts.append(made)
    reward = np.concatenate([made.reward for made in rollouts])  # (rows * n,)
    verdict = np.concatenate([made.rewards[task.verdict] for made in rollouts])
    lengths = np.concatenate([[len(ids) for ids in made.ids] for made in rollouts])
    cut = np.concatenate([[reason == "length" for reason in made.finish_reason] for made in rollouts])
    entropy = np.concatenate([np.concatenate(made.entropy) for made in rollouts])
    metrics = {"eval/accuracy": accuracy(verdict)}
    if n > 1:
        metrics[f"eval/pass@{n}"] = mean_pass_at_k(verdict, np.repeat(rows, n), n)
    return metrics | {
        "eval/reward": float(np.nanmean(reward)) if not np.isnan(reward).all() else float("nan"),
        "eval/entropy": float(entropy.mean()),
        "eval/completions/mean_length": float(lengths.mean()),
        "eval/completions/clipped_ratio": float(cut.mean()),
    }


def sample(ctx: Context, prepared, drawn: list[tuple[int, int]], n: int, purpose: tuple) -> Rollouts:
    """`n` completions of each drawn (row, round) of the task, with the rows' columns; no rewards yet."""
    settings = ctx.settings
    seeds = [
        keys.key(settings.seed, "sample", *purpose, row, number, again) for row, again in drawn for number in range(n)
    ]
    rollouts = ctx.policy.sample_prompts(
        [prepared.prompts[row] for row, _ in drawn],
        n,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        keys=seeds,
        check=ctx.check,
    )
    rows = prepared.task.rows
    each = [row for row, _ in drawn for _ in range(n)]
    rollouts.row = each
    rollouts.group = [position for position in range(len(drawn)) for _ in range(n)]
    rollouts.sample = [number for _ in drawn for number in range(n)]
    rollouts.prompt = [rows[row]["prompt"] for row in each]
    rollouts.columns = {name: [rows[row].get(name) for row in each] for name in rows.columns if name != "prompt"}
    return rollouts


def score(ctx: Context, task, rollouts: Rollouts, step: int = 0) -> rewards.RewardTable:
    """Fill in `rewards` and `reward`; `step` is how many are done. Raises RewardError, naming function and row."""
    progress = rewards.TrainerState(global_step=step, max_steps=ctx.settings.steps)
    table = task.score(rollouts.prompt, rollouts.text, rollouts.ids, rollouts.columns, progress)
    rollouts.rewards, rollouts.reward = table.parts, table.total
    return table
