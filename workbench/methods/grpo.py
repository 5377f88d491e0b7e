"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), with DAPO's token mean by default.

A step draws `prompts_per_step` prompts, samples `group_size` completions of each, scores them, and compares each
with its group. Then it makes `num_iterations` passes over the completions, each split at random into
`steps_per_generation` updates, on the clipped surrogate. Defaults are TRL 1.16's: group standard deviation, the
"dapo" reduction, no KL. Left out: the other surrogates, entropy bonuses, and dynamic sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from workbench import advantages, keys, tokenise, update
from workbench.errors import DataError
from workbench.methods import Method
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.evaluate import evaluate_task, sample, score
from workbench.objectives import Objective
from workbench.objectives.policy_gradient import clipped
from workbench.sampling.rollouts import Rollouts
from workbench.state import State
from workbench.tasks import Task


@dataclass
class Prompts:
    """A task with its prompts tokenised."""

    task: Task
    prompts: list[tokenise.PromptTokens]


def prepare(tokenizer, task: Task, settings) -> Prompts:
    """Tokenised prompts. Raises DataError where a prompt cannot be used."""
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
        if ctx.replay is not None:
            rollouts, logged = ctx.replay.rollouts, {}
        else:
            drawn = ctx.draw(index, ctx.settings.prompts_per_step, len(ctx.data.prompts))
            rollouts = sample(ctx, ctx.data, drawn, ctx.settings.group_size, (index,))
            ctx.check()
            logged = score(ctx, ctx.data.task, rollouts, state.step).logged_metrics
        metrics = logged | compare(rollouts, ctx.settings)
        metrics["num_tokens"] = count_tokens(state, rollouts.prompt_ids + rollouts.ids)
        yield Step(index, metrics | train(state, ctx, rollouts, index), rollouts)


def compare(rollouts: Rollouts, settings) -> dict[str, float]:
    """Fill in the advantages; returns the metrics of the sampling, before any update."""
    reward = torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64))  # (N,)
    advantage, spread = advantages.group_relative(reward, rollouts.group, settings.scale_rewards)
    rollouts.advantage = advantage.numpy()
    metrics = {"reward": _mean(rollouts.reward), "reward_std": _std(rollouts.reward)}
    metrics["frac_reward_zero_std"] = float((spread.abs() < 1e-8).double().mean())
    for name, values in rollouts.rewards.items():
        metrics |= {f"rewards/{name}/mean": _mean(values), f"rewards/{name}/std": _std(values)}
    lengths = np.array([len(ids) for ids in rollouts.ids], dtype=np.float64)
    cut = np.array([reason == "length" for reason in rollouts.finish_reason])
    return metrics | {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(cut.mean()),
        "completions/mean_terminated_length": float(lengths[~cut].mean()) if not cut.all() else 0.0,
    }


def train(state: State, ctx: Context, rollouts: Rollouts, index: int) -> dict[str, float]:
    """All updates of a step. Returns the means of their metrics."""
    settings = ctx.settings
    whole = make_batch(rollouts, settings)
    several = settings.num_iterations * settings.steps_per_generation > 1
    if several and "old_logprob" not in whole.columns:
        # the updates move the policy away from the one that sampled, so its log-probs are taken now
        whole.columns["old_logprob"] = ctx.logprobs(whole, "old", settings.temperature)
    if settings.beta:
        whole.columns["ref_logprob"] = ctx.reference_logprobs(whole, settings.temperature)
    outcomes = []
    objective, temperature = surrogate(settings), settings.temperature
    for rows in split(settings, index, len(whole)) * settings.num_iterations:
        batch = whole.take(rows)
        totals = totals_of(batch, whole, settings)
        outcomes.append(ctx.learn(state, batch, objective, totals, index, len(outcomes), temperature=temperature))
    return {name: float(np.mean([o.metrics[name] for o in outcomes])) for name in outcomes[0].metrics}


def make_batch(rollouts: Rollouts, settings) -> update.Batch:
    """Prompt and completion of each rollout, scored from the end of the prompt on."""
    cut = np.array([reason == "length" for reason in rollouts.finish_reason])
    keep = ~cut if settings.mask_truncated_completions else np.ones(len(rollouts), dtype=bool)
    columns = {"advantage": rollouts.advantage.tolist(), "keep": keep.astype(float).tolist()}
    if rollouts.logprob:
        columns["sampler_logprob"] = rollouts.logprob
    if rollouts.old_logprob is not None:
        columns["old_logprob"] = rollouts.old_logprob
    return update.Batch(
        [prompt + ids for prompt, ids in zip(rollouts.prompt_ids, rollouts.ids, strict=True)],
        [len(prompt) for prompt in rollouts.prompt_ids],
        columns,
    )


def split(settings, index: int, rows: int) -> list[list[int]]:
    """The rows of each update of a pass: a random cut into equal parts, the same one in every pass (as in TRL)."""
    parts = settings.steps_per_generation
    if parts == 1:
        return [list(range(rows))]
    order = keys.permutation(keys.key(settings.seed, "split", index), rows)
    return [sorted(int(row) for row in part) for part in np.split(order, parts)]


def totals_of(batch: update.Batch, whole: update.Batch, settings) -> dict[str, float]:
    def kept(b: update.Batch) -> float:
        return float(sum(n * k for n, k in zip(b.scored(), b.columns["keep"], strict=True)))

    return update.totals_of(batch) | {
        "tokens": kept(batch),
        "tokens_share": max(kept(whole), 1.0) / settings.steps_per_generation,
        "max_tokens": float(settings.max_new_tokens),
    }


def surrogate(settings):
    high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    made = partial(
        clipped,
        loss_type=settings.loss_type,
        epsilon_low=settings.epsilon,
        epsilon_high=high,
        beta=settings.beta,
        correct_kl=settings.use_bias_correction_kl,
    )
    return Objective(made)


def evaluate(ctx: Context) -> dict[str, float]:
    return evaluate_task(ctx, ctx.eval_data)


def preview(ctx: Context, rollouts: Rollouts) -> update.Outcome:
    """The first update on given rollouts; old log-probs are theirs where given, else the current policy's.

    A given completion counts as cut off when it does not end in a stop token.
    """
    rollouts.finish_reason = [
        reason if reason != "given" else "stop" if ids and ids[-1] in ctx.policy.stop_ids else "length"
        for reason, ids in zip(rollouts.finish_reason, rollouts.ids, strict=True)
    ]
    metrics = compare(rollouts, ctx.settings)
    batch = make_batch(rollouts, ctx.settings)
    if ctx.settings.beta:
        batch.columns["ref_logprob"] = ctx.reference_logprobs(batch, ctx.settings.temperature)
    totals = totals_of(batch, batch, ctx.settings)
    totals["tokens_share"] = max(totals["tokens"], 1.0)
    outcome = ctx.look(batch, surrogate(ctx.settings), totals, "preview", temperature=ctx.settings.temperature)
    outcome.metrics = metrics | outcome.metrics
    return outcome


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _std(values: np.ndarray) -> float:
    """Sample standard deviation (n - 1) of the numbers that are there; NaN for fewer than two, as in TRL."""
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


METHOD = Method("grpo", "task", prepare, loop, evaluate, preview)
