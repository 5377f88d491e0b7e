"""Supervised fine-tuning: raise the log-likelihood of given tokens.

Every update takes `batch_size` rows (or packs of rows) and the loss of their trained tokens: the completion and its
stop token; which tokens are trained, and with what weight, is decided when the rows are tokenised. Packs are made
once, before training, and drawn like rows. Left out: what needs other models or corrupts the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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


def prepare(tokenizer, rows, settings) -> tokenise.Examples:
    """Token ids, train mask and weights of each row; with packing, of each pack of rows.

    Raises DataError where a row cannot be used. Where packing itself cuts (`bfd_split`, `wrapped`) rows are not cut
    before.
    """
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
    return tokenise.Example(example.ids[kept], example.mask[kept], example.weight[kept], example.row)


def _joined(documents: list[tokenise.Example]) -> tokenise.Example:
    ids, mask, weight = (sum((getattr(d, name) for d in documents), []) for name in ("ids", "mask", "weight"))
    return tokenise.Example(ids, mask, weight, documents[0].row)


def loop(state: State, ctx: Context) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        drawn = [row for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]
        batch = batch_of(ctx, [ctx.data.items[row] for row in drawn])
        outcome = ctx.learn(state, batch, objective(ctx.settings), totals(batch), index)
        outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
        yield Step(index, outcome.metrics)


def objective(settings) -> Objective:
    made = partial(
        weighted,
        loss_type=settings.loss_type,
        smoothing=settings.label_smoothing_factor,
        reduction=settings.loss_reduction,
    )
    return Objective(made, frozenset({"mean_logprob"} if settings.label_smoothing_factor else ()))


def batch_of(ctx: Context, items: list[tokenise.Example | Pack]) -> update.Batch:
    """The batch of rows or packs. The documents of a pack share a line where the model keeps them apart."""
    packs = [item if isinstance(item, tuple) else (item,) for item in items]
    batch = make_batch([document for pack in packs for document in pack])
    if any(isinstance(item, tuple) for item in items) and lines.kept_apart(ctx.policy):
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


def evaluate(ctx: Context) -> dict[str, float]:
    return as_eval(preview(ctx, ctx.eval_data, grad=False))


def preview(ctx: Context, data: tokenise.Examples, grad: bool = True) -> update.Outcome:
    batch = batch_of(ctx, data.items)
    return ctx.look(batch, objective(ctx.settings), totals(batch), "preview", grad=grad)


METHOD = Method("sft", "rows", prepare, loop, evaluate, preview)
