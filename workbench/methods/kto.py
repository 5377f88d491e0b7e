"""Preference optimisation on single answers, each labelled desirable or not: KTO (Ethayarajh et al. 2024, arXiv
2402.01306) and the unpaired form of APO-zero.

KTO compares an answer's log-ratio with a baseline z, an estimate of the KL between policy and reference. As in TRL, z
is the mean log-ratio over pairs of a prompt with the answer of the row before it, or 0 where that is negative, and no
gradient flows through it. Here the rows before it are those of the same update: z is known before the update begins,
so micro-batches do not change it, and rows may come in any order (TRL pairs rows of a micro-batch in a fixed order,
and shuffles none). z is computed without dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from workbench import update
from workbench.errors import DataError
from workbench.labelled import Labelled, labelled
from workbench.mask_report import MaskReport
from workbench.methods import Method, reference
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import as_eval
from workbench.objectives import Objective
from workbench.objectives.unpaired import UNPAIRED, unpaired
from workbench.state import State

ALONE = "KTO's baseline pairs a prompt with another row's answer: give two rows or more that can be trained on."


@dataclass(frozen=True)
class AnswerData:
    """Labelled answers as tokens, and what the reference said of them."""

    items: list[Labelled]
    report: MaskReport
    memory: reference.Memory = field(default_factory=reference.Memory)

    def check(self, settings) -> None:
        """Raise DataError where there are too few rows for the loss."""
        if UNPAIRED[settings.loss_type].baseline and len(self.items) < 2:
            raise DataError(ALONE)


def prepare(tokenizer, rows, settings) -> AnswerData:
    """Token ids of prompt and answer, and the label. Raises DataError where a row cannot be used."""
    made = labelled(rows, tokenizer, max_length=settings.max_length)
    return AnswerData(made.items, made.report)


def notice(data: AnswerData, settings) -> str | None:
    """What to say where the weights do not balance the labels: the KTO paper wants the weighted share of desirable
    to other rows between 1 and 4/3."""
    good = sum(item.desirable for item in data.items)
    bad = len(data.items) - good
    left, right = settings.desirable_weight * good, settings.undesirable_weight * bad
    if right and 1 - 1e-9 <= left / right <= 4 / 3 + 1e-9:
        return None
    if not good or not bad:
        kind = "desirable" if good else "undesirable"
        return f"All rows have one label ({kind}): KTO learns from desirable answers beside undesirable ones."
    if not left or not right:
        return f"the {bad if left else good} {'un' if left else ''}desirable rows have weight 0 and count for nothing."
    said = (
        f"{good} desirable rows of weight {settings.desirable_weight:g} stand against {bad} others of weight"
        f" {settings.undesirable_weight:g}: a share of {left / right:.3g}; the KTO paper wants 1 to 4/3."
    )
    low, high = settings.undesirable_weight * bad / good, settings.desirable_weight * good / bad
    return (
        f"{said} Set desirable_weight between {low:.3g} and {4 / 3 * low:.3g}, or undesirable_weight between"
        f" {0.75 * high:.3g} and {high:.3g}."
    )


def loop(state: State, ctx: Context) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rows = [row for row, _ in ctx.draw(index, ctx.settings.batch_size, len(ctx.data.items))]
        batch = batch_of(state, ctx, ctx.data, rows)
        more = totals(state, ctx, batch, [ctx.data.items[row] for row in rows])
        outcome = shown(ctx.learn(state, batch, objective(ctx), more, index), more)
        outcome.metrics["num_tokens"] = count_tokens(state, batch.sequences)
        reference.sync(state, ctx, index)
        yield Step(index, outcome.metrics)


def objective(ctx: Context) -> Objective:
    names = ("loss_type", "beta", "desirable_weight", "undesirable_weight")
    return Objective(partial(unpaired, **{name: getattr(ctx.settings, name) for name in names}))


def batch_of(state: State | None, ctx: Context, data: AnswerData, rows: Sequence[int]) -> update.Batch:
    """The batch of these rows: each answer after its prompt."""

    def make(items: Sequence[Labelled]) -> update.Batch:
        return joined(ctx, items, [item.completion for item in items])

    batch = make([data.items[row] for row in rows])
    batch.columns["ref_logprob"] = reference.column(state, ctx, batch, data, rows, lambda: make(data.items))
    batch.columns["desirable"] = [float(data.items[row].desirable) for row in rows]
    return batch


def joined(ctx: Context, items: Sequence[Labelled], completions: Sequence[list[int]]) -> update.Batch:
    """Each item's prompt with the completion beside it, cut to `max_length`, scored from the end of the prompt on."""
    sequences = [
        (item.prompt + completion)[: ctx.settings.max_length]
        for item, completion in zip(items, completions, strict=True)
    ]
    return update.Batch(sequences, [len(item.prompt) for item in items])


def totals(state: State | None, ctx: Context, batch: update.Batch, items: Sequence[Labelled]) -> dict[str, float]:
    """The normalisers of the loss: rows, and the baseline `kl` where the loss has one."""
    baseline = UNPAIRED[ctx.settings.loss_type].baseline
    return update.totals_of(batch, kl=kl(state, ctx, items) if baseline else 0.0)


def kl(state: State | None, ctx: Context, items: Sequence[Labelled]) -> float:
    """z, in nats per answer: see the module. Raises DataError for a single row, which has no other's answer."""
    if len(items) < 2:
        raise DataError(ALONE)
    crossed = joined(ctx, items, [items[i - 1].completion for i in range(len(items))])
    policy = ctx.logprobs(crossed, "kl policy")
    fixed = reference.logprobs(state, ctx, crossed, "kl reference")
    ratios = [sum(now) - sum(then) for now, then in zip(policy, fixed, strict=True)]
    return max(0.0, sum(ratios) / len(ratios))


def shown(outcome: update.Outcome, more: dict[str, float]) -> update.Outcome:
    """The outcome with `kl` and the margin, and without means over answers that were not there."""
    metrics = {name: value for name, value in outcome.metrics.items() if name == "loss" or value == value}
    if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    outcome.metrics = metrics | {"kl": more["kl"]}
    return outcome


def evaluate(ctx: Context) -> dict[str, float]:
    return as_eval(preview(ctx, ctx.eval_data, grad=False))


def preview(ctx: Context, data: AnswerData, grad: bool = True) -> update.Outcome:
    batch = batch_of(ctx.state, ctx, data, range(len(data.items)))
    more = totals(ctx.state, ctx, batch, data.items)
    return shown(ctx.look(batch, objective(ctx), more, "preview", grad=grad), more)


METHOD = Method("kto", "rows", prepare, loop, evaluate, preview, notice)
