"""Supervised fine-tuning: raise the log-likelihood of given tokens.

Every update takes `batch_size` rows (or packs of rows) and the loss of their trained tokens: the completion and its
stop token; which tokens are trained, and with what weight, is decided when the rows are tokenised. Packs are made
once, before training, and drawn like rows.

A published method changes one or two places of this loop: a `Variant` says which (`workbench.methods.supervised`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from workbench import lines, packing, tokenise, update
from workbench.errors import DataError
from workbench.methods import Method
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.supervised import weighted
from workbench.state import State

Pack = tuple[tokenise.Example, ...]
"""documents that are drawn together"""


class Together(tuple):
    """Rows that are drawn as one and never split, as many in each of a data set; `batch_size` counts them once."""


@dataclass(frozen=True)
class Variant:
    """Where a method differs from plain SFT; each default changes nothing.

    rows       rows as given -> rows to tokenise (rows, settings, tokenizer); a function of these alone. Rows that need
               an exact mask are written as `segments` (see `workbench.data`)
    draw       the items of a step. None: `batch_size` of them, epoch after epoch, each in its own order
    columns    what the batch's rows bring along beside their weights: name -> a number a row, or one a scored token.
               `examples` are the batch's rows, `.row` the number of each among the rows that were tokenised, `.given`
               the row with all its columns
    inputs     the ids that the model reads in place of `batch.sequences`, and their share (see `update.Batch`); draws
               are keyed by the step and the row's place. None: the rows themselves
    objective  of the batch, at this step (1, 2, ...): `workbench.objectives`
    scope      what trains in this step (`workbench.optimiser.Scope`). None: all that is trainable
    within     surrounds the update: hooks, adapter scales
    after      what follows from the update, into the state; returns metrics

    Columns, inputs and scopes are made anew at each step from the state and the context: nothing is kept beside them.
    """

    rows: Callable[[Any, Any, Any], Any] = lambda rows, settings, tokenizer: rows
    draw: Callable[[Context, int], list[tokenise.Example | Pack]] | None = None
    columns: Callable[[State | None, Context, Sequence[tokenise.Example]], dict[str, list]] = (
        lambda state, ctx, examples: {}
    )
    inputs: Callable[[Context, update.Batch, int], tuple[list[list[int]], float] | None] = (
        lambda ctx, batch, index: None
    )
    objective: Callable[[Any, int], Objective] = lambda settings, index: objective(settings)
    scope: Callable[[State, Context, int], Any] = lambda state, ctx, index: None
    within: Callable[[State, Context, int], AbstractContextManager] = lambda state, ctx, index: nullcontext()
    after: Callable[[State, Context, update.Batch, int], dict[str, float]] = lambda state, ctx, batch, index: {}


PLAIN = Variant()


def variant(name: str, settings: type, changes: Variant, **more: Any) -> Method:
    """The record of a method that is SFT with these changes; `more` goes to `Method`."""
    parts = {
        "prepare": partial(prepare, changes=changes),
        "loop": partial(loop, changes=changes),
        "evaluate": partial(evaluate, changes=changes),
        "preview": partial(preview, changes=changes),
        "prepare_eval": prepare,
    }
    return Method(name, "rows", settings=settings, **(parts | more))


def prepare(tokenizer, rows, settings, changes: Variant = PLAIN) -> tokenise.Examples:
    """Token ids, train mask and weights of each row; with packing, of each pack of rows.

    Raises DataError where a row cannot be used. Where packing itself cuts (`bfd_split`, `wrapped`) rows are not cut
    before.
    """
    rows = changes.rows(rows, settings, tokenizer)
    whole = settings.packing and settings.packing_strategy != "bfd"
    examples = tokenise.fit_rows(
        rows,
        tokenizer,
        max_length=None if whole else settings.max_length,
        assistant_only_loss=settings.assistant_only_loss,
        completion_only_loss=settings.completion_only_loss,
        truncation=settings.truncation_mode,
    )
    if not settings.packing:
        return examples
    return tokenise.Examples(pack(examples.items, settings.max_length, settings.packing_strategy), examples.report)


def pack(examples: list[tokenise.Example], size: int, strategy: str) -> list[Pack]:
    """The packs, as TRL makes them; what has nothing left to train on (a piece of a cut row) is left out."""
    packs = []
    for pieces in packing.compose([len(e.ids) for e in examples], size, strategy):
        documents = [_piece(examples[p.document], p) for p in pieces]
        documents = [_joined(documents)] if strategy == "wrapped" else documents
        documents = [document for document in documents if 1 in document.mask[1:]]
        if documents:
            packs.append(tuple(documents))
    if not packs:
        raise DataError(f"packing_strategy={strategy!r} leaves nothing to train on with max_length={size}.")
    return packs


def _piece(example: tokenise.Example, piece: packing.Piece) -> tokenise.Example:
    kept = slice(piece.start, piece.end)
    return replace(example, ids=example.ids[kept], mask=example.mask[kept], weight=example.weight[kept])


def _joined(documents: list[tokenise.Example]) -> tokenise.Example:
    ids, mask, weight = (sum((getattr(d, name) for d in documents), []) for name in ("ids", "mask", "weight"))
    return replace(documents[0], ids=ids, mask=mask, weight=weight)


def loop(state: State, ctx: Context, changes: Variant = PLAIN) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        yield Step(index, fit(state, ctx, (changes.draw or drawn)(ctx, index), index, changes))


def drawn(ctx: Context, index: int) -> list[tokenise.Example | Pack]:
    """The rows, or packs, of step `index`."""
    return [ctx.data.items[row] for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]


def fit(
    state: State, ctx: Context, items: list[tokenise.Example | Pack], index: int, changes: Variant = PLAIN
) -> dict[str, float]:
    """One update on these rows or packs; returns its metrics."""
    batch = batch_of(state, ctx, items, changes)
    if (read := changes.inputs(ctx, batch, index)) is not None:
        batch.inputs, batch.share = read
    made, scope = changes.objective(ctx.settings, index), changes.scope(state, ctx, index)
    with changes.within(state, ctx, index):
        outcome = ctx.learn(state, batch, made, totals(batch), index, scope=scope)
    outcome.metrics |= changes.after(state, ctx, batch, index)
    outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
    return outcome.metrics


def objective(settings, weigh: Callable | None = None) -> Objective:
    """The loss that the settings name; `weigh`: see `supervised.weighted`."""
    made = partial(
        weighted,
        loss_type=settings.loss_type,
        smoothing=settings.label_smoothing_factor,
        reduction=settings.loss_reduction,
        weigh=weigh,
    )
    return Objective(made, frozenset({"mean_logprob"} if settings.label_smoothing_factor else ()))


def batch_of(
    state: State | None, ctx: Context, items: list[tokenise.Example | Pack], changes: Variant = PLAIN
) -> update.Batch:
    """The batch of rows, packs, or rows that stay together. Documents of a pack share a line where the model keeps them
    apart."""
    packs = [item if isinstance(item, tuple) else (item,) for item in items]
    examples = [document for pack in packs for document in pack]
    batch = make_batch(examples)
    batch.columns |= changes.columns(state, ctx, examples)
    if isinstance(items[0], Together):
        batch.unit = len(items[0])
    elif any(isinstance(item, tuple) for item in items) and lines.kept_apart(ctx.policy):
        batch.lines = [number for number, pack in enumerate(packs) for _ in pack]
    return batch


def make_batch(examples: list[tokenise.Example]) -> update.Batch:
    """Rows scored from their first trained token on; context after that has weight 0."""
    starts = [max(1, example.mask.index(1)) for example in examples]
    weights = [
        [m * w for m, w in zip(e.mask[start:], e.weight[start:], strict=True)]
        for e, start in zip(examples, starts, strict=True)
    ]
    return update.Batch([e.ids for e in examples], starts, {"weight": weights})


def totals(batch: update.Batch) -> dict[str, float]:
    weights = [w for row in batch.columns["weight"] for w in row]
    return update.totals_of(batch) | {"tokens": float(sum(w != 0 for w in weights)), "weight": float(sum(weights))}


def evaluate(ctx: Context, changes: Variant = PLAIN) -> dict[str, float]:
    """The plain loss on held-out rows as given, so that methods can be compared by it."""
    batch = batch_of(ctx.state, ctx, ctx.eval_data.items)
    return as_eval(ctx.look(batch, objective(ctx.settings), totals(batch), "preview", grad=False))


def preview(ctx: Context, data: tokenise.Examples, changes: Variant = PLAIN) -> update.Outcome:
    """The next update on these rows, with whatever the method does to them then."""
    state = ctx.state
    index = 1 if state is None else state.step + 1
    batch = batch_of(state, ctx, data.items, changes)
    if (read := changes.inputs(ctx, batch, index)) is not None:
        batch.inputs, batch.share = read
    with changes.within(state, ctx, index):
        return ctx.look(batch, changes.objective(ctx.settings, index), totals(batch), "preview")


METHOD = Method("sft", "rows", prepare, loop, evaluate, preview)
