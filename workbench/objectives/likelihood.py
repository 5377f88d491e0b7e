"""Surrogates without a clip, for losses that are no PPO: they stand in for that of `loss_type` (`policy_gradient`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.objectives import Metrics, mean_over
from workbench.objectives.surrogates import Surrogate, Terms


def likelihood(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """-A logprob: cross-entropy weighted by the advantage, which knows nothing of the policy that sampled."""
    return -terms.advantage * terms.logprob, {}


def unclipped(terms: Terms, settings: Any) -> tuple[Tensor, Metrics]:
    """-rho A, whatever the ratio rho."""
    return -terms.ratio * terms.advantage, {"ratio/mean": mean_over(terms.ratio.expand_as(terms.mask), terms.mask)}


LIKELIHOOD = Surrogate(likelihood, "-A log p", "REINFORCE, Williams 1992, Machine Learning 8", ())
UNCLIPPED = Surrogate(unclipped, "-rho A", "importance sampling", ("importance_sampling_level",))
