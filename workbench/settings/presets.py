"""Presets of `wb.grpo`: published algorithms as rows of settings. What is given beside a preset wins over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Share(NamedTuple):
    """A setting that follows from another one: so large a part of it, at least 1."""

    of: str
    share: float


@dataclass(frozen=True)
class Preset:
    """A row of the table below."""

    paper: str
    sets: Mapping[str, Any]
    note: str = ""


PRESETS: dict[str, Preset] = {
    "grpo": Preset(
        "Shao et al. 2024, arXiv 2402.03300",
        {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.04, "use_bias_correction_kl": False},
        "as published: the mean over rows of token means, and k3 as it stands",
    ),
    "trl_default": Preset(
        "TRL 1.16, GRPOConfig",
        {
            "loss_type": "dapo", "scale_rewards": "group", "epsilon": 0.2, "beta": 0.0, "group_size": 8, "lr": 1e-6,
            "max_new_tokens": 512,
        },
    ),
    "dr_grpo": Preset(
        "Liu et al. 2025, arXiv 2503.20783", {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0}
    ),
    "dapo": Preset(
        "Yu et al. 2025, arXiv 2503.14476",
        {
            "loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "dynamic_sampling": True,
            "mask_truncated_completions": True, "overlong_cache": Share("max_new_tokens", 0.2),
        },
        "the paper's batch is 512 prompts of 16 completions, its rewards are +1 and -1, its limit 20480 tokens",
    ),
    "gspo": Preset(
        "Zheng et al. 2025, arXiv 2507.18071",
        {
            "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4,
            "beta": 0.0, "steps_per_generation": 4,
        },
    ),
    "cispo": Preset(
        "MiniMax-M1, arXiv 2506.13585; the numbers are ScaleRL's, arXiv 2510.13786",
        {"loss_type": "cispo", "epsilon_high": 5.0, "scale_rewards": "batch", "beta": 0.0, "group_size": 16},
        "ScaleRL computes the output layer in float32; here log-probs are float32 from the logits on",
    ),
    "lite_ppo": Preset(
        "Liu et al. 2025, arXiv 2508.08221", {"loss_type": "dapo", "scale_rewards": "batch", "beta": 0.0}
    ),
    "rloo": Preset(
        "Ahmadian et al. 2024, arXiv 2402.14740; TRL's RLOOTrainer",
        {
            "advantage_estimator": "rloo", "loss_type": "grpo", "importance_sampling_level": "sequence_sum",
            "epsilon": 0.2, "beta": 0.05, "kl_in_reward": True, "group_size": 2, "normalize_advantages": False,
        },
        "one ratio for a completion, so that the loss is the mean over rows",
    ),
    "reinforce": Preset(
        "Williams 1992, Machine Learning 8",
        {"advantage_estimator": "reinforce", "loss_type": "dapo", "beta": 0.0, "group_size": 1, "prompts_per_step": 64},
        "the baseline is the mean of the batch",
    ),
    "gdpo": Preset("GDPO, arXiv 2601.05242", {"multi_objective_aggregation": "normalize_then_sum"}),
    "sapo": Preset(
        "SAPO, arXiv 2511.20347",
        {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "beta": 0.0},
    ),
    "gmpo": Preset(
        "GMPO, arXiv 2507.20673", {"loss_type": "gmpo", "epsilon": 0.4, "epsilon_high": 0.4, "beta": 0.0}
    ),
    "luspo": Preset(
        "LUSPO, arXiv 2602.05261", {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.0}
    ),
    "vespo": Preset(
        "VESPO, arXiv 2602.10693",
        {
            "loss_type": "vespo", "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0,
            "vespo_lambda_neg": 2.0, "beta": 0.0,
        },
    ),
    "deepseek_v32": Preset(
        "DeepSeek-V3.2, arXiv 2512.02556",
        {
            "loss_type": "grpo", "beta": 0.001, "use_bias_correction_kl": True, "off_policy_mask_threshold": 0.5,
        },
        "the paper does not give its beta and threshold; 0.001 is DeepSeek-R1's beta, 0.5 TRL's example of a threshold",
    ),
}  # fmt: skip
"""by `preset`"""


def expand(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, over what the preset among it sets. An unknown preset is left for the check of values."""
    name = given.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return dict(given)
    values = {**PRESETS[name].sets, **given}
    for setting, value in values.items():
        if isinstance(value, Share):
            base = values.get(value.of, defaults[value.of])
            # a base that is no number is told by its own check
            values[setting] = max(1, int(value.share * base)) if isinstance(base, (int, float)) else None
    return values
