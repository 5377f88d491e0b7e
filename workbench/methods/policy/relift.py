"""ReLIFT: policy gradients, and now and then a supervised step on the prompts that nobody in a group solved.

A group whose every completion has the verdict `failed` (0: well formed and wrong) puts its prompt into a buffer, the
newest first. Once `buffer_size` prompts wait, the newest so many leave it, and after the step's updates one supervised
update raises the likelihood of their demonstrations (column `demonstration`): the mean of -log p over all tokens less
`sft_entropy_coef` times the entropy, at temperature 1, by an optimiser of its own with moments of its own.

The updates on completions have advantages R - mean of the group (`scale_rewards="none"`), -rho A without a clip, summed
over tokens and divided by a constant length (`loss_type="dr_grpo"`), `entropy_coef=0.001` and `max_grad_norm=0.7`.

Ma et al. 2025, "Learning What Reinforcement Learning Can't: Interleaved Online Fine-Tuning for Hardest Questions",
arXiv 2506.07527; settings are those of the authors' code: 8 completions, buffer and batch 128, both learning rates
1e-6, rewards 1, 0 and -1 for a bad format. It divides a micro-batch's sum by its padded length; here the divisor is
rows * `max_new_tokens`. A buffer's batch is one update here. Prompts without a demonstration are not buffered.

Where no group of a step has an advantage, `entropy_coef` is all that the update on completions has, and an optimiser
like Adam, which divides by the size of gradients, gives it the whole learning rate: on prompts that nobody ever solves
the entropy climbs without end.

Left out: a teacher that writes demonstrations on demand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from workbench import update
from workbench.methods.grpo import Variant, variant
from workbench.methods.policy import demonstrations
from workbench.methods.policy.verdicts import right, verdicts
from workbench.objectives import Objective
from workbench.objectives.demonstrations import imitation
from workbench.objectives.likelihood import UNCLIPPED
from workbench.objectives.policy_gradient import objective
from workbench.optimiser import OPTIMISERS
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State

BUFFER = "relift_buffer"
"""in `state.json`: the rows that wait, the newest first"""


@dataclass(frozen=True, kw_only=True)
class ReliftSettings(GRPOSettings):
    """Reinforcement learning interleaved with fine-tuning."""

    buffer_size: int = knob(128, at_least=0)
    """prompts that nobody solved which make a supervised update; 0: there is none"""
    failed: float = 0.0
    """the verdict of a completion that is well formed and wrong"""
    sft_lr: float = knob(1e-6, at_least=0.0)
    """learning rate of supervised updates; it follows the run's schedule"""
    sft_entropy_coef: float = knob(0.001, at_least=0.0)
    """weight of the entropy in supervised updates"""
    sft_max_grad_norm: float = knob(1.0, at_least=0.0)
    """supervised gradients are scaled down to this norm; 0 leaves them as they are"""
    clipped: bool = False
    """GRPO's surrogate by `loss_type`; False: -rho A without a clip"""
    scale_rewards: str = knob("none", choices=("group", "batch", "none"))
    """as in `wb.grpo`"""
    loss_type: str = knob("dr_grpo", choices=("dapo", "grpo", "bnpo", "dr_grpo", "luspo"))
    """how token losses become one number, as in `wb.grpo`"""
    entropy_coef: float = knob(0.001, at_least=0.0)
    """as in `wb.grpo`"""
    max_grad_norm: float = knob(0.7, at_least=0.0)
    """as in `wb.grpo`, of the updates on completions"""

    @property
    def demonstrates(self) -> bool:
        return bool(self.buffer_size)

    def problem(self) -> str | None:
        if self.buffer_size and self.dynamic_sampling:
            return "dynamic_sampling drops the groups that nobody solves, and those are what the buffer is for."
        return super().problem()


def after(state, ctx, index, rollouts) -> dict[str, float]:
    """Put unsolved prompts into the buffer, and train on it once it is full."""
    settings, verdict, solved = ctx.settings, verdicts(ctx, rollouts), right(ctx, rollouts)
    for other in {row.slots for row in OPTIMISERS.values()} - {OPTIMISERS[settings.optim].slots}:
        state.optim.pop(f"relift_{other}", None)  # as of the run's own optimiser: see `optimiser.step`
    groups = {g: [i for i, other in enumerate(rollouts.group) if other == g] for g in dict.fromkeys(rollouts.group)}
    unsolved = [at for at in groups.values() if (verdict[at] == settings.failed).all()]
    metrics = {
        "relift/solve_none": len(unsolved) / len(groups),
        "relift/solve_all": float(np.mean([(solved[at] == 1).all() for at in groups.values()])),
    }
    if not settings.buffer_size:
        return metrics
    pushed = [row for row in (rollouts.row[at[0]] for at in unsolved) if demonstrations.answer(ctx, row)]
    waiting = pushed + state.json.get(BUFFER, [])
    if len(waiting) >= settings.buffer_size:
        rows, waiting = waiting[: settings.buffer_size], waiting[settings.buffer_size :]
        metrics |= imitate(state, ctx, index, rows)
    state.json[BUFFER] = waiting
    return metrics | {"relift/buffer": float(len(waiting))}


def imitate(state, ctx, index, rows: list[int]) -> dict[str, float]:
    """One supervised update on the demonstrations of `rows`; its moments are apart from those of the other updates."""
    settings = ctx.settings
    prompts = [ctx.data.prompts[row].ids for row in rows]
    answers = [demonstrations.answer(ctx, row) for row in rows]
    batch = update.Batch([p + a for p, a in zip(prompts, answers, strict=True)], [len(p) for p in prompts])
    made = Objective(
        partial(imitation, entropy_coef=settings.sft_entropy_coef),
        frozenset({"entropy"} if settings.sft_entropy_coef else ()),
    )
    own = replace(ctx, settings=replace(settings, lr=settings.sft_lr, max_grad_norm=settings.sft_max_grad_norm))
    slots = OPTIMISERS[settings.optim].slots
    apart = State(state.params, {slots: state.optim.get(f"relift_{slots}", {})})
    number = settings.steps_per_generation * settings.num_iterations  # after those of the completions
    outcome = own.learn(apart, batch, made, update.totals_of(batch), index, number)
    state.optim[f"relift_{slots}"] = apart.optim[slots]
    return {
        "sft/loss": outcome.loss,
        "sft/nll": outcome.metrics["nll"],
        "sft/entropy": outcome.metrics["entropy"],
        "sft/grad_norm": outcome.metrics["grad_norm"],
        "sft/rows": float(len(rows)),
    }


CHANGES = Variant(
    objective=lambda settings, coef, index: objective(settings, coef, None if settings.clipped else UNCLIPPED),
    after=after,
)
METHOD = variant(
    "relift",
    ReliftSettings,
    CHANGES,
    prepare=partial(demonstrations.prepare, changes=CHANGES),
    notice=demonstrations.notice,
)
