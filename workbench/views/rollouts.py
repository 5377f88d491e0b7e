"""A table of completions: sorted, filtered and read page by page from Python; a completion stands whole on a click.

From the page: {kind: "page", view, ask, sort, descending, find, start, refresh} and {kind: "row", view, ask, index}.
Answers: {kind: "page", to, ask, columns, rows, total, matched, start, live} and {kind: "row", to, ask, fields}. `sort`
is the position of a column. All cells are text made here, in which nothing hides (see `text.visible`); the page sets
them by textContent. The first rows travel with the widget itself: while a cell runs, a message may wait in the kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import traitlets

from workbench.store import Store
from workbench.views import picture
from workbench.views.base import Ask, View, assets
from workbench.views.text import number_or_dash, one_line, visible

PAGE = 200
FIRST_ROWS = 40
CELL = 160
"""characters of a text that a row of the table shows"""
FIRST = ("step", "group_id", "prompt", "completion", "reward")
LAST = ("advantage", "finish_reason", "n_tokens")
INNER = {"id", "branch", "sample", "row", "prompt_ids", "ids", "logprob", "entropy"}
"""columns that only the whole record of a completion shows"""


class RolloutTable(View):
    """The completions of a DataFrame (as `rollouts.to_pandas()` and `run.rollouts()` give it), or of a run's Store."""

    _esm = assets("frame.js", "rollouts.js", main="WbTable")
    _css = assets("common.css", "rollouts.css")

    first = traitlets.Dict().tag(sync=True)

    def __init__(self, source: pd.DataFrame | Store):
        self.source = source
        self._load()
        super().__init__(first=self.page(count=FIRST_ROWS))

    def _load(self) -> None:
        frame = self.source.rollouts() if isinstance(self.source, Store) else self.source
        self.frame = frame.loc[:, ~frame.columns.duplicated()].reset_index(drop=True)
        self.columns = shown_columns(self.frame)
        self._stripes = stripes(self.frame)
        self._order: tuple[tuple, np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"<RolloutTable: {len(self.frame)} completions>"

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self, rows: int = 30) -> str:
        return picture.table_html(self.columns, self._cells(np.arange(min(rows, len(self.frame)))), len(self.frame))

    def static_text(self, rows: int = 10) -> str:
        return picture.table_text(self.columns, self._cells(np.arange(min(rows, len(self.frame)))), len(self.frame))

    # -- answering the page ----------------------------------------------------------------------------------

    def on_page(self, ask: Ask, refresh: bool = False, **wish: Any) -> dict[str, Any]:
        if refresh:
            self._load()
        return self.page(**wish)

    def on_row(self, ask: Ask, index: int) -> dict[str, Any]:
        return {"fields": self.record(int(index))}

    def page(
        self, sort: int | None = None, descending: bool = False, find: str = "", start: int = 0, count: int = PAGE
    ) -> dict[str, Any]:
        """`count` rows from `start` on of those whose prompt or completion contains `find`, sorted by column `sort`."""
        order = self._ordered(sort, descending, find)
        start = max(0, min(int(start), (len(order) - 1) // PAGE * PAGE)) if len(order) else 0
        chosen = order[start : start + count]
        cells = self._cells(chosen)
        return {
            "columns": [self._heading(i, name) for i, name in enumerate(self.columns)],
            "rows": [
                {"index": int(i), "stripe": int(self._stripes[i]), "cells": row}
                for i, row in zip(chosen, cells, strict=True)
            ],
            "total": len(self.frame),
            "matched": len(order),
            "start": start,
            "page": PAGE,
            "live": isinstance(self.source, Store),
        }

    def record(self, index: int) -> list[dict[str, Any]]:
        """Everything that is known about one completion, as name and text; the texts whole."""
        row = self.frame.iloc[index]
        texts = [name for name in ("prompt", "completion") if name in row.index]
        rest = [name for name in [*self.columns, *row.index] if name not in texts and name not in INNER]
        rest += [name for name in ("id", "branch", "sample", "row") if name in row.index]
        return [
            {"name": visible(name), "text": whole(row[name]), "long": name in texts}
            for name in [*texts, *dict.fromkeys(rest)]
        ]

    def _heading(self, i: int, name: str) -> dict[str, Any]:
        number, text = is_number(self.frame[name]), name in ("prompt", "completion")
        return {"at": i, "label": one_line(LABELS.get(name, name), 40), "number": number, "text": text}

    def _ordered(self, sort: int | None, descending: bool, find: str) -> np.ndarray:
        """Positions of the rows to show; the last answer is kept, as a table is read page by page."""
        key = (sort, bool(descending), find)
        if self._order is None or self._order[0] != key:
            name = None if sort is None or not 0 <= sort < len(self.columns) else self.columns[sort]
            self._order = (key, order_of(self.frame, name, bool(descending), find))
        return self._order[1]

    def _cells(self, chosen: np.ndarray) -> list[list[str]]:
        part = self.frame.iloc[chosen]
        columns = [[cell(value) for value in part[name]] for name in self.columns]
        return [list(row) for row in zip(*columns, strict=True)]


LABELS = {"group_id": "group", "finish_reason": "finish", "n_tokens": "tokens"}


def shown_columns(frame: pd.DataFrame) -> list[str]:
    """The columns a row of the table shows: texts, rewards, and what the update made of them."""
    names = list(frame.columns)
    parts = [name for name in names if str(name).startswith("rewards/")]
    picked = [*(n for n in FIRST if n in names), *parts, *(n for n in LAST if n in names)]
    return picked if {"prompt", "completion"} & set(picked) else [n for n in names if n not in INNER][:8] or names[:8]


def stripes(frame: pd.DataFrame) -> np.ndarray:
    """A number for each row's group, (N,): neighbours in the order of the rows differ."""
    by = [name for name in ("branch", "step", "group_id") if name in frame]
    if "group_id" not in by or frame.empty:
        return np.zeros(len(frame), dtype=int)
    return frame.groupby(by, sort=False, dropna=False).ngroup().to_numpy() % 6


def order_of(frame: pd.DataFrame, sort: str | None, descending: bool, find: str) -> np.ndarray:
    """Positions (int) of the rows that contain `find`, sorted by a column; rows without a value come last."""
    keep = np.ones(len(frame), dtype=bool)
    if find and len(frame):
        texts = [n for n in ("prompt", "completion") if n in frame] or [n for n in frame if not is_number(frame[n])]
        low = find.lower()
        keep = np.array(
            [any(low in str(v).lower() for v in row) for row in zip(*(frame[n] for n in texts), strict=True)] or keep
        )
    positions = np.flatnonzero(keep)
    if sort is None or sort not in frame:
        return positions
    column = frame[sort].iloc[positions].reset_index(drop=True)
    if not is_number(column):
        column = column.map(whole)
    ordered = column.sort_values(ascending=not descending, kind="stable", na_position="last")
    return positions[ordered.index.to_numpy()]


def is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def cell(value: Any) -> str:
    return number_or_dash(value) if _is_float(value) else one_line(whole(value), CELL)


def whole(value: Any) -> str:
    """A value as visible text: chat messages as role and content, missing values as a dash."""
    if value is None or _is_float(value):
        return number_or_dash(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(m, dict) and "content" in m for m in value):
        return visible("\n".join(f"[{m.get('role', '?')}] {m['content']}" for m in value))
    return visible(value)


def _is_float(value: Any) -> bool:
    return isinstance(value, (float, np.floating))
