"""Settings of the methods that learn from rewards."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.settings.base import Settings, knob


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(Settings):
    """Group-relative policy optimisation."""

    lr: float = knob(1e-6, at_least=0.0)
    prompts_per_step: int = knob(8, at_least=1)
    """prompts drawn a step"""
    group_size: int = knob(8, at_least=2)
    """completions per prompt"""
    beta: float = knob(0.0, at_least=0.0)
    """weight of the KL to the reference; 0: no reference is needed"""
    use_bias_correction_kl: bool = True
    """multiply the KL estimate by the ratio, which makes its gradient that of the KL itself (DeepSeek-V3.2);
    False: the estimate of the GRPO paper"""
    loss_type: str = knob("dapo", choices=("dapo", "grpo", "bnpo", "dr_grpo"))
    """how token losses become one number: 'dapo' (all tokens of the sampling), 'grpo' (mean over rows of
    token means), 'bnpo' (all tokens of the update), 'dr_grpo' (rows times `max_new_tokens`)"""
    epsilon: float = knob(0.2, at_least=0.0)
    """the ratio is clipped below 1 - epsilon"""
    epsilon_high: float | None = knob(None, at_least=0.0)
    """the ratio is clipped above 1 + epsilon_high; None: epsilon"""
    scale_rewards: str = knob("group", choices=("group", "batch", "none"))
    """advantages are divided by the standard deviation of the 'group', of the whole 'batch', or not ('none')"""
    num_iterations: int = knob(1, at_least=1)
    """passes over each step's completions"""
    steps_per_generation: int = knob(1, at_least=1)
    """updates that each pass is split into"""
    mask_truncated_completions: bool = False
    """leave completions that hit the length limit out of the loss"""

    def problem(self) -> str | None:
        rows = self.prompts_per_step * self.group_size
        if rows % self.steps_per_generation:
            return (
                f"steps_per_generation={self.steps_per_generation} does not divide the"
                f" {rows} completions of a step (prompts_per_step x group_size)."
            )
        return None
