"""The rollout browser: a hundred thousand completions and more, to sort, search, filter, compare and take along.

The page asks, with its wish (`Wish`): "page" (rows of the table), "about" (what there is to choose from), "news",
"pick" and "export"; and by a rollout's id "detail", "group", "time" and "difference" (`browser.py`). Rows travel as
packed columns, a thousand at a time; the first ones travel with the widget itself, as a message may wait while a cell
runs.
All text is made visible here (`views.text`), and set by textContent there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import traitlets

from workbench.errors import DataError, SettingError, did_you_mean
from workbench.store import Store
from workbench.store import rollouts as stored
from workbench.store.tokens import Pieces
from workbench.text import clean
from workbench.views import exports, picture
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.browser import Details, label_of
from workbench.views.records import TEXTS, Records, StoreRecords
from workbench.views.text import escape, number_or_dash, one_line, whole
from workbench.views.tokens import SCRIPTS, Tokens

__all__ = ["RolloutTable", "Wish", "whole"]

FIRST_ROWS = 40
MOST_NAMED = 200
"""picked rollouts that the line of Python names one by one"""
KEEP_AFTER = 1.5
"""seconds without a change after which the picture of a saved notebook is made anew"""


@dataclass(frozen=True)
class Wish:
    """Which rollouts, in which order."""

    where: str = ""
    """a filter, see `filters.py`"""
    find: str = ""
    """text in the prompt or the completion, without regard to case"""
    steps: tuple[int, int] | None = None
    """first and last step"""
    finish: str | None = None
    """a finish reason"""
    gone: bool = False
    """also those of steps that a rewind gave up"""
    sort: str | None = None
    descending: bool = False

    @classmethod
    def of(cls, given: dict[str, Any]) -> Wish:
        """From what a page sent: anything else than it should be becomes the default."""
        steps = given.get("steps")
        whole_steps = isinstance(steps, (list, tuple)) and len(steps) == 2 and all(isinstance(s, int) for s in steps)
        texts = {name: value for name in ("where", "find") if isinstance(value := given.get(name), str)}
        names = {name: value for name in ("finish", "sort") if isinstance(value := given.get(name), str)}
        flags = {name: bool(given.get(name)) for name in ("gone", "descending")}
        return cls(**texts, **names, **flags, steps=tuple(steps) if whole_steps else None)


class RolloutTable(Details, Tokens, View):
    """The completions of a run's Store, or of a DataFrame (as `rollouts.to_pandas()` and `run.rollouts()` give it).

    `ids`: only these rollouts; `where`: a filter to begin with; `prompts`: the prompts as rows have them, where the
    frame has them as the model reads them; `pieces`: texts of a frame's token ids. Tokens are `views.tokens`'s.
    """

    _esm = assets(
        "frame.js", *SCRIPTS, "browser_grid.js", "browser_tools.js", "browser_group.js", "browser_time.js",
        "browser_detail.js", "rollouts.js", main="WbRollouts",
    )  # fmt: skip
    _css = assets("common.css", "tokens.css", "rollouts.css", "browser_detail.css")

    first = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        source: pd.DataFrame | Store,
        ids: Iterable[int] | None = None,
        where: str = "",
        prompts: Sequence[Any] | None = None,
        model: Any = None,
        pieces: Pieces | None = None,
    ):
        self.source, self.prompts, self.model, self.pieces = source, prompts, model, pieces
        self.only = None if ids is None else np.fromiter((int(i) for i in ids), dtype="i8")
        self.wish = Wish(where=where)
        self.picked: set[int] = set()
        self.version = 0
        self._records: Records | None = None
        self._orders: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._timer: threading.Timer | None = None
        self._reading = threading.RLock()
        super().__init__()
        if where:
            self.order()  # a filter that cannot be read is an error here, not in the page
        self.first = self._first()

    def __repr__(self) -> str:
        return f"<RolloutTable: {self.total:,} completions>"

    # -- from Python -----------------------------------------------------------------------------------------

    def filter(self, where: str = "", **wish: Any) -> RolloutTable:
        """Show only what fits: `browser.filter("reward < 0.5 and n_tokens > 200", step=(3, 9), find="sorry")`.

        `where` is a filter: columns, reward parts (`rewards.correct`), comparing, `and`, `or`, `not`, `in`, `+ - * /`,
        `contains(completion, "x")`, `len(completion)`, `is None`. Further: `step` (one, or first and last), `finish` (a
        finish reason), `find` (text), `group` (a group's number), `sort` (a column), `descending`, `gone` (also steps
        given up by a rewind). Without anything: everything. Raises DataError for a filter that cannot be read,
        SettingError for another name.
        """
        made = wish_of(where, wish)
        if made.sort is not None and made.sort not in self.records.names:
            hint = did_you_mean(made.sort, self.records.names)
            raise SettingError(f"filter: there is no column {made.sort!r} to sort by.{hint}")
        self.order(made)
        self._wished(made)
        self.first = self._first()
        self.tell("wished", {"wish": asdict(made)})
        return self

    @property
    def selection(self) -> pd.DataFrame:
        """The rollouts picked in the page or by `pick`; without any, all that the filter shows."""
        return self.records.to_pandas(self._selected())

    def pick(self, ids: Iterable[int] | None = None) -> RolloutTable:
        """Pick these rollouts, by id, in place of those picked before; None picks none. Raises DataError for an id
        that is not there."""
        chosen = [int(self.records.ids[self.records.position(int(i))]) for i in ids or ()]
        self.picked = set(chosen)
        self.tell("picked", self._picked_reply({"clear": True, "on": True}, np.array(chosen, dtype="i8")))
        return self

    def to_jsonl(self, path: str | Path, form: str = "sft") -> exports.Written:
        """Write the selection as rows: `form="sft"` for wb.sft (prompt, completion), `form="dpo"` for wb.dpo (prompt,
        chosen, rejected: of each group its best and its worst by reward).

        Prompts that are messages stay messages. Returns what was written, and what was left out and why: groups of
        equal rewards make no pair. Raises DataError where nothing is left, SettingError for another form.
        """
        return exports.write(self._rollouts(self._selected()), Path(path), form)

    def look_at(self, rollout: int) -> RolloutTable:
        """Show one rollout whole, by id. Raises DataError where there is none."""
        self.records.position(int(rollout))
        self.tell("open", {"id": int(rollout)})
        return self

    @property
    def frame(self) -> pd.DataFrame:
        """All rollouts here, in the order as stored."""
        return self.records.to_pandas(np.flatnonzero(self._there()))

    # -- which rollouts --------------------------------------------------------------------------------------

    @property
    def records(self) -> Records:
        """Read when they are first asked for, which is after the first rows are in the page."""
        with self._reading:
            if self._records is None:
                store = isinstance(self.source, Store)
                self._records = StoreRecords(self.source) if store else Records(self.source, self.prompts)
            return self._records

    @property
    def total(self) -> int:
        if self._records is None and isinstance(self.source, Store) and self.only is None:
            return stored.count(self.source)
        return int(self._there().sum())

    def _there(self, gone: bool = False) -> np.ndarray:
        made = np.ones(len(self.records), dtype=bool) if gone else ~self.records.gone
        return made if self.only is None else made & np.isin(self.records.ids, self.only)

    def order(self, wish: Wish | None = None) -> np.ndarray:
        """Positions of the rollouts that fit, sorted. Raises DataError for a filter that cannot be read."""
        wish = self.wish if wish is None else wish
        key = (self.version, wish)
        if key not in self._orders:
            self._orders[key] = self._ordered(wish)
            while len(self._orders) > 6:
                self._orders.popitem(last=False)
        return self._orders[key]

    def _ordered(self, wish: Wish) -> np.ndarray:
        records, keep = self.records, self._there(wish.gone)
        if wish.where.strip():
            keep &= records.fits(wish.where)
        if wish.find:
            keep &= records.find(wish.find)
        if wish.steps is not None and "step" in records.names:
            step = records.column("step")
            keep &= (step >= wish.steps[0]) & (step <= wish.steps[1])
        if wish.finish is not None and "finish_reason" in records.names:
            reasons = {v for v in records.finish_reasons() if clean(v) == wish.finish}
            keep &= np.fromiter((v in reasons for v in records.column("finish_reason")), bool, len(records))
        order = records.order(wish.sort, wish.descending)
        return order[keep[order]]

    def _selected(self) -> np.ndarray:
        records = self.records
        if self.picked:
            return np.flatnonzero(np.isin(records.ids, np.fromiter(self.picked, dtype="i8")))
        return self.order()

    def _rollouts(self, positions: np.ndarray) -> list[exports.Rollout]:
        records = self.records
        rewards = records.column("reward") if "reward" in records.names else None
        groups, prompts = records.groups(), records.raw_prompts(positions)
        texts = records.texts("completion", positions)
        return [
            exports.Rollout(prompt, text, float("nan") if rewards is None else float(rewards[i]), int(groups[i]))
            for i, prompt, text in zip(positions, prompts, texts, strict=True)
        ]

    # -- answering the page ----------------------------------------------------------------------------------

    def _receive(self, widget: Any, content: dict, buffers: list) -> None:
        with self._guard:  # the kernel's subshell and its main thread may both deliver
            super()._receive(widget, content, buffers)

    def on_page(
        self, ask: Ask, wish: Any = None, start: int = 0, count: int = 1000, columns: Any = None, refresh: bool = False
    ) -> Reply:
        if refresh:
            self._refresh()
        wished = Wish.of(wish if isinstance(wish, dict) else {})
        order = self.order(wished)
        self._wished(wished)
        start, count = max(0, int(start)), min(max(0, int(count)), 5000)
        chosen = order[start : start + count]
        known = self.records.names
        names = [name for name in columns or () if name in known] or self.records.shown
        total = int(self._there(wished.gone).sum())
        content = {"matched": len(order), "total": total, "start": start, "version": self.version, "line": self.line()}
        content["headings"] = self._headings(self.records, names)
        return Reply(content, self._packed(self.records, chosen, names))

    def on_about(self, ask: Ask) -> dict[str, Any]:
        """What there is to choose from."""
        records, there = self.records, self._there(gone=True)
        steps = np.unique(records.column("step")[there]) if "step" in records.names else np.empty(0)
        steps = steps[~np.isnan(steps)] if steps.dtype.kind == "f" else steps if steps.dtype.kind in "iu" else steps[:0]
        parts = [name.removeprefix("rewards/") for name in records.names if name.startswith("rewards/")]
        return {
            "steps": [int(step) for step in steps],
            "finish": _choices(sorted(records.finish_reasons())),
            "parts": _choices(parts),
            "columns": [
                {"name": name, "label": one_line(label_of(name), 40), "hidden": name not in records.shown}
                for name in records.choosable
            ],
            "gone": int(records.gone.sum()),
            "live": isinstance(self.source, Store),
            "picked": len(self.picked),
        }

    def on_news(self, ask: Ask) -> dict[str, Any]:
        running = isinstance(self.source, Store) and self.source.status == "running"
        return {"new": self.records.news(), "running": running}

    def on_pick(
        self, ask: Ask, ids: Any = None, rows: Any = None, on: bool = True, clear: bool = False, wish: Any = None
    ) -> None:
        """Pick single rollouts, rows from one to another of the order shown, or with `rows` "all" every one of it."""
        if clear:
            self.picked.clear()
        order = self.order(Wish.of(wish) if isinstance(wish, dict) else None)
        if rows == "all":
            chosen = self.records.ids[order]
        elif isinstance(rows, list) and len(rows) == 2:
            low, high = sorted(int(row) for row in rows)
            chosen = self.records.ids[order[max(0, low) : high + 1]]
        else:
            chosen = np.array([int(i) for i in ids or ()], dtype="i8")
        change = self.picked.update if on else self.picked.difference_update
        change(chosen.tolist())
        self.tell("picked", self._picked_reply({"clear": bool(clear), "on": bool(on)}, chosen))
        return ask.answer({"count": len(self.picked)})

    def _picked_reply(self, content: dict[str, Any], chosen: np.ndarray) -> Reply:
        return Reply(content | {"count": len(self.picked), "line": self.line()}, {"ids": chosen.astype("i4")})

    def on_export(self, ask: Ask, form: str = "sft", wish: Any = None) -> dict[str, Any]:
        """Into the notebook's folder, under a name that is not there yet."""
        if isinstance(wish, dict):
            self._wished(Wish.of(wish))
        made = self.to_jsonl(exports.free_name(Path.cwd(), form if form in exports.FORMS else "sft"), form)
        return {"said": one_line(made, 400), "line": f'wb.{form}(policy, "{made.path.name}", ...)'}

    def line(self) -> str:
        """Python that shows the same: what the page's button copies."""
        wish = self.wish
        said = {"where": wish.where, "find": wish.find, "finish": wish.finish, "sort": wish.sort}
        given = [repr(value) if name == "where" else f"{name}={value!r}" for name, value in said.items() if value]
        said = {f"step={wish.steps}": wish.steps, "descending=True": wish.descending, "gone=True": wish.gone}
        given += [text for text, holds in said.items() if holds]
        shown = "rollouts.show()"
        if isinstance(self.source, Store):
            shown = f"wb.open({str(self.source.folder)!r}).browse()"
        picked = f".pick({sorted(self.picked)})" if 0 < len(self.picked) <= MOST_NAMED else ""
        return shown + (f".filter({', '.join(given)})" if given else "") + picked

    def _refresh(self) -> None:
        self.records.refresh()
        self.version += 1
        self._orders.clear()

    # -- rows ------------------------------------------------------------------------------------------------

    def _headings(self, records: Records, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "name": name, "label": one_line(label_of(name), 40), "number": records.is_number(name),
                "long": name in TEXTS,
            }
            for name in names
        ]  # fmt: skip

    def _packed(self, records: Records, chosen: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
        made: dict[str, Any] = {
            "id": records.ids[chosen].astype("i4"),
            "stripe": (records.groups()[chosen] % 6).astype("u1"),
            "gone": records.gone[chosen].astype("u1"),
        }
        for i, name in enumerate(names):
            numbers = records.is_number(name)
            made[f"c{i}"] = records.column(name)[chosen].astype("f8") if numbers else records.previews(name, chosen)
        return made

    def _sample(self, rows: int) -> tuple[Records, np.ndarray]:
        """The first rows of the present order; before the records are read, of the store's first few."""
        if self._records is None and isinstance(self.source, Store) and self.wish == Wish() and self.only is None:
            few = Records(pd.DataFrame(stored.first(self.source, rows)))
            return few, np.arange(len(few))
        return self.records, self.order()[:rows]

    def _first(self) -> dict[str, Any]:
        """What travels with the widget: the first rows, as JSON."""
        records, chosen = self._sample(FIRST_ROWS)
        names = records.shown
        packed = self._packed(records, chosen, names)
        rows = {
            name: [_plain(v) for v in values.tolist()] if isinstance(values, np.ndarray) else values
            for name, values in packed.items()
        }
        matched = self.total if self.wish == Wish() else len(self.order())
        content = {"headings": self._headings(records, names), "rows": rows, "wish": asdict(self.wish)}
        return content | {"matched": matched, "total": self.total, "live": isinstance(self.source, Store)}

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self, rows: int = 30) -> str:
        records, names, cells, matched = self._cells(rows)
        said = self._wished_in_words(matched)
        heading = f"<p>{escape(said)}</p>" if said else "" if matched else "No rollouts."
        table = picture.table_html([label_of(name) for name in names], cells)
        more = f"<div>{len(cells)} of {matched:,} rollouts.</div>" if matched > len(cells) else ""
        return f'<div class="wb-static">{heading}{table}{more}</div>'

    def static_text(self, rows: int = 10) -> str:
        records, names, cells, matched = self._cells(rows)
        said = self._wished_in_words(matched)
        if not matched:
            return said or "No rollouts."
        table = picture.table_text([label_of(name) for name in names], cells)
        return "\n".join([*([said] if said else []), table, f"{len(cells)} of {matched:,} rollouts."])

    def _wished_in_words(self, matched: int) -> str:
        """What the picture says above the rows; nothing where it has all of them."""
        wish = self.wish
        if wish == Wish() or not self.total:
            return ""
        steps = f"steps {wish.steps[0]} to {wish.steps[1]}" if wish.steps else ""
        sort = f"sorted by {wish.sort}{', from the highest' * wish.descending}" if wish.sort else ""
        parts = [wish.where, f"with {wish.find!r}" if wish.find else "", steps, wish.finish or "", sort]
        parts.append("with steps given up" * wish.gone)
        total = int(self._there(wish.gone).sum())
        return f"{matched:,} of {total:,} rollouts: {'; '.join(part for part in parts if part)}"

    def _cells(self, rows: int) -> tuple[Records, list[str], list[list[str]], int]:
        records, chosen = self._sample(rows)
        names = records.shown
        columns = [
            [number_or_dash(float(v)) for v in records.column(name)[chosen]]
            if records.is_number(name)
            else records.previews(name, chosen)
            for name in names
        ]
        matched = self.total if self.wish == Wish() else len(self.order())
        return records, names, [list(row) for row in zip(*columns, strict=True)], matched

    def _wished(self, wish: Wish) -> None:
        if wish != self.wish:
            self.wish = wish
            self._keep_soon()

    def _keep_soon(self) -> None:
        """Once nothing changes any more, make the picture anew: a picture a keystroke would be a waste."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(KEEP_AFTER, self._keep_now)
        self._timer.daemon = True
        self._timer.start()

    def _keep_now(self) -> None:
        with self._guard:
            if not self._closed.is_set():
                self.first = self._first()
                self.keep()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()


def _choices(values: Iterable[str]) -> list[dict[str, str]]:
    return [{"value": clean(value), "label": one_line(value, 30)} for value in values]


def _plain(value: float | int) -> float | int | str | None:
    """A number as JSON: it has neither NaN nor infinity."""
    if value != value:
        return None
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"


def wish_of(where: str, given: dict[str, Any]) -> Wish:
    """The arguments of `filter` as a wish. Raises SettingError for a name that is none."""
    known = ("find", "step", "finish", "group", "gone", "sort", "descending")
    if unknown := [name for name in given if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise SettingError(f"filter: {unknown[0]!r} is unknown.{hint} Known: {', '.join(known)}.")
    if not isinstance(where, str):
        raise DataError(f'filter: {where!r} is no text; write browser.filter("reward < 0.5").')
    step, group = given.pop("step", None), given.pop("group", None)
    if isinstance(step, range):
        step = (step.start, step.stop - 1)
    if step is not None and not isinstance(step, (list, tuple)):
        step = (step, step)
    steps = None if step is None else tuple(int(s) for s in step)
    if steps is not None and len(steps) != 2:
        raise SettingError(f"filter: step={step!r} is neither a step nor a first and a last one.")
    if group is not None:
        where = f"({where}) and group == {int(group)}" if where.strip() else f"group == {int(group)}"
    texts = {name: clean(value) if isinstance(value, str) else value for name, value in given.items()}
    return replace(Wish(where=clean(where), steps=steps), **texts)
