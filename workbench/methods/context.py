"""What a method works with: the policy, the settings, its data, and the record of steps that are replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench import keys, lines, update
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
    check: Callable[[], None] = lambda: None
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
        self, state: State, batch: update.Batch, objective, totals, step: int, number: int = 0, **how
    ) -> update.Outcome:
        """One optimiser update on `batch`; `number` counts the updates within the step."""
        outcome = self.look(batch, objective, totals, f"update {number}", keys.key("step", step, number), **how)
        outcome.metrics |= update.apply(self.policy, state, self.settings, step)
        return outcome

    def look(self, batch: update.Batch, objective, totals, purpose: str, dropout: int = 0, **how) -> update.Outcome:
        """Loss, metrics and gradients of `batch`, without the optimiser; `dropout` keys its draws."""
        how.setdefault("train_mode", not self.settings.disable_dropout)
        how.setdefault("padding_free", self.settings.padding_free)
        how.setdefault("gradient_checkpointing", self.settings.gradient_checkpointing)
        return update.gradients(
            self.policy,
            batch,
            objective,
            totals,
            micro_batches=self.plan(batch, purpose),
            dropout_key=keys.key(self.settings.seed, "dropout", dropout),
            check=self.check,
            **how,
        )

    def plan(self, batch: update.Batch, purpose: str) -> list[list[int]]:
        """The micro-batches for `purpose`: the stored ones when the step is replayed."""
        stored = self.replay.plans.get(purpose) if self.replay is not None else None
        made = stored or update.plan(batch, self.settings.micro_batch_size, self.policy.vocab_size)
        self.plans[purpose] = made
        return made

    def logprobs(self, batch: update.Batch, purpose: str, temperature: float = 1.0) -> list[list[float]]:
        """Per row the log-probs (nats) of its scored tokens under the weights the policy holds; no gradient."""
        return self.scored(batch, self.plan(batch, purpose), temperature)

    def scored(
        self, batch: update.Batch, micro_batches: list[list[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """The same in given micro-batches, which the step's record does not keep."""
        made: list[list[float]] = [[] for _ in range(len(batch))]
        with torch.no_grad():
            for rows in micro_batches:
                self.check()
                part = batch.take(rows)
                laid = lines.of(self.policy, list(map(len, part.sequences)), part.lines, self.settings.padding_free)
                scores = self.policy.token_scores(
                    part.sequences, part.starts, temperature=temperature, entropy=False, lines=laid
                )
                for i, row, count in zip(rows, scores.logprob.double().cpu(), part.scored(), strict=True):
                    made[i] = row[:count].tolist()
        return made
