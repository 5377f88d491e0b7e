"""GRPO that watches the entropy of its samples, and says when the sampling temperature no longer suits it.

After each step the mean entropy H, in nats a token, of the distributions that completions were drawn from, that is at
the sampling temperature, is compared with a band: below it the policy repeats itself and stalls, above it the samples
are too noisy to learn from. The run warns when H leaves the band, and once it is back may warn again. Nothing else
differs from wb.grpo; `wb.method("entropy_temperature")` finds the temperature to begin with, and
`run.set(temperature=...)` changes it on the way.

Liu et al. 2025, "AceReason-Nemotron 1.1", arXiv 2506.13284: the temperature is chosen so that H stays near 0.3; in its
runs 0.6 gave less than 0.2 and stalled, 1.0 began at 0.4 and fell to 0.22, 0.85 went from 0.26 to 0.38 and was best.
The band of 0.2 to 0.4 is ours. Its stages, longer limits with truncated completions left out at first and easy prompts
dropped later, are settings and data of runs one after another (`max_new_tokens`, `mask_truncated_completions`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench import worker
from workbench.methods.grpo import Variant, variant
from workbench.settings import GRPOSettings
from workbench.settings.base import knob

OUTSIDE = "entropy_outside"
"""in `state.json`: whether the last step's entropy was outside the band"""


@dataclass(frozen=True, kw_only=True)
class EntropyBandSettings(GRPOSettings):
    """GRPO with an eye on the entropy."""

    entropy_low: float = knob(0.2, at_least=0.0)
    """the least entropy, in nats a token, that needs no warning"""
    entropy_high: float = knob(0.4, above=0.0)
    """the most"""

    def problem(self) -> str | None:
        if self.entropy_low >= self.entropy_high:
            return f"entropy_low={self.entropy_low:g} must be below entropy_high={self.entropy_high:g}."
        return super().problem()


def after(state, ctx, index, rollouts) -> dict[str, float]:
    settings, tokens = ctx.settings, np.concatenate([np.empty(0), *rollouts.entropy])
    if not len(tokens):
        return {}
    entropy = float(tokens.mean())
    outside = not settings.entropy_low <= entropy <= settings.entropy_high
    if outside and not state.json.get(OUTSIDE, False) and ctx.replay is None:
        low = entropy < settings.entropy_low
        worker.warn(
            f"Step {index}: the entropy of the samples, {entropy:.3g} nats a token, is {'below' if low else 'above'}"
            f" the band of {settings.entropy_low:g} to {settings.entropy_high:g}, at temperature"
            f" {settings.temperature:g}. A {'higher' if low else 'lower'} temperature brings it back:"
            " run.set(temperature=...); wb.method('entropy_temperature')(run.policy, task) looks for one."
        )
    state.json[OUTSIDE] = outside
    return {"entropy_band/sampled": entropy, "entropy_band/outside": float(outside)}


METHOD = variant("entropy_band", EntropyBandSettings, Variant(after=after))
