"""Supervised fine-tuning: maximise the log-likelihood of given tokens.

Every update takes `batch_size` rows and the mean negative log-likelihood of their trained tokens (the completion
and its stop token; which tokens are trained is decided when the rows are tokenised). Left out: packing, label
smoothing and token weights by content.
"""

from __future__ import annotations

from collections.abc import Iterator

from workbench import tokenise, update
from workbench.methods import Method
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.supervised import nll
from workbench.state import State


def prepare(tokenizer, rows, settings) -> tokenise.Examples:
    """Token ids and train mask of each row. Raises DataError where a row cannot be used."""
    return tokenise.fit_rows(
        rows,
        tokenizer,
        max_length=settings.max_length,
        assistant_only_loss=settings.assistant_only_loss,
        completion_only_loss=settings.completion_only_loss,
        truncation=settings.truncation_mode,
    )


def loop(state: State, ctx: Context) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rows = [row for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]
        batch = make_batch([ctx.data.items[row] for row in rows])
        outcome = ctx.learn(state, batch, Objective(nll), totals(batch), index)
        outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
        yield Step(index, outcome.metrics)


def make_batch(examples: list[tokenise.Example]) -> update.Batch:
    """Rows scored from their first trained token on; context after that has weight 0."""
    starts = [max(1, example.mask.index(1)) for example in examples]
    weights = [
        [m * w for m, w in zip(e.mask[start:], e.weight[start:], strict=True)]
        for e, start in zip(examples, starts, strict=True)
    ]
    return update.Batch([e.ids for e in examples], starts, {"weight": weights})


def totals(batch: update.Batch) -> dict[str, float]:
    trained = sum(w != 0 for row in batch.columns["weight"] for w in row)
    return update.totals_of(batch) | {"tokens": float(trained)}


def evaluate(ctx: Context) -> dict[str, float]:
    return as_eval(preview(ctx, ctx.eval_data, grad=False))


def preview(ctx: Context, data: tokenise.Examples, grad: bool = True) -> update.Outcome:
    batch = make_batch(data.items)
    return ctx.look(batch, Objective(nll), totals(batch), "preview", grad=grad)


METHOD = Method("sft", "rows", prepare, loop, evaluate, preview)
