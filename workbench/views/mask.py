"""Rows as their tokens, those that train on a colour: what `wb.show_mask` shows. Static HTML, or text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.views.text import escape, number, visible

BLUE = "0, 114, 178"
"""red, green, blue of a trained token, readable on light and on dark paper"""


@dataclass(frozen=True)
class Strip:
    """One text: its tokens' `texts` and `weights` (0: context, which the loss leaves out), under a title."""

    title: str
    texts: Sequence[str]
    weights: Sequence[float]


@dataclass(frozen=True)
class MaskView:
    """The strips of some rows, and what tokenising all of them found. A notebook shows colours, a terminal «»."""

    strips: Sequence[Strip]
    report: str
    """lines for people (`mask_report.MaskReport`)"""

    def _repr_html_(self) -> str:
        strips = "".join(_strip_html(strip) for strip in self.strips)
        report = f'<pre style="white-space: pre-wrap">{escape(self.report)}</pre>'
        return f'<div style="line-height: 1.6">{strips}{report}</div>'

    def __repr__(self) -> str:
        """Runs of trained tokens stand between « and »."""
        return "\n\n".join([*(_strip_text(strip) for strip in self.strips), visible(self.report)])


def _strip_html(strip: Strip) -> str:
    most = max([1.0, *strip.weights])
    spans = []
    for i, (text, weight) in enumerate(zip(strip.texts, strip.weights, strict=True)):
        shown = escape(text).replace("\n", "↵\n") if weight else escape(text)
        says = f"token {i}: " + (f"weight {number(weight)}" if weight else "context")
        style = f' style="background: rgba({BLUE}, {0.15 + 0.3 * weight / most:.2f})"' if weight else ""
        spans.append(f'<span title="{says}"{style}>{shown}</span>')
    text = "".join(spans)
    return f'<b>{escape(strip.title)}</b><pre style="white-space: pre-wrap; overflow-wrap: anywhere">{text}</pre>'


def _strip_text(strip: Strip) -> str:
    made, inside = [f"{visible(strip.title)}\n"], False
    for text, weight in zip(strip.texts, strip.weights, strict=True):
        if bool(weight) != inside:
            made.append("«" if weight else "»")
            inside = bool(weight)
        made.append(visible(text))
    return "".join(made) + "»" * inside
