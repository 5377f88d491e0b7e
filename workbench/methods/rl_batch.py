"""From scored rollouts to the batch that the updates of a step share: old and reference log-probs, advantages, and
the correction for the sampler, all taken before the first update."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import advantages, keys, update
from workbench.errors import SettingError
from workbench.methods import reference
from workbench.methods.context import Context
from workbench.objectives import finish, sampler
from workbench.objectives.policy_gradient import sampling_metrics
from workbench.rewards.lengths import soft_overlong
from workbench.sampling.rollouts import Rollouts
from workbench.state import State

COMPANION = "companion"
"""the column of rows that come with the completions for another term of the loss: 1 for those, which the policy
gradient leaves out (their `keep` is 0) and no normaliser counts; the rows of the completions themselves have 0"""
OVERLONG = "overlong"
"""the name of the reward that `overlong_cache` adds"""


def make(
    state: State | None,
    ctx: Context,
    rollouts: Rollouts,
    updates: int = 1,
    advantages_by: Callable[[Context, Rollouts, np.ndarray], np.ndarray] | None = None,
) -> tuple[update.Batch, dict[str, float]]:
    """The batch of a step's `updates`, and the metrics of the sampling that need the model. Fills in the advantages:
    those of the settings' estimator, or what `advantages_by` makes of them.

    Old log-probs are the rollouts' own where these were given. Else they are taken from the policy now, but only
    where something asks for them: with one update the policy that learns is the one that sampled.
    """
    settings, metrics = ctx.settings, {}
    kl_in_reward = settings.kl_in_reward and settings.beta > 0
    whole = without_advantages(rollouts, settings)
    if updates > 1 or kl_in_reward or settings.sampler_correction:
        if "old_logprob" not in whole.columns:
            whole.columns["old_logprob"] = ctx.logprobs(whole, "old", settings.temperature)
    if settings.beta:
        whole.columns["ref_logprob"] = reference.logprobs(state, ctx, whole, temperature=settings.temperature)
    kl = None
    if kl_in_reward:
        kl, metrics["kl"] = kl_of_rows(whole)
    task = getattr(ctx.data, "task", None)
    rollouts.advantage = advantages_of(rollouts, settings, {} if task is None else task.weight_of, kl)
    if advantages_by is not None:
        rollouts.advantage = advantages_by(ctx, rollouts, rollouts.advantage)
    whole.columns["advantage"] = rollouts.advantage.tolist()
    if "old_logprob" in whole.columns and "sampler_logprob" in whole.columns:
        metrics |= correct(whole, settings)
    return whole, metrics


def without_advantages(rollouts: Rollouts, settings: Any) -> update.Batch:
    """Prompt and completion of each rollout, scored from the end of the prompt on."""
    cut = np.array([reason == "length" for reason in rollouts.finish_reason])
    keep = ~cut if settings.mask_truncated_completions else np.ones(len(rollouts), dtype=bool)
    columns: dict[str, Sequence] = {"keep": keep.astype(float).tolist()}
    if rollouts.logprob:
        columns["sampler_logprob"] = rollouts.logprob
    if rollouts.old_logprob is not None:
        columns["old_logprob"] = rollouts.old_logprob
    return update.Batch(
        [prompt + ids for prompt, ids in zip(rollouts.prompt_ids, rollouts.ids, strict=True)],
        [len(prompt) for prompt in rollouts.prompt_ids],
        columns,
    )


def advantages_of(rollouts: Rollouts, settings: Any, weights: dict[str, float], kl: Tensor | None = None) -> np.ndarray:
    """(N,) float64 by the settings' estimator; `weights` of the reward functions by name, 1 for any other."""
    total = torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64))  # (N,)
    parts = [torch.from_numpy(np.asarray(values, dtype=np.float64)) for values in rollouts.rewards.values()]
    made = advantages.Rewards(
        advantages.shaped(total, settings, kl),
        rollouts.group,
        torch.stack(parts, -1) if parts else total[:, None],
        torch.tensor([weights.get(name, 1.0) for name in rollouts.rewards] or [1.0], dtype=torch.float64),
    )
    return advantages.estimate(made, settings).numpy()


def add_overlong(rollouts: Rollouts, settings: Any) -> None:
    """Add DAPO's soft punishment (Yu et al. 2025, arXiv 2503.14476, eq. 13) to the rewards, as one of their parts.

    A completion that no reward function scored stays without a reward. Raises SettingError where a reward function
    has the name already.
    """
    if settings.overlong_cache is None:
        return
    check_overlong(rollouts.rewards, settings)
    punishment = np.array(soft_overlong(settings.max_new_tokens, settings.overlong_cache)(completion_ids=rollouts.ids))
    add_reward(rollouts, OVERLONG, punishment)


def add_reward(rollouts: Rollouts, name: str, values: np.ndarray) -> None:
    """Add one more reward (N,) to the sum. A completion that no reward function scored stays without one."""
    rollouts.rewards = {**rollouts.rewards, name: values}
    rollouts.reward = rollouts.reward + values


def check_overlong(names: Collection[str], settings: Any) -> None:
    """Raise SettingError where `overlong_cache` would add a reward under a name among `names`."""
    # the settings of a supervised run, which is held to a task, have no such setting
    if getattr(settings, "overlong_cache", None) is not None:
        check_free([OVERLONG], names, "overlong_cache", ", or leave overlong_cache out")


def check_free(names: Collection[str], taken: Collection[str], adder: str, otherwise: str = "") -> None:
    """Raise SettingError where `adder` would add a reward under one of `names` that is among those `taken`;
    `otherwise`: what else than another name helps."""
    for name in names:
        if name in taken:
            raise SettingError(
                f"{adder} adds a reward named {name!r}, and the task has one of that name: rename that"
                f" (rewards={{'name': fn}}){otherwise}."
            )


def first_of_groups(rollouts: Rollouts) -> list[int]:
    """The first rollout of each group, in the order in which the groups come."""
    first: dict[int, int] = {}
    for i, group in enumerate(rollouts.group):
        first.setdefault(group, i)
    return list(first.values())


def kl_of_rows(batch: update.Batch) -> tuple[Tensor, float]:
    """(N,) the sum over each row's tokens of log-prob - reference log-prob, 0 for rows left out; its mean a token."""
    columns, mask = _columns(batch)
    kl = ((columns["old_logprob"] - columns["ref_logprob"]) * mask).sum(-1)  # (N,)
    return kl, float(kl.sum() / mask.sum().clamp(min=1.0))


def correct(batch: update.Batch, settings: Any) -> dict[str, float]:
    """Give the batch its column `sampler_weight` where `sampler_correction` asks for it; returns the metrics.

    sampling/sampling_logp_difference/mean, /max          |old - sampler| in nats a token
    sampling/importance_sampling_ratio/min, /mean, /max   of the weights after clipping, over tokens or over rows
    """
    columns, mask = _columns(batch)
    old, drawn = columns["old_logprob"], columns["sampler_logprob"]
    metrics = finish(sampling_metrics(old, drawn, mask))
    mode = settings.sampler_correction
    if mode is None:
        return metrics
    weight = sampler.correction(
        old, drawn, mask, mode, settings.sampler_correction_min, settings.sampler_correction_max
    )  # (N, T) or (N, 1)
    if mode.startswith("sequence"):
        shown = weight[:, 0]
        batch.columns["sampler_weight"] = shown.tolist()
    else:
        shown = weight[mask.bool()]
        batch.columns["sampler_weight"] = [
            row[:count].tolist() for row, count in zip(weight, batch.scored(), strict=True)
        ]
    shown = shown if len(shown) else torch.zeros(1, dtype=torch.float64)
    name = "sampling/importance_sampling_ratio"
    return metrics | {
        f"{name}/min": float(shown.min()),
        f"{name}/mean": float(shown.mean()),
        f"{name}/max": float(shown.max()),
    }


def _columns(batch: update.Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The batch's columns in float64 on the CPU, and the mask (N, T) of the tokens of rows that are kept."""
    columns = update.columns_of(batch, torch.zeros((), dtype=torch.float64))
    counts = torch.tensor(batch.scored())  # (N,)
    mask = (torch.arange(int(counts.max()))[None, :] < counts[:, None]).double()
    return columns, mask * columns["keep"][:, None]


def split(settings: Any, index: int, rows: int) -> list[list[int]]:
    """The rows of each update of a pass: a random cut into equal parts, the same one in every pass (as in TRL).

    Where dynamic sampling found too few groups for equal parts they differ by one row.
    """
    parts = min(settings.steps_per_generation, rows)
    if parts == 1:
        return [list(range(rows))]
    order = keys.permutation(keys.key(settings.seed, "split", index), rows)
    return [sorted(int(row) for row in part) for part in np.array_split(order, parts)]


def accompanied(
    whole: update.Batch, sequences: list[list[int]], starts: list[int], columns: dict[str, list[float]]
) -> update.Batch:
    """`whole` with companion rows after its own, for another term of the loss (see `objectives.companions`).

    `columns`: what these rows bring along, a number each. Of the other columns they have 0, as the rows of `whole` have
    of theirs.
    """
    own, more = len(whole), len(sequences)

    def nothing(values: Sequence) -> list:
        return [[]] * more if hasattr(values[0], "__len__") else [0.0] * more

    made = {name: [*values, *nothing(values)] for name, values in whole.columns.items()}
    made |= {name: [0.0] * own + list(values) for name, values in columns.items()}
    made[COMPANION] = [0.0] * own + [1.0] * more
    return update.Batch(whole.sequences + sequences, whole.starts + starts, made, whole.unit)


def split_units(settings: Any, index: int, whole: update.Batch) -> list[list[int]]:
    """The same for a batch whose units stay whole (completions with their companions)."""
    units = whole.units()
    return [[row for unit in part for row in units[unit]] for part in split(settings, index, len(units))]


def totals_of(batch: update.Batch, whole: update.Batch, parts: int, settings: Any) -> dict[str, float]:
    """The normalisers of an update on `batch`, one of `parts` that `whole` is split into."""

    def kept(b: update.Batch) -> float:
        return float(sum(n * k for n, k in zip(b.scored(), b.columns["keep"], strict=True)))

    companions = sum(batch.columns.get(COMPANION, ()))
    return update.totals_of(batch) | {
        "rows": float(len(batch) - companions),
        "companions": float(companions),
        "tokens": kept(batch),
        "tokens_share": max(kept(whole), 1.0) / parts,
        "max_tokens": float(settings.max_new_tokens),
    }
