"""Static pictures of the views: HTML without script for saved notebooks, and text for terminals.

A curve is an SVG inside an <img>: Lab strips inline SVG from notebooks it does not trust, but keeps images. An image
does not know the page's theme, so its marks have mid tones that read on light and on dark.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape as xml_escape

import numpy as np

from workbench.store import Store
from workbench.views.alarms import Alarm, alarms_html, alarms_lines
from workbench.views.curves import Curves, changed, headline, last_values, progress, thin
from workbench.views.panels import Chart, arrange, grouped
from workbench.views.text import escape, number, one_line, sparkline, visible

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which people with any colour vision can tell apart; past six, dashes"""
DASHES = ("", "6 3", "2 2")
GREY = "#7a7a7a"
WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 20

Points = tuple[np.ndarray, np.ndarray]


def style_of(i: int) -> tuple[str, str]:
    """Colour and dash of the i-th curve of a chart."""
    return PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    base = 10.0 ** math.floor(math.log10(span / most))
    for step in (base, 2 * base, 5 * base, 10 * base, 20 * base):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(k * step, 12) for k in range(first, last + 1)]


class _Frame:
    """Where a value lies in the picture."""

    def __init__(self, chart: Chart, curves: list[Points], span: tuple[float, float]):
        y = _finite([p[1] for p in curves])
        self.empty = not len(y)
        self.x0, self.x1 = span
        self.y0, self.y1 = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
        if chart.low is not None and chart.high is not None:
            self.y0, self.y1 = min(self.y0, chart.low), max(self.y1, chart.high)
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        pad = (self.y1 - self.y0) * 0.04 or abs(self.y0) * 0.1 or 0.5
        self.y0, self.y1 = self.y0 - pad, self.y1 + pad

    def x(self, step: float) -> float:
        return LEFT + (step - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _finite(parts: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.concatenate([*parts, np.empty(0)])
    return whole[np.isfinite(whole)]


def _runs(x: np.ndarray, y: np.ndarray) -> list[Points]:
    """The stretches between numbers that are missing."""
    good = np.isfinite(y)
    cuts = np.flatnonzero(np.diff(good.astype(int))) + 1
    return [(a, b) for a, b in zip(np.split(x, cuts), np.split(y, cuts), strict=True) if len(b) and np.isfinite(b[0])]


def _stroke(frame: _Frame, x: np.ndarray, y: np.ndarray, colour: str, dash: str, width: float, opacity: float) -> str:
    drawn = []
    style = f'stroke="{colour}" stroke-width="{width}" opacity="{opacity}"'
    for xs, ys in _runs(*thin(x, y, WIDTH)):
        at = [(frame.x(a), frame.y(b)) for a, b in zip(xs, ys, strict=True)]
        if len(at) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            broken = f' stroke-dasharray="{dash}"' if dash else ""
            drawn.append(f'<polyline fill="none" stroke-linejoin="round" {style}{broken} points="{path}"/>')
        if len(at) == 1 or (opacity == 1 and marked(x)):
            drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2" fill="{colour}" opacity="{opacity}"/>' for a, b in at]
    return "".join(drawn)


def marked(x: np.ndarray) -> bool:
    """Whether a curve's points are marked one by one: where they are few, or steps lie between them."""
    reach = x[-1] - x[0]
    return reach <= 20 or (len(x) <= 60 and reach > 1.5 * (len(x) - 1))


def _brief(value: float) -> str:
    """A number of an axis, which has no room for more than six characters."""
    for least, size, sign in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= abs(value) < 1e13:
            return f"{value / size:g}{sign}".replace("-", "−")
    return number(value)


def _axes(frame: _Frame) -> str:
    drawn = []
    for value in ticks(frame.y0, frame.y1):
        y = frame.y(value)
        drawn.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}" opacity="0.25"/>'
        )
        drawn.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{xml_escape(_brief(value))}</text>')
    for step in ticks(frame.x0, frame.x1, 6):
        if step == int(step):
            drawn.append(f'<text x="{frame.x(step):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{int(step)}</text>')
    base = HEIGHT - BOTTOM
    drawn.append(f'<text x="{LEFT - 12}" y="{HEIGHT - 5}" text-anchor="end">step</text>')
    drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}" stroke="{GREY}" opacity="0.7"/>')
    return "".join(drawn)


def _band(frame: _Frame, edges: list[Points]) -> str:
    (x, low), (_, high) = edges
    if len(x) < 2:
        return ""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), 400)).round().astype(int))
    edge = [(x[i], high[i]) for i in kept] + [(x[i], low[i]) for i in kept[::-1]]
    path = " ".join(f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in edge)
    return f'<polygon points="{path}" fill="{PALETTE[0]}" opacity="0.15"/>'


def _edges(chart: Chart, curves: Curves) -> list[Points]:
    """The lower and the upper edge of the chart's band, where both are numbers; none without a band."""
    if not chart.band or not chart.names:
        return []
    whole = [dict(zip(*(part.tolist() for part in curves.main(name)), strict=True)) for name in chart.band]
    if len(chart.band) == 1:  # a spread to each side of the first curve
        middle = dict(zip(*(part.tolist() for part in curves.main(chart.names[0])), strict=True))
        edges = [{x: y + sign * whole[0].get(x, math.nan) for x, y in middle.items()} for sign in (-1, 1)]
    else:
        edges = whole
    steps = [x for x, y in edges[0].items() if math.isfinite(y) and math.isfinite(edges[1].get(x, math.nan))]
    return [(np.array(steps), np.array([edge[x] for x in steps])) for edge in edges] if steps else []


def _marks(frame: _Frame, curves: Curves) -> str:
    """A dotted line for each step with an event, at most so many that they can be told apart."""
    steps = sorted({event["step"] for event in curves.events if frame.x0 <= event["step"] <= frame.x1})
    return "".join(
        f'<line x1="{frame.x(step):.1f}" x2="{frame.x(step):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{GREY}"'
        ' stroke-dasharray="2 3"/>'
        for step in steps[:: max(1, len(steps) // 40)]
    )


def svg(chart: Chart, curves: Curves) -> str:
    """The chart as a whole SVG document of its own. No text of the run's is in it, only numbers."""
    lines = [curves.main(name) for name in chart.names]
    left = [[(x, y) for x, y in curves.given_up(name)] for name in chart.names]
    edges = _edges(chart, curves)
    frame = _Frame(chart, [*lines, *(points for some in left for points in some), *edges], curves.span)
    drawn = [_axes(frame)]
    if frame.empty:
        said = "no value yet" if not any(len(x) for x, _ in lines) else "every value is NaN"
        drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{said}</text>')
    drawn.append(_marks(frame, curves))
    if edges:
        drawn.append(_band(frame, edges))
    for i in reversed(range(len(lines))):
        colour, dash = style_of(i)
        drawn += [_stroke(frame, x, y, colour, dash, 1.2, 0.3) for x, y in left[i]]
        drawn.append(_stroke(frame, *lines[i], colour, dash, 2.4 if i == 0 else 1.6, 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' font-family="system-ui, sans-serif" font-size="11" fill="{GREY}">{"".join(drawn)}</svg>'
    )


def image(chart: Chart, curves: Curves) -> str:
    """The chart as an <img>, with its last values as the text that stands in for it."""
    said = ", ".join(f"{name} {changed(*last_values(curves, name))}" for name in chart.names)
    source = base64.b64encode(svg(chart, curves).encode()).decode()
    return (
        f'<img alt="{escape(f"{chart.title}: {said}")}" width="100%" style="width: 100%; height: auto; max-width: none"'
        f' src="data:image/svg+xml;base64,{source}">'
    )


def figure(chart: Chart, curves: Curves) -> str:
    """A chart with its title, its legend and the values at its end."""
    legend = []
    for i, name in enumerate(chart.names):
        colour, dash = style_of(i)
        mark = {"": "━━", "6 3": "╍╍", "2 2": "┄┄"}[dash]
        value = escape(changed(*last_values(curves, name)))
        legend.append(
            '<span style="display: inline-block; max-width: 100%; overflow-wrap: anywhere; margin-right: 12px">'
            f'<span style="color: {colour}">{mark}</span>'
            f" <bdi>{escape(one_line(name, 60))}</bdi> <b>{value}</b></span> "
        )
    unit = chart.unit if chart.unit != chart.title.lower() else ""
    return (
        '<div style="display: inline-block; vertical-align: top; width: 31%; min-width: 270px; max-width: 420px;'
        ' margin: 0 2% 12px 0">'
        f'<div><b>{escape(chart.title)}</b> <span style="color: {GREY}">{escape(unit)}</span></div>'
        f'<div style="font-size: 12px">{"".join(legend)}</div>{image(chart, curves)}</div>'
    )


def dashboard_html(store: Store, curves: Curves, found: Sequence[Alarm] = ()) -> str:
    """The dashboard as HTML without script."""
    head = headline(store)
    charts = [chart for chart in arrange(head["method"], curves.names) if chart.names]
    facts = " · ".join(escape(fact) for fact in (head["method"], progress(head), head["status"]))
    body = [f"<div><b>{escape(head['name'])}</b> · {facts}</div>"]
    if head["note"]:
        body.append(f"<div>{escape(head['note'])}</div>")
    body.append(alarms_html(found))
    if not charts:
        body.append(f'<div style="color: {GREY}">No metrics yet.</div>')
    for title, group in grouped([chart for chart in charts if chart.main]).items():
        body.append(f'<div style="margin: 10px 0 4px; color: {GREY}">{escape(title)}</div>')
        body.append(f"<div>{''.join(figure(chart, curves) for chart in group)}</div>")
    if curves.events:
        body.append("<div><b>Events</b></div><ul>")
        body += [f"<li>step {e['step']}: {escape(one_line(e['text'], 300))}</li>" for e in curves.events[-20:]]
        body.append("</ul>")
    if others := [name for chart in charts if not chart.main for name in chart.names]:
        rows = "".join(
            f"<tr><td>{escape(one_line(name, 80))}</td><td>{escape(changed(*last_values(curves, name)))}</td></tr>"
            for name in others
        )
        what = "1 other metric" if len(others) == 1 else f"{len(others)} other metrics"
        body.append(f"<details><summary>{what}, first → last</summary><table>{rows}</table></details>")
    return f'<div class="wb-static">{"".join(body)}</div>'


def dashboard_text(store: Store, curves: Curves, found: Sequence[Alarm] = ()) -> str:
    """The dashboard for a terminal: a line a metric, first → last, and its course in bars."""
    head = headline(store)
    parts = [head["name"], head["method"], progress(head), head["status"], head["left"]]
    lines = [" · ".join(part for part in parts if part)]
    if head["note"]:
        lines.append(head["note"])
    lines += alarms_lines(found)
    charts = [chart for chart in arrange(head["method"], curves.names) if chart.names]
    if not charts:
        lines.append("No metrics yet.")
    width = max([min(len(visible(n)), 34) for c in charts if c.main for n in c.names], default=0)
    for title, group in grouped([chart for chart in charts if chart.main]).items():
        lines.append(title)
        for name in (name for chart in group for name in chart.names):
            value = changed(*last_values(curves, name))
            lines.append(f"  {one_line(name, 33):{width}}  {sparkline(curves.main(name)[1]):32}  {value}")
    lines += [f"  step {e['step']}: {one_line(e['text'], 90)}" for e in curves.events[-5:]]
    return "\n".join(lines)


def table_html(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML without script, "" where there are no rows. Every cell is text, which is escaped."""
    if not rows:
        return ""
    head = "".join(f'<th style="text-align: left">{escape(one_line(name, 60))}</th>' for name in headings)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    width = "; min-width: 13em" if len(text) > 40 else ""  # else a long text may stand word under word
    return f'<td style="text-align: left; vertical-align: top{width}"><bdi>{escape(text)}</bdi></td>'


def table_text(headings: Sequence[str], rows: Sequence[Sequence[str]], justify: Callable = str.ljust) -> str:
    """The same for a terminal, in columns."""
    if not rows:
        return ""
    cells = [[one_line(cell, 40) for cell in row] for row in [headings, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = ["  ".join(justify(cell, width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)
