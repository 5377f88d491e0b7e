"""iw-SFT: importance-weighted supervised fine-tuning.

Fine-tuning on filtered data is a loose lower bound of reinforcement learning with a reward of 0 or 1. It gets tighter
by weighting each row by how far the policy has moved from a reference towards it:

    r_t = log p(y_t) - log p_ref(y_t)                  w = exp(exponent * mean of r_t over the row), within [0, 16]
    loss = sum of sg(w) * -log p(y_t) / number of trained tokens of the update

With `importance_sampling_level="token"` each token has a weight of its own, exp(exponent * r_t) within [0.2, 1.8]. No
gradient goes through w. The reference is the policy as the run began, so that in the first step all weights are 1.
`score_column` names a column of scores by which rows are drawn: with probability proportional to the score, with
replacement; the weights stay as they are (SFT(Q) of the paper, and iw-SFT(Q) with weights).

Qin and Springenberg 2025, arXiv 2507.12856. Formula, bounds and the division by all trained tokens are those of the
authors' code (emmyqin/iw_sft, where exponent is `temp` and 1). They train Qwen2.5-32B-Instruct on s1K-1.1 with lr 1e-5,
cosine to 0, 5 % warm-up, weight decay 1e-4, betas 0.9 and 0.95. Differs: the reference is scored in each step, by the
same model without its training, instead of a second model or a stored column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from workbench import data, keys, tokenise
from workbench.errors import DataError
from workbench.methods import reference, sft
from workbench.methods.context import Context
from workbench.methods.supervised import whole_rows
from workbench.objectives import Objective
from workbench.objectives.sequences import importance
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State

CLIPS = {"sequence": (0.0, 16.0), "token": (0.2, 1.8)}


@dataclass(frozen=True, kw_only=True)
class IwSFTSettings(SFTSettings):
    """Importance-weighted supervised fine-tuning."""

    importance_sampling_level: str = knob("sequence", choices=tuple(CLIPS))
    """'sequence': one weight a row, of its mean log-ratio; 'token': one a token"""
    exponent: float = knob(1.0, at_least=0.0)
    """the log-ratio is multiplied by it; 0: all weights are 1, plain SFT"""
    weight_min: float | None = knob(None, at_least=0.0, at_most=1.0)
    """the least weight; None: 0 of a row, 0.2 of a token"""
    weight_max: float | None = knob(None, at_least=1.0)
    """the largest weight; None: 16 of a row, 1.8 of a token"""
    score_column: str | None = knob(None, fixed=True)
    """draw rows with probability proportional to this column, with replacement; None: each once an epoch"""

    def problem(self) -> str | None:
        if self.score_column and self.packing:
            return "score_column draws rows one by one, which packing=True does not; leave one of them out."
        return super().problem() or whole_rows.problem(self)


def checked(rows: Any, settings: IwSFTSettings, tokenizer: Any) -> Any:
    """The rows, after a look at their scores."""
    if (name := settings.score_column) is None:
        return rows
    rows = rows if isinstance(rows, data.Rows) else data.make(rows)
    whole_rows.check_numbers(rows, name, f"score_column={name!r}", least=0)
    if not any(rows.column(name)):
        raise DataError(f"Column {name!r} of {rows.source} is 0 in all rows, so none can be drawn.")
    return rows


def prepare(tokenizer: Any, rows: Any, settings: IwSFTSettings) -> tokenise.Examples:
    made, name = sft.prepare(tokenizer, rows, settings, CHANGES), settings.score_column
    if name and not any(item.given[name] for item in made.items):
        raise DataError(
            f"Column {name!r} is 0 in all rows that have a token to train on, so none can be drawn: the others lose"
            f" their completion to max_length={settings.max_length}. Raise it, or take truncation_mode='keep_end'."
        )
    return made


def draw(ctx: Context, index: int) -> list[tokenise.Example]:
    """The rows of a step."""
    if (name := ctx.settings.score_column) is None:
        return sft.drawn(ctx, index)
    upto = np.cumsum([float(item.given[name]) for item in ctx.data.items])
    draws = keys.uniforms(keys.key(ctx.settings.seed, "scored rows", index), ctx.settings.batch_size)
    places = np.minimum(draws * upto[-1], np.nextafter(upto[-1], 0))
    return [ctx.data.items[row] for row in np.searchsorted(upto, places, side="right")]


def columns(state: State | None, ctx: Context, examples: Sequence[tokenise.Example]) -> dict[str, list]:
    return {"ref_logprob": reference.logprobs(state, ctx, sft.make_batch(examples))}


def objective(settings: IwSFTSettings, index: int) -> Objective:
    low, high = CLIPS[settings.importance_sampling_level]
    low = low if settings.weight_min is None else settings.weight_min
    high = high if settings.weight_max is None else settings.weight_max
    weigh = partial(importance, level=settings.importance_sampling_level, exponent=settings.exponent, clip=(low, high))
    return sft.objective(settings, weigh)


CHANGES = sft.Variant(rows=checked, draw=draw, columns=columns, objective=objective)
METHOD = sft.variant("iw_sft", IwSFTSettings, CHANGES, prepare=prepare)
