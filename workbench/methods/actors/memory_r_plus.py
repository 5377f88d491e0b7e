"""Memory-R+: a dense reward from what worked and what failed before, for models too small to find out by themselves
(Le et al. 2025, "Reasoning Under 1 Billion: Memory-Augmented Reinforcement Learning for Large Language Models", arXiv
2504.02273).

The memory is the run's own rollouts of earlier steps: by question the vectors of answers that succeeded (the task's
reward above 0.5), Ms, and of those that failed, Mf, the latest `memory_size` of each. For an answer a to a question,
over the answers to the `neighbours` nearest questions (by cosine):

    exploit = - || a - centroid(Ms) ||          explore = 1 - max over Mf of cos(a, m)
    each scaled to 0..1 by the least and largest of its last `window` values and this step's
    R = reward of the task + exploit_weight * exploit + explore_weight * explore, then GRPO

The bonuses are recorded as `rewards/exploit` and `rewards/explore`; explore begins at step `explore_start`. Where
there is nothing to compare with, a bonus is 0. Weights 0: GRPO. explore_weight=0: the paper's Memory-R.

Vectors come from `encoder`, a name in `workbench.rewards.ngrams.ENCODERS`. The default, "ngrams", counts character
n-grams: spelling, not meaning. The authors use a sentence encoder; put one there under a name of yours (a function of
a list of texts), and give that.

Nothing is kept: each step asks the store for the rollouts of the last `memory_steps` steps, so the memory follows a
rewind or a fork by itself, and reaches no further back than that (the authors: as many questions as the data has).
The least and largest are over values of earlier steps and all of this step's, so that the order within a step does
not matter. Defaults of the paper: memory_size 100, window 100, 16 completions, 200 tokens; neighbours 1 (GSM8K; 20
for AI-MO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.methods import grpo, rl_batch
from workbench.methods.context import Context
from workbench.rewards import ngrams
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State

STREAMS = ("exploit", "explore")
TAG = "memory_r_plus"
"""prefix of the columns that later steps read"""
SUCCESS = 0.5
EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class MemorySettings(GRPOSettings):
    """GRPO with rewards from an episodic memory."""

    group_size: int = knob(16, at_least=1)
    """completions per prompt"""
    max_new_tokens: int = knob(200, at_least=1)
    """longest completion that is sampled"""
    exploit_weight: float = knob(1.0, at_least=0.0)
    """weight of being near earlier successes"""
    explore_weight: float = knob(1.0, at_least=0.0)
    """weight of being unlike earlier failures"""
    explore_start: int = knob(51, at_least=1)
    """the first step at which being unlike failures counts"""
    neighbours: int = knob(1, at_least=1)
    """nearest questions whose answers are read"""
    memory_size: int = knob(100, at_least=1)
    """latest successes, and failures, of a question that are kept in mind"""
    memory_steps: int = knob(100, at_least=1)
    """how many steps back the memory reaches"""
    window: int = knob(100, at_least=1)
    """earlier values of a bonus that it is scaled by, beside those of the step"""
    encoder: str = "ngrams"
    """texts -> vectors: a name in workbench.rewards.ngrams.ENCODERS"""


@dataclass
class Memory:
    """What earlier steps left: by question its successes and failures, oldest first; and the values of each bonus."""

    successes: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STREAMS})

    def add(self, rollouts: Rollouts, size: int) -> None:
        """Write a step's rollouts; the oldest of a question drop out."""
        for i, (question, text) in enumerate(zip(rollouts.prompt_text, rollouts.text, strict=True)):
            solved = rollouts.columns[f"{TAG}/solved"][i]
            if solved is None:
                continue
            book = self.successes if solved else self.failures
            book[question] = [*book.get(question, ()), text][-size:]
        for name in STREAMS:
            self.values[name] += [v for v in rollouts.columns[f"{TAG}/{name}"] if v is not None]


def remembered(ctx: Context, index: int) -> Memory:
    """The memory before step `index`, from the stored rollouts of this line of the run."""
    made = Memory()
    if ctx.stored is not None:
        for step in range(max(1, index - ctx.settings.memory_steps), index):
            past = ctx.stored(step)
            if f"{TAG}/solved" in past.columns:
                made.add(past, ctx.settings.memory_size)
    return made


def bonuses(memory: Memory, questions: Sequence[str], texts: Sequence[str], settings: Any) -> dict[str, list]:
    """The two bonuses of each answer before scaling, None where there is nothing to compare with."""
    encode = ngrams.encoder(settings.encoder)
    known = list(dict.fromkeys([*memory.successes, *memory.failures]))
    keys = ngrams.unit(encode(known)) if known else np.zeros((0, 1))
    told = ngrams.unit(encode(list(texts)))  # (N, D)
    made: dict[str, list] = {name: [None] * len(texts) for name in STREAMS}
    for question in dict.fromkeys(questions):
        if not known:
            break
        nearness = keys @ ngrams.unit(encode([question]))[0]
        near = [known[i] for i in np.argsort(-nearness, kind="stable")[: settings.neighbours]]
        good = [text for q in near for text in memory.successes.get(q, ())]
        bad = [text for q in near for text in memory.failures.get(q, ())]
        centroid = ngrams.unit(encode(good)).mean(0) if good else None
        failed = ngrams.unit(encode(bad)) if bad else None
        for i in (i for i, q in enumerate(questions) if q == question):
            if centroid is not None:
                made["exploit"][i] = -float(np.linalg.norm(told[i] - centroid))
            if failed is not None:
                made["explore"][i] = 1 - float((failed @ told[i]).max())
    return made


def scaled(values: Sequence[float | None], earlier: Sequence[float], window: int) -> np.ndarray:
    """(N,) 0..1 by the least and largest of the last `window` of `earlier` and of all `values`; 0 for None."""
    known = [*earlier[-window:], *(value for value in values if value is not None)]
    if not known:
        return np.zeros(len(values))
    low, high = min(known), max(known)
    return np.array([0.0 if value is None else (value - low) / (high - low + EPS) for value in values])


def check(task: Any, settings: MemorySettings) -> None:
    ngrams.encoder(settings.encoder)
    rl_batch.check_free(STREAMS, task.reward_names, "memory_r_plus")


def rewarded(state: State, ctx: Context, index: int, rollouts: Rollouts) -> None:
    settings = ctx.settings
    memory = remembered(ctx, index)
    made = bonuses(memory, rollouts.prompt_text, rollouts.text, settings)
    rollouts.columns[f"{TAG}/solved"] = [None if np.isnan(r) else bool(r > SUCCESS) for r in rollouts.reward]
    weights = {
        "exploit": settings.exploit_weight,
        "explore": settings.explore_weight * (index >= settings.explore_start),
    }
    for name in STREAMS:
        rollouts.columns[f"{TAG}/{name}"] = made[name]
        bonus = scaled(made[name], memory.values[name], settings.window)
        rl_batch.add_reward(rollouts, name, weights[name] * bonus)


METHOD = grpo.variant("memory_r_plus", MemorySettings, grpo.Variant(check=check, rewarded=rewarded))
