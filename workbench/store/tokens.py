"""The tokens of stored completions: their numbers, and what their ids stand for.

    pieces    (id, text, special)                the text of each token id that the run's rollouts hold

Views import no tokenizer, so a run keeps the pieces it has met. An older store has no such table; its tokens are
shown by their ids, and the table comes with the next step that is written.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import StoreError

if TYPE_CHECKING:
    from workbench.store.file import Store

Pieces = Mapping[int, tuple[str, bool]]

TABLE = "CREATE TABLE IF NOT EXISTS pieces (id INTEGER PRIMARY KEY, text TEXT NOT NULL, special INTEGER NOT NULL)"

KINDS = ("<i4", "<i4", "<f4", "<f4")
"""of prompt_ids, ids, logprob, entropy"""

PARAMETERS = 900
"""values in one query: some builds of SQLite take no more than 999"""


@dataclass(frozen=True)
class Tokens:
    """One completion: where it stands in the run, its ids, and the sampler's numbers (nats) for each of `ids`."""

    id: int
    step: int
    branch: int
    group: int
    sample: int
    reward: float
    advantage: float
    finish_reason: str
    prompt_ids: np.ndarray
    ids: np.ndarray
    logprob: np.ndarray
    entropy: np.ndarray


def records(store: Store, ids: Sequence[int]) -> list[Tokens]:
    """The completions `ids`, in that order. Raises StoreError for one that is not there."""
    found = {}
    for part in _parts(ids):
        rows = store.query(
            "SELECT r.id, step, branch, group_id, sample, reward, advantage, finish_reason, prompt_ids, ids, logprob,"
            f" entropy FROM rollouts r JOIN tokens t ON t.rollout_id = r.id WHERE r.id IN ({_marks(part)})",
            part,
        )
        for row in rows:
            numbers = [np.frombuffer(blob, kind) for blob, kind in zip(row[8:], KINDS, strict=True)]
            reward, advantage = (math.nan if value is None else value for value in row[5:7])
            found[row[0]] = Tokens(*row[:5], reward, advantage, row[7], *numbers)
    missing = [i for i in ids if i not in found]
    if missing:
        raise StoreError(f"{store.folder} has no rollout {missing[0]}.")
    return [found[i] for i in ids]


def members(store: Store, rollout: int) -> list[int]:
    """The completions of the same prompt in the same step, `rollout` among them, in their order."""
    rows = store.query(
        "SELECT o.id FROM rollouts r JOIN rollouts o ON o.branch = r.branch AND o.step = r.step AND"
        " o.group_id = r.group_id WHERE r.id = ? ORDER BY o.sample, o.id",
        (rollout,),
    )
    return [row[0] for row in rows]


def of_step(store: Store, step: int, branch: int) -> list[int]:
    """The ids of a step's completions, in the order in which `Store.load_rollouts` has them."""
    rows = store.query("SELECT id FROM rollouts WHERE branch = ? AND step = ? ORDER BY id", (branch, step))
    return [row[0] for row in rows]


def pieces(store: Store, ids: Iterable[int]) -> dict[int, tuple[str, bool]]:
    """Text and whether it is special, of those `ids` that the store knows."""
    if not store.query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pieces'"):
        return {}
    made = {}
    for part in _parts([int(i) for i in ids]):
        for i, text, special in store.query(f"SELECT id, text, special FROM pieces WHERE id IN ({_marks(part)})", part):
            made[i] = (text, bool(special))
    return made


def add_pieces(db: sqlite3.Connection, pieces: Pieces) -> None:
    """Note the pieces that are new, within the transaction that is open."""
    db.execute(TABLE)
    rows = [(i, text, int(special)) for i, (text, special) in pieces.items()]
    db.executemany("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)", rows)


def _parts(ids: Sequence[int]) -> list[list[int]]:
    return [list(map(int, ids[i : i + PARAMETERS])) for i in range(0, len(ids), PARAMETERS)]


def _marks(part: Sequence[int]) -> str:
    return ", ".join("?" * len(part))
