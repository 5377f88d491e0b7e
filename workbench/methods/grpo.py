"""Policy gradients on sampled completions: group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300),
with DAPO's token mean by default, and its relatives: settings pick the parts, presets name the published ones.

A step draws `prompts_per_step` prompts, samples `group_size` completions of each, scores them, and turns the rewards
into advantages (`workbench.advantages`). Then it makes `num_iterations` passes over the completions, each split at
random into `steps_per_generation` updates, on a surrogate with a KL term and an entropy bonus
(`workbench.objectives.policy_gradient`). Defaults are TRL 1.16's: group standard deviation, the "dapo" reduction, no
KL. Left out: value heads (PPO).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workbench import tokenise, update
from workbench.errors import DataError
from workbench.evaluation import mean
from workbench.methods import Method, entropy, reference, rl_batch
from workbench.methods.context import Context, Step
from workbench.methods.evaluate import evaluate_task
from workbench.methods.rounds import describe, gather
from workbench.objectives.policy_gradient import objective, rewards_entropy
from workbench.sampling.rollouts import Rollouts
from workbench.state import State
from workbench.tasks import Task


@dataclass
class Prompts:
    """A task with its prompts tokenised."""

    task: Task
    prompts: list[tokenise.PromptTokens]


def prepare(tokenizer, task: Task, settings) -> Prompts:
    """Tokenised prompts. Raises DataError where a prompt cannot be used, SettingError where a setting would add a
    reward under a name that the task has."""
    rl_batch.check_overlong(task.reward_names, settings)
    made = []
    for i, row in enumerate(task.rows):
        try:
            made.append(tokenise.prompt(row["prompt"], tokenizer))
        except DataError as error:
            raise DataError(f"Row {i}: {error}") from error
    return Prompts(task, made)


def loop(state: State, ctx: Context) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rollouts, metrics = gather(state, ctx, index)
        yield Step(index, metrics | train(state, ctx, rollouts, index), rollouts)


def train(state: State, ctx: Context, rollouts: Rollouts, index: int) -> dict[str, float]:
    """All updates of a step. Returns the means of their metrics, and those of the sampling that need the model."""
    settings = ctx.settings
    parts = rl_batch.split(settings, index, len(rollouts))
    whole, metrics = rl_batch.make(state, ctx, rollouts, updates=len(parts) * settings.num_iterations)
    outcomes: list[update.Outcome] = []
    for rows in parts * settings.num_iterations:
        batch = whole.take(rows)
        totals = rl_batch.totals_of(batch, whole, len(parts), settings)
        made = objective(settings, entropy.coefficient(state, settings))
        outcome = ctx.learn(state, batch, made, totals, index, len(outcomes), temperature=settings.temperature)
        if rewards_entropy(settings):
            outcome.metrics["entropy_coef"] = entropy.updated(state, settings, outcome.metrics)
        state.json["updates"] = state.json.get("updates", 0) + 1
        reference.sync(state, ctx, state.json["updates"])
        outcomes.append(outcome)
    # an update without any token to look at has NaN for metrics of tokens
    means = {name: mean([o.metrics[name] for o in outcomes]) for name in outcomes[0].metrics}
    return metrics | means | {"loss": float(np.mean([o.loss for o in outcomes]))}


def evaluate(ctx: Context) -> dict[str, float]:
    return evaluate_task(ctx, ctx.eval_data)


def preview(ctx: Context, rollouts: Rollouts) -> update.Outcome:
    """The first update on given rollouts; old log-probs are theirs where given, else the current policy's.

    A given completion counts as cut off when it does not end in a stop token.
    """
    settings = ctx.settings
    rollouts.finish_reason = [
        reason if reason != "given" else "stop" if ids and ids[-1] in ctx.policy.stop_ids else "length"
        for reason, ids in zip(rollouts.finish_reason, rollouts.ids, strict=True)
    ]
    batch, metrics = rl_batch.make(ctx.state, ctx, rollouts)
    coef = settings.entropy_coef if ctx.state is None else entropy.coefficient(ctx.state, settings)
    totals = rl_batch.totals_of(batch, batch, 1, settings)
    outcome = ctx.look(batch, objective(settings, coef), totals, "preview", temperature=settings.temperature)
    outcome.metrics = describe(rollouts) | metrics | outcome.metrics
    return outcome


METHOD = Method("grpo", "task", prepare, loop, evaluate, preview)
