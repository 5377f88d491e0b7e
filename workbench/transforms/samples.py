"""A policy's own answers to rows, each judged right or wrong: what several row transforms are built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.errors import DataError
from workbench.evaluation import RIGHT
from workbench.tasks import Task


def judged(
    policy: Any, rows: Any, verdict: Callable | None = None, *, n: int = 4, seed: int = 0, **sampling: Any
) -> list[list[tuple[str, bool]]]:
    """For each row `n` samples of the policy, as (text, whether it is right).

    `rows`: a Task, judged by its verdict, or rows with a `prompt` and a reward function `verdict` (TRL's signature;
    right is 1.0 or more). `sampling` goes to `policy.sample`. Raises DataError where nothing can judge, or where the
    verdict of a sample is None.
    """
    if not isinstance(rows, Task) and verdict is None:
        raise DataError("Samples of rows need a verdict: a reward function that gives 1.0 where an answer is right.")
    task = rows if isinstance(rows, Task) and verdict is None else Task(getattr(rows, "rows", rows), [verdict])
    prompts = task.rows.column("prompt")
    rollouts = policy.sample(prompts, n=n, seed=seed, **sampling)
    columns = {name: task.rows.column(name) for name in task.rows.columns if name != "prompt"}
    columns = {name: [values[row] for row in rollouts.row] for name, values in columns.items()}
    table = task.score([prompts[row] for row in rollouts.row], rollouts.text, rollouts.ids, columns)
    made: list[list[tuple[str, bool]]] = [[] for _ in prompts]
    for row, text, value in zip(rollouts.row, rollouts.text, table.parts[task.verdict], strict=True):
        if value != value:
            raise DataError(f"{task.rows.where(row)}: the verdict {task.verdict!r} gives None, not right or wrong.")
        made[row].append((text, bool(value >= RIGHT)))
    return made
