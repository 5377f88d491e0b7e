"""Adaptive difficulty grading: questions graded by how this very model does, then a chosen mix of levels (Yu et al.
2025, arXiv 2504.11919).

Each question is sampled n times and checked. Solved ones are level 1; the others get a level by the share that was
solved (`1 - solved / n` in equal bins), or, with a process reward model's score of their trajectories, by that (lower
is harder). Then a mix: a quota for each level, `shares` (those of an evaluation set, or a curriculum w_1 > ... > w_5).
A level that runs short is filled up from the nearest, and that is said. What comes after, solutions by a teacher and a
check of them, is `wb.method("fine_tune_cot")`.

The bins by pass rate are ours: the paper has a process reward model, and its cut points were not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.errors import SettingError
from workbench.evaluate_policy import evaluate
from workbench.policy import Policy
from workbench.selection import parts
from workbench.selection.parts import Selection
from workbench.tasks import Task

LEVELS = 5


def grade(
    policy: Policy,
    task: Task,
    n: int = 8,
    process: Callable[[list[Any], list[str]], Sequence[float]] | None = None,
    **sampling: Any,
) -> list[int]:
    """The level of each row of the task, 1 (easy) to 5.

    `process(prompts, completions)`: scores of the steps of completions, 0 to 1 (best); None: the pass rate.
    `sampling`: what `wb.evaluate` takes (max_new_tokens, temperature, seed). Raises SettingError for a task without a
    verdict on its completions.
    """
    found = evaluate(policy, task, n=n, **sampling).rollouts
    right = np.nan_to_num(np.asarray(found.rewards[task.verdict], dtype=np.float64)) > 0
    solved = np.bincount(found.row, weights=right, minlength=len(task.rows)) / n
    if process is None:
        return levels(solved)
    scores = np.asarray(process(found.prompt, found.text), dtype=np.float64)
    if scores.shape != right.shape or np.isnan(scores).any() or scores.min() < 0 or scores.max() > 1:
        raise SettingError("process must give one number from 0 to 1 for each completion.")
    mean = np.bincount(found.row, weights=scores, minlength=len(task.rows)) / n
    return [
        1 if rate > 0 else 2 + min(LEVELS - 2, int((1 - score) * (LEVELS - 1)))
        for rate, score in zip(solved, mean, strict=True)
    ]


def levels(solved: Sequence[float]) -> list[int]:
    """Levels of pass rates: 1 - rate in five equal bins."""
    return [min(LEVELS, 1 + int((1 - rate) * LEVELS)) for rate in solved]


def mix(
    rows: Any, grades: Sequence[int], k: int, shares: Sequence[float] = (5, 4, 3, 2, 1), seed: int = 0
) -> Selection:
    """`k` rows with so large a share of each level (1 to 5; shares need not add up to 1).

    Raises SettingError where there is not one grade a row, or shares make no sense.
    """
    pool = parts.pool_of(rows)
    k = parts.check_count(k, len(pool))
    if len(grades) != len(pool):
        raise SettingError(f"mix: {len(grades)} grades for {len(pool)} rows; give one a row (of the task's rows).")
    if len(shares) != LEVELS or min(shares) < 0 or not sum(shares) > 0:
        raise SettingError(f"mix: shares={tuple(shares)!r} must be {LEVELS} numbers from 0, not all 0.")
    quotas = quotas_of(k, shares)
    picked, notes = parts.quota_by_bin(list(grades), quotas, seed)
    return Selection(pool, picked, np.asarray(grades, dtype=np.float64), seed, notes)


def quotas_of(k: int, shares: Sequence[float]) -> dict[int, int]:
    """Rows of each level, adding up to k: whole parts first, then the largest remainders."""
    exact = [k * share / sum(shares) for share in shares]
    made = [int(value) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: made[i] - exact[i])[: k - sum(made)]:
        made[i] += 1
    return {level: count for level, count in enumerate(made, 1)}
