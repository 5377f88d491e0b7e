"""The memory of a planned run as a picture: a bar for each part of a step, what it is made of, and what would be less.

Nothing in it moves, so there is no script: the bars are an image, the rest is text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.text import SIZES, scaled
from workbench.views.base import NO_MATHS, in_kernel
from workbench.views.picture import GREY, table_html, table_text, ticks
from workbench.views.text import duration, escape, number, one_line

PARTS = {
    "weights": ("#0072B2", 1.0, "the model as it was loaded, without an adapter"),
    "adapter": ("#56B4E9", 1.0, "as it was attached, for policy.reset()"),
    "trained copy": ("#56B4E9", 0.55, "what trains, as the run's own"),
    "reference": ("#56B4E9", 0.3, "what trains, as it was when the run began"),
    "optimiser": ("#009E73", 1.0, "what it keeps for each trained number"),
    "past states": ("#009E73", 0.55, "to go back to without a replay; at most 1.07 GB"),
    "snapshot": ("#009E73", 0.3, "the state as it is written to disk"),
    "KV cache": ("#CC79A7", 1.0, "keys and values of the completions that are sampled"),
    "folded weights": ("#CC79A7", 0.6, "weights with the adapter added, for sampling"),
    "drawing": ("#CC79A7", 0.35, "logits and probabilities of the next tokens"),
    "activations": ("#D55E00", 1.0, "what the backward pass needs, and the buffers of both passes"),
    "head": ("#D55E00", 0.5, "logits, a piece at a time"),
    "gradients": ("#E69F00", 1.0, "one number for each trained one"),
    "workspace": ("#E69F00", 0.5, "the optimiser's buffers for the largest matrix"),
}
"""part -> colour, opacity, what it is; in the order in which a bar has them"""
WIDTH, LEFT, RIGHT, ROW, BAR = 760, 88, 78, 34, 20
"""of the picture: its width, room for the names and the totals, a bar's row and its height"""
NEAR = 1.6
"""a limit up to so many times the peak is drawn; a farther one would make the bars small"""


@dataclass(frozen=True)
class Phase:
    """A part of a step, and the bytes that live at its fullest moment by what they are for."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Change:
    """A change to the plan, as one would write it, the peak in bytes it leads to, and whether that fits."""

    change: str
    peak: int
    fits: bool | None


class ForecastPicture:
    """The picture of a forecast: `static_html`, `static_text`, and `show` for whichever of them there is a place."""

    def __init__(
        self,
        *,
        title: str,
        phases: Sequence[Phase],
        held: int,
        free: int | None,
        margin: float,
        fits: bool | None,
        advice: Sequence[Change] = (),
        facts: Sequence[tuple[str, float, str]] = (),
    ):
        self.title, self.phases, self.advice, self.facts = title, list(phases), list(advice), list(facts)
        self.held, self.free, self.margin, self.fits = held, free, margin, fits
        self.fullest = max(self.phases, key=lambda phase: phase.total)

    # -- words -----------------------------------------------------------------------------------------------

    def headline(self) -> str:
        """The peak, where it is, and whether it fits."""
        more = max(0, self.fullest.total - self.held)
        said = f"Peak {size(self.fullest.total)}, in {self.fullest.name}: {size(more)} more than is held now."
        if self.free is None:
            return f"{said} How much is free here cannot be told."
        return f"{said} {'It fits' if self.fits else 'It does not fit'}: {size(self.free)} are free."

    def _names(self) -> list[str]:
        """The parts that are anywhere, in the order of PARTS."""
        return [name for name in PARTS if any(phase.parts.get(name) for phase in self.phases)]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [name, *(size(p.parts[name]) if p.parts.get(name) else "–" for p in self.phases), PARTS[name][2]]
            for name in self._names()
        ]
        rows.append(["all", *(size(phase.total) for phase in self.phases), ""])
        return ["part", *(phase.name for phase in self.phases), ""], rows

    def _advised(self) -> list[list[str]]:
        verdict = {True: "fits", False: "does not fit", None: ""}
        saved = [size(self.fullest.total - change.peak) for change in self.advice]
        return [
            [one_line(change.change, 80), size(change.peak), f"−{less}", verdict[change.fits]]
            for change, less in zip(self.advice, saved, strict=True)
        ]

    def _said(self) -> list[str]:
        return [f"{one_line(name, 60)}: {_fact(value, unit)}" for name, value, unit in self.facts]

    # -- forms -----------------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The bars as an SVG document; no text of a model's or a user's is in it."""
        limit = None if self.free is None else self.held + self.margin * self.free
        shown = limit is not None and limit <= NEAR * self.fullest.total
        most = max(self.fullest.total, limit if shown else 0, 1)
        scale = (WIDTH - LEFT - RIGHT) / most
        base = ROW * len(self.phases)
        drawn = [_scale(most, scale, base)]
        for i, phase in enumerate(self.phases):
            drawn.append(_bar(phase, ROW * i + (ROW - BAR) / 2, scale, phase is self.fullest))
        if shown:
            x = LEFT + limit * scale
            drawn.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}" stroke="#D55E00" stroke-width="1.6"'
                ' stroke-dasharray="5 3"/>'
            )
        height = base + 20
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            f' font-family="system-ui, sans-serif" font-size="12" fill="{GREY}">{"".join(drawn)}</svg>'
        )

    def static_html(self) -> str:
        """HTML without script; text is escaped."""
        picture = base64.b64encode(self.svg().encode()).decode()
        said = ", ".join(f"{phase.name} {size(phase.total)}" for phase in self.phases)
        headings, rows = self._table()
        alarm = "; color: #D55E00" if self.fits is False else ""
        body = [
            f"<div><b>{escape(one_line(self.title, 120))}</b></div>",
            f'<div style="margin: 4px 0{alarm}">{escape(self.headline())}</div>',
            f'<img alt="{escape(f"memory by part of a step: {said}")}" width="100%"'
            f' style="width: 100%; max-width: {WIDTH}px; height: auto" src="data:image/svg+xml;base64,{picture}">',
            f"<div>{''.join(_swatch(name) for name in self._names())}</div>",
        ]
        limit = None if self.free is None else self.held + self.margin * self.free
        if limit is not None and limit <= NEAR * self.fullest.total:
            body.append(f'<div style="color: {GREY}">Dashed line: {size(limit)}, what there is room for.</div>')
        if self.advice:
            said = "What to change" if self.fits is False else "What would take less"
            body.append(f'<div style="margin-top: 8px"><b>{said}</b></div>')
            body.append(_scrolled(["change", "peak", "less", ""], self._advised()))
        body.append(_scrolled(headings[:-1], [row[:-1] for row in rows]))
        meanings = "".join(f"<li>{escape(name)}: {escape(PARTS[name][2])}</li>" for name in self._names())
        body.append(f"<details><summary>What the parts are</summary><ul>{meanings}</ul></details>")
        body.append(f'<div style="color: {GREY}; margin: 6px 0">{escape(" · ".join(self._said()))}</div>')
        return f'<div class="wb-static {NO_MATHS}">{"".join(body)}</div>'

    def static_text(self) -> str:
        """The same for a terminal."""
        headings, rows = self._table()
        lines = [one_line(self.title, 120), self.headline(), ""]
        width = max(len(phase.name) for phase in self.phases)
        for phase in self.phases:
            bar = "█" * max(1, round(40 * phase.total / self.fullest.total))
            lines.append(f"{phase.name:{width}}  {bar:40}  {size(phase.total)}")
        lines += ["", table_text([*headings[:-1], ""], rows)]
        if self.advice:
            lines += ["", table_text(["change", "peak", "less", ""], self._advised())]
        return "\n".join([*lines, "", *self._said()])

    def bundle(self) -> dict[str, str]:
        """Both forms, as a notebook takes them."""
        return {"text/html": self.static_html(), "text/plain": self.static_text()}

    def show(self) -> ForecastPicture:
        if in_kernel():
            from IPython.display import display

            display(self.bundle(), raw=True)
        else:
            print(self.static_text())
        return self

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.bundle()


def _scrolled(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of short cells that scrolls where there is no room for it."""
    style = "margin: 6px 0; overflow-x: auto; font-size: 13px; white-space: nowrap"
    return f'<div style="{style}">{table_html(headings, rows)}</div>'


def size(count: float) -> str:
    """Bytes in thousands of thousands: "5.08 MB"."""
    return scaled(count, SIZES)


def _fact(value: float, unit: str) -> str:
    if unit == "bytes":
        return size(value)
    return duration(value) if unit == "s" else f"{value:,.0f}" if value >= 100 else number(value)


def _bar(phase: Phase, y: float, scale: float, fullest: bool) -> str:
    bold = ' font-weight="600"' if fullest else ""
    drawn = [f'<text x="{LEFT - 8}" y="{y + BAR - 6:.1f}" text-anchor="end"{bold}>{phase.name}</text>']
    x = float(LEFT)
    for name, (colour, opacity, _) in PARTS.items():
        width = phase.parts.get(name, 0) * scale
        if width > 0:
            place = f'x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{BAR}"'
            drawn.append(f'<rect {place} fill="{colour}" opacity="{opacity}"/>')
        x += width
    drawn.append(f'<text x="{x + 6:.1f}" y="{y + BAR - 6:.1f}"{bold}>{size(phase.total)}</text>')
    return "".join(drawn)


def _scale(most: float, scale: float, base: float) -> str:
    drawn = []
    for value in ticks(0.0, most):
        x = LEFT + value * scale
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}" stroke="{GREY}" opacity="0.25"/>')
        drawn.append(f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle" font-size="11">{size(value)}</text>')
    return "".join(drawn)


def _swatch(name: str) -> str:
    colour, opacity, _ = PARTS[name]
    return (
        '<span style="display: inline-block; margin-right: 14px; white-space: nowrap">'
        f'<span style="display: inline-block; width: 11px; height: 11px; margin-right: 5px; background: {colour};'
        f' opacity: {opacity}"></span>{escape(name)}</span> '
    )
