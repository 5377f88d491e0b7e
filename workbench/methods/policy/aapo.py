"""AAPO: GRPO's advantage plus how far a completion beats one of the frozen reference: so equal rewards teach, too.

For each prompt the reference (the policy as the run began) answers, too, with rewards R'. The i-th completion of a
group, with reward R_i, has

    A*_i = (R_i - mean of the group) / (std + 1e-4) + clip(R_i - R'_i, -0.2, 0.28)

and the loss is -A* log p over the tokens, without ratio or clip, reduced as `loss_type` says ("dapo": the mean over
tokens). So a group that is right throughout goes on learning where the reference was wrong, with 0.28, and one that is
wrong throughout where the reference was right, with -0.2.

`reference_rewards="step"`: as in the authors' code, the reference answers as often as the policy, and the i-th
completion is held against its i-th answer; both texts and rewards are kept with the rollouts. That doubles the
sampling. "cached": R' is the mean reward of `group_size` reference answers to the prompt, drawn once for each prompt
and run; this is ours.

Xiong et al. 2025, "AAPO: Enhance the Reasoning Capabilities of LLMs with Advantage Momentum", arXiv 2505.14264;
constants are those of the authors' code (both trainers). Their runs: 6 completions, lr 1e-6, temperature 0.7 (1.5B) or
1.0 (7B).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from workbench import advantages as estimators
from workbench.methods import grpo, reference
from workbench.methods.evaluate import sample, score
from workbench.methods.grpo import Variant, variant
from workbench.methods.policy.demonstrations import check_column
from workbench.methods.rl_batch import add_overlong
from workbench.methods.rounds import DEAD
from workbench.objectives.likelihood import LIKELIHOOD
from workbench.objectives.policy_gradient import objective
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob

REWARD, TEXT = "reference_reward", "reference_completion"
"""the columns of rollouts that keep what the reference did"""
DRAWN_BY = (
    "group_size", "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings",
    "overlong_cache",
)  # fmt: skip
"""the settings that cached rewards follow from"""


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
    """A task, and the mean reward of the reference by row, where it is known. A row's answers are keyed by the row
    alone: they are the same whenever they are drawn."""

    known: dict[int, float] = field(default_factory=dict)
    drawn_by: tuple = ()
    """the task whose rewards those are, and the settings they were drawn by"""


def prepare(tokenizer, task, settings) -> Prompts:
    made = grpo.prepare(tokenizer, task, settings, CHANGES)
    return Prompts(made.task, made.prompts)


def check(task, settings) -> None:
    check_column(task, REWARD)
    check_column(task, TEXT)


def rewarded(state, ctx, index, rollouts) -> None:
    """Ask the reference; what it earns goes into the rollouts' columns."""
    settings, n = ctx.settings, len(rollouts)
    rollouts.columns |= {REWARD: [float("nan")] * n, TEXT: [None] * n}
    if settings.bonus_low == settings.bonus_high == 0:
        return
    if settings.reference_rewards == "cached":
        known = _cached(state, ctx, sorted(set(rollouts.row)))
        rollouts.columns[REWARD] = [known[row] for row in rollouts.row]
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


def _cached(state, ctx, rows: list[int]) -> dict[int, float]:
    data = ctx.data
    how = (data.task, *(getattr(ctx.settings, name) for name in DRAWN_BY))
    if data.drawn_by != how:  # other rewards or settings since
        data.known, data.drawn_by = {}, how
    if missing := [row for row in rows if row not in data.known]:
        made = _answers(state, ctx, [(row, 0) for row in missing], ("reference",))
        for i, row in enumerate(missing):
            rewards = made.reward[i * ctx.settings.group_size : (i + 1) * ctx.settings.group_size]
            data.known[row] = float(np.nanmean(rewards)) if not np.isnan(rewards).all() else float("nan")
    return data.known


def bonus(rollouts: Rollouts, settings) -> np.ndarray:
    """(N,) clip(R - R', bonus_low, bonus_high); 0 where one of them is not known."""
    theirs = np.array(rollouts.columns.get(REWARD, [np.nan] * len(rollouts)), dtype=np.float64)
    return np.nan_to_num(np.clip(rollouts.reward - theirs, settings.bonus_low, settings.bonus_high), nan=0.0)


def after(state, ctx, index, rollouts) -> dict[str, float]:
    theirs = np.array(rollouts.columns[REWARD], dtype=np.float64)
    if np.isnan(theirs).all():
        return {}
    spread = estimators.spread(torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64)), rollouts.group).numpy()
    added, group = bonus(rollouts, ctx.settings), np.array(rollouts.group)
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
