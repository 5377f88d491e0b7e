"""What a method works with: the policy, the settings, its data, and the record of steps that are replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench import keys, micro_batches, out_of_memory, prefixes, update, worker
from workbench.errors import RunError
from workbench.heads import ValueHead
from workbench.methods import value_head
from workbench.micro_batches import Budget
from workbench.sampling.rollouts import Rollouts
from workbench.settings import Settings
from workbench.state import State


@dataclass
class Step:
    """One committed unit of work: `index` counts from 1; `metrics` by TRL's names; `seconds` of wall clock,
    evaluation included; `rollouts` where the method samples."""

    index: int
    metrics: dict[str, float]
    rollouts: Rollouts | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items() if "/" not in name)
        return f"<Step {self.index}: {shown}>"


def count_tokens(state: State, sequences: Sequence[Sequence[int]]) -> float:
    """The metric `num_tokens`, as TRL counts it: the tokens of all sequences that the run has seen so far."""
    state.json["num_tokens"] = state.json.get("num_tokens", 0) + sum(map(len, sequences))
    return float(state.json["num_tokens"])


@dataclass
class Replay:
    """The stored record of a step that is done again: its rollouts and its micro-batches."""

    rollouts: Rollouts | None
    plans: dict[str, list[list[int]]]


@dataclass
class Context:
    """What a method is handed beside its State. Nothing in it changes while a step runs, but the record `plans`."""

    policy: Any
    settings: Settings
    data: Any
    """what the method's `prepare` made"""
    eval_data: Any = None
    reference: Callable[[], dict[str, Tensor]] | None = None
    """the parameters the run began with"""
    state: State | None = None
    """the run's state, for evaluations and previews: a reference that moves stands there"""
    replay: Replay | None = None
    stored: Callable[[int], Rollouts] | None = None
    """the rollouts of an earlier step of this line of the run, from the store; None where there is no store"""
    check: Callable[[], None] = lambda: None
    budget: Budget = field(default_factory=Budget)
    """the tokens that fit into a micro-batch"""
    plans: dict[str, list[list[int]]] = field(default_factory=dict)
    """the micro-batches (row numbers) of each pass through the model in this step, by what the pass is for"""

    def draw(self, step: int, count: int, n: int) -> list[tuple[int, int]]:
        """The rows of a step that draws `count` of `n`, as every step before it did: see `draw_from`."""
        return self.draw_from((step - 1) * count, count, n)

    def draw_from(self, first: int, count: int, n: int) -> list[tuple[int, int]]:
        """`count` of `n` rows after the `first` that were drawn, epoch after epoch, each epoch in its own order.

        Returns (row, round): the round numbers the times a row comes up within this draw (0 unless count > n).
        """
        drawn, seen = [], {}
        orders: dict[int, Sequence[int]] = {}
        for position in range(first, first + count):
            epoch, i = divmod(position, n)
            if epoch not in orders:
                shuffled = keys.permutation(keys.key(self.settings.seed, "order", epoch), n)
                orders[epoch] = shuffled if self.settings.shuffle_dataset else range(n)
            row = int(orders[epoch][i])
            drawn.append((row, seen.get(row, 0)))
            seen[row] = seen.get(row, 0) + 1
        return drawn

    def learn(
        self, state: State, batch: update.Batch, objective, totals, step: int, number: int = 0, scope=None, **how
    ) -> update.Outcome:
        """One optimiser update on `batch`; `number` counts the updates within the step; `scope` says what trains
        (`optimiser.Scope`), `value` is a head that trains along (`methods.value_head`)."""
        outcome = self.look(batch, objective, totals, f"update {number}", keys.key("step", step, number), **how)
        beside = value_head.named(how.get("value"))
        try:
            outcome.metrics |= update.apply(self.policy, state, self.settings, step, scope, beside)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory.recognised(error):
                raise
            said = out_of_memory.clean_up(error, self.policy.model)
        else:
            return outcome
        raise RunError(
            f"Memory ran out in the optimiser's step, {self.settings.optim} ({said}). Moments of 8 bits take a quarter"
            " (optim='adamw_8bit'), 'sgd' has none, and an adapter, or one of a smaller rank, has fewer parameters."
        )

    def look(self, batch: update.Batch, objective, totals, purpose: str, dropout: int = 0, **how) -> update.Outcome:
        """Loss, metrics and gradients of `batch`, without the optimiser; `dropout` keys its draws."""
        how.setdefault("train_mode", not self.settings.disable_dropout)
        how.setdefault("padding_free", self.settings.padding_free)
        how.setdefault("gradient_checkpointing", self.settings.gradient_checkpointing)
        how.setdefault("bf16", self.settings.bf16)
        how["dropout_key"] = keys.key(self.settings.seed, "dropout", dropout)
        work = partial(update.gradients, self.policy, batch, objective, totals, **how)
        return self.fitting(batch, purpose, work, how.get("grad", True))

    def logprobs(self, batch: update.Batch, purpose: str, temperature: float = 1.0) -> list[list[float]]:
        """Per row the log-probs (nats) of its scored tokens under the weights the policy holds; no gradient."""
        return self.fitting(batch, purpose, partial(self.scored, batch, temperature=temperature), grad=False)

    def values(
        self, batch: update.Batch, purpose: str, value: ValueHead, temperature: float = 1.0
    ) -> tuple[list[list[float]], list[list[float]]]:
        """The same, and per row what the value head says before each of its scored tokens; of one pass."""
        work = partial(self._scored, batch, temperature=temperature, value=value)
        logprob, told = self.fitting(batch, purpose, work, grad=False)
        return logprob, told

    def scored(
        self,
        batch: update.Batch,
        micro_batches: list[list[int]],
        check: Callable[[], None] | None = None,
        temperature: float = 1.0,
    ) -> list[list[float]]:
        """The log-probs in given micro-batches; `check` is called before each."""
        return self._scored(batch, micro_batches, check, temperature)[0]

    def _scored(
        self,
        batch: update.Batch,
        micro_batches: list[list[int]],
        check: Callable[[], None] | None = None,
        temperature: float = 1.0,
        value: ValueHead | None = None,
    ) -> list[list[list[float]]]:
        names = ["logprob", *["value"] * bool(value)]
        made: list[list[list[float]]] = [[[] for _ in range(len(batch))] for _ in names]
        with torch.no_grad(), update.computing(self.policy.model, self.settings.bf16):
            for rows in micro_batches:
                (check or self.check)()
                part = batch.take(rows)
                scores = self.policy.token_scores(
                    part.sequences,
                    part.starts,
                    temperature=temperature,
                    needs=frozenset(),
                    inputs=part.inputs,
                    share=part.share,
                    value=value,
                    **update.laid_out(self.policy, part, self.settings.padding_free),
                )
                for table, name in zip(made, names, strict=True):
                    for i, row, count in zip(rows, getattr(scores, name).double().cpu(), part.scored(), strict=True):
                        table[i] = row[:count].tolist()
        return made

    # -- micro-batches ---------------------------------------------------------------------------------------

    def plan(self, batch: update.Batch, purpose: str, grad: bool = True) -> list[list[int]]:
        """The micro-batches for `purpose`: the stored ones when the step is replayed."""
        stored = self.replay.plans.get(purpose) if self.replay is not None else None
        return self._noted(purpose, stored or self._planned(batch, grad))

    def fitting(
        self,
        batch: update.Batch,
        purpose: str | None,
        work: Callable[..., Any],
        grad: bool = True,
        first: list[list[int]] | None = None,
    ) -> Any:
        """What `work(micro_batches=, check=)` returns, which calls `check()` before each micro-batch.

        Where memory runs out the same work is done again in smaller micro-batches, and what fitted holds for the rest
        of the run. `first`: the micro-batches to begin with, for work that has no purpose on record. Raises RunError
        where a row (pair, pack) alone does not fit.
        """
        plan, tried = first or self.plan(batch, purpose, grad), []
        while True:
            begun: list[None] = []
            try:
                made = work(micro_batches=plan, check=partial(_count, self.check, begun))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory.recognised(error):
                    raise
                said = out_of_memory.clean_up(error, self.policy.model)
            else:
                break
            # work may go through the micro-batches twice
            tokens, units = self._size(batch, plan[max(0, len(begun) - 1) % len(plan)])
            tried.append(tokens)
            if units == 1:
                raise RunError(self._too_large(batch, tried, said, grad))
            self.budget.lower(tokens // 2, grad)
            plan = self._noted(purpose, self._planned(batch, grad))
        if tried:
            worker.warn(
                f"Memory ran out in a micro-batch of {tried[0]} tokens, so this was done again in smaller ones, with"
                f" the same result. From now on this run puts no more than {tried[-1] // 2} tokens through the model at"
                " once."
            )
        return made

    def _noted(self, purpose: str | None, plan: list[list[int]]) -> list[list[int]]:
        if purpose is not None:
            self.plans[purpose] = plan
        return plan

    def _planned(self, batch: update.Batch, grad: bool) -> list[list[int]]:
        most = self.budget.tokens(self.policy, self.settings, grad)
        shared = prefixes.of(self.policy, batch.sequences, batch.starts)
        rate = micro_batches.rate_of(self.policy, self._padded(shared))
        return micro_batches.plan(batch, self.settings.micro_batch_size, most, rate=rate, shared=shared)

    def _padded(self, shared: list[int] | None) -> bool:
        return shared is None and not self.settings.padding_free

    def _size(self, batch: update.Batch, rows: list[int]) -> tuple[int, int]:
        """Tokens and units of a micro-batch."""
        part = batch.take(rows)
        shared = prefixes.of(self.policy, part.sequences, part.starts)
        units = micro_batches.units_of(part, shared)
        return micro_batches.tokens_of(units, self._padded(shared)), len(units)

    def _too_large(self, batch: update.Batch, tried: list[int], said: str, grad: bool) -> str:
        what = "pack" if batch.lines is not None else {1: "row", 2: "pair"}.get(batch.unit, "unit of rows")
        before = ", ".join(str(tokens) for tokens in tried[:-1])
        longest = "max_new_tokens" if hasattr(self.settings, "group_size") else "max_length"
        advice = [
            *["gradient_checkpointing=True"] * (grad and not self.settings.gradient_checkpointing),
            f"a smaller {longest}",
            *["a smaller rank r of the adapter"] * (grad and self.policy.has_adapter),
            *["an adapter, policy.attach(wb.LoRA())"] * (grad and not self.policy.has_adapter),
            *["wb.load(..., quantize='nf4')"] * (not self.policy.origin.quantize),
        ]
        return (
            f"Memory ran out on a single {what} of {tried[-1]} tokens"
            + (f", after micro-batches of {before} tokens had not fitted either" if before else "")
            + f" ({said}). What takes less: {'; '.join(advice)}."
        )


def _count(check: Callable[[], None], begun: list[None]) -> None:
    """One more micro-batch begins. (A function of its own: the frames of an error keep closures alive.)"""
    check()
    begun.append(None)
