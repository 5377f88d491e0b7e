"""Settings of the methods that learn from rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.settings.base import ReferenceSettings, Settings, knob
from workbench.settings.presets import PRESETS, expand

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo", "gmpo")
"""as in `objectives.policy_gradient.LOSS_TYPES`, which is not imported: settings need no torch"""
SAMPLER_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CLIPPING = LOSS_TYPES[:5]
READ_BY = {
    "importance_sampling_level": (*CLIPPING, "cispo", "sapo"),
    "epsilon": (*CLIPPING, "gmpo"),
    "epsilon_high": (*CLIPPING, "cispo", "gmpo"),
    "delta": CLIPPING,
    "sapo_temperature_pos": ("sapo",),
    "sapo_temperature_neg": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}
"""a setting of the surrogate, and the loss types that read it: what `objectives.surrogates.SURROGATES` says"""
COMPARING = ("group", "rloo")
"""the advantage estimators that compare completions of one prompt"""


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(ReferenceSettings, Settings):
    """Policy gradients on sampled completions: group-relative policy optimisation and its relatives."""

    preset: str | None = knob(None, choices=tuple(PRESETS))
    """a published algorithm by name: it sets what is not given; see `settings.presets.PRESETS`"""
    lr: float = knob(1e-6, at_least=0.0)
    prompts_per_step: int = knob(8, at_least=1)
    """prompts drawn a step (with `dynamic_sampling`: a round), and the most that a step trains on"""
    group_size: int = knob(8, at_least=1)
    """completions per prompt"""
    num_iterations: int = knob(1, at_least=1)
    """passes over each step's completions"""
    steps_per_generation: int = knob(1, at_least=1)
    """updates that each pass is split into"""

    # what a completion earns, and its advantage
    advantage_estimator: str = knob("group", choices=("group", "rloo", "reinforce", "none"))
    """a completion is compared with its 'group' (GRPO), with the others of its group ('rloo'), with the mean of
    the batch ('reinforce'), or with nothing ('none')"""
    scale_rewards: str = knob("group", choices=("group", "batch", "none"))
    """advantages of the estimator 'group' are divided by the standard deviation of the 'group' (or True), of the
    whole 'batch', or not ('none', or False)"""
    multi_objective_aggregation: str = knob("sum_then_normalize", choices=("sum_then_normalize", "normalize_then_sum"))
    """several reward functions are summed and then compared, or each is normalised in its group, then they are
    summed and normalised over the batch ('normalize_then_sum': GDPO)"""
    normalize_advantages: bool = False
    """whiten the advantages over the batch, after the estimator"""
    reward_clip_range: tuple[float, ...] | None = None
    """(least, most) of a completion's summed reward"""
    overlong_cache: int | None = knob(None, at_least=1)
    """add DAPO's soft punishment of overlong completions as a reward named 'overlong': it falls from 0 to -1 over
    the last so many tokens before `max_new_tokens`"""
    dynamic_sampling: bool = False
    """draw further prompts until `prompts_per_step` groups have rewards that differ (DAPO)"""
    max_sampling_rounds: int = knob(4, at_least=1)
    """rounds of drawing a step may take with `dynamic_sampling`; after these it trains on what there is"""

    # the KL to the reference
    beta: float = knob(0.0, at_least=0.0)
    """weight of the KL to the reference; 0: no reference is needed"""
    kl_estimator: str = knob("k3", choices=("k1", "k2", "k3"))
    """how the KL is estimated from sampled tokens, d = ref_logprob - logprob: 'k1' (-d), 'k2' (d^2 / 2) or
    'k3' (exp(d) - d - 1). In the reward it is always k1"""
    use_bias_correction_kl: bool = True
    """multiply the KL estimate by the ratio, which makes the gradient of k1 and k3 that of the KL itself
    (DeepSeek-V3.2); False: the estimate of the GRPO paper"""
    kl_in_reward: bool = False
    """take beta * KL off the reward (k1, summed over the completion) instead of adding it to the loss"""

    # the loss
    loss_type: str = knob("dapo", choices=LOSS_TYPES)
    """the surrogate and how token losses become one number: the clipped surrogate with 'dapo' (all tokens of the
    sampling), 'grpo' (mean over rows of token means), 'bnpo' (all tokens of the update), 'dr_grpo' (rows times
    `max_new_tokens`) or 'luspo' (mean over rows of token sums); 'cispo', 'sapo', 'vespo' or 'gmpo'"""
    importance_sampling_level: str = knob("token", choices=("token", "sequence", "sequence_sum"))
    """the ratio of new to old policy: of each 'token', of a 'sequence' as the geometric mean over its tokens
    (GSPO), or of a whole sequence ('sequence_sum': RLOO)"""
    epsilon: float = knob(0.2, at_least=0.0)
    """the ratio is clipped below 1 - epsilon (gmpo: the log-ratio below -epsilon)"""
    epsilon_high: float | None = knob(None, at_least=0.0)
    """the ratio is clipped above 1 + epsilon_high (cispo: above epsilon_high, gmpo: the log-ratio above
    epsilon_high); None: epsilon"""
    delta: float | None = knob(None, above=0.0)
    """the upper bound of a ratio whose advantage is negative, above 1 + epsilon_high; None: unbounded"""
    sapo_temperature_pos: float = knob(1.0, above=0.0)
    """steepness of sapo's gate for tokens with a positive advantage"""
    sapo_temperature_neg: float = knob(1.05, above=0.0)
    """steepness of sapo's gate for the other tokens"""
    vespo_k_pos: float = knob(2.0, at_least=0.0)
    """power k of vespo's weight w^k e^(-lambda w) of a completion with ratio w, for advantages of 0 or more: how
    fast it falls below w = 1"""
    vespo_lambda_pos: float = knob(3.0, at_least=0.0)
    """lambda of the same weight: how fast it falls above w = 1"""
    vespo_k_neg: float = knob(3.0, at_least=0.0)
    """power k for negative advantages"""
    vespo_lambda_neg: float = knob(2.0, at_least=0.0)
    """lambda for negative advantages"""
    off_policy_mask_threshold: float | None = knob(None, above=0.0)
    """leave out rows with a negative advantage whose log-probs fell by more than this, in nats a token"""
    mask_truncated_completions: bool = False
    """leave completions that hit the length limit out of the loss"""
    top_entropy_quantile: float = knob(1.0, at_least=0.0, at_most=1.0)
    """train on this share of the update's tokens, those with the highest entropy; 1: on all of them"""

    # the entropy bonus
    entropy_coef: float = knob(0.0, at_least=0.0)
    """weight of the entropy, the mean over the tokens of the update, that is taken off the loss (TRL: the mean of
    the micro-batches' means); where it adapts: its first value. In a step in which no group has an advantage it is
    all that is left of the loss, and Adam gives it the whole learning rate: the entropy climbs"""
    use_adaptive_entropy: bool = False
    """move entropy_coef by `entropy_coef_delta` after each update: up where the entropy is at or below
    `entropy_target`, else down; an update has the bonus only where the last one's entropy was (Skywork-OR1)"""
    entropy_coef_min: float = knob(0.0, at_least=0.0)
    """the coefficient that adapts does not fall below this"""
    entropy_coef_max: float = knob(1.0, at_least=0.0)
    """the coefficient that adapts does not rise above this"""
    entropy_coef_delta: float = knob(0.005, at_least=0.0)
    """how far it moves after an update"""
    entropy_target: float = knob(0.2, at_least=0.0)
    """the entropy to hold, in nats a token of those that train; set it near what the metric `entropy` starts at"""

    # sampler and trainer that disagree
    sampler_correction: str | None = knob(None, choices=SAMPLER_CORRECTIONS)
    """weigh the policy term by the ratio of the trainer's probability to the sampler's, of tokens or of whole
    sequences, held to the bounds ('..._truncate') or 0 outside them ('..._mask'); None: not at all"""
    sampler_correction_max: float | None = knob(3.0, above=0.0)
    """the upper bound of these ratios; None: none"""
    sampler_correction_min: float | None = knob(None, at_least=0.0)
    """the lower bound of these ratios; None: none"""

    @classmethod
    def resolve(cls, given: Mapping[str, Any], base: Settings | None = None) -> dict[str, Any]:
        """What was given with its preset spelt out; TRL's True and False for `scale_rewards` by their names."""
        defaults = {field.name: getattr(base, field.name, field.default) for field in dataclasses.fields(cls)}
        values = expand(given, defaults)
        if isinstance(values.get("scale_rewards"), bool):
            values["scale_rewards"] = "group" if values["scale_rewards"] else "none"
        return values

    def problem(self) -> str | None:
        return self._problem_of_sizes() or self._problem_of_rewards() or self._problem_of_loss()

    def _problem_of_sizes(self) -> str | None:
        rows = self.prompts_per_step * self.group_size
        if self.advantage_estimator in COMPARING and self.group_size < 2:
            return (
                f"group_size={self.group_size} must be at least 2: advantage_estimator={self.advantage_estimator!r}"
                " compares completions of one prompt ('reinforce' and 'none' do not)."
            )
        if self.dynamic_sampling and self.group_size < 2:
            return "dynamic_sampling looks for groups whose rewards differ, so group_size must be at least 2."
        if rows % self.steps_per_generation:
            return (
                f"steps_per_generation={self.steps_per_generation} does not divide the"
                f" {rows} completions of a step (prompts_per_step x group_size)."
            )
        if self.overlong_cache is not None and self.overlong_cache >= self.max_new_tokens:
            return (
                f"overlong_cache={self.overlong_cache} must be below max_new_tokens={self.max_new_tokens}: it is the"
                " part of the length over which the punishment grows."
            )
        return None

    def _problem_of_rewards(self) -> str | None:
        span = self.reward_clip_range
        if span is not None and (len(span) != 2 or span[0] >= span[1]):
            return f"reward_clip_range={span} must be (least, most) with least below most."
        if self.multi_objective_aggregation == "normalize_then_sum":
            if self.advantage_estimator != "group":
                return (
                    "multi_objective_aggregation='normalize_then_sum' is an estimator of its own: it goes with"
                    f" advantage_estimator='group', not {self.advantage_estimator!r}."
                )
            if span is not None or self.kl_in_reward:
                what = "kl_in_reward" if self.kl_in_reward else "reward_clip_range"
                return (
                    f"{what} acts on the summed reward, which multi_objective_aggregation='normalize_then_sum'"
                    " never looks at."
                )
        return None

    def _problem_of_loss(self) -> str | None:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if self.delta is not None and self.loss_type in CLIPPING and self.delta <= 1 + high:
            return (
                f"delta={self.delta:g} must be above {1 + high:g}, the ratio at which the clip begins"
                " (1 + epsilon_high): below it, it would clip what the clip leaves."
            )
        if self.top_entropy_quantile == 0:
            return "top_entropy_quantile=0.0 must be above 0; it is a share of the tokens, the paper's is 0.2."
        if self.entropy_coef_min > self.entropy_coef_max:
            return f"entropy_coef_min={self.entropy_coef_min:g} is above entropy_coef_max={self.entropy_coef_max:g}."
        low, most = self.sampler_correction_min, self.sampler_correction_max
        if low is not None and most is not None and low >= most:
            return f"sampler_correction_min={low:g} must be below sampler_correction_max={most:g}."
        if self.sampler_correction is None:
            return None
        if self.sampler_correction.endswith("truncate") and low is None and most is None:
            return (
                f"sampler_correction={self.sampler_correction!r} needs a bound: sampler_correction_max or"
                " sampler_correction_min."
            )
        if self.sampler_correction.startswith("token") and self.loss_type == "gmpo":
            return (
                f"loss_type='gmpo' has one ratio for a completion, so sampler_correction={self.sampler_correction!r}"
                " has no tokens to weigh; take 'sequence_truncate' or 'sequence_mask'."
            )
        return None

    def unread(self, given: Collection[str]) -> list[str]:
        capless = self.loss_type == "cispo" and self.epsilon_high is None
        said = [
            f"{name} changes nothing: only {_either('loss_type', kinds)} reads it."
            for name, kinds in READ_BY.items()
            if name in given and self.loss_type not in kinds and not (name == "epsilon" and capless)
        ]
        for needed, (idle, names) in self._idle().items():
            said += [f"{name} changes nothing {needed}." for name in names if idle and name in given]
        if capless:
            said.append(
                f"loss_type='cispo' caps the ratio at epsilon_high, which falls back to epsilon={self.epsilon:g}: so"
                " low a cap hardly lets anything be learned. Give epsilon_high=5.0 (ScaleRL), or preset='cispo'."
            )
        if self.loss_type == "luspo" and self.importance_sampling_level == "token":
            said.append(
                "loss_type='luspo' is meant for one ratio a completion: give importance_sampling_level='sequence', or"
                " preset='luspo'."
            )
        if self.loss_type == "gmpo" and self.epsilon_high is None and "epsilon" not in given:
            said.append(
                f"loss_type='gmpo' clips log-ratios, and epsilon={self.epsilon:g} is narrow for them: the paper's is"
                " 0.4. Give epsilon=0.4, or preset='gmpo'."
            )
        if self.beta and not self.kl_in_reward and self.kl_estimator == "k1" and not self._corrects_kl():
            said.append(
                "kl_estimator='k1' without use_bias_correction_kl has an expected gradient of zero: the KL is shown"
                " but does not hold the policy back."
            )
        return said

    def _corrects_kl(self) -> bool:
        return self.use_bias_correction_kl and self.loss_type != "gmpo"

    def _idle(self) -> dict[str, tuple[bool, tuple[str, ...]]]:
        """What a setting needs, in words: whether it is lacking, and the settings that need it."""
        group = self.advantage_estimator == "group"
        summed = group and self.multi_objective_aggregation == "sum_then_normalize"
        in_loss = bool(self.beta) and not self.kl_in_reward
        return {
            "without beta": (
                not self.beta, ("kl_estimator", "use_bias_correction_kl", "kl_in_reward", "sync_ref_model")
            ),
            "with kl_in_reward, which takes k1 as it stands": (
                self.kl_in_reward, ("kl_estimator", "use_bias_correction_kl")
            ),
            "with loss_type='gmpo', which takes the KL estimate as it stands": (
                in_loss and self.loss_type == "gmpo", ("use_bias_correction_kl",)
            ),
            "without sync_ref_model=True": (
                not self.sync_ref_model, ("ref_model_mixup_alpha", "ref_model_sync_steps")
            ),
            "without advantage_estimator='group' and multi_objective_aggregation='sum_then_normalize'": (
                not summed, ("scale_rewards",)
            ),
            "without advantage_estimator='group'": (not group, ("multi_objective_aggregation",)),
            "without dynamic_sampling=True": (not self.dynamic_sampling, ("max_sampling_rounds",)),
            "without use_adaptive_entropy=True": (
                not self.use_adaptive_entropy,
                ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            ),
            "without sampler_correction": (
                self.sampler_correction is None, ("sampler_correction_min", "sampler_correction_max")
            ),
        }  # fmt: skip


def _either(name: str, values: Collection[str]) -> str:
    return f"{name}=" + " or ".join(map(repr, values))
