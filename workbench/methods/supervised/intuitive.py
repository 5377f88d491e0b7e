"""Intuitive fine-tuning (IFT): train on prefixes that are in part the model's own guesses.

In each step the policy first reads the given answers and guesses each token, greedily: g_t. Then it reads blends,

    e_t = (1 - mix) * E[y_t] + mix * E[g_t]      at the answer's places, E the input embeddings; prompts stay
    l_t = -log p(y_t | blended prefix)
    c_t = sum over j >= t of gamma^(j - t) * l_j         w_t = c_t / mean of c over the row's trained tokens
    loss = mean over rows of [ mean over trained tokens of w_t * l_t ]          loss_reduction="row"

so that early tokens count for what they cost later: something of on-policy training at twice the price of fine-tuning,
without pairs, reward or reference. `gamma=0` is a switch: all w_t are 1 (the formula would make w proportional to l).

Hua et al. 2024, arXiv 2405.11870. Formula and defaults as in the authors' code (TsinghuaC3I/Intuitive-Fine-Tuning):
mix 0.2 throughout, gamma 0.95, gradients through w; there RMSprop, lr 5e-7 with cosine and 15 % warm-up, 3 epochs,
batch 512. Differs: they blend with a frozen copy of the embeddings; here it is the policy's own, which move only where
the whole model trains, and then by their own part of a blend, which is all of it where the guess is right. Leaves out
the linear schedule and the disturbance of the mix and the other forms of w that their code has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from workbench import flat, layouts, scoring, update
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.methods.supervised import whole_rows
from workbench.objectives import Objective
from workbench.objectives.sequences import propagated
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State


@dataclass(frozen=True, kw_only=True)
class IntuitiveSettings(SFTSettings):
    """Intuitive fine-tuning."""

    mix: float = knob(0.2, at_least=0.0, at_most=1.0)
    """how much of each embedding of the answer is that of the model's own guess; 0: none"""
    gamma: float = knob(0.95, at_least=0.0, at_most=1.0)
    """how far ahead a token answers for what follows; 0: not at all, all weights are 1"""
    detach: bool = False
    """let no gradient through the weights w; the authors' code does let it"""
    loss_reduction: str = knob("row", choices=("token", "weight", "row"))
    """how token losses become one number, as in SFT; 'row', the mean over rows of each row's mean, is the paper's"""

    def problem(self) -> str | None:
        return super().problem() or whole_rows.problem(self)


def blended(ctx: Context, batch: update.Batch, index: int) -> tuple[list[list[int]], float] | None:
    """The batch's rows with the policy's guesses in place of their trained tokens, and their share."""
    if not ctx.settings.mix:
        return None
    made = []
    for ids, start, weights, guessed in zip(
        batch.sequences, batch.starts, batch.columns["weight"], guesses(ctx, batch), strict=True
    ):
        own = [new if w else old for old, new, w in zip(ids[start:], guessed, weights, strict=True)]
        made.append([*ids[:start], *own])
    return made, ctx.settings.mix


def guesses(ctx: Context, batch: update.Batch) -> list[list[int]]:
    """Of each scored token the likeliest one in its place, under the weights the policy holds."""
    return ctx.fitting(batch, "guesses", partial(_guessed, ctx, batch), grad=False)


def _guessed(
    ctx: Context, batch: update.Batch, micro_batches: list[list[int]], check: Callable[[], None]
) -> list[list[int]]:
    policy, made = ctx.policy, [[0] * count for count in batch.scored()]
    with policy.at_rest(), update.computing(policy.model, ctx.settings.bf16):
        for rows in micro_batches:
            check()
            part = batch.take(rows)
            laid = update.laid_out(policy, part, ctx.settings.padding_free)
            if laid["groups"] is not None:
                lie = flat.layout(part.sequences, part.starts, laid["groups"], policy.device)
            else:
                lie = layouts.layout(part.sequences, part.starts, policy.filler, policy.device, laid["lines"])
            ahead = scoring.predictions(policy.model, lie)
            best = torch.cat([ahead.logits(span).argmax(-1) for span in ahead.parts(policy.vocab_size)])
            for row, column, token in zip(lie.row.tolist(), lie.column.tolist(), best.tolist(), strict=True):
                made[rows[row]][column] = token
    return made


def after(state: State, ctx: Context, batch: update.Batch, index: int) -> dict[str, float]:
    """How often the guess was the given token."""
    if batch.inputs is None:
        return {}
    same = [
        a == b
        for read, ids, start, weights in zip(
            batch.inputs, batch.sequences, batch.starts, batch.columns["weight"], strict=True
        )
        for a, b, weight in zip(read[start:], ids[start:], weights, strict=True)
        if weight
    ]
    return {"greedy_agreement": sum(same) / len(same)}


def objective(settings: IntuitiveSettings, index: int) -> Objective:
    return sft.objective(settings, partial(propagated, gamma=settings.gamma, detach=settings.detach))


METHOD = sft.variant("intuitive", IntuitiveSettings, sft.Variant(inputs=blended, objective=objective, after=after))
