"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

Every update takes `batch_size` pairs, scores both answers under the policy and under the reference (the policy as
it was when the run began), and pushes the log-ratio of the chosen answer above that of the rejected one. Dropout
is off, as in TRL. Left out: the other preference losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from workbench import tokenise, update
from workbench.methods import Method
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.preference import sigmoid
from workbench.state import State


def prepare(tokenizer, rows, settings) -> tokenise.Pairs:
    """Token ids of prompt, chosen and rejected. Raises DataError where a row cannot be used."""
    return tokenise.pairs(rows, tokenizer, max_length=settings.max_length)


def loop(state: State, ctx: Context) -> Iterator[Step]:
    objective = Objective(partial(sigmoid, beta=ctx.settings.beta))
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rows = [row for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]
        batch = with_reference(ctx, make_batch([ctx.data.items[row] for row in rows]))
        outcome = ctx.learn(state, batch, objective, update.totals_of(batch), index)
        outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
        yield Step(index, outcome.metrics)


def make_batch(pairs: list[tokenise.Pair]) -> update.Batch:
    """Chosen and rejected in turn, scored from the end of the prompt on."""
    sequences, starts = [], []
    for pair in pairs:
        sequences += [pair.prompt + pair.chosen, pair.prompt + pair.rejected]
        starts += [len(pair.prompt)] * 2
    return update.Batch(sequences, starts, unit=2)


def with_reference(ctx: Context, batch: update.Batch) -> update.Batch:
    batch.columns["ref_logprob"] = ctx.reference_logprobs(batch)
    return batch


def evaluate(ctx: Context) -> dict[str, float]:
    return as_eval(preview(ctx, ctx.eval_data, grad=False))


def preview(ctx: Context, data: tokenise.Pairs, grad: bool = True) -> update.Outcome:
    batch = with_reference(ctx, make_batch(data.items))
    objective = Objective(partial(sigmoid, beta=ctx.settings.beta))
    return ctx.look(batch, objective, update.totals_of(batch), "preview", grad=grad)


METHOD = Method("dpo", "rows", prepare, loop, evaluate, preview)
