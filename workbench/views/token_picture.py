"""Tokens without script, for a saved notebook and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.views.text import escape, number, number_or_dash, one_line, sparkline

BLUE = "0, 114, 178"
MOST = 2000
"""tokens of a picture"""
LINES = 40
"""tokens of a table in a terminal"""


def html(title: str, texts: Sequence[tuple[str, bool]], logprob: np.ndarray, entropy: np.ndarray) -> str:
    """The tokens on colours that say how unlikely each was; (n,) log-probs and entropies in nats."""
    worst = worst_of(logprob)
    spans = []
    for i, (text, special) in enumerate(texts[:MOST]):
        says = f"token {i}: log-prob {number_or_dash(logprob[i])}, entropy {number_or_dash(entropy[i])}"
        style = shade(logprob[i], worst) + ("; border: 1px solid" if special else "")
        spans.append(f'<span title="{says}" style="{style}">{escape(text).replace(chr(10), "↵" + chr(10))}</span>')
    more = f"<p>… and {len(texts) - MOST} more tokens</p>" if len(texts) > MOST else ""
    said = f"colour: log-prob as sampled, from 0 (none) to {number(worst)} nats and below" if worst < 0 else ""
    return (
        f"<p><b>{escape(title)}</b><br>{said}</p>"
        f'<pre style="white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6">{"".join(spans)}</pre>{more}'
    )


def text(title: str, texts: Sequence[tuple[str, bool]], logprob: np.ndarray, entropy: np.ndarray) -> str:
    """The two curves, and a table of the first tokens."""
    lines = [title, f"log-prob {sparkline(logprob.tolist())}", f"entropy  {sparkline(entropy.tolist())}", ""]
    lines.append(f"{'':>5} {'log-prob':>9} {'entropy':>8}  token")
    for i, (piece, special) in enumerate(texts[:LINES]):
        numbers = f"{number_or_dash(round(float(logprob[i]), 3)):>9} {number_or_dash(round(float(entropy[i]), 3)):>8}"
        lines.append(f"{i:>5} {numbers}  «{one_line(piece, 40)}»{' special' if special else ''}")
    return "\n".join(lines + ([f"… and {len(texts) - LINES} more tokens"] if len(texts) > LINES else []))


def worst_of(logprob: np.ndarray) -> float:
    """The log-prob of the full colour: a twentieth of the tokens are less likely. 0 where nothing is known."""
    known = logprob[np.isfinite(logprob)]
    return min(0.0, float(np.quantile(known, 0.05))) if len(known) else 0.0


def shade(logprob: float, worst: float) -> str:
    if not np.isfinite(logprob) or worst >= 0:
        return "background: transparent"
    return f"background: rgba({BLUE}, {0.6 * min(1.0, max(0.0, logprob / worst)):.2f})"
