"""Reductions: token losses (B, T) as one number.

The totals are those of the whole update, so that the parts of an update that is cut into micro-batches add up.
A row that is left out has an empty mask; it still counts among `rows`, as in TRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reduction:
    """A row of the table below: `function(token_loss (B, T), mask (B, T), totals)` gives the loss."""

    function: Callable[[Tensor, Tensor, Mapping[str, float]], Tensor]
    formula: str
    paper: str = ""
    note: str = ""


def dapo(loss: Tensor, mask: Tensor, totals: Mapping[str, float]) -> Tensor:
    return (loss * mask).sum() / totals["tokens_share"]


def bnpo(loss: Tensor, mask: Tensor, totals: Mapping[str, float]) -> Tensor:
    return (loss * mask).sum() / max(totals["tokens"], 1.0)


def grpo(loss: Tensor, mask: Tensor, totals: Mapping[str, float]) -> Tensor:
    return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / totals["rows"]


def dr_grpo(loss: Tensor, mask: Tensor, totals: Mapping[str, float]) -> Tensor:
    return (loss * mask).sum() / (totals["rows"] * totals["max_tokens"])


def luspo(loss: Tensor, mask: Tensor, totals: Mapping[str, float]) -> Tensor:
    return (loss * mask).sum() / totals["rows"]


REDUCTIONS: dict[str, Reduction] = {
    "dapo": Reduction(
        dapo,
        "sum m l / (tokens of the whole sampling / updates of a pass)",
        "Yu et al. 2025, arXiv 2503.14476",
        "TRL's divisor; the paper's is the number of tokens of the update",
    ),
    "bnpo": Reduction(
        bnpo,
        "sum m l / tokens of the update",
        "TRL",
        "TRL divides by the tokens of each micro-batch, so that its number depends on the micro-batch size",
    ),
    "grpo": Reduction(grpo, "mean over rows of (sum_t m l / n)", "Shao et al. 2024, arXiv 2402.03300"),
    "dr_grpo": Reduction(dr_grpo, "sum m l / (rows * max_new_tokens)", "Liu et al. 2025, arXiv 2503.20783"),
    "luspo": Reduction(luspo, "mean over rows of (sum_t m l)", "LUSPO, arXiv 2602.05261"),
}
"""how token losses l with mask m, n tokens in a row, become one number"""
