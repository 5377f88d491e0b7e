"""What a micro-batch allocates: a run's own code does a few short texts, and is foretold from there.

The texts have the lengths of the real ones in sixteenths of the longest, at one, two and three tokens a sixteenth. All
that a run would do is done (adapters, dropout, checkpointing, rows laid end to end, the head in pieces), so nothing
about an architecture is looked up or assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from workbench import heads, ledger, micro_batches, prefixes, trunk, update
from workbench.methods.context import Context, Replay
from workbench.objectives import Objective

PARTS = 16
"""lengths are told in so many parts of the longest"""
UNITS = ((1, 2, 3), (4, 8, 12))
"""tokens a part, in the three runs; the second ones where the first differ in more than the sizes of their tensors, as
layers may compute in one way for few tokens and in another for more"""
ROWS = 4
"""rows that are run, or one unit where that has more"""
PURPOSE = "probe"


@dataclass(frozen=True)
class Foretold:
    """What a pass over micro-batches like the one that was tried allocates."""

    growth: ledger.Growth
    through: float
    """tokens that went through the model at one token a part"""
    head: float
    """what the head took in the longest run, by its own account"""

    def peak(self, policy: Any, part: update.Batch, padding_free: bool, shared: Sequence[int] | None) -> ledger.Peak:
        """The fullest moment of the pass over `part`."""
        unit = max(part.lengths()) / PARTS
        more = places(part, padding_free, shared) / (unit * self.through)
        halves = trunk.of(policy.model)
        return self.growth.at(unit, more, _head(policy, halves, sum(part.scored())) - self.head)


def places(part: update.Batch, padding_free: bool, shared: Sequence[int] | None) -> int:
    """Tokens of a micro-batch that go through the model: padding included, or each of the prompts `shared` once."""
    return micro_batches.tokens_of(micro_batches.units_of(part, shared), shared is None and not padding_free)


def shared_prompts(policy: Any, part: update.Batch, settings: Any, grad: bool = True) -> list[int] | None:
    """The number of each row's prompt, where rows go through the model in one line."""
    shared = prefixes.of(policy, part.sequences, part.starts)
    if shared is not None and grad and not settings.disable_dropout and trunk.has_dropout(policy.model):
        return list(range(len(part)))
    return shared


def learning(policy: Any, part: update.Batch, objective: Objective, settings: Any, *, again: bool) -> Foretold:
    """What the forward and the backward pass of an update allocate on the micro-batch `part`; `again`: on another one
    like it after that, when the gradients are there already. Leaves weights, gradients, modes and generators alone."""

    def once(policy: Any, batch: update.Batch, micro_batches: list[list[int]]) -> None:
        ctx = Context(policy, settings, None, replay=Replay(None, {PURPOSE: micro_batches}))
        ctx.look(batch, Objective(_loss(objective), objective.needs), update.totals_of(batch), PURPOSE)

    return _foretold(policy, part, settings, once, 2 if again else 1, shared_prompts(policy, part, settings))


def scoring(policy: Any, part: update.Batch, settings: Any) -> Foretold:
    """The same of scoring `part` without gradients, as old and reference log-probs are taken."""

    def once(policy: Any, batch: update.Batch, micro_batches: list[list[int]]) -> None:
        Context(policy, settings, None).scored(batch, micro_batches)

    return _foretold(policy, part, settings, once, 1, shared_prompts(policy, part, settings, grad=False))


def _loss(objective: Objective):
    """A loss that reaches the weights through all scores that the objective's does."""

    def total(scores, columns, totals):
        names = [name for name in update.DIFFERENTIABLE if name == "logprob" or name in objective.needs]
        return sum(getattr(scores, name).sum() for name in names), {}

    return total


def _foretold(
    policy: Any, part: update.Batch, settings: Any, once: Callable, passes: int, shared: Sequence[int] | None
) -> Foretold:
    rows = _few(part)
    chosen, prompts = part.take(rows), None if shared is None else [shared[row] for row in rows]
    halves = trunk.of(policy.model)
    within = None if halves is None else halves.base.base_model
    with _untouched(policy.model):
        for units in UNITS:
            records, head = [], []
            for unit in units:
                batch, micro_batches = _texts(policy, chosen, unit, passes, prompts)
                head.append(_head(policy, halves, sum(batch.take(micro_batches[0]).scored())))
                run = partial(once, _Sharing(policy, shared is not None), batch, micro_batches)
                records.append(ledger.recorded(run, within))
                policy.model.zero_grad(set_to_none=True)
            if ledger.alike(records):
                break
    through = places(chosen, settings.padding_free, prompts) / max(chosen.lengths()) * PARTS
    return Foretold(ledger.growth(records, units, head), through, head[-1])


class _Sharing:
    """A policy whose rows share prompts also where these are as short as here."""

    def __init__(self, policy: Any, flat: bool):
        self._policy, self._flat = policy, flat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def token_scores(self, sequences: Any, starts: Any, **how: Any) -> Any:
        numbers: dict[tuple[int, ...], int] = {}
        groups = [
            numbers.setdefault(tuple(ids[:start]), len(numbers)) for ids, start in zip(sequences, starts, strict=True)
        ]
        return self._policy.token_scores(sequences, starts, **how | {"groups": groups if self._flat else None})


def _head(policy: Any, halves: trunk.Trunk | None, tokens: int) -> float:
    """Bytes that the head holds at once while it scores so many tokens."""
    if halves is None:
        return 0.0
    hidden = halves.base.config.get_text_config().hidden_size
    plain = heads.plain_weight(halves) is not None
    return heads.workspace(tokens, policy.vocab_size, hidden, policy.device.type, plain)


def _few(part: update.Batch) -> list[int]:
    """The rows that stand for all: the units with the longest rows, as many as ROWS allows."""
    units = sorted(part.units(), key=lambda rows: -max(len(part.sequences[row]) for row in rows))
    chosen = list(units[0])
    for unit in units[1:]:
        if len(chosen) + len(unit) > ROWS:
            break
        chosen += unit
    return chosen


def _parts(batch: update.Batch) -> list[tuple[int, int]]:
    """Length and start of each row in parts of the longest."""
    longest = max(map(len, batch.sequences))
    made = []
    for ids, start in zip(batch.sequences, batch.starts, strict=True):
        length = max(1, math.ceil(PARTS * len(ids) / longest))
        made.append((length, min(length - 1, round(PARTS * start / longest))))
    return made


def _texts(
    policy: Any, chosen: update.Batch, unit: int, passes: int, prompts: Sequence[int] | None
) -> tuple[update.Batch, list[list[int]]]:
    """Texts of the rows' lengths at `unit` tokens a part, each row once a pass, and the micro-batches."""
    last = 0 if prompts is None else 1  # of a row in one line the last token does not go through the model
    prompts = prompts or range(len(chosen))
    sequences, starts, lines = [], [], []
    for number in range(passes):
        for row, (length, start) in enumerate(_parts(chosen)):
            sequences.append([prompts[row] % policy.vocab_size, *[policy.filler] * (max(2, length * unit) + last - 1)])
            starts.append(max(1, start * unit))
            lines.append((number, row if chosen.lines is None else chosen.lines[row]))
    numbers = {line: number for number, line in enumerate(dict.fromkeys(lines))}
    batch = update.Batch(sequences, starts, unit=chosen.unit)
    if chosen.lines is not None:
        batch.lines = [numbers[line] for line in lines]
    rows = len(chosen)
    return batch, [list(range(number * rows, (number + 1) * rows)) for number in range(passes)]


@contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """Gradients and modes of the block do not outlast it."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(p, p.grad) for p in model.parameters()]
    for p, _ in grads:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in grads:
            p.grad = grad
        for module, training in modes:
            module.training = training
