"""Untrusted text made safe to look at, numbers and times for people, curves as one line of text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.text import visible

_BARS = "▁▂▃▄▅▆▇█"


def escape(value: object) -> str:
    """`value` as visible text inside HTML, in an element or in a quoted attribute."""
    return html.escape(visible(value), quote=True)


def one_line(value: object, limit: int) -> str:
    """Visible text on one line (new lines as ↵), cut at `limit` characters with an ellipsis."""
    text = value if isinstance(value, str) else str(value)
    cut = len(text) > limit
    text = visible(text[:limit]).replace("\n", "↵").replace("\t", "⇥")
    return text + "…" if cut else text


def number(value: float | None) -> str:
    """Four significant digits; whole numbers whole; 'NaN' as itself and None as a dash."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e7:
        return str(int(value)).replace("-", "−")
    digits, e, power = f"{value:.4g}".partition("e")
    return digits.replace("-", "−") + e + (str(int(power)) if e else "")


def number_or_dash(value: float | None) -> str:
    """`number`, with a dash for NaN, too: for a table in which NaN means that there is none."""
    return "–" if value is None or math.isnan(value) else number(value)


def plain(value: Any) -> Any:
    """A value as JSON has it: no numpy, and None for a number that is NaN or infinite."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def whole(value: object) -> str:
    """A value of any kind as visible text: chat messages as role and content, missing values as a dash."""
    if value is None or isinstance(value, (float, np.floating)):
        return number_or_dash(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(m, dict) and "content" in m for m in value):
        return visible("\n".join(f"[{m.get('role', '?')}] {m['content']}" for m in value))
    return visible(value)


def duration(seconds: float) -> str:
    """'12 s', '3 min 05 s', '2 h 10 min'."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """The values as bars of eight heights, averaged into at most `width` columns; '·' where there is no number."""
    n = len(values)
    columns = min(n, width)
    means = []
    for i in range(columns):
        part = [v for v in values[i * n // columns : (i + 1) * n // columns] if math.isfinite(v)]
        means.append(sum(part) / len(part) if part else math.nan)
    known = [v for v in means if not math.isnan(v)]
    if not known:
        return "·" * columns
    low, span = min(known), max(known) - min(known)
    level = [math.nan if math.isnan(v) else (v - low) / span if span else 0.5 for v in means]
    return "".join("·" if math.isnan(v) else _BARS[min(7, int(v * 8))] for v in level)
