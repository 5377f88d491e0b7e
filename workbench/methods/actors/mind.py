"""MinD: reasoning in turns, of which fewer and fewer are needed (Zeng et al. 2025, "Done Is Better than Perfect:
Unlocking Efficient Reasoning by Structured Multi-Turn Decomposition", arXiv 2505.19788).

A completion is `<think>thought</think> answer <think>thought</think> answer ...`: each turn one line of attack with the
answer it leads to, so that one can stop after any of them. First `wb.sft` on such rows (`wb.method("mind_rows")` cuts
long traces into turns), then this: GRPO with the sequence mean ("grpo"), whose leaning towards short right answers is
wanted, on

    R = rewards of the task (accuracy of the last answer)
        + format_weight * [it is made of turns]  -  unit_weight * [a turn holds several lines of attack]

No turn is counted in the reward. `rewards/turn_format` and `rewards/one_unit` are its parts, `turns/mean` the turns an
answer takes; what stopping earlier would cost is told by `workbench.rewards.turns.accuracy_by_turn(texts, right)`, from
the completions that are there.

The abstract and a review were read, not the reference code: the three rewards and the reduction are the paper's, the
weights (1 and 0.3) and the markers that tell a new line of attack ("wait", "alternatively", ...) are ours; the
authors cut the traces with a large model. With both weights 0 it is GRPO with loss_type="grpo".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.methods import grpo, rl_batch
from workbench.methods.context import Context
from workbench.rewards.turns import one_unit_a_turn, parse, turn_format
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State

FORMAT, UNIT = "turn_format", "one_unit"


@dataclass(frozen=True, kw_only=True)
class MindSettings(GRPOSettings):
    """GRPO on answers in turns."""

    loss_type: str = knob("grpo", choices=("grpo", "dapo", "bnpo", "dr_grpo"))
    """how token losses become one number: 'grpo', the mean over rows of token means, favours short right answers"""
    format_weight: float = knob(1.0, at_least=0.0)
    """reward of a completion that is made of turns"""
    unit_weight: float = knob(0.3, at_least=0.0)
    """taken off where a turn holds several lines of attack"""


def check(task: Any, settings: MindSettings) -> None:
    for name, setting in ((FORMAT, "format_weight"), (UNIT, "unit_weight")):
        if getattr(settings, setting):
            rl_batch.check_free([name], task.reward_names, "mind", f", or set {setting}=0")


def rewarded(state: State, ctx: Context, index: int, rollouts: Rollouts) -> None:
    settings = ctx.settings
    for name, weight, reward in (
        (FORMAT, settings.format_weight, turn_format), (UNIT, settings.unit_weight, one_unit_a_turn)
    ):  # fmt: skip
        if weight:
            rl_batch.add_reward(rollouts, name, weight * np.array(reward(rollouts.text)))


def after(state: State, ctx: Context, index: int, rollouts: Rollouts) -> dict[str, float]:
    turns = [parse(text) for text in rollouts.text]
    known = [len(made) for made in turns if made]
    return {"turns/mean": float(np.mean(known)) if known else float("nan"), "turns/share": len(known) / len(turns)}


METHOD = grpo.variant("mind", MindSettings, grpo.Variant(check=check, rewarded=rewarded, after=after))
