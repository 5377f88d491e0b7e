"""The scores of known answers, to be looked at before training: what `wb.check_rewards` shows.

Everything but the whole texts travels with the widget: findings, a line for each answer, the summary and the agreement.
From the page: {kind: "row", view, ask, index}; the answer has `fields`, as a table of rollouts has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import traitlets

from workbench.views.base import Ask, View, assets
from workbench.views.picture import table_html, table_text
from workbench.views.text import escape, number_or_dash, one_line, plain, visible

CELL = 120
"""characters of a completion in the table"""
LEFT = ("kind", "answer", "row", "completion")
FACTS = ("ms", "none", "nan", "exceptions", "late", "distinct", "corr_length", "corr_length_samples")
LABELS = {
    "ms": "ms each", "none": "None", "nan": "NaN", "exceptions": "errors", "late": "too late", "distinct": "values",
    "corr_length": "with length", "corr_length_samples": "with length, samples",
}  # fmt: skip
SIGNS = {"error": "✕", "warning": "!", "note": "i"}


class RewardBench(View):
    """The table, the summary, the findings and the agreement of a check of rewards, as DataFrames and plain dicts.

    `traces`: by function, for each answer the traceback, "" where there is none; `prompts`: of each answer; `gone`:
    findings of the check before this one that are there no more.
    """

    _esm = assets("frame.js", "reward_bench.js", main="WbRewardBench")
    _css = assets("common.css", "reward_bench.css")

    shown = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        *,
        table: pd.DataFrame,
        summary: pd.DataFrame,
        findings: Sequence[Mapping[str, Any]],
        agreement: pd.DataFrame,
        changes: pd.DataFrame | None,
        traces: Mapping[str, Sequence[str]],
        prompts: Sequence[str],
        gone: Sequence[str] = (),
    ):
        self._table, self._summary, self._findings, self._agreement = table, summary, findings, agreement
        self._changes, self._traces, self._prompts, self._gone = changes, traces, prompts, gone
        self._scores = [name for name in table.columns if name not in (*LEFT, "trouble")]
        super().__init__(shown=self._content())

    def _content(self) -> dict[str, Any]:
        columns = [self._table[name].to_numpy(dtype=np.float64) for name in self._scores]
        return {
            "head": self._head(),
            "scores": [{"label": one_line(name.removeprefix("rewards/"), 40), "range": _range(values)}
                       for name, values in zip(self._scores, columns, strict=True)],
            "findings": [
                {**{key: visible(f[key]) for key in ("severity", "function", "text", "advice")},
                 "rows": list(f["rows"])}
                for f in self._findings
            ],
            "gone": [visible(text) for text in self._gone],
            "rows": [
                {"kind": row.kind, "answer": one_line(row.answer, 60), "row": int(row.row),
                 "completion": one_line(row.completion, CELL), "trouble": one_line(row.trouble, CELL),
                 "scores": [plain(values[i]) for values in columns]}
                for i, row in enumerate(self._table.itertuples())
            ],
            "kinds": self._kinds(),
            "facts": [LABELS[fact] for fact in self._facts()],
            "summary": [
                {"name": one_line(name, 40), "means": [plain(row[kind]) for kind in self._kinds()],
                 "facts": [plain(row[fact]) for fact in self._facts()]}
                for name, row in self._summary.iterrows()
            ],
            "agreement": {
                "names": [one_line(name, 30) for name in self._agreement],
                "cells": [[plain(value) for value in row] for row in self._agreement.to_numpy()],
            },
            "changes": self._change_lines(),
        }  # fmt: skip

    def _facts(self) -> list[str]:
        """Columns of the summary worth their room: counts of trouble only where there is some."""
        return [
            fact for fact in FACTS
            if fact in self._summary and (fact in ("ms", "distinct") or self._summary[fact].fillna(0).any())
        ]  # fmt: skip

    def _kinds(self) -> list[str]:
        return [name for name in self._summary if name not in FACTS]

    def _head(self) -> str:
        answers, rows, functions = len(self._table), self._table["row"].nunique(), len(self._summary) - 1
        many = "function" if functions == 1 else "functions"
        return f"{answers} answers to {rows} {'row' if rows == 1 else 'rows'}, {functions} reward {many}"

    def _change_lines(self) -> dict[str, Any] | None:
        if self._changes is None:
            return None
        names = [str(name).removesuffix(" before") for name in self._changes if str(name).endswith(" before")]
        cells = [
            [[plain(row[f"{name} before"]), plain(row[f"{name} now"])] for name in names]
            for _, row in self._changes.iterrows()
        ]
        return {"names": [one_line(name, 30) for name in names], "kinds": list(self._changes.index), "cells": cells}

    # -- static forms ----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return self.static_text()

    def static_text(self) -> str:
        lines = [self._head(), ""]
        for finding in self._findings:
            lines.append(
                f"{SIGNS[finding['severity']]} {one_line(finding['function'], 60)}: {visible(finding['text'])}"
            )
            lines.append(f"    {visible(finding['advice'])}")
        lines += ["nothing found"] if not self._findings else []
        lines += [f"no more: {visible(text)}" for text in self._gone]
        lines += ["", "mean score by kind of answer"]
        lines.append(table_text(*self._means(24), str.rjust))
        change = self._change_lines()
        if change is not None:
            lines += ["", "before → now"]
            for kind, cells in zip(change["kinds"], change["cells"], strict=True):
                shown = [
                    f"{name} {number_or_dash(a)} → {number_or_dash(b)}"
                    for name, (a, b) in zip(change["names"], cells, strict=True)
                ]
                lines.append(f"{kind.rjust(11)}  " + "   ".join(shown))
        return "\n".join(line.rstrip() for line in lines)

    def static_html(self) -> str:
        found = "".join(
            f"<li><b>{SIGNS[f['severity']]} {escape(one_line(f['function'], 60))}</b>: {escape(f['text'])}"
            f" <i>{escape(f['advice'])}</i></li>"
            for f in self._findings
        )
        found = f"<ul>{found}</ul>" if found else "<p>nothing found</p>"
        gone = "".join(f"<li>no more: {escape(text)}</li>" for text in self._gone)
        change, changed = self._change_lines(), ""
        if change is not None:
            rows = [
                [kind, *(f"{number_or_dash(a)} → {number_or_dash(b)}" for a, b in cells)]
                for kind, cells in zip(change["kinds"], change["cells"], strict=True)
            ]
            changed = table_html(["before → now", *change["names"]], rows)
        means = table_html(*self._means(40))
        return f"<div><p><b>{escape(self._head())}</b></p>{found}<ul>{gone}</ul>{changed}{means}</div>"

    def _means(self, most: int) -> tuple[list[str], list[list[str]]]:
        """Headings and rows: what each function gives to each kind of answer; names of at most `most` characters."""
        kinds = self._kinds()
        rows = [
            [one_line(name, most), *(number_or_dash(row[kind]) for kind in (*kinds, "ms"))]
            for name, row in self._summary.iterrows()
        ]
        return ["", *kinds, "ms each"], rows

    # -- answering the page ----------------------------------------------------------------------------------

    def on_row(self, ask: Ask, index: int) -> dict[str, Any]:
        return {"fields": self.record(int(index))}

    def record(self, index: int) -> list[dict[str, Any]]:
        """Everything about one answer, as name and text; long ones whole."""
        row = self._table.iloc[index]
        fields = [
            {
                "name": "what it is",
                "text": visible(f"{row['kind']}: {row['answer']} (row {row['row']})"),
                "long": False,
            },
            *({"name": visible(name), "text": number_or_dash(row[name]), "long": False} for name in self._scores),
            {"name": "completion", "text": visible(row["completion"]) or "(empty)", "long": True},
        ]
        if row["trouble"]:
            fields.append({"name": "what went wrong", "text": visible(row["trouble"]), "long": True})
        for name, traces in self._traces.items():
            if traces[index]:
                fields.append({"name": f"traceback of {visible(name)}", "text": visible(traces[index]), "long": True})
        return [*fields, {"name": "prompt", "text": visible(self._prompts[index]), "long": True}]


def _range(values: np.ndarray) -> list[float]:
    known = values[~np.isnan(values)]
    return [float(known.min()), float(known.max())] if len(known) else [0.0, 0.0]
