"""Reasoning at several strengths of an adapter: rows with chains of different lengths, and what strength does to
accuracy and length (CoT-Valve, Ma et al. 2025, arXiv 2502.09601)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench import worker
from workbench.adapters.scaling import scaled
from workbench.errors import DataError, SettingError
from workbench.tasks import Task

if TYPE_CHECKING:
    import pandas as pd


def acu(accuracy: float, parameters: float, tokens: float) -> float:
    """Accuracy per computation unit: accuracy / (parameters * tokens of an answer). Its unit is that of what is given:
    the paper has percent, billions of parameters and tokens."""
    if parameters <= 0 or tokens <= 0:
        raise SettingError(f"acu: parameters={parameters!r} and tokens={tokens!r} must be above 0.")
    return accuracy / (parameters * tokens)


@worker.on_worker
def mix_chain(
    policy: Any,
    task: Task,
    strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """MixChain: right answers of different lengths to the same questions, sampled at several strengths of the adapter.

    At each of `strengths`, `n` completions of every prompt of `task` are drawn, and those kept that the task's verdict
    calls right and that ended by themselves; equal ones once. Returns rows for `wb.method("valve")`: the task's
    columns, `completion`, `strength` (at which it was drawn), `tokens`; questions in order, the longest chain first.
    Raises DataError where nothing was right. The same seed is used at every strength, so that a chain changes with the
    strength alone.
    """
    rows, seen = [], set()
    for strength in strengths:
        made, right = _drawn(policy, task, strength, n, max_new_tokens, temperature, seed)
        for i, text in enumerate(made.text):
            if right[i] and made.finish_reason[i] != "length" and (made.row[i], text) not in seen:
                seen.add((made.row[i], text))
                kept = {"completion": text, "strength": float(strength), "tokens": len(made.ids[i])}
                rows.append((made.row[i], {**task.rows[made.row[i]], **kept}))
    if not rows:
        raise DataError(f"mix_chain: no completion at strengths {list(strengths)} was right and came to an end.")
    return [row for _, row in sorted(rows, key=lambda one: (one[0], -one[1]["tokens"]))]


@worker.on_worker
def valve_curve(
    policy: Any,
    task: Task,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy and length against the strength of the adapter: a row for each of `strengths`.

    `n` completions of every prompt of `task`. Columns: strength, accuracy (share that the task's verdict calls right),
    tokens (mean of an answer), clipped (share that reached max_new_tokens), acu (accuracy in percent / (billions of
    parameters * tokens)).
    """
    import pandas as pd

    size, found = sum(p.numel() for p in policy.model.parameters()) / 1e9, []
    for strength in strengths:
        made, right = _drawn(policy, task, strength, n, max_new_tokens, temperature, seed)
        accuracy, tokens = sum(right) / len(right), sum(map(len, made.ids)) / len(made.ids)
        clipped = sum(reason == "length" for reason in made.finish_reason) / len(right)
        found.append((float(strength), accuracy, tokens, clipped, acu(100 * accuracy, size, tokens)))
    return pd.DataFrame(found, columns=["strength", "accuracy", "tokens", "clipped", "acu"])


def _drawn(policy: Any, task: Task, strength: float, n: int, max_new_tokens: int, temperature: float, seed: int):
    """Completions at a strength, and which of them are right."""
    prompts = task.rows.column("prompt")
    with scaled(policy, strength):
        made = policy.sample(prompts, n, max_new_tokens, temperature, seed=seed)
    columns = {name: task.rows.column(name) for name in task.rows.columns if name not in ("prompt", "completion")}
    columns = {name: [values[row] for row in made.row] for name, values in columns.items()}
    table = task.score(made.prompt, made.text, made.ids, columns)
    return made, [value is not None and value >= 1 for value in table.parts[task.verdict]]
