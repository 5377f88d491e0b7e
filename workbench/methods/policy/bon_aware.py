"""Best-of-N-aware training: raise the chance that the best of N samples is right, not that of a single one.

With p the chance that a sample fails, the best of N is right with J = 1 - p^N, and its gradient is N p^(N - 1) times
that of the single sample's success. So it is REINFORCE in which a prompt weighs N p^(N - 1): prompts that nearly always
work already, or for which N samples hardly help, count little. `form`:

    exact       A_i = N p^(N-1) * (the estimator's advantage; with `scale_rewards="none"`: R_i - mean of the group)
    positive    A_i = N p^(N-1) for right completions, 0 for wrong ones
    two_sided   A_i = g+ for right ones, g+ = N p^(N-1) / (1 - p^N), and -g- for wrong ones, g- = N p / (1 - p);
                each at most `most`, as both grow without bound on the way to p = 1

All three point the same way for a prompt and differ in length. p is counted in the group: over the others for each
completion ("leave_one_out", which keeps the weight independent of what it weighs) or over all ("group").

Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287: N =
32 on MATH, 16 on code, with a KL to the start (`beta`). The paper's positive form is over best-of-N samples, with
weight N p^(N-1) (1 - p) / (1 - p^N); over ordinary samples, which are drawn here, that is N p^(N-1). Its sign and
sampling for g- could not be checked; the bound of 3 is a public implementation's. Right is what the task's verdict
gives 1 or more.

Left out: the variational forms for rewards that are not binary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.methods.grpo import Variant, variant
from workbench.methods.policy.verdicts import right
from workbench.settings import GRPOSettings
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class BonAwareSettings(GRPOSettings):
    """GRPO for the best of N samples."""

    best_of: int = knob(32, at_least=1)
    """N; 1: the success of a single sample"""
    form: str = knob("exact", choices=("exact", "positive", "two_sided"))
    """how the gradient of 1 - p^N becomes advantages"""
    failure: str = knob("leave_one_out", choices=("leave_one_out", "group"))
    """p of a completion: the share that failed of the others of its group, or of all of them"""
    most: float = knob(3.0, above=0.0)
    """the largest weight of the form 'two_sided'"""
    scale_rewards: str = knob("none", choices=("group", "batch", "none"))
    """as in `wb.grpo`; its group deviation would change how prompts weigh"""

    def problem(self) -> str | None:
        if self.group_size < 2:
            return f"group_size={self.group_size}: how often a prompt fails is counted in its group; 2 at least."
        return super().problem()


def failures(right: np.ndarray, group: list[int], how: str) -> np.ndarray:
    """(N,) how often each one's prompt fails, p; NaN without a verdict, or where there are no others to count."""
    made, group = np.full(len(right), np.nan), np.array(group)
    for g in dict.fromkeys(group.tolist()):
        at = np.flatnonzero((group == g) & ~np.isnan(right))
        wrong = (1 - right[at]).sum()
        if how == "group" and len(at):
            made[at] = wrong / len(at)
        elif how == "leave_one_out" and len(at) > 1:
            made[at] = (wrong - (1 - right[at])) / (len(at) - 1)
    return made


def weights(p: np.ndarray, n: int, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For failure chances p (N,): N p^(N-1), and g+ and g- held to `most`."""
    exact = n * p ** (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        plus, minus = exact / (1 - p**n), n * p / (1 - p)
    return exact, np.minimum(plus, most), np.minimum(minus, most)


def advantages(ctx, rollouts, estimated: np.ndarray) -> np.ndarray:
    settings, verdict = ctx.settings, right(ctx, rollouts)
    p = failures(verdict, rollouts.group, settings.failure)
    exact, plus, minus = weights(p, settings.best_of, settings.most)
    made = {
        "exact": exact * estimated,
        "positive": exact * verdict,
        "two_sided": np.where(verdict == 1, plus, -minus),
    }[settings.form]
    return np.where(np.isnan(p) | np.isnan(verdict), 0.0, made)


def after(state, ctx, index, rollouts) -> dict[str, float]:
    p = failures(right(ctx, rollouts), rollouts.group, "group")
    if np.isnan(p).all():
        return {}
    n = ctx.settings.best_of
    return {
        "bon/failure": float(np.nanmean(p)),
        "bon/success": float(np.nanmean(1 - p**n)),
        "bon/weight": float(np.nanmean(weights(p, n, ctx.settings.most)[0])),
    }


METHOD = variant("bon_aware", BonAwareSettings, Variant(advantages=advantages, after=after))
