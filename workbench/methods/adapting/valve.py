"""CoT-Valve: one LoRA whose strength sets how long the reasoning is.

The adapter is a direction in the weights from long chains of thought to short ones, theta + a * delta: below a = 1
chains are longer, at 1 as trained, above 1 shorter than any seen. This trains it on chains of several lengths for each
question, the paper's "++": a row goes through the update with the adapter at a strength of its own,

    beta = 1 - (m - m_min) / (m_max - m_min)        m: tokens of its completion, extremes among the rows of its prompt

so that the longest chain is written by the base (beta 0) and the shortest at full strength. A prompt with chains of one
length only has beta 1. Rows of unlike strength go through the model in different micro-batches, and their gradients add
up to those of the whole loss.

Around it: `wb.method("mix_chain")` makes such rows, by sampling at several strengths and keeping what is right;
`wb.method("valve_curve")` shows accuracy and length against the strength, with the paper's ACU; and
`with wb.method("scaled")(policy, 0.5): ...` samples or scores at any strength. The first stage, plain CoT-Valve, is
`strength=1.0`: SFT on short chains. "+P" is `progressive=True`: stages from the longest chain of each question to the
shortest, here at full strength in all of them where `strength=1.0`.

Ma et al. 2025, arXiv 2502.09601: about five solutions a question; QwQ-32B on GSM8K from 741 to 225 tokens at 95.07 and
94.92 %. No training code was published; this follows the formulas of the paper's text. Left out: a direction that is
not trained but taken as the difference of two models. Needs a plain LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench import tokenise
from workbench.adapters import scaling
from workbench.data import Rows
from workbench.data import make as make_rows
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State


@dataclass(frozen=True, kw_only=True)
class ValveSettings(SFTSettings):
    """SFT at strengths that follow from lengths."""

    strength: float | None = knob(None, above=0.0)
    """what the adapter is multiplied with while a row trains; None: by the row's length among those of its prompt"""
    progressive: bool = knob(False, fixed=True)
    """the longest chain of each prompt first, then the second longest, and so on; with shuffle_dataset=False"""

    def problem(self) -> str | None:
        if self.packing:
            return "packing puts rows of unlike strength into one line; leave packing out."
        if self.progressive and self.shuffle_dataset:
            return "progressive=True is an order of rows: give shuffle_dataset=False, too."
        return super().problem()


def betas(lengths: Sequence[int]) -> list[float]:
    """The strengths of chains of these lengths for one prompt: 0 for the longest, 1 for the shortest."""
    least, most = min(lengths), max(lengths)
    return [1.0 if least == most else 1 - (length - least) / (most - least) for length in lengths]


def _question(example: tokenise.Example) -> tuple[int, ...]:
    """Tokens before the first that is trained."""
    return tuple(example.ids[: example.mask.index(1)])


def columns(state: State | None, ctx: Context, examples: Sequence[tokenise.Example]) -> dict[str, list]:
    if ctx.settings.strength is not None:
        return {"strength": [ctx.settings.strength] * len(examples)}
    lengths: dict[tuple[int, ...], set[int]] = {_question(example): set() for example in examples}
    for example in [*ctx.data.items, *examples]:
        if (question := _question(example)) in lengths:
            lengths[question].add(sum(example.mask))
    found = {question: sorted(known) for question, known in lengths.items()}
    strength = {question: dict(zip(known, betas(known), strict=True)) for question, known in found.items()}
    return {"strength": [strength[_question(example)][sum(example.mask)] for example in examples]}


def rows(given: Any, settings: ValveSettings, tokenizer: Any) -> Any:
    if not settings.progressive:
        return given
    read = given if isinstance(given, Rows) else make_rows(given)
    examples = tokenise.fit_rows(read, tokenizer, max_length=None).items
    ranked: dict[tuple[int, ...], list[tokenise.Example]] = {}
    for example in examples:
        ranked.setdefault(_question(example), []).append(example)
    stages = {
        example.row: stage
        for members in ranked.values()
        for stage, example in enumerate(sorted(members, key=lambda one: -sum(one.mask)))
    }
    order = sorted(stages, key=lambda row: (stages[row], row))
    return make_rows([read[row] for row in order], f"{read.source}, by stages")


def after(state: State, ctx: Context, batch: Any, index: int) -> dict[str, float]:
    strengths = batch.columns["strength"]
    return {"strength": sum(strengths) / len(strengths)}


def check(policy: Any, settings: ValveSettings) -> None:
    if settings.strength != 1:
        scaling.check(policy, "valve")


METHOD = sft.variant("valve", ValveSettings, sft.Variant(rows=rows, columns=columns, after=after), check=check)
