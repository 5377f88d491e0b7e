"""Evaluation on held-out data: losses on rows; accuracy, pass@k and maj@k on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from itertools import chain

import numpy as np

from workbench import evaluation, keys, rewards
from workbench.methods.context import Context
from workbench.rewards.signature import unwrapped
from workbench.sampling.rollouts import Rollouts
from workbench.update import Outcome

CHUNK = 256
"""completions sampled at once"""
PER_COMPLETION = [
    field.name for field in fields(Rollouts) if str(field.type).startswith("list[") and field.default is MISSING
]
"""the fields of Rollouts that are lists with one entry a completion, and always there"""


def as_eval(outcome: Outcome) -> dict[str, float]:
    """The outcome's metrics under eval/..."""
    return {f"eval/{name}": value for name, value in outcome.metrics.items()}


def evaluate_task(ctx: Context, prepared) -> dict[str, float]:
    """Sample `num_generations_eval` (n) completions of each held-out prompt and score them: see `task_metrics`.

    A completion's draws are keyed by its row and number, not by the step: successive evaluations differ by
    what the policy learned and by nothing else.
    """
    n = ctx.settings.num_generations_eval
    rollouts, logged = sample_all(ctx, prepared, n)
    return task_metrics(prepared.task, rollouts, (n,) if n > 1 else ()) | logged


def sample_all(ctx: Context, prepared, n: int) -> tuple[Rollouts, dict[str, float]]:
    """`n` scored completions of every row of the task, and what its rewards logged, as eval/... (mean over chunks)."""
    made: list[Rollouts] = []
    logged: dict[str, list[float]] = {}
    rows = range(len(prepared.prompts))
    per_chunk = max(1, CHUNK // n)
    for first in rows[::per_chunk]:
        part = sample(ctx, prepared, [(row, 0) for row in rows[first : first + per_chunk]], n, ("eval",))
        for name, value in score(ctx, prepared.task, part).logged_metrics.items():
            logged.setdefault(f"eval/{name}", []).append(value)
        made.append(part)
    whole = join(made)
    whole.group = list(whole.row)
    return whole, {name: float(np.mean(values)) for name, values in logged.items()}


def task_metrics(task, rollouts: Rollouts, ks: Sequence[int]) -> dict[str, float]:
    """Metrics of scored completions, as many of each row of the task.

    eval/accuracy  share of completions that the task's verdict calls right (pass@1)
    eval/pass@k    share of prompts that k draws would solve at least once: the unbiased estimate of Chen et al.
                   2021 (arXiv 2107.03374)
    eval/maj@k     share of prompts that the most frequent answer of k draws solves (Wang et al. 2022, arXiv
                   2203.11171), where the verdict function says what a completion answers: where it has
                   `extract(text)`, which gives the answer, or None for a completion that does not vote
    eval/unjudged  share of completions without a verdict, where there are any; the others are over the rest
    eval/reward, eval/rewards/<name>/mean where there are several, eval/completions/mean_length,
    eval/completions/clipped_ratio, eval/entropy
    """
    verdict = task.rewards[task.reward_names.index(task.verdict)]
    extract = getattr(unwrapped(verdict), "extract", None)
    answers = None if extract is None else [extract(text) for text in rollouts.text]
    found = evaluation.metrics(
        rollouts.rewards[task.verdict], rollouts.reward, rollouts.group, ks=ks, answers=answers
    )
    if len(rollouts.rewards) > 1:
        for name, values in rollouts.rewards.items():
            found[f"eval/rewards/{name}/mean"] = evaluation.mean(values)
    return found | {
        "eval/entropy": float(np.concatenate(rollouts.entropy).mean()),
        "eval/completions/mean_length": float(np.mean([len(ids) for ids in rollouts.ids])),
        "eval/completions/clipped_ratio": float(np.mean([reason == "length" for reason in rollouts.finish_reason])),
    }


def join(parts: Sequence[Rollouts]) -> Rollouts:
    """Scored completions of the same task and settings, one after the other. Groups keep their numbers."""
    first = parts[0]
    lists = {name: [*chain.from_iterable(getattr(part, name) for part in parts)] for name in PER_COMPLETION}
    return replace(
        first,
        **lists,
        rewards={name: np.concatenate([part.rewards[name] for part in parts]) for name in first.rewards},
        reward=np.concatenate([part.reward for part in parts]),
        columns={name: [*chain.from_iterable(part.columns[name] for part in parts)] for name in first.columns},
        pieces={i: piece for part in parts for i, piece in part.pieces.items()},
    )


def sample(
    ctx: Context, prepared, drawn: list[tuple[int, int]], n: int, purpose: tuple, prompts: tuple | None = None
) -> Rollouts:
    """`n` completions of each drawn (row, round) of the task, with the rows' columns; no rewards yet.

    `prompts`: other tokenised prompts than the task's, one for each that is drawn, and further columns by name with a
    value for each. Where there are k prompts for each that is drawn, `n` / k completions are of each of them, in order.
    """
    settings = ctx.settings
    seeds = [
        keys.key(settings.seed, "sample", *purpose, row, number, again) for row, again in drawn for number in range(n)
    ]
    tokens, tags = prompts or ([prepared.prompts[row] for row, _ in drawn], {})
    each_prompt = n * len(drawn) // len(tokens)
    rollouts = ctx.policy.sample_prompts(
        tokens,
        each_prompt,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p or 0.0,
        repetition_penalty=settings.repetition_penalty,
        stop_strings=settings.stop_strings or (),
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
    rollouts.columns |= {name: [value for value in values for _ in range(each_prompt)] for name, values in tags.items()}
    return rollouts


def score(ctx: Context, task, rollouts: Rollouts, step: int = 0) -> rewards.RewardTable:
    """Fill in `rewards` and `reward`; `step` is how many are done. Raises RewardError, naming function and row."""
    progress = rewards.TrainerState(global_step=step, max_steps=ctx.settings.steps)
    table = task.score(rollouts.prompt, rollouts.text, rollouts.ids, rollouts.columns, progress)
    rollouts.rewards, rollouts.reward = table.parts, table.total
    return table
