"""The sampling of a step: prompts are drawn where the last step stopped, sampled and scored, once or in rounds.

With `dynamic_sampling` (DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2) a step goes on drawing until it holds
`prompts_per_step` groups whose rewards differ: for a reward of 0 and 1, those with 0 < right < group_size. The
other groups have advantage 0 and would only thin the batch out. Each round draws `prompts_per_step` prompts, as the
authors' code does; groups beyond the wanted number are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from workbench import advantages, worker
from workbench.evaluation import mean
from workbench.methods.context import Context, count_tokens
from workbench.methods.evaluate import join, sample, score
from workbench.methods.rl_batch import add_overlong
from workbench.sampling.rollouts import Rollouts
from workbench.state import State

DEAD = 1e-8
"""a group whose rewards have no larger standard deviation teaches nothing"""


def gather(
    state: State,
    ctx: Context,
    index: int,
    prompts: Callable[..., object] = lambda state, ctx, index, rows: None,
    rewarded: Callable[..., Rollouts | None] = lambda state, ctx, index, rollouts: None,
    judged: Callable[[Rollouts], Rollouts] = lambda rollouts: rollouts,
) -> tuple[Rollouts, dict[str, float]]:
    """The scored completions that step `index` trains on, and the metrics of all that were sampled for it.

    `prompts`, `rewarded`, `judged`: see `grpo.Variant`.

    Rewards, lengths and dead groups are those of everything that was sampled: among the groups that are kept the mean
    reward would say how they were chosen, not how good the policy is. On a replay there are only the kept ones.
    """
    if ctx.replay is not None:
        return ctx.replay.rollouts, {}
    settings = ctx.settings
    rounds: list[Rollouts] = []
    logged: list[dict[str, float]] = []
    alive: list[int] = []
    for number in range(settings.max_sampling_rounds if settings.dynamic_sampling else 1):
        made, said = _round(state, ctx, index, number, prompts, judged)
        made = rewarded(state, ctx, index, made) or made
        made.group = [group + number * settings.prompts_per_step for group in made.group]
        alive += alive_groups(made)
        add_overlong(made, settings)
        rounds.append(made)
        logged.append(said)
        if len(alive) >= settings.prompts_per_step:
            break
    everything = join(rounds) if len(rounds) > 1 else rounds[0]
    metrics = _means(logged) | describe(_sampled(everything))
    metrics["num_tokens"] = count_tokens(state, everything.prompt_ids + everything.ids)
    _warn_of_nothing(index, everything, settings)
    if not settings.dynamic_sampling:
        return everything, metrics
    sampled = len(set(everything.group))
    if not alive:
        worker.warn(
            f"Step {index}: dynamic_sampling found no group whose rewards differ among {sampled} groups in"
            f" {len(rounds)} rounds, so this step trains on groups that teach nothing. Is the reward constant, or is"
            " every prompt far too easy or too hard?"
        )
    kept = min(len(alive), settings.prompts_per_step)
    metrics |= {"sampling/yield": kept / sampled, "sampling/rounds": float(len(rounds))}
    return choose(everything, alive, settings.prompts_per_step), metrics


def _warn_of_nothing(index: int, made: Rollouts, settings) -> None:
    """Say where a step can teach nothing: no completion has a reward, or all of them are left out of the loss."""
    if np.isnan(made.reward).all():
        worker.warn(
            f"Step {index}: none of the {len(made)} completions has a reward (every function gave None for every one),"
            " so this step teaches nothing."
        )
    elif settings.mask_truncated_completions and all(reason == "length" for reason in made.finish_reason):
        worker.warn(
            f"Step {index}: all {len(made)} completions hit max_new_tokens={settings.max_new_tokens}, and"
            " mask_truncated_completions leaves such out of the loss, so this step teaches nothing. Give them more"
            " tokens, or mask_truncated_completions=False."
        )


def _round(
    state: State,
    ctx: Context,
    index: int,
    number: int,
    prompts: Callable[..., object],
    judged: Callable[[Rollouts], Rollouts],
) -> tuple[Rollouts, dict[str, float]]:
    """Draw, sample and score once; moves the cursor over the prompts."""
    settings = ctx.settings
    first = state.json.get("prompts_drawn", (index - 1) * settings.prompts_per_step)
    drawn = ctx.draw_from(first, settings.prompts_per_step, len(ctx.data.prompts))
    state.json["prompts_drawn"] = first + settings.prompts_per_step
    purpose = (index,) if number == 0 else (index, "round", number)
    others = prompts(state, ctx, index, [row for row, _ in drawn])
    made = sample(ctx, ctx.data, drawn, settings.group_size, purpose, others)
    ctx.check()
    table = score(ctx, ctx.data.task, judged(made), state.step)
    made.rewards, made.reward = table.parts, table.total
    return made, table.logged_metrics


def alive_groups(rollouts: Rollouts) -> list[int]:
    """The groups within which the task's rewards differ. The punishment of overlong completions comes after this: it
    would keep groups alive in which all answers are wrong."""
    spread = advantages.spread(torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64)), rollouts.group)
    return [group for group, std in zip(dict.fromkeys(rollouts.group), spread.tolist(), strict=True) if std > DEAD]


def _sampled(rollouts: Rollouts) -> Rollouts:
    """The completions that the policy made: those that were given (demonstrations) say nothing of how good it is."""
    rows = [i for i, reason in enumerate(rollouts.finish_reason) if reason != "given"]
    return rollouts if len(rows) == len(rollouts) else rollouts.take(rows)


def choose(rollouts: Rollouts, alive: list[int], groups: int) -> Rollouts:
    """The first `groups` groups of those `alive`; where none is, the first ones, for a step is never empty."""
    wanted = alive or list(dict.fromkeys(rollouts.group))
    names = {group: number for number, group in enumerate(wanted[:groups])}
    kept = rollouts.take([i for i, group in enumerate(rollouts.group) if group in names])
    kept.group = [names[group] for group in kept.group]
    return kept


def describe(rollouts: Rollouts) -> dict[str, float]:
    """The metrics of scored completions, before any update.

    `frac_reward_zero_std` is the share of groups whose rewards are all equal, whatever the estimator. (TRL tells it
    from the standard deviation it divides by: under scale_rewards="batch" that of the batch, in RLOO that of rewards
    less their KL.)
    """
    reward = np.asarray(rollouts.reward, dtype=np.float64)  # (N,)
    spread = advantages.spread(torch.from_numpy(reward), rollouts.group)
    metrics = {"reward": mean(reward), "reward_std": _std(reward)}
    metrics["frac_reward_zero_std"] = float((spread.abs() < DEAD).double().mean())
    for name, values in rollouts.rewards.items():
        metrics |= {f"rewards/{name}/mean": mean(values), f"rewards/{name}/std": _std(values)}
    lengths = np.array([len(ids) for ids in rollouts.ids], dtype=np.float64)
    cut = np.array([reason == "length" for reason in rollouts.finish_reason])
    ended = np.zeros(1) if cut.all() else lengths[~cut]  # (N,) of those that ended by themselves
    metrics |= _correlation(reward, lengths) | _entropy_band(rollouts)
    return metrics | {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(cut.mean()),
        "completions/mean_terminated_length": float(ended.mean()),
        "completions/min_terminated_length": float(ended.min()),
        "completions/max_terminated_length": float(ended.max()),
    }


def _correlation(reward: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """Pearson's correlation of reward and length over the completions with a reward; none where one is constant."""
    known = ~np.isnan(reward)
    reward, lengths = reward[known], lengths[known]
    if len(reward) < 2 or reward.std() < DEAD or lengths.std() < DEAD:
        return {}
    return {"reward_length_corr": float(np.corrcoef(reward, lengths)[0, 1])}


def _entropy_band(rollouts: Rollouts) -> dict[str, float]:
    """The 10th and the 90th percentile of the entropies of all sampled tokens; none for completions that were given."""
    entropies = np.concatenate([np.empty(0), *rollouts.entropy])  # float64
    if not len(entropies):
        return {}
    low, high = np.percentile(entropies, (10, 90))
    return {"entropy/p10": float(low), "entropy/p90": float(high)}


def _means(logged: list[dict[str, float]]) -> dict[str, float]:
    """What reward functions logged, the mean over rounds (all of one size)."""
    names = dict.fromkeys(name for one in logged for name in one)
    return {name: float(np.mean([one[name] for one in logged if name in one])) for name in names}


def _std(values: np.ndarray) -> float:
    """Sample standard deviation (n - 1) of the numbers that are there; NaN for fewer than two, as in TRL."""
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")
