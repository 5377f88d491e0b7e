"""What the rollout browser asks of a store: numbers of all rollouts at once, texts only of those that are looked at.

A hundred thousand rollouts are a few megabytes of numbers and tens of megabytes of text, so the first come as numpy
columns in one query, and the second by id. Rollouts only ever grow, and their ids with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import StoreError
from workbench.store.file import ROLLOUT_COLUMNS, Store

NUMBERS = ("id", "step", "branch", "group_id", "sample", "row", "reward", "advantage", "n_tokens")
TEXTS = ("prompt", "completion")
_FLOATS = ("reward", "advantage")


def numbers(store: Store, since: int = 0) -> dict[str, np.ndarray]:
    """The rollouts of all branches with an id above `since`, by id: name -> (N,).

    The columns of NUMBERS, `finish_reason` as objects, and `rewards/<name>` as float64, NaN where a reward is missing.
    """
    found = store.query(
        f"SELECT {', '.join(NUMBERS)}, finish_reason, rewards FROM rollouts WHERE id > ? ORDER BY id", (since,)
    )
    values = list(zip(*found, strict=True)) if found else [()] * (len(NUMBERS) + 2)
    made = {
        name: np.array(values[i], dtype="f8" if name in _FLOATS else "i8")  # NULL becomes NaN
        for i, name in enumerate(NUMBERS)
    }
    made["finish_reason"] = np.array(values[-2], dtype=object)
    parts = _listed(values[-1])
    for name in dict.fromkeys(name for part in parts for name in part):
        made[f"rewards/{name}"] = np.array([part.get(name) for part in parts], dtype="f8")
    return made


def first(store: Store, count: int) -> list[dict[str, Any]]:
    """The first `count` rollouts of the line to the present branch, whole (see `whole`)."""
    where, values = store._on_path(None)
    sql = f"SELECT {', '.join(ROLLOUT_COLUMNS)} FROM rollouts WHERE {where} ORDER BY id LIMIT ?"
    return [_record(row) for row in store.query(sql, [*values, count])]


def count(store: Store) -> int:
    """How many rollouts the line to the present branch has."""
    where, values = store._on_path(None)
    return store.query(f"SELECT count(*) FROM rollouts WHERE {where}", values)[0][0]


def whole(store: Store, ids: Sequence[int]) -> list[dict[str, Any]]:
    """All that is stored of these rollouts but their tokens, in the order of `ids`; reward parts as `rewards/<name>`.

    Raises StoreError for an id that the store has not got.
    """
    sql = f"SELECT {', '.join(ROLLOUT_COLUMNS)} FROM rollouts WHERE id IN ({_marks(ids)})"
    found = {row[0]: _record(row) for row in store.query(sql)}
    if missing := [i for i in ids if i not in found]:
        raise StoreError(f"{store.folder} has no rollout {missing[0]}.")
    return [found[i] for i in ids]


def texts(store: Store, name: str, ids: Sequence[int] | None = None, limit: int | None = None) -> list[str]:
    """The prompts or the completions (`name`) of `ids`, in that order; of all rollouts, by id, where `ids` is None.

    `limit`: only so many characters of each.
    """
    wanted = name if limit is None else f"substr({name}, 1, {int(limit)})"
    if ids is None:
        return [text for (text,) in store.query(f"SELECT {wanted} FROM rollouts ORDER BY id")]
    found = dict(store.query(f"SELECT id, {wanted} FROM rollouts WHERE id IN ({_marks(ids)})"))
    return [found[i] for i in ids]


def columns(store: Store) -> list[str]:
    """Names of the further columns that rows brought along, as the first rollout of each step has them."""
    first_of_each = "SELECT min(id) FROM rollouts GROUP BY branch, step"
    found = store.query(f"SELECT columns FROM rollouts WHERE id IN ({first_of_each}) ORDER BY id")
    return list(dict.fromkeys(name for column in _listed([text for (text,) in found]) for name in column))


def column(store: Store, name: str) -> list[Any]:
    """One further column of all rollouts, by id; None where a rollout has none."""
    found = store.query("SELECT columns FROM rollouts ORDER BY id")
    return [part.get(name) for part in _listed([text for (text,) in found])]


def last(store: Store) -> tuple[int, int]:
    """What changes when the rollouts do: the last id, and the present branch. Cheap enough to ask every second."""
    return store.query("SELECT COALESCE(MAX(id), 0) FROM rollouts")[0][0], store.branch


def gone(store: Store, steps: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """Which of the rollouts, by step and branch (N,), belong to steps given up by a rewind: bool (N,)."""
    counts = np.zeros(len(steps), dtype=bool)
    for branch, limit in store.path_to():
        counts |= (branches == branch) & (steps <= limit)
    return ~counts


def _listed(texts: Sequence[str]) -> list[dict[str, Any]]:
    return json.loads(f"[{','.join(texts)}]")  # one call for all: three times as fast as one for each


def _marks(ids: Sequence[int]) -> str:
    return ", ".join(str(int(i)) for i in ids)


def _record(row: tuple) -> dict[str, Any]:
    made = dict(zip(ROLLOUT_COLUMNS, row, strict=True))
    parts, further = json.loads(made.pop("rewards")), json.loads(made.pop("columns"))
    for name in _FLOATS:
        made[name] = math.nan if made[name] is None else made[name]
    made |= {f"rewards/{name}": math.nan if value is None else value for name, value in parts.items()}
    return made | {name: value for name, value in further.items() if name not in made}
