"""Sampler and trainer may disagree on the log-probs of the same tokens (precision, kernels, a stale adapter).

The correction weighs the policy term by the ratio of the trainer's probability to the sampler's (truncated
importance sampling, Yao et al. 2025, fengyao.notion.site/off-policy-rl; masking: Liu et al. 2025,
richardli.xyz/rl-collapse). It is a constant: no gradient flows through it. Values and corner cases are those of
TRL 1.16's `vllm_importance_sampling_*`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MODES = {
    "token_truncate": "w_t = exp(old_t - sampler_t), held to [min, max]",
    "token_mask": "w_t = exp(old_t - sampler_t), 0 outside [min, max]",
    "sequence_truncate": "w = exp(sum_t (old_t - sampler_t)), one for the row, held to [min, max]",
    "sequence_mask": "w = exp(sum_t (old_t - sampler_t)), one for the row, 0 outside [min, max]",
}
"""by `sampler_correction`; min and max are `sampler_correction_min` and `sampler_correction_max`"""


def gap(old: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    """(B, T) old - sampler where `mask`; 0 elsewhere, and where the sampler's log-prob is not known (NaN)."""
    return torch.nan_to_num((old - sampler) * mask, nan=0.0)


def correction(
    old: Tensor, sampler: Tensor, mask: Tensor, mode: str, least: float | None, most: float | None
) -> Tensor:
    """The weights: (B, T), or (B, 1) for the modes of sequences. A log-prob that is not known counts as ratio 1."""
    difference = gap(old, sampler, mask)
    ratio = torch.exp(difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference)
    if mode.endswith("truncate"):
        return ratio.clamp(min=least, max=most)
    outside = (ratio < (-math.inf if least is None else least)) | (ratio > (math.inf if most is None else most))
    return ratio.masked_fill(outside, 0.0)
