"""Estimates of KL(policy || reference) per token, from the log-probs of the sampled token (Schulman 2020,
"Approximating KL divergence", joschu.net/blog/kl-approx.html).

With d = ref_logprob - logprob their means agree where the policy sampled the tokens; as a term of the loss they
differ in the gradient. On tokens of the current policy the gradient of the KL itself is, in expectation, that of
k2 as it stands, or that of k1 or k3 multiplied by the ratio (`use_bias_correction_kl`, DeepSeek-V3.2, arXiv
2512.02556). k1 as it stands has the expected gradient 0, k3 as it stands that of KL(reference || policy).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A row of the table below: `function(logprob, ref_logprob)` gives nats per token."""

    function: Callable[[Tensor, Tensor], Tensor]
    formula: str
    paper: str = "Schulman 2020, joschu.net/blog/kl-approx.html"


def k1(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """logprob - ref_logprob: unbiased, but of either sign."""
    return logprob - ref_logprob


def k2(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Half the squared difference: never negative, a little biased."""
    return (ref_logprob - logprob) ** 2 / 2


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref - policy: never negative and unbiased. GRPO's (arXiv 2402.03300), and TRL's."""
    d = ref_logprob - logprob
    return torch.exp(d) - d - 1


KL: dict[str, Estimate] = {
    "k1": Estimate(k1, "-d"),
    "k2": Estimate(k2, "d^2 / 2"),
    "k3": Estimate(k3, "exp(d) - d - 1"),
}
"""by `kl_estimator`, with d = ref_logprob - logprob"""
