"""Two runs side by side: settings that differ, curves laid over each other, numbers, and the prompts each does better
on, down to both texts.

The small tables travel with the widget. From the page:

    curves   {}                                one float64 column a run and metric, steps and then values
    plotly   {}                                plotly.js, gzipped
    prompts  {what, sort, find, start}         a page of prompts
    pair     {index, i, j}                     completion i of run a and j of run b, word by word
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import traitlets

from workbench.views import picture
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.curves import Curves, headline, progress, thin
from workbench.views.dashboard import plotly_js
from workbench.views.differences import segments, shown
from workbench.views.panels import Chart, arrange, explain
from workbench.views.text import escape, number, number_or_dash, one_line, plain, visible, whole

PAGE = 50
CELL = 200
KEPT = 14
"""metrics that a picture lists"""
FRONT = 6
"""charts that are not folded away"""
SORT = {"b": (-1, "difference"), "a": (1, "difference"), "stored": (1, None), "low": (1, "b"), "high": (-1, "b")}


class Overlay:
    """The curves of two runs as those of one, named '<metric> (a)' and '<metric> (b)': what charts and pictures
    read."""

    def __init__(self, sides: list[tuple[Curves, int]], names: list[str]):
        self.held: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for which, (curves, upto) in zip("ab", sides, strict=True):
            for name in names:
                steps, values = curves.main(name)
                keep = steps <= upto
                self.held[f"{name} ({which})"] = thin(steps[keep], values[keep])
        self.events: list[dict[str, Any]] = []

    def main(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.held.get(name, (np.empty(0), np.empty(0)))

    def given_up(self, name: str) -> list:
        return []

    @property
    def span(self) -> tuple[float, float]:
        ends = [steps[i] for steps, _ in self.held.values() if len(steps) for i in (0, -1)]
        return (float(min(ends)), float(max(ends))) if ends else (0.0, 1.0)


def charts_of(method: str, names: list[str]) -> list[Chart]:
    """One chart for each metric that both runs have, in the order of the method's own charts."""
    made = [
        Chart(
            visible(name), chart.unit, (f"{name} (a)", f"{name} (b)"), chart.low, chart.high, group=chart.group,
            main=chart.main and i < 2,
        )
        for chart in arrange(method, names)
        for i, name in enumerate(chart.names)
    ]  # fmt: skip
    front = [chart for chart in made if chart.main][:FRONT]
    return [replace(chart, main=chart in front) for chart in made]


class CompareView(View):
    """The view over a `Comparison`."""

    _esm = assets("frame.js", "charts.js", "plotly.js", "compare.js", main="WbCompare")
    _css = assets("common.css", "dashboard.css", "compare.css")
    first = traitlets.Dict().tag(sync=True)
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, comparison: Any):
        self.comparison = comparison
        names = list(comparison.metrics.index)
        sides = []
        for side in (comparison.a, comparison.b):
            curves = Curves(side.store)
            curves.refresh()
            sides.append((curves, side.upto))
        self.overlay = Overlay(sides, names)
        self.charts = [] if comparison.same else charts_of(comparison.a.method, names)
        super().__init__(library=version("plotly"), first=self._first())

    def __repr__(self) -> str:
        return f"<CompareView: {self.comparison!r}>"

    def _first(self) -> dict[str, Any]:
        c = self.comparison
        return {
            "sides": [self._head(side) for side in (c.a, c.b)],
            "notes": c.notes,
            "settings": self._settings(),
            "metrics": self._metrics(),
            "events": c.events.assign(text=[one_line(t, 300) for t in c.events["text"]]).values.tolist(),
            "charts": [self._chart(chart) for chart in self.charts],
            "wins": {name: plain(value) for name, value in c.wins.items()},
            "prompts": self.page(),
        }

    def _chart(self, chart: Chart) -> dict[str, Any]:
        """The curves are called by their runs; what the metric is stands under its own name."""
        sides = (("a", self.comparison.a), ("b", self.comparison.b))
        name = chart.names[0].removesuffix(" (a)")
        what, read = explain(name)
        return chart.to_dict() | {
            "labels": [f"{which} {one_line(side.name, 40)}" for which, side in sides],
            "about": [{"name": one_line(name, 60), "what": what, "read": read}] if what else [],
        }

    @staticmethod
    def _head(side: Any) -> dict[str, str]:
        head = headline(side.store)
        at = f", looked at after step {side.upto}" if side.upto != side.store.last_step() else ""
        return {"name": side.name, "said": f"{head['method'].upper()}, {progress(head)}{at}, {head['status']}"}

    def _settings(self) -> list[list[str]]:
        """of, name, a, b, default; as text."""
        return [
            [row.of, one_line(row.name, 80), *(_value(value) for value in (row.a, row.b, row.default))]
            for row in self.comparison.settings.itertuples(index=False)  # to_dict would make None of NA
        ]

    def _metrics(self) -> list[list[Any]]:
        """name, a, b, difference, best a, best b, better; as text."""
        rows = []
        for name, row in self.comparison.metrics.iterrows():
            cells = [_with_error(row[which], row[f"se_{which}"]) for which in ("a", "b")]
            cells.append(_with_error(row["difference"], row["se"], signed=True))
            rows.append([one_line(name, 80), *cells, *(number_or_dash(row[f"best_{w}"]) for w in "ab"), row["better"]])
        order = {name.removesuffix(" (a)"): i for i, name in enumerate(c.names[0] for c in self.charts)}
        return sorted(rows, key=lambda row: order.get(row[0], len(order)))

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self) -> str:
        c, first = self.comparison, self.first
        said = []
        for which, side, colour in zip("ab", first["sides"], picture.PALETTE, strict=False):
            mark = f'<span style="color: {colour}">━━ <b>{which}</b></span>'
            said.append(f"<div>{mark} <bdi><b>{escape(side['name'])}</b></bdi> · {escape(side['said'])}</div>")
        said += [f"<div>{escape(note)}</div>" for note in first["notes"]]
        if len(c.prompts):
            said.append(f"<div><b>Prompts</b>: {escape(in_words(c))}</div>")
        said.append(_html("Settings that differ", ["of", "name", "a", "b", "default"], first["settings"]))
        said.append(_html("Metrics", METRICS, [row[:6] for row in first["metrics"][:KEPT]]))
        if (more := len(first["metrics"]) - KEPT) > 0:
            said.append(f"<div>and {more} more</div>")
        for chart in self.charts:
            if chart.main:
                image = picture.image(chart, self.overlay)
                said.append(
                    '<div style="display: inline-block; vertical-align: top; width: 31%; min-width: 270px;'
                    f' margin: 6px 2% 6px 0"><b>{escape(chart.title)}</b> {escape(chart.unit)}{image}</div>'
                )
        return f'<div class="wb-static">{"".join(said)}</div>'

    def static_text(self) -> str:
        c, first = self.comparison, self.first
        lines = [f"{which}: {side['name']} · {side['said']}" for which, side in zip("ab", first["sides"], strict=True)]
        lines += first["notes"]
        if len(c.prompts):
            lines.append(f"Prompts: {in_words(c)}")
        for title, headings, rows in (
            ("Settings that differ", ["of", "name", "a", "b", "default"], first["settings"]),
            ("Metrics", METRICS, [row[:6] for row in first["metrics"]]),
        ):
            if rows:
                table = picture.table_text(headings, rows[:40])
                lines += ["", title, table, *([f"and {len(rows) - 40} more"] if len(rows) > 40 else [])]
        return "\n".join(lines)

    # -- answering the page ----------------------------------------------------------------------------------

    def on_plotly(self, ask: Ask) -> None:
        self.tell("plotly", {}, to=ask.view, ask=ask.number, buffer=plotly_js())

    def on_curves(self, ask: Ask) -> Reply:
        held = self.overlay.held
        columns = {str(i): np.concatenate(held[name]).astype("<f8") for i, name in enumerate(held)}
        return Reply({"names": list(held)}, columns)

    def on_prompts(self, ask: Ask, **wish: Any) -> dict[str, Any]:
        return self.page(**wish)

    def page(self, what: str = "all", sort: str = "b", find: str = "", start: int = 0) -> dict[str, Any]:
        """PAGE prompts from `start` on; `what`: 'all', or the winner."""
        prompts = self.comparison.prompts
        keep = np.ones(len(prompts), dtype=bool) if what == "all" else (prompts["winner"] == what).to_numpy()
        if find:
            keep = keep & prompts["prompt"].str.lower().str.contains(find.lower(), regex=False).to_numpy(bool)
        order = np.flatnonzero(keep)
        sign, by = SORT.get(sort, SORT["b"])
        if by is not None:
            order = order[np.argsort(sign * prompts[by].to_numpy(float)[order], kind="stable")]
        start = max(0, min(int(start), (len(order) - 1) // PAGE * PAGE)) if len(order) else 0
        rows = prompts.iloc[order[start : start + PAGE]]
        return {
            "rows": [
                {name: plain(value) for name, value in row.items()}
                | {"index": int(i), "prompt": one_line(whole(row["prompt"]), CELL)}
                for i, row in zip(order[start:], rows.to_dict("records"), strict=False)
            ],
            "start": start, "matched": len(order), "total": len(prompts), "page": PAGE,
            "most": float(prompts["difference"].abs().max()) if len(prompts) else 0.0,
        }  # fmt: skip

    def on_pair(self, ask: Ask, index: int, i: int = 0, j: int = 0) -> dict[str, Any]:
        sides = self.comparison.completions(int(index))
        at = [max(0, min(int(k), len(some) - 1)) for k, some in zip((i, j), sides, strict=True)]
        chosen = [some[k] for k, some in zip(at, sides, strict=True)]
        row = self.comparison.prompts.iloc[int(index)]
        return {
            "prompt": whole(row["prompt"]),
            "parts": shown(segments(*(one["completion"] for one in chosen))),
            "sides": [
                {"at": k, "of": len(some), "step": int(row[f"step_{which}"]), "said": _about(one)}
                for which, k, some, one in zip("ab", at, sides, chosen, strict=True)
            ],
        }


METRICS = ["metric", "a", "b", "b − a", "best of a", "best of b"]


def in_words(comparison: Any) -> str:
    """The wins as a sentence."""
    w = comparison.wins
    said = f"of {w['prompts']:,} in both, a is better on {w['a']:,}, b on {w['b']:,}, {w['ties']:,} ties"
    said += f" (sign test p = {number(w['p_value'])}); mean difference {number(w['difference'])}"
    return said + (f", 95 % interval {number(w['low'])} to {number(w['high'])}." if w["low"] == w["low"] else ".")


def _about(one: dict[str, Any]) -> str:
    """The facts of a completion on one line."""
    parts = [f"{one_line(name, 40)} {number_or_dash(value)}" for name, value in one["parts"].items()]
    facts = [f"reward {number_or_dash(one['reward'])}", *(parts if len(parts) > 1 else ())]
    return ", ".join([*facts, f"{one['n_tokens']} tokens", visible(one["finish_reason"])])


def _html(title: str, headings: list[str], rows: list[list[str]]) -> str:
    return f"<div><b>{escape(title)}</b></div>{picture.table_html(headings, rows)}" if rows else ""


def _with_error(value: float, error: float, signed: bool = False) -> str:
    said = number_or_dash(value)
    said = f"+{said}" if signed and value > 0 else said
    return said if np.isnan(error) else f"{said} ± {float(error):.2g}"


def _value(value: Any) -> str:
    if value is pd.NA:
        return "–"
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), CELL)
