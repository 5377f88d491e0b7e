"""What people chose between answers: one SQLite file, `labels.db`, in which each choice is committed by itself.

    choices   a row a choice: what was asked, whole, and what was chosen; (item, round, rater) is unique, so that two
              views on one file count nothing twice

An item is known by the hash of its content. Of a pair `first` and `second` are its two answers in the order of their
text, `on_left` says which of them stood on the left, and `choice` is "first", "second", "tie" or "skip"; a mark is
"good", "bad" or "skip". Round 1 asks a pair again with its sides changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError, StoreError
from workbench.store.file import _use_wal, to_json

if TYPE_CHECKING:
    import pandas as pd

FILE = "labels.db"
PAIR, MARK = ("first", "second", "tie", "skip"), ("good", "bad", "skip")
SCHEMA = """
CREATE TABLE IF NOT EXISTS choices (id INTEGER PRIMARY KEY, item TEXT NOT NULL, round INTEGER NOT NULL,
    rater TEXT NOT NULL, mode TEXT NOT NULL, choice TEXT NOT NULL, on_left TEXT NOT NULL, prompt TEXT NOT NULL,
    first TEXT NOT NULL, second TEXT, facts TEXT NOT NULL, columns TEXT NOT NULL, seconds REAL, seed INTEGER NOT NULL,
    place INTEGER NOT NULL, session TEXT NOT NULL, created REAL NOT NULL, UNIQUE (item, round, rater));
"""
COLUMNS = (
    "id", "item", "round", "rater", "mode", "choice", "on_left", "prompt", "first", "second", "facts", "columns",
    "seconds", "seed", "place", "session", "created",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """Something to choose on: a prompt with two answers (in the order of their text), or with one to mark.

    `facts`: of each answer what is known, such as its `reward`, `step` and `finish_reason`. `columns`: further columns
    of the row, which its training rows keep.
    """

    prompt: Any
    answers: tuple[Any, ...]
    facts: tuple[dict[str, Any], ...]
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        return "pair" if len(self.answers) == 2 else "mark"

    @property
    def key(self) -> str:
        return content_hash([self.prompt, list(self.answers)])


def content_hash(value: Any) -> str:
    """The same for equal content, in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


class Labels(Sequence):
    """The choices in a folder, to read. A sequence of training rows: `wb.dpo(policy, labels)` takes it as it is.

    `pairs`: rows prompt, chosen, rejected; `marks`: rows prompt, completion, label (for `wb.kto`); `good`: rows prompt,
    completion of the answers marked good (for `wb.sft`). Ties and skips are in none of them, nor is what was asked
    twice and answered differently. Each row names its `rater` if one was given. Raises StoreError when there is no
    labels.db in the folder.
    """

    def __init__(self, folder: str | os.PathLike, write: bool = False):
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self._lock = threading.RLock()
        if not write and not self.path.exists():
            raise StoreError(
                f"There is no {FILE} in {self.folder}. wb.label(rollouts, out={str(self.folder)!r}) makes one."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, check_same_thread=False, timeout=30, isolation_level=None)
            if write:
                _use_wal(self._db, self.folder)
                self._db.execute("PRAGMA synchronous=FULL")  # a person's answer is never lost
                self._db.executescript(SCHEMA)
            self._db.execute("SELECT id FROM choices LIMIT 1").fetchone()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.path} is not a readable file of choices ({error}).") from error

    # -- writing ---------------------------------------------------------------------------------------------

    def add(
        self, item: Item, choice: str, *, round: int = 0, rater: str = "", on_left: str = "",
        seconds: float | None = None, seed: int = 0, place: int = 0, session: str = "",
    ) -> bool:  # fmt: skip
        """Commit one choice; False when this rater had answered it already, which changes nothing."""
        allowed = PAIR if item.mode == "pair" else MARK
        if choice not in allowed:
            raise DataError(f"choice={choice!r}: on a {item.mode} it is one of {', '.join(allowed)}.")
        answers = [to_json(answer) for answer in item.answers] + [None]
        values = (
            item.key, round, rater, item.mode, choice, on_left, to_json(item.prompt), answers[0], answers[1],
            to_json(item.facts), to_json(item.columns), seconds, seed, place, session, time.time(),
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        sql = f"INSERT OR IGNORE INTO choices ({', '.join(COLUMNS[1:])}) VALUES ({marks})"
        return self._run(sql, values).rowcount == 1

    def undo(self, rater: str, session: str, since: float) -> tuple[str, int] | None:
        """Take back the last choice of this session, or else the last one made before `since`; (item, round) of it."""
        sql = (
            "SELECT id, item, round FROM choices WHERE rater = ? AND (session = ? OR created < ?)"
            " ORDER BY session = ? DESC, id DESC LIMIT 1"
        )
        with self._lock:
            found = self._run(sql, (rater, session, since, session)).fetchone()
            if found is None:
                return None
            self._run("DELETE FROM choices WHERE id = ?", (found[0],))
        return found[1], found[2]

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _run(self, sql: str, values: Sequence = ()) -> sqlite3.Cursor:
        with self._lock:
            try:
                return self._db.execute(sql, values)
            except sqlite3.Error as error:
                raise StoreError(f"{self.path}: {error}. The choices made so far are intact.") from error

    # -- reading ---------------------------------------------------------------------------------------------

    def answered(self, rater: str = "") -> dict[tuple[str, int], str]:
        """(item, round) -> choice, of one rater."""
        sql = "SELECT item, round, choice FROM choices WHERE rater = ?"
        return {(item, number): choice for item, number, choice in self._run(sql, (rater,))}

    def records(self, mode: str | None = None, names: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
        """All choices in the order they were made, with the columns `names`."""
        sql = f"SELECT {', '.join(names)} FROM choices WHERE mode = ? OR ? IS NULL ORDER BY id"
        records = [dict(zip(names, row, strict=True)) for row in self._run(sql, (mode, mode))]
        for record in records:
            for name in set(names) & {"prompt", "first", "second", "facts", "columns"}:
                record[name] = None if record[name] is None else json.loads(record[name])
        return records

    def to_pandas(self) -> pd.DataFrame:
        """One line a choice, with `seconds` it took, the side, and the rewards of both answers where known."""
        import pandas as pd

        frame = pd.DataFrame(self.records(), columns=list(COLUMNS))
        rewards = [[fact.get("reward", math.nan) for fact in facts] + [math.nan] for facts in frame.pop("facts")]
        return frame.assign(reward_first=[r[0] for r in rewards], reward_second=[r[1] for r in rewards])

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Rows prompt, chosen, rejected."""
        rows = []
        for record, choice in self._settled("pair"):
            if choice in ("first", "second"):
                other = "second" if choice == "first" else "first"
                rows.append(_row(record, chosen=record[choice], rejected=record[other]))
        return rows

    @property
    def marks(self) -> list[dict[str, Any]]:
        """Rows prompt, completion, label."""
        return [
            _row(record, completion=record["first"], label=choice == "good")
            for record, choice in self._settled("mark")
            if choice != "skip"
        ]

    @property
    def good(self) -> list[dict[str, Any]]:
        """Rows prompt, completion of what was marked good."""
        return [{name: row[name] for name in row if name != "label"} for row in self.marks if row["label"]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The pairs, or the marks, whichever there are. Raises DataError when there are both."""
        pairs, marks = self.pairs, self.marks
        if pairs and marks:
            raise DataError(f"{self.path} has both pairs and marks: take labels.pairs or labels.marks.")
        return pairs or marks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def _settled(self, mode: str) -> list[tuple[dict[str, Any], str]]:
        """The first record of each item and rater, and the choice; without those answered in two ways."""
        asked: dict[tuple[str, str], list[dict]] = defaultdict(list)
        for record in self.records(mode):
            asked[record["item"], record["rater"]].append(record)
        made = []
        for records in asked.values():
            said = {record["choice"] for record in records if record["choice"] != "skip"}
            if len(said) <= 1:
                made.append((records[0], said.pop() if said else "skip"))
        return made

    def agreement(self, rater: str | None = None) -> dict[str, tuple[int, int]]:
        """How often, and of how many choices: `reward`: of a pair, the answer with the higher reward was preferred;
        `self`: a pair that was asked twice was answered alike; `left`: the answer on the left was preferred (about half
        is to be expected); `good`: an answer was marked good. `rater`: of one rater alone."""
        of: dict[str, list[bool]] = {"reward": [], "self": [], "left": [], "good": []}
        twice: dict[tuple[str, str], list[str]] = defaultdict(list)
        for record in self.records(names=("item", "rater", "mode", "choice", "on_left", "facts")):
            if rater is not None and record["rater"] != rater:
                continue
            choice = record["choice"]
            if choice != "skip" and record["mode"] == "pair":
                twice[record["item"], record["rater"]].append(choice)
            if choice in ("good", "bad"):
                of["good"].append(choice == "good")
            if choice in ("first", "second"):
                of["left"].append(record["on_left"] == choice)
                first, second = (fact.get("reward") for fact in record["facts"])
                if _number(first) and _number(second) and first != second:
                    of["reward"].append((first > second) == (choice == "first"))
        of["self"] = [len(set(choices)) == 1 for choices in twice.values() if len(choices) > 1]
        return {name: (sum(values), len(values)) for name, values in of.items()}

    def __repr__(self) -> str:
        counts = dict(self._run("SELECT choice, count(*) FROM choices GROUP BY choice").fetchall())
        return f"<Labels: {', '.join(f'{n} {name}' for name, n in counts.items()) or 'no choice yet'}; in {self.path}>"


def _row(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    rater = {"rater": record["rater"]} if record["rater"] else {}
    prompt = {"prompt": record["prompt"]} if record["prompt"] else {}
    return prompt | values | record["columns"] | rater


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
