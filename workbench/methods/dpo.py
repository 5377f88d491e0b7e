"""Preference optimisation on pairs: DPO (Rafailov et al. 2023, arXiv 2305.18290) and the losses that came after it,
CPO, SimPO and ORPO among them; `workbench.objectives.preference.LOSSES` lists them.

Every update takes `batch_size` pairs and scores both answers under the policy, and under the reference (the policy as
it was when the run began, unless `sync_ref_model` moves it) where a chosen loss needs that. Dropout is off, as in TRL.
`wb.dpo`, `wb.cpo` and `wb.orpo` are this one loop; their settings say which losses are added up. A published method
changes one or two places of it: a `Variant` says which (`workbench.methods.preference`).

CPO and ORPO differ from TRL's trainers in one thing: those put the tokenizer's start token before every text, these
do as the tokenizer does, like TRL's DPOTrainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from workbench import tokenise, update
from workbench.mask_report import MaskReport
from workbench.methods import Method, reference
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.preference import LOSSES
from workbench.objectives.preference import objective as pair_objective
from workbench.state import State


@dataclass(frozen=True)
class PairData:
    """Pairs as tokens, and what the reference said of them."""

    items: list[tokenise.Pair]
    report: MaskReport
    memory: reference.Memory = field(default_factory=reference.Memory)


@dataclass(frozen=True)
class Variant:
    """Where a method differs from plain DPO; each default changes nothing.

    rows       rows as given -> rows with prompt, chosen and rejected (rows, settings, tokenizer); a function of these
               alone
    columns    what the batch's sequences (chosen and rejected in turn) bring along: name -> a number each, or one a
               scored token
    objective  of the batch, at this step (1, 2, ...)
    """

    rows: Callable[[Any, Any, Any], Any] = lambda rows, settings, tokenizer: rows
    columns: Callable[[State | None, Context, Sequence[tokenise.Pair]], dict[str, list]] = lambda state, ctx, pairs: {}
    objective: Callable[[Any, int], Objective] = lambda settings, index: pair_objective(
        settings.parts(), asdict(settings)
    )


PLAIN = Variant()


def variant(name: str, settings: type, changes: Variant, **more: Any) -> Method:
    """The record of a method that is DPO with these changes; `more` goes to `Method`."""
    parts = {
        "prepare": partial(prepare, changes=changes),
        "loop": partial(loop, changes=changes),
        "preview": partial(preview, changes=changes),
        "prepare_eval": prepare,
    }
    return Method(name, "rows", evaluate=evaluate, settings=settings, **(parts | more))


def prepare(tokenizer, rows, settings, changes: Variant = PLAIN) -> PairData:
    """Token ids of prompt, chosen and rejected. Raises DataError where a row cannot be used."""
    rows = changes.rows(rows, settings, tokenizer)
    made = tokenise.pairs(rows, tokenizer, max_length=settings.max_length, truncation=settings.truncation_mode)
    return PairData(made.items, made.report)


def loop(state: State, ctx: Context, changes: Variant = PLAIN) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rows = [row for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]
        yield Step(index, fit(state, ctx, ctx.data, rows, index, changes))


def fit(
    state: State, ctx: Context, data: PairData, rows: Sequence[int], index: int, changes: Variant = PLAIN
) -> dict[str, float]:
    """One update on these rows of `data`; returns its metrics."""
    batch = batch_of(state, ctx, data, rows, changes)
    outcome = ctx.learn(state, batch, changes.objective(ctx.settings, index), totals(batch), index)
    outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
    if "ref_logprob" in batch.columns:
        reference.sync(state, ctx, index)
    return outcome.metrics


def batch_of(
    state: State | None, ctx: Context, data: PairData, rows: Sequence[int], changes: Variant = PLAIN
) -> update.Batch:
    """The batch of these rows, with what the chosen losses need beside the policy's scores."""
    losses = [LOSSES[name] for name in ctx.settings.parts()]
    items = [data.items[row] for row in rows]
    answers = make_batch(items)
    batch = make_batch(items, whole=True) if any(loss.whole for loss in losses) else answers
    if any(loss.reference for loss in losses):
        known = reference.column(state, ctx, answers, data, rows, lambda: make_batch(data.items))
        # where prompts are scored too, no loss reads what the reference says of them
        lengths = zip(known, batch.scored(), strict=True)
        batch.columns["ref_logprob"] = [[0.0] * (scored - len(values)) + values for values, scored in lengths]
    batch.columns |= changes.columns(state, ctx, items)
    return batch


def make_batch(pairs: Sequence[tokenise.Pair], whole: bool = False) -> update.Batch:
    """Chosen and rejected in turn, scored from the end of the prompt on; `whole`: from the second token on, with the
    column `answer`, 1 where the answer is."""
    sides = [side for pair in pairs for side in pair.sequences()]
    batch = update.Batch([ids for ids, _ in sides], [1 if whole else start for _, start in sides], unit=2)
    if whole:
        batch.columns["answer"] = [[0] * (start - 1) + [1] * (len(ids) - start) for ids, start in sides]
    return batch


def totals(batch: update.Batch) -> dict[str, float]:
    """The normalisers of the losses: pairs, tokens of chosen answers, tokens of prompts and chosen answers."""
    text = sum(batch.scored()[0::2])
    answers = sum(map(sum, batch.columns["answer"][0::2])) if "answer" in batch.columns else text
    return update.totals_of(batch, chosen_tokens=answers, text_tokens=text)


def evaluate(ctx: Context) -> dict[str, float]:
    return as_eval(preview(ctx, ctx.eval_data, grad=False))


def preview(ctx: Context, data: PairData, grad: bool = True, changes: Variant = PLAIN) -> update.Outcome:
    index = 1 if ctx.state is None else ctx.state.step + 1
    batch = batch_of(ctx.state, ctx, data, range(len(data.items)), changes)
    return ctx.look(batch, changes.objective(ctx.settings, index), totals(batch), "preview", grad=grad)


METHOD = Method("dpo", "rows", prepare, loop, evaluate, preview)
CPO = replace(METHOD, name="cpo")
ORPO = replace(METHOD, name="orpo")
