"""A loss of two kinds of rows: completions, under a policy gradient, and rows that come along for another term.

`companion` (B,) is 1 for the latter. Each kind has its own function, which sees its rows only; the losses are added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from workbench.objectives import Metrics, Objective, mean_of

Term = Callable[[Any, Mapping[str, Tensor], Mapping[str, float]], tuple[Tensor, Metrics]]


def beside(main: Objective, term: Term) -> Objective:
    """`main` on the completions plus `term` on the companions. totals: `companions`, their number in the update."""
    return Objective(partial(_both, main=main, term=term), main.needs, main.coupled)


def _both(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, main: Objective, term: Term
) -> tuple[Tensor, Metrics]:
    if "companion" not in columns:
        return main(scores, columns, totals)
    other = columns["companion"] > 0  # (B,)
    parts = [function(*_rows(scores, columns, rows), totals)
             for function, rows in ((main, ~other), (term, other)) if rows.any()]  # fmt: skip
    return sum(loss for loss, _ in parts), {name: pair for _, metrics in parts for name, pair in metrics.items()}


def _rows(scores, columns: Mapping[str, Tensor], rows: Tensor) -> tuple[Any, dict[str, Tensor]]:
    mine = {name: values[rows] for name, values in vars(scores).items() if values is not None}
    return replace(scores, **mine), {name: values[rows] for name, values in columns.items()}


def informativeness(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, coef: float
) -> tuple[Tensor, Metrics]:
    """- coef A, averaged over rows, where A = (r - const) / const and r is a row's mean log-prob: its gradient is
    - coef `slope` grad r. columns: `slope` (B,), dA/dr; `told` (B,), A."""
    mask = scores.mask.to(scores.logprob.dtype)
    r = (scores.logprob * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)  # (B,)
    advantage = columns["told"] + columns["slope"] * (r - r.detach())
    return -coef * advantage.sum() / totals["companions"], {"answer_logprob": mean_of(r)}


def switching(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, coef: float, temperature: float
) -> tuple[Tensor, Metrics]:
    """coef * mean over pairs of -log sigmoid(s (z_first - z_second)), rows 2i and 2i + 1 being two tokens at one place;
    their logits differ by as much as their log-probs, times the temperature. columns: `sign` (B,), s."""
    logprob = scores.logprob[:, 0]  # (B,)
    apart = temperature * (logprob[0::2] - logprob[1::2])  # (P,)
    loss = -F.logsigmoid(columns["sign"][0::2] * apart)
    share = apart.detach().sigmoid()
    return coef * 2 * loss.sum() / totals["companions"], {
        "mode/loss": mean_of(loss),
        "mode/short_share": mean_of(share),
    }
