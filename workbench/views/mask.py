"""Rows as their tokens, each marked as trained, as context or as dropped: what `wb.show_mask` shows.

From the page: {kind: "page", view, ask, start, only}; the answer has `units` (rows, or packs), each with its strips
(the texts of a row), each of these with its tokens: text, id, a number for why (see WHY) and the weight. `only` is ""
(all), "problems", or the name of a problem. The first page travels with the widget: while a cell runs, a message may
wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import traitlets

from workbench.views.base import Ask, View, assets
from workbench.views.text import escape, number, one_line, visible

PAGE_UNITS, PAGE_TOKENS = 12, 3000
"""a page ends at so many units, or with the unit that brings it to so many tokens"""
STRIP = 4000
"""tokens of one text that are shown: the first half and the last half of so many"""
PICTURE = 600
"""the same for the picture that a saved notebook keeps"""
KINDS = ("context", "trained", "dropped")
WHY = (
    (0, "context: it is read, and not trained (a prompt, a turn of somebody else, or weight 0)"),
    (1, "trained: the loss is taken on it"),
    (0, "context: the first token; nothing comes before it, so nothing predicts it"),
    (2, "dropped: it stands beyond max_length"),
    (2, "dropped: it stands before the last max_length tokens"),
    (2, "dropped: what the chat template writes after the stop token is not read here"),
    (2, "dropped: the row is left out"),
    (0, "context: the prompt; what trains is sampled after it"),
)
"""why a token is what it is: the position in KINDS, and words"""
_KIND = np.array([kind for kind, _ in WHY], dtype=np.uint8)


@dataclass(frozen=True)
class Strip:
    """One text: `ids` (T,) int32, `why` (T,) uint8 as in WHY, and `weight` (T,) float32, 0 where not trained."""

    title: str
    ids: np.ndarray
    why: np.ndarray
    weight: np.ndarray

    CONTEXT: ClassVar[int] = 0
    TRAINED: ClassVar[int] = 1
    FIRST: ClassVar[int] = 2
    CUT_END: ClassVar[int] = 3
    CUT_START: ClassVar[int] = 4
    AFTER_STOP: ClassVar[int] = 5
    ROW: ClassVar[int] = 6
    PROMPT: ClassVar[int] = 7

    @property
    def counts(self) -> np.ndarray:
        """Tokens by KINDS, (3,)."""
        return np.bincount(_KIND[self.why], minlength=3)

    @property
    def trained(self) -> int:
        return int(self.counts[1])


@dataclass(frozen=True)
class Unit:
    """What stands together: a row (of a preference two strips), or a pack of rows. `problems`: (name, words)."""

    title: str
    rows: tuple[int, ...]
    strips: tuple[Strip, ...]
    problems: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Trouble:
    """A problem that rows share: how many, and which."""

    name: str
    words: str
    count: int
    rows: tuple[int, ...]
    detail: str = ""

    def line(self) -> str:
        many = "row" if self.count == 1 else "rows"
        detail = f" ({self.detail})" if self.detail else ""
        more = ", ..." if len(self.rows) > 5 else ""
        return (
            f"{self.count} {many}: {self.words}{detail}. {many.capitalize()} {', '.join(map(str, self.rows[:5]))}{more}"
        )


class MaskView(View):
    """Units of rows that are looked through page by page. `totals`: tokens by KINDS; `kept` of `given` rows are used.

    `pieces` gives the (text, special) of token ids; `rows` is how many rows were read, of how many; `what` is what
    `kept` counts, in words; `first`: units in the picture and in the text.
    """

    _esm = assets("frame.js", "strip.js", "mask.js", main="WbMask")
    _css = assets("common.css", "tokens.css", "mask.css")

    head = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        units: Sequence[Unit],
        troubles: Sequence[Trouble],
        notes: Sequence[str],
        *,
        pieces: Callable[[Sequence[int]], list[tuple[str, bool]]],
        rows: tuple[int, int],
        given: int,
        kept: int,
        what: str = "rows",
        first: int = 3,
    ):
        self.units, self.troubles, self.notes = list(units), tuple(troubles), tuple(notes)
        self.pieces, self.rows, self.given, self.kept, self.what = pieces, rows, given, kept, what
        self.first = max(1, first)
        counts = sum((strip.counts for unit in self.units for strip in unit.strips), np.zeros(3, dtype=np.int64))
        self.totals = dict(zip(KINDS, map(int, counts), strict=True))
        weights = [strip.weight[strip.weight > 0] for unit in self.units for strip in unit.strips]
        every = np.concatenate([w for w in weights if len(w)] or [np.ones(1, np.float32)])
        self.weights = (float(every.min()), float(every.max()))
        super().__init__(head=self._head())

    def _head(self) -> dict[str, Any]:
        return {
            "lines": [visible(line) for line in (self._kept_line(), *self.notes)],
            "totals": self.totals,
            "kinds": KINDS,
            "why": [[KINDS[kind], words] for kind, words in WHY],
            "weights": list(self.weights),
            "troubles": [{"name": t.name, "line": visible(t.line())} for t in self.troubles],
            "odd": sum(bool(unit.problems) for unit in self.units),
            "page": self.page(),
        }

    # -- static forms ----------------------------------------------------------------------------------------

    def _kept_line(self) -> str:
        made = f"{self.kept} of {self.given} {self.what} kept"
        if self.given > self.kept:
            made += f", {self.given - self.kept} dropped"
        if self.rows[0] < self.rows[1]:
            made += f" (the first {self.rows[0]} of {self.rows[1]} rows were read: limit={self.rows[0]})"
        return made

    def _lines(self) -> list[str]:
        total = sum(self.totals.values())
        share = 100 * self.totals["trained"] / total if total else 0.0
        lines = [self._kept_line()]
        lines.append(
            f"{total} tokens: {self.totals['trained']} trained ({share:.0f} %), {self.totals['context']} context, "
            f"{self.totals['dropped']} dropped"
        )
        if self.weights != (1.0, 1.0):
            lines.append("weights of trained tokens from {:g} to {:g}".format(*self.weights))
        return [*lines, *(trouble.line() for trouble in self.troubles), *self.notes]

    def __repr__(self) -> str:
        return self.static_text()

    def static_text(self) -> str:
        """Trained tokens stand between « and », dropped ones between ⟦ and ⟧."""
        made = []
        for unit in self.units[: self.first]:
            for strip in unit.strips:
                made.append(f"{visible(_title(unit, strip))}\n{self._marked(strip)}")
        left = len(self.units) - self.first
        more = (
            [f"... and {left} more {'packs' if self.units[0].title.startswith('Pack') else 'rows'}"] if left > 0 else []
        )
        return "\n\n".join([*made, *more, "\n".join(visible(line) for line in self._lines())])

    def _marked(self, strip: Strip) -> str:
        marks = (("", ""), ("«", "»"), ("⟦", "⟧"))
        text, inside = [], 0
        for token, why in zip(self._tokens(strip.ids), strip.why, strict=True):
            kind = WHY[why][0]
            if kind != inside:
                text.append(marks[inside][1] + marks[kind][0])
                inside = kind
            text.append(token)
        return "".join(text) + marks[inside][1]

    def _tokens(self, ids: np.ndarray) -> list[str]:
        return [visible(text) for text, _ in self.pieces([int(i) for i in ids])]

    def static_html(self) -> str:
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._lines())
        strips = "".join(self._strip_html(u, s) for u in self.units[: self.first] for s in u.strips)
        left = len(self.units) - self.first
        more = f"<div>and {left} more; the first of them stand in this picture</div>" if left > 0 else ""
        legend = " ".join(f'<span style="{_STYLES[i]}">{kind}</span>' for i, kind in enumerate(KINDS))
        return f'<div style="line-height: 1.6">{lines}<div>{legend}</div>{strips}{more}</div>'

    def _strip_html(self, unit: Unit, strip: Strip) -> str:
        shown, spans = _ends(len(strip.ids), PICTURE), []
        top = max(1.0, self.weights[1])
        for start, end in shown:
            if start is None:
                spans.append(f"<i> … {end} tokens … </i>")
                continue
            texts = self._tokens(strip.ids[start:end])
            for i, text in zip(range(start, end), texts, strict=True):
                spans.append(_token_html(i, text, int(strip.why[i]), float(strip.weight[i]), top))
        said = "".join(f"<div>{escape(words)}</div>" for _, words in unit.problems) if strip is unit.strips[0] else ""
        style = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 8px"
        return f'<b>{escape(_title(unit, strip))}</b>{said}<pre style="{style}">{"".join(spans)}</pre>'

    # -- answering the page ----------------------------------------------------------------------------------

    def on_page(self, ask: Ask, start: int = 0, only: str = "") -> dict[str, Any]:
        return self.page(int(start), str(only))

    def chosen(self, only: str = "") -> list[int]:
        """Positions of the units to show."""
        if not only:
            return list(range(len(self.units)))
        units = enumerate(self.units)
        if only == "problems":
            return [i for i, unit in units if unit.problems]
        return [i for i, unit in units if any(name == only for name, _ in unit.problems)]

    def page(self, start: int = 0, only: str = "") -> dict[str, Any]:
        """The page with the unit at `start` of those chosen; `before` and `after` are where its neighbours start."""
        chosen = self.chosen(only)
        starts = self._starts(chosen)
        at = max((i for i, first in enumerate(starts) if first <= max(0, start)), default=0)
        first = starts[at] if starts else 0
        end = starts[at + 1] if at + 1 < len(starts) else len(chosen)
        return {
            "units": [self._unit(self.units[i]) for i in chosen[first:end]],
            "start": first,
            "before": starts[at - 1] if at > 0 else None,
            "after": end if end < len(chosen) else None,
            "last": starts[-1] if starts else 0,
            "matched": len(chosen),
            "total": len(self.units),
            "only": only,
        }

    def _starts(self, chosen: Sequence[int]) -> list[int]:
        starts, tokens = [], 0
        for n, i in enumerate(chosen):
            size = sum(min(len(strip.ids), STRIP) for strip in self.units[i].strips)
            if not starts or n - starts[-1] >= PAGE_UNITS or (tokens and tokens + size > PAGE_TOKENS):
                starts.append(n)
                tokens = 0
            tokens += size
        return starts

    def _unit(self, unit: Unit) -> dict[str, Any]:
        return {
            "title": visible(unit.title),
            "note": visible(unit.note),
            "problems": [visible(words) for _, words in unit.problems],
            "strips": [self._strip(unit, strip) for strip in unit.strips],
        }

    def _strip(self, unit: Unit, strip: Strip) -> dict[str, Any]:
        parts = []
        for start, end in _ends(len(strip.ids), STRIP):
            if start is None:
                parts.append({"gap": end})
                continue
            ids = [int(i) for i in strip.ids[start:end]]
            made = self.pieces(ids)
            parts.append({
                "at": start,
                "ids": ids,
                "text": [visible(text) for text, _ in made],
                "special": [int(special) for _, special in made],
                "why": strip.why[start:end].tolist(),
                "weight": [round(float(w), 6) for w in strip.weight[start:end]],
            })  # fmt: skip
        title = visible(strip.title) if strip.title != unit.title else ""
        return {"title": title, "counts": strip.counts.tolist(), "parts": parts}


BLUE, ORANGE = "0, 114, 178", "213, 94, 0"
"""red, green, blue of trained and of dropped tokens, readable on light and on dark paper"""
_STYLES = (
    "",
    f"background: rgba({BLUE}, 0.3); text-decoration: underline",
    f"color: rgb({ORANGE}); text-decoration: line-through",
)


def _token_html(i: int, text: str, why: int, weight: float, top: float) -> str:
    kind, words = WHY[why]
    shown = escape(text).replace("\n", "↵\n") if kind else escape(text)
    says = f"token {i}: " + (f"weight {number(weight)}" if kind == 1 else words.partition(" (")[0])
    style = _STYLES[kind].replace("0.3", f"{0.15 + 0.3 * weight / top:.2f}")
    return f'<span title="{escape(says)}"' + (f' style="{style}"' if style else "") + f">{shown}</span>"


def _title(unit: Unit, strip: Strip) -> str:
    if strip.title == unit.title:
        return unit.title
    return strip.title if strip.title.startswith(unit.title) else f"{unit.title}: {one_line(strip.title, 200)}"


def _ends(n: int, most: int) -> list[tuple[int | None, int]]:
    """The parts [start, end) of n tokens to show; (None, so many) for those in between."""
    if n <= most:
        return [(0, n)]
    half = most // 2
    return [(0, half), (None, n - 2 * half), (n - half, n)]
