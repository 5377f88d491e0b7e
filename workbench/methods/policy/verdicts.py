"""What several methods here ask of rollouts: which are right, by the task's verdict."""

from __future__ import annotations

import numpy as np

from workbench import evaluation
from workbench.methods.context import Context
from workbench.sampling.rollouts import Rollouts


def verdicts(ctx: Context, rollouts: Rollouts) -> np.ndarray:
    """(N,) the reward of the function that says right or wrong; the sum of all where it is not among them (rewards
    that were given). NaN where there is none."""
    found = rollouts.rewards.get(ctx.data.task.verdict)
    return np.asarray(rollouts.reward if found is None else found, dtype=np.float64)


def right(ctx: Context, rollouts: Rollouts) -> np.ndarray:
    """(N,) 1.0 for right completions (`evaluation.RIGHT`), 0.0 for others, NaN for those without a verdict."""
    return evaluation.right(verdicts(ctx, rollouts))
