"""Policy gradients on sampled completions: group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300),
with DAPO's token mean by default, and its relatives: settings pick the parts, presets name the published ones.

A step draws `prompts_per_step` prompts, samples `group_size` completions of each, scores them, and turns the rewards
into advantages (`workbench.advantages`). Then it makes `num_iterations` passes over the completions, each split at
random into `steps_per_generation` updates, on a surrogate with a KL term and an entropy bonus
(`workbench.objectives.policy_gradient`). Defaults are TRL 1.16's: group standard deviation, the "dapo" reduction, no
KL. Left out: value heads (PPO).

A published method changes one or two places of this loop: a `Variant` says which (`workbench.methods.policy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from workbench import tokenise, update
from workbench.errors import DataError
from workbench.evaluation import mean
from workbench.methods import Method, entropy, reference, rl_batch
from workbench.methods.context import Context, Step
from workbench.methods.evaluate import evaluate_task
from workbench.methods.rounds import describe, gather
from workbench.objectives import Objective
from workbench.objectives.policy_gradient import objective, rewards_entropy
from workbench.sampling.rollouts import Rollouts
from workbench.state import State
from workbench.tasks import Task


@dataclass(frozen=True)
class Variant:
    """Where a method differs from plain GRPO; each default changes nothing.

    check       raises DataError or SettingError, before any work, for a task that the method cannot use
    prompts     the tokenised prompts of the step's drawn rows (state, ctx, index, rows), where they are not the task's
                own; what must be known of them later is returned as columns of the rollouts, a value a prompt
    judged      the rollouts as the task's rewards read them, where that is not as they are (rollouts): others, of which
                nothing is kept but the rewards
    rewarded    after the task's rewards: changes the rollouts in place (state, ctx, index, rollouts): a reward of its
                own (`rl_batch.add_reward`), tags in `rollouts.columns`, or it returns others, with rows added to groups
    advantages  (N,) of the rollouts, from those that the settings' estimator gives (ctx, rollouts, advantages)
    batch       the batch that the updates share, advantages and all, and metrics: what `rl_batch.make` gives, in its
                place. Rows of other loss terms may come with the completions (`rl_batch.COMPANION`)
    columns     what rows bring along in an update: name -> a number a row, or one a token (state, ctx, index, rollouts)
    objective   of one update (settings, entropy coefficient, step)
    how         further arguments of `ctx.learn`: a value head, a scope (state, ctx, index)
    after       more work within the step, once its updates are done (state, ctx, index, rollouts); returns metrics

    `prompts`, `judged` and `rewarded` happen where completions are sampled; on a replay the stored rollouts have what
    they made (rewards and columns among it). The others must follow from the state, the step and the rollouts alone.
    """

    check: Callable[[Task, Any], None] = lambda task, settings: None
    prompts: Callable[..., tuple[list[tokenise.PromptTokens], dict[str, list]] | None] = (
        lambda state, ctx, index, rows: None
    )
    judged: Callable[[Rollouts], Rollouts] = lambda rollouts: rollouts
    rewarded: Callable[[State, Context, int, Rollouts], Rollouts | None] = lambda state, ctx, index, rollouts: None
    advantages: Callable[[Context, Rollouts, np.ndarray], np.ndarray] = lambda ctx, rollouts, advantages: advantages
    batch: Callable[..., tuple[update.Batch, dict[str, float]]] = rl_batch.make
    columns: Callable[[State | None, Context, int, Rollouts], dict[str, list]] = (
        lambda state, ctx, index, rollouts: {}
    )
    objective: Callable[[Any, float | None, int], Objective] = lambda settings, coef, index: objective(settings, coef)
    how: Callable[[State | None, Context, int], dict[str, Any]] = lambda state, ctx, index: {}
    after: Callable[[State, Context, int, Rollouts], dict[str, float]] = lambda state, ctx, index, rollouts: {}


PLAIN = Variant()


def variant(name: str, settings: type, changes: Variant, **more: Any) -> Method:
    """The record of a method that is GRPO with these changes; `more` goes to `Method`."""
    parts = {
        "prepare": partial(prepare, changes=changes),
        "loop": partial(loop, changes=changes),
        "preview": partial(preview, changes=changes),
        "check_task": partial(check_task, changes=changes),
    }
    return Method(name, "task", evaluate=evaluate, settings=settings, **(parts | more))


@dataclass
class Prompts:
    """A task with its prompts tokenised."""

    task: Task
    prompts: list[tokenise.PromptTokens]


def check_task(task: Task, settings, changes: Variant = PLAIN) -> None:
    """Raises DataError or SettingError for a task that the method cannot use with these settings."""
    changes.check(task, settings)
    rl_batch.check_overlong(task.reward_names, settings)


def prepare(tokenizer, task: Task, settings, changes: Variant = PLAIN) -> Prompts:
    """Tokenised prompts. Raises DataError where a prompt cannot be used, SettingError where a setting would add a
    reward under a name that the task has."""
    check_task(task, settings, changes)
    made = []
    for i, row in enumerate(task.rows):
        try:
            made.append(tokenise.prompt(row["prompt"], tokenizer))
        except DataError as error:
            raise DataError(f"Row {i}: {error}") from error
    return Prompts(task, made)


def loop(state: State, ctx: Context, changes: Variant = PLAIN) -> Iterator[Step]:
    while state.step < ctx.settings.steps:
        index = state.step + 1
        rollouts, metrics = gather(state, ctx, index, changes.prompts, changes.rewarded, changes.judged)
        metrics |= train(state, ctx, rollouts, index, changes)
        metrics |= changes.after(state, ctx, index, rollouts)
        yield Step(index, metrics, rollouts)


def train(
    state: State, ctx: Context, rollouts: Rollouts, index: int, changes: Variant = PLAIN
) -> dict[str, float]:
    """All updates of a step. Returns the means of their metrics, and those of the sampling that need the model."""
    settings = ctx.settings
    updates = min(settings.steps_per_generation, len(rollouts)) * settings.num_iterations
    whole, metrics = changes.batch(state, ctx, rollouts, updates, changes.advantages)
    whole.columns |= changes.columns(state, ctx, index, rollouts)
    parts = rl_batch.split_units(settings, index, whole)
    outcomes: list[update.Outcome] = []
    for rows in parts * settings.num_iterations:
        batch = whole.take(rows)
        totals = rl_batch.totals_of(batch, whole, len(parts), settings)
        made = changes.objective(settings, entropy.coefficient(state, settings), index)
        how = {"temperature": settings.temperature} | changes.how(state, ctx, index)
        outcome = ctx.learn(state, batch, made, totals, index, len(outcomes), **how)
        if rewards_entropy(settings):
            outcome.metrics["entropy_coef"] = entropy.updated(state, settings, outcome.metrics)
        state.json["updates"] = state.json.get("updates", 0) + 1
        reference.sync(state, ctx, state.json["updates"])
        outcomes.append(outcome)
    # an update without any token to look at has NaN for metrics of tokens
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.metrics)
    means = {name: mean([o.metrics[name] for o in outcomes if name in o.metrics]) for name in names}
    return metrics | means | {"loss": float(np.mean([o.loss for o in outcomes]))}


def evaluate(ctx: Context) -> dict[str, float]:
    return evaluate_task(ctx, ctx.eval_data)


def preview(ctx: Context, rollouts: Rollouts, changes: Variant = PLAIN) -> update.Outcome:
    """The first update on given rollouts; old log-probs are theirs where given, else the current policy's.

    A given completion counts as cut off when it does not end in a stop token.
    """
    settings = ctx.settings
    rollouts.finish_reason = [
        reason if reason != "given" else "stop" if ids and ids[-1] in ctx.policy.stop_ids else "length"
        for reason, ids in zip(rollouts.finish_reason, rollouts.ids, strict=True)
    ]
    index = 1 if ctx.state is None else ctx.state.step + 1
    batch, metrics = changes.batch(ctx.state, ctx, rollouts, 1, changes.advantages)
    batch.columns |= changes.columns(ctx.state, ctx, index, rollouts)
    coef = settings.entropy_coef if ctx.state is None else entropy.coefficient(ctx.state, settings)
    totals = rl_batch.totals_of(batch, batch, 1, settings)
    made = changes.objective(settings, coef, index)
    how = {"temperature": settings.temperature} | changes.how(ctx.state, ctx, index)
    how.pop("scope", None)  # what trains is the optimiser's affair
    outcome = ctx.look(batch, made, totals, "preview", **how)
    outcome.metrics = describe(rollouts) | metrics | outcome.metrics
    return outcome


METHOD = Method("grpo", "task", prepare, loop, evaluate, preview, check_task=check_task)
