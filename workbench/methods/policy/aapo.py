"""AAPO: GRPO's advantage plus how far a completion beats one of the frozen reference: so equal rewards teach, too.

For each prompt the reference (the policy as the run began) answers, too, with rewards R'. The i-th completion of a
group, with reward R_i, has

    A*_i = (R_i - mean of the group) / (std + 1e-4) + clip(R_i - R'_i, -0.2, 0.28)

and the loss is -A* log p over the tokens, without ratio or clip, reduced as `loss_type` says ("dapo": the mean over
tokens). So a group that is right throughout goes on learning where the reference was wrong, with 0.28, and one that is
wrong throughout where the reference was right, with -0.2.

`reference_rewards="step"`: as in the authors' code, the reference answers as often as the policy, and the i-th
completion is held against its i-th answer; both texts and rewards are kept with the rollouts. That doubles the
sampling. "cached": R' is the mean reward of `group_size` reference answers to the prompt, drawn when a step first
trains on the prompt, and kept with the run until rewards or sampling change; this is ours.

Xiong et al. 2025, "AAPO: Enhance the Reasoning Capabilities of LLMs with Advantage Momentum", arXiv 2505.14264;
constants are those of the authors' code (both trainers). Their runs: 6 completions, lr 1e-6, temperature 0.7 (1.5B) or
1.0 (7B).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from workbench import advantages as estimators
from workbench.evaluation import mean
from workbench.methods import grpo, reference
from workbench.methods.evaluate import sample, score
from workbench.methods.grpo import Variant, variant
from workbench.methods.policy.demonstrations import check_no_column
from workbench.methods.rl_batch import add_overlong
from workbench.methods.rounds import DEAD
from workbench.objectives.likelihood import LIKELIHOOD
from workbench.objectives.policy_gradient import objective
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.tasks import Task

REWARD, TEXT, TASK = "reference_reward", "reference_completion", "reference_task"
"""the columns of rollouts that keep what the reference did, and by which reward functions (a number: see `_number`)"""
DRAWN_BY = (
    "group_size", "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings",
    "overlong_cache",
)  # fmt: skip
"""the settings that cached rewards follow from"""
KNOWN = "aapo_reference"
"""in `state.tensors`: (rows,) the mean reward of the reference, NaN where none was given, infinite where it was not
asked; in `state.json`: what those follow from"""


@dataclass(frozen=True, kw_only=True)
class AAPOSettings(GRPOSettings):
    """Advantage-augmented policy optimisation."""

    bonus_low: float = knob(-0.2, at_most=0.0)
    """the least that beating the reference adds to an advantage"""
    bonus_high: float = knob(0.28, at_least=0.0)
    """the most that it adds. With both 0 the reference is not asked"""
    reference_rewards: str = knob("step", choices=("step", "cached"))
    """the reference answers anew in each 'step', or once for each prompt ('cached')"""
    likelihood: bool = True
    """the loss is -A* log p; False: GRPO's surrogate, by `loss_type`"""

    def problem(self) -> str | None:
        if self.reference_rewards == "cached" and self.sync_ref_model:
            return "reference_rewards='cached' holds for a reference that stands still, and sync_ref_model moves it."
        return super().problem()


@dataclass
class Prompts(grpo.Prompts):
    """A task with its prompts tokenised."""

    tasks: dict[int, Task] = field(default_factory=dict)
    """by number the tasks with the rewards that this process has seen: `run.set` gives a task other functions, which
    nothing on record tells apart"""


def prepare(tokenizer, task, settings) -> Prompts:
    made = grpo.prepare(tokenizer, task, settings, CHANGES)
    return Prompts(made.task, made.prompts)


def check(task, settings) -> None:
    for name in (REWARD, TEXT, TASK):
        check_no_column(task, name)


def rewarded(state, ctx, index, rollouts) -> None:
    """Ask the reference; what it earns goes into the rollouts' columns."""
    settings, n = ctx.settings, len(rollouts)
    rollouts.columns |= {REWARD: [float("nan")] * n, TEXT: [None] * n}
    if settings.bonus_low == settings.bonus_high == 0:
        return
    if settings.reference_rewards == "cached":
        number = _number(state, ctx)
        known = _cached(state, ctx, sorted(set(rollouts.row)), number)
        rollouts.columns |= {REWARD: [known[row] for row in rollouts.row], TASK: [number] * n}
        return
    drawn = [(rollouts.row[i], i) for i in range(0, n, settings.group_size)]
    # the cursor tells rounds of a step apart
    made = _answers(state, ctx, drawn, ("reference", index, state.json["prompts_drawn"]))
    rollouts.columns |= {REWARD: made.reward.tolist(), TEXT: made.text}


def _answers(state, ctx, drawn: list[tuple[int, int]], purpose: tuple) -> Rollouts:
    """Scored completions of the reference, `group_size` for each drawn row."""
    with reference.in_place(ctx, reference.params(state, ctx)):
        made = sample(ctx, ctx.data, drawn, ctx.settings.group_size, purpose)
    score(ctx, ctx.data.task, made, state.step)
    add_overlong(made, ctx.settings)
    return made


def _cached(state, ctx, rows: list[int], number: int) -> dict[int, float]:
    """By row the mean reward of the reference's answers. They are keyed by the row alone."""
    known = _kept(state, ctx, number)
    made = {row: float(known[row]) for row in rows if not torch.isinf(known[row])}
    if missing := [row for row in rows if row not in made]:
        reward = _answers(state, ctx, [(row, 0) for row in missing], ("reference",)).reward
        for row, rewards in zip(missing, reward.reshape(len(missing), -1), strict=True):
            made[row] = float(np.float32(mean(rewards)))  # as it is kept
    return made


def _number(state, ctx) -> int:
    """What the reward functions are called in `state.json`: by the number that stands there where they may be those,
    by another where this process has seen others under it."""
    task, tasks = ctx.data.task, ctx.data.tasks
    number = state.json.get(KNOWN, {}).get("task", 0)
    if tasks.setdefault(number, task) is not task:
        number = next((n for n, other in tasks.items() if other is task), max(tasks) + 1)
        tasks[number] = task
    return number


def _follows_from(ctx, number: int) -> dict:
    """The settings, weights and functions that the reference's rewards follow from."""
    how = {name: getattr(ctx.settings, name) for name in DRAWN_BY}
    how["stop_strings"] = list(how["stop_strings"] or ())  # as JSON gives it back
    return how | {"weights": ctx.data.task.weight_of, "task": number}


def _kept(state, ctx, number: int) -> torch.Tensor:
    """What the run keeps in KNOWN; nothing where rewards or settings are others than those it follows from."""
    if state.json.get(KNOWN) == _follows_from(ctx, number):
        return state.tensors[KNOWN].cpu()
    return torch.full((len(ctx.data.prompts),), torch.inf)


def _keep(state, ctx, rollouts: Rollouts, theirs: np.ndarray) -> None:
    """Keep what the reference earned. Those of groups that dynamic sampling dropped are not in the record of a step,
    from which a replay makes the state again: they are not kept."""
    number = rollouts.columns[TASK][0]
    known = _kept(state, ctx, number).clone()
    known[torch.tensor(rollouts.row)] = torch.tensor(theirs, dtype=torch.float32)
    state.tensors[KNOWN] = known
    state.json[KNOWN] = _follows_from(ctx, number)


def bonus(rollouts: Rollouts, settings) -> np.ndarray:
    """(N,) clip(R - R', bonus_low, bonus_high); 0 where one of them is not known."""
    theirs = np.array(rollouts.columns.get(REWARD, [np.nan] * len(rollouts)), dtype=np.float64)
    return np.nan_to_num(np.clip(rollouts.reward - theirs, settings.bonus_low, settings.bonus_high), nan=0.0)


def after(state, ctx, index, rollouts) -> dict[str, float]:
    settings, theirs = ctx.settings, np.array(rollouts.columns[REWARD], dtype=np.float64)
    if settings.reference_rewards == "cached" and (settings.bonus_low or settings.bonus_high):
        _keep(state, ctx, rollouts, theirs)
    if np.isnan(theirs).all():
        return {}
    spread = estimators.spread(torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64)), rollouts.group).numpy()
    added, group = bonus(rollouts, settings), np.array(rollouts.group)
    alive = [float(np.abs(added[group == g]).max() > 0) for g in dict.fromkeys(rollouts.group)]
    equal = np.array(alive)[spread <= DEAD]
    return {
        "reference/reward": float(np.nanmean(theirs)),
        "reference/beaten_by": float(np.nanmean(rollouts.reward - theirs)),
        "reference/revived_groups": float(equal.mean()) if len(equal) else 0.0,
    }


CHANGES = Variant(
    check=check,
    rewarded=rewarded,
    advantages=lambda ctx, rollouts, advantages: advantages + bonus(rollouts, ctx.settings),
    objective=lambda settings, coef, index: objective(settings, coef, LIKELIHOOD if settings.likelihood else None),
    after=after,
)
METHOD = variant("aapo", AAPOSettings, CHANGES, prepare=prepare)
