"""Rollouts as columns, of a run's store or of a DataFrame: what the browser sorts, filters and searches.

A position is a rollout's place in the order as stored, from 0. Numbers are in memory as numpy columns; texts of a store
are read when they are looked at, and kept only once something looks through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import DataError
from workbench.store import Store
from workbench.store import rollouts as stored
from workbench.text import clean
from workbench.views import filters
from workbench.views.text import one_line, whole

TEXTS = ("prompt", "completion")
FIRST = ("step", "group_id", "prompt", "completion", "reward")
LAST = ("advantage", "finish_reason", "n_tokens")
INNER = {"id", "branch", "sample", "row", "prompt_ids", "ids", "logprob", "entropy"}
"""columns that only the whole record of a completion shows"""
ARRAYS = {"prompt_ids", "ids", "logprob", "entropy"}
CELL = 180
"""characters of a text that a row of the table has"""


class Records:
    """Rollouts of a frame; `StoreRecords` reads those of a store. `prompts`: the prompts as rows have them (a text or
    messages), where the column `prompt` has them as the model reads them."""

    unscored: set[str] = set()
    """columns that hold nothing, as nobody scored the rollouts"""

    def __init__(self, frame: pd.DataFrame, prompts: Sequence[Any] | None = None):
        names = [clean(str(name)) for name in frame.columns]
        frame = frame.set_axis(names, axis=1)
        self.frame = frame.loc[:, ~frame.columns.duplicated()].reset_index(drop=True)
        self.prompts = prompts
        if len(self.frame):
            self.unscored = {n for n in ("reward", "advantage") if n in self.frame and self.frame[n].isna().all()}
        self.names = list(self.frame.columns)
        self._columns: dict[str, np.ndarray] = {}
        self._lowered: list[list[str]] | None = None
        self._orders: dict[str, np.ndarray] = {}
        self.gone = np.zeros(len(self.frame), dtype=bool)
        own = self.frame["id"] if "id" in self.frame and self.is_number("id") else None
        ids = np.arange(len(self.frame)) if own is None or not own.is_unique else own.to_numpy()
        self.ids = ids.astype("i8")

    def __len__(self) -> int:
        return len(self.ids)

    # -- columns ---------------------------------------------------------------------------------------------

    def column(self, name: str) -> np.ndarray:
        """All values of a column, (N,): numbers as they are, float64 where some are missing, else objects."""
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def _read(self, name: str) -> np.ndarray:
        return as_array(self.frame[name])

    def is_number(self, name: str) -> bool:
        if name in TEXTS or name == "finish_reason":
            return False
        return self.column(name).dtype.kind in "iuf"

    @property
    def shown(self) -> list[str]:
        """The columns that a row of the table shows unless others are chosen."""
        parts = [name for name in self.names if name.startswith("rewards/")]
        picked = [*(n for n in FIRST if n in self.names), *parts, *(n for n in LAST if n in self.names)]
        picked = [name for name in picked if name not in self.unscored]
        if set(TEXTS) & set(picked):
            return picked
        return [n for n in self.names if n not in INNER][:8] or self.names[:8]

    @property
    def choosable(self) -> list[str]:
        return list(dict.fromkeys([*self.shown, *(name for name in self.names if name not in ARRAYS)]))

    def previews(self, name: str, positions: np.ndarray) -> list[str]:
        """A column's values as one line of visible text each."""
        return [one_line(v if isinstance(v, str) else whole(v), CELL) for v in self.column(name)[positions]]

    def groups(self) -> np.ndarray:
        """A number for each rollout's group, (N,): neighbours in order differ by one."""
        if not hasattr(self, "_groups") or len(self._groups) != len(self):
            by = [name for name in ("branch", "step", "group_id") if name in self.names]
            if "group_id" not in by:
                by = ["prompt"] if "prompt" in self.names else []
            keys = pd.DataFrame({name: pd.Series(_hashable(self.column(name))) for name in by})
            numbered = keys.groupby(by, sort=False, dropna=False).ngroup().to_numpy() if by and len(self) else None
            self._groups = np.zeros(len(self), dtype="i8") if numbered is None else numbered.astype("i8")
        return self._groups

    def finish_reasons(self) -> set[str]:
        """The finish reasons that occur."""
        values = self.column("finish_reason") if "finish_reason" in self.names else ()
        return {v for v in values if isinstance(v, str)}

    def tasks(self, position: int) -> np.ndarray:
        """Positions of all rollouts of the same task: of the same row, or with the same prompt."""
        if "row" in self.names and "step" in self.names and self.is_number("row"):
            rows = self.column("row")
            return np.flatnonzero(rows == rows[position])
        if "prompt" not in self.names:
            return np.array([position])
        prompts = _hashable(self.column("prompt"))
        return np.flatnonzero(np.fromiter((p == prompts[position] for p in prompts), bool, len(prompts)))

    # -- choosing --------------------------------------------------------------------------------------------

    def find(self, text: str) -> np.ndarray:
        """Which prompts or completions contain `text`, without regard to case: bool (N,)."""
        low = text.lower()
        if self._lowered is None:
            names = [n for n in TEXTS if n in self.names] or [n for n in self.names if not self.is_number(n)]
            self._lowered = [[(v if isinstance(v, str) else whole(v)).lower() for v in self.column(n)] for n in names]
        made = np.zeros(len(self), dtype=bool)
        for column in self._lowered:
            made |= np.fromiter((low in v for v in column), bool, len(column))
        return made

    def fits(self, expression: str) -> np.ndarray:
        """Which rollouts fit a filter: bool (N,). Raises DataError for one that cannot be read."""
        return filters.mask(expression, self.column, self.names, len(self))

    def order(self, name: str | None, descending: bool) -> np.ndarray:
        """All positions, sorted by a column; equal ones in the order as stored, those without a value last."""
        if name is None or name not in self.names:
            return np.arange(len(self))
        key = f"{name}/{descending}"
        if key not in self._orders:
            self._orders[key] = self._sorted(name, descending)
        return self._orders[key]

    def _sorted(self, name: str, descending: bool) -> np.ndarray:
        values = self.column(name)
        if self.is_number(name):
            numbers = values.astype("f8")
            return np.argsort(-numbers if descending else numbers, kind="stable")  # NaN comes last
        texts = [None if v is None or v != v else v if isinstance(v, str) else whole(v) for v in _hashable(values)]
        known = [i for i, text in enumerate(texts) if text is not None]
        known.sort(key=texts.__getitem__, reverse=descending)  # stays stable when it is turned round
        return np.array(known + [i for i, text in enumerate(texts) if text is None], dtype="i8")

    # -- whole rollouts --------------------------------------------------------------------------------------

    def records(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """All that is known about these rollouts, as stored."""
        made = [{n: self.column(n)[i] for n in self.names if n not in ARRAYS} for i in positions]
        return [{"id": int(self.ids[i])} | record for i, record in zip(positions, made, strict=True)]

    def texts(self, name: str, positions: Sequence[int]) -> list[str]:
        """The prompts or completions of these rollouts, whole; "" where there is none."""
        if name not in self.names:
            return [""] * len(positions)
        values = self.column(name)
        return [v if isinstance(v, str) else "" if v is None or v != v else whole(v) for v in values[list(positions)]]

    def raw_prompts(self, positions: Sequence[int]) -> list[Any]:
        """Prompts as rows have them: texts, or lists of messages."""
        if self.prompts is None and "prompt" not in self.names:
            return [""] * len(positions)
        source = self.column("prompt") if self.prompts is None else self.prompts
        return [source[i] for i in positions]

    def to_pandas(self, positions: np.ndarray) -> pd.DataFrame:
        return self.frame.iloc[positions].reset_index(drop=True)

    def position(self, rollout: int) -> int:
        """Where the rollout with this id stands. Raises DataError where there is none."""
        found = np.flatnonzero(self.ids == rollout)
        if not len(found):
            raise DataError(f"There is no rollout {rollout} here.")
        return int(found[0])

    # -- what comes later ------------------------------------------------------------------------------------

    def news(self) -> int:
        """How many rollouts came since these were read; -1 when the run went back to an earlier step."""
        return 0

    def refresh(self) -> None:
        """Read what came since."""


class StoreRecords(Records):
    """The rollouts of a store, of all branches; those of steps that a rewind gave up are `gone`."""

    def __init__(self, store: Store):
        self.store = store
        self.prompts = None
        self.refresh()

    def refresh(self) -> None:
        seen = stored.last(self.store)
        known = getattr(self, "ids", ())
        new = stored.numbers(self.store, int(known[-1]) if len(known) else 0)
        if len(known):
            old = {name: self._columns[name] for name in self._columns if name in new or name.startswith("rewards/")}
            new = {name: _joined(old.get(name), new.get(name), len(known), len(new["id"])) for name in [*old, *new]}
        self.seen, self._columns, self._lowered, self._orders = seen, new, None, {}
        self.ids = self._columns["id"]
        further = [name for name in stored.columns(self.store) if name not in self._columns]
        self.names = [*self._columns, *TEXTS, *(name for name in further if name not in TEXTS)]
        self.gone = stored.gone(self.store, self._columns["step"], self._columns["branch"])

    def news(self) -> int:
        last, branch = stored.last(self.store)
        return -1 if branch != self.seen[1] else last - self.seen[0]

    def _read(self, name: str) -> np.ndarray:
        upto = len(self)  # a row that came since is not one of these
        if name in TEXTS:
            made = np.empty(upto, dtype=object)
            made[:] = stored.texts(self.store, name)[:upto]
            return made
        return as_array(pd.Series(stored.column(self.store, name)[:upto], dtype=object))

    def previews(self, name: str, positions: np.ndarray) -> list[str]:
        if name not in TEXTS or name in self._columns:
            return super().previews(name, positions)
        found = stored.texts(self.store, name, self.ids[positions].tolist(), CELL + 1)
        return [one_line(text, CELL) for text in found]

    def records(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        return stored.whole(self.store, [int(self.ids[i]) for i in positions])

    def texts(self, name: str, positions: Sequence[int]) -> list[str]:
        if name in self._columns:
            return super().texts(name, positions)
        return stored.texts(self.store, name, [int(self.ids[i]) for i in positions])

    def raw_prompts(self, positions: Sequence[int]) -> list[Any]:
        """A prompt that the run's row has as messages comes as messages."""
        texts = stored.texts(self.store, "prompt", [int(self.ids[i]) for i in positions])
        rows = self.store.rows("train")
        places = [int(self._columns["row"][i]) for i in positions]
        raw = [rows[at].get("prompt") if 0 <= at < len(rows) else None for at in places]
        return [given if isinstance(given, list) else text for given, text in zip(raw, texts, strict=True)]

    def to_pandas(self, positions: np.ndarray) -> pd.DataFrame:
        records = []
        for start in range(0, len(positions), 5000):
            records += self.records(positions[start : start + 5000])
        frame = pd.DataFrame(records)
        return frame if len(frame) else pd.DataFrame(columns=self.names)


def as_array(column: pd.Series) -> np.ndarray:
    """A column as numpy: integers and floats as such, truth as bool, all else as objects."""
    kind = pd.api.types
    if kind.is_bool_dtype(column) and not column.isna().any():
        return column.to_numpy(dtype=bool)
    if kind.is_numeric_dtype(column) and not kind.is_bool_dtype(column) and not kind.is_complex_dtype(column):
        return column.to_numpy(dtype="f8", na_value=math.nan) if column.isna().any() else column.to_numpy()
    values = list(column)
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in known):
        return np.array([math.nan if v is None else float(v) for v in values])
    made = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):  # one by one: numpy would make lists of lists an array of more axes
        made[i] = value
    return made


def _joined(old: np.ndarray | None, new: np.ndarray | None, n: int, m: int) -> np.ndarray:
    """A column of `n` values and its next `m`; a reward that only one of the two has is missing in the other."""
    old, new = (np.full(size, math.nan) if part is None else part for part, size in ((old, n), (new, m)))
    return np.concatenate([old, new])


def _hashable(values: np.ndarray) -> np.ndarray | list:
    """Values that compare as wholes: lists and dicts as text."""
    if values.dtype != object:
        return values
    return [v if v is None or isinstance(v, (str, int, float)) else whole(v) for v in values]
