"""Many examples of one task in one row, every answer of which is trained (ManyICL), and the loss by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workbench import keys
from workbench.errors import DataError, SettingError
from workbench.transforms import parts

SEPARATOR = "\n\n"


def many_shot(
    rows: Any,
    shots: int = 8,
    task_column: str | None = None,
    separator: str = SEPARATOR,
    end: str = "",
    orders: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows with `prompt` and `completion` gathered into rows of `shots` examples: x1 y1 x2 y2 ... xn yn.

    Every y trains (with `end`, the tokenizer's end token, after it), no x and no separator does, and the examples of a
    row see those before them. Where rows have the column `task_column`, a row holds examples of one task only; without
    it all are of one. Rows are shuffled within their task before they are gathered, `orders` times over: with
    `orders=3` each example stands in three rows, in other company. What is left over makes a shorter row. `shots=1`
    returns the rows as they were. The columns of a result are `segments` and the task; a row's `weight` becomes that of
    its answer. Raises DataError for rows that are not plain text, and where the task column is missing.
    """
    for name, value in (("shots", shots), ("orders", orders)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingError(f"{name}={value!r}: give a whole number from 1.")
    found = parts.read(rows)
    if shots == 1:
        return found
    made = []
    for order in range(orders):
        for task, members in _tasks(found, task_column).items():
            shuffled = keys.permutation(keys.key(seed, "many_shot", order, str(task)), len(members))
            picked = [members[place] for place in shuffled.tolist()]
            for first in range(0, len(picked), shots):
                row = {"segments": _layout(found, picked[first : first + shots], separator, end)}
                made.append(row if task_column is None else row | {task_column: task})
    return made


def _tasks(rows: list[dict[str, Any]], column: str | None) -> dict[Any, list[int]]:
    """Task -> the numbers of its rows."""
    tasks: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        if column is not None and not isinstance(row.get(column), (str, int)):
            raise DataError(
                f"row {index} (counting from 0): the column {column!r} holds {parts.shown(row.get(column))}, not the"
                " name of a task. Give task_column=None where all rows are of one task."
            )
        tasks.setdefault(None if column is None else row[column], []).append(index)
    return tasks


def _layout(rows: list[dict[str, Any]], members: Sequence[int], separator: str, end: str) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    for place, index in enumerate(members):
        asked, answer = (parts.plain(rows[index], name, index, "many_shot") for name in ("prompt", "completion"))
        segments.append({"text": (separator if place else "") + asked, "train": False})
        trained = {"text": answer if answer.endswith(end) else answer + end, "train": True}
        segments.append(trained | ({"weight": rows[index]["weight"]} if "weight" in rows[index] else {}))
    return segments


def prompt(shots: Any, question: str, separator: str = SEPARATOR, end: str = "") -> str:
    """A question after examples, laid out as in training and the last answer left blank: what to sample from."""
    found = parts.read(shots) if shots else []
    before = "".join(segment["text"] for segment in _layout(found, range(len(found)), separator, end))
    return before + separator + question if before else question


def loss_by_shot(
    policy: Any, rows: Any, shots: int = 8, separator: str = SEPARATOR, seed: int = 0, **how: Any
) -> list[float]:
    """The mean loss of a token of the k-th answer, for k = 1 to `shots`: it must fall with k if examples help.

    The rows are gathered as `many_shot` does it (`how`: its other settings; answers end in the policy's end token) and
    each answer is scored after all that stands before it, so the work grows with the square of `shots`.
    """
    end = policy.tokenizer.eos_token or ""
    gathered = many_shot(rows, max(2, shots), separator=separator, end=end, seed=seed, **how)
    before, answers, places = [], [], []
    for row in gathered:
        text = ""
        for place, segment in enumerate(row["segments"]):
            if segment["train"]:
                before.append(text)
                answers.append(segment["text"])
                places.append(place // 2)
            text += segment["text"]
    scores = policy.score(before, answers)
    total, count = [0.0] * shots, [0] * shots
    for place, logprob in zip(places, scores.logprob, strict=True):
        if place < shots:
            total[place] -= float(logprob.sum())
            count[place] += len(logprob)
    return [a / b if b else math.nan for a, b in zip(total, count, strict=True)]
