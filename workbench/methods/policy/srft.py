"""SRFT: one loss that imitates a demonstration, learns from it off-policy, and from own rollouts, mixed by entropy.

Each group has `group_size` completions and the prompt's demonstration (column `demonstration`), scored by the same
rewards; advantages A are those of the whole group. With H the mean entropy in nats of the policy on its own tokens in
the update, through which no gradient flows, the loss is the sum of

    w1 * NLL of the demonstrations, mean over their tokens        w1 = 0.5 exp(-H)
    -rho A over the demonstrations' tokens                        rho = p, as if their author had been sure; no clip
    -w2 log p of right completions, + log p of wrong ones         w2 = 0.1 exp(H)

Every p here, that of the NLL too, is at the sampling `temperature`, as H is. The second and third go into one number
by the reduction of `loss_type`. Right is what the task's verdict gives 1 or more; a completion without a verdict is
left out.

Fu et al. 2025, arXiv 2506.19767: 8 completions, lr 1e-6, no KL. The released code is reported to have exp(+H) in w1
(`imitation_rises`) and to shape rho / (rho + 0.1) (`shaping`); the defaults are the paper's. Its H is "the policy's
entropy": here that of its own completions, not of the demonstrations. The paper's completions have rewards 1 and -1
without a baseline; `right_weight=None` trains them by GRPO's surrogate with the group's advantages instead.

Left out: generating demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from workbench.methods.grpo import Variant, variant
from workbench.methods.policy import demonstrations
from workbench.methods.policy.verdicts import right
from workbench.objectives import Objective
from workbench.objectives.demonstrations import entropy_weighted
from workbench.objectives.policy_gradient import rewards_entropy
from workbench.settings import GRPOSettings
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class SRFTSettings(GRPOSettings):
    """Supervised and reinforcement fine-tuning in a single stage."""

    imitation: float = knob(0.5, at_least=0.0)
    """weight of the demonstrations' cross-entropy, times exp(-H); 0: none"""
    imitation_rises: bool = False
    """times exp(+H) instead"""
    off_policy: float = knob(1.0, at_least=0.0)
    """weight of the policy gradient on demonstrations; 0: none. With both weights 0 no demonstration joins a group"""
    shaping: float = knob(0.0, at_least=0.0)
    """g in rho / (rho + g), by which unlikely tokens of demonstrations count more; 0: rho itself"""
    right_weight: float | None = knob(0.1, at_least=0.0)
    """weight of right completions, times exp(H), where wrong ones have 1; None: GRPO's surrogate and advantages"""

    @property
    def demonstrates(self) -> bool:
        return bool(self.imitation or self.off_policy)


def check(task, settings) -> None:
    demonstrations.check_no_column(task, demonstrations.SHOWN)


def rewarded(state, ctx, index, rollouts):
    if ctx.settings.demonstrates:
        return demonstrations.into_groups(ctx, rollouts, state.step)
    rollouts.columns[demonstrations.SHOWN] = [0] * len(rollouts)
    return None


def columns(state, ctx, index, rollouts) -> dict[str, list]:
    signs = np.nan_to_num(2 * right(ctx, rollouts) - 1, nan=0.0)
    shown = rollouts.columns.get(demonstrations.SHOWN, [0] * len(rollouts))
    return {"demonstration": shown, "right": signs.tolist()}


def objective(settings, coef, index) -> Objective:
    made = partial(entropy_weighted, settings=settings, entropy_coef=settings.entropy_coef if coef is None else coef)
    return Objective(made, frozenset({"entropy"} if rewards_entropy(settings) else ()), coupled=True)


CHANGES = Variant(check=check, rewarded=rewarded, columns=columns, objective=objective)
METHOD = variant(
    "srft",
    SRFTSettings,
    CHANGES,
    prepare=partial(demonstrations.prepare, changes=CHANGES),
    notice=demonstrations.notice,
)
