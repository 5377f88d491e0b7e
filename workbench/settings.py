"""Settings: few, flat, typed, frozen, documented under the field, checked in one place.

Names, values and meanings are TRL 1.16's where TRL has one. A TRL name that is spelt differently here is
answered with ours; any other unknown name with the nearest one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError, did_you_mean, nearest


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method takes."""

    steps: int = 100
    """steps in all; a step is one committed unit (for GRPO: one sampling with all its updates)"""
    lr: float = 1e-5
    """peak learning rate of AdamW"""
    seed: int = 0
    """seed of the order of rows, of sampling and of dropout"""
    micro_batch_size: int | None = None
    """rows (DPO: pairs) that go through the model at once; None: as many as keep the logits under 1 GiB.
    It never changes a result (but for the draws of dropout), only memory and time"""
    weight_decay: float = 0.0
    """AdamW's decoupled decay; vectors (biases, norms) are left out"""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """gradients are scaled down to this global norm; 0 leaves them as they are"""
    lr_scheduler_type: str = "constant"
    """'constant', 'linear' or 'cosine' (both to zero at the last step), after the warm-up"""
    warmup_steps: int = 0
    """steps over which the learning rate rises linearly from zero"""
    eval_steps: int | None = None
    """evaluate every so many steps, from step 0 on and at the end; None: about ten times in the run.
    Needs `eval_dataset`"""
    num_generations_eval: int = 8
    """completions per held-out prompt, where the evaluation samples; pass@k is given for k up to it"""
    snapshot_steps: int = 10
    """write a snapshot every so many steps; the steps between are restored by replaying the stored record"""
    snapshot_gb: float = 10.0
    """most disk that snapshots take; past it the oldest go first, never the first or the latest"""
    time_limit: float | None = None
    """stop after so many seconds of steps (wall clock); None: no limit"""
    max_new_tokens: int = 512
    """longest completion that is sampled"""
    temperature: float = 1.0
    """sampling temperature; log-probs, entropy and KL are those of the distribution at this temperature"""
    top_p: float = 1.0
    top_k: int = 0
    """sample among the k likeliest tokens only; 0: all"""
    shuffle_dataset: bool = True
    """draw the rows of each epoch in a new order; False: in the order given"""


@dataclass(frozen=True, kw_only=True)
class SFTSettings(Settings):
    """Supervised fine-tuning."""

    lr: float = 2e-5
    batch_size: int = 8
    """rows per update"""
    max_length: int | None = 1024
    """longer rows are cut to so many tokens (counted and shown); None: never"""
    truncation_mode: str = "keep_start"
    """'keep_start' or 'keep_end': which part of an over-long row is kept"""
    loss_type: str = "nll"
    """'nll': mean negative log-likelihood of the trained tokens of the update"""
    assistant_only_loss: bool = False
    """train on the assistant's turns of `messages` only"""
    completion_only_loss: bool | None = None
    """train on the completion only; None: where rows have a prompt and a completion"""


@dataclass(frozen=True, kw_only=True)
class DPOSettings(Settings):
    """Direct preference optimisation."""

    lr: float = 1e-6
    batch_size: int = 8
    """pairs per update"""
    beta: float = 0.1
    """strength of the pull to the reference, in units of reward per nat"""
    loss_type: str = "sigmoid"
    """'sigmoid': the loss of the DPO paper"""
    max_length: int | None = 1024
    """prompt and answer are cut to so many tokens, keeping the start"""


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(Settings):
    """Group-relative policy optimisation."""

    lr: float = 1e-6
    prompts_per_step: int = 8
    """prompts drawn a step"""
    group_size: int = 8
    """completions per prompt"""
    beta: float = 0.0
    """weight of the KL to the reference; 0: no reference is needed"""
    use_bias_correction_kl: bool = True
    """multiply the KL estimate by the ratio, which makes its gradient that of the KL itself (DeepSeek-V3.2);
    False: the estimate of the GRPO paper"""
    loss_type: str = "dapo"
    """how token losses become one number: 'dapo' (all tokens of the sampling), 'grpo' (mean over rows of
    token means), 'bnpo' (all tokens of the update), 'dr_grpo' (rows times `max_new_tokens`)"""
    epsilon: float = 0.2
    """the ratio is clipped below 1 - epsilon"""
    epsilon_high: float | None = None
    """the ratio is clipped above 1 + epsilon_high; None: epsilon"""
    scale_rewards: str = "group"
    """advantages are divided by the standard deviation of the 'group', of the whole 'batch', or not ('none')"""
    num_iterations: int = 1
    """passes over each step's completions"""
    steps_per_generation: int = 1
    """updates that each pass is split into"""
    mask_truncated_completions: bool = False
    """leave completions that hit the length limit out of the loss"""


METHODS: dict[str, type[Settings]] = {"sft": SFTSettings, "dpo": DPOSettings, "grpo": GRPOSettings}

# TRL's spelling -> what to write here
TRL_NAMES = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "num_generations": "group_size",
    "max_completion_length": "max_new_tokens",
    "generation_batch_size": "prompts_per_step and group_size",
    "per_device_train_batch_size": "batch_size (in GRPO prompts_per_step and group_size), or micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "output_dir": "out",
    "eval_strategy": "eval_steps",
    "save_steps": "snapshot_steps",
    "save_strategy": "snapshot_steps",
    "reward_funcs": "rewards of the Task",
    "reward_weights": "weights of the Task",
    "train_dataset": "the rows or task, as the second argument",
    "processing_class": "nothing: the policy brings its tokenizer",
    "peft_config": "policy.attach(config) before the run",
    "model_init_kwargs": "the arguments of wb.load",
    "ref_model": "nothing: the reference is the policy as it was when the run began",
    "args": "the settings themselves, as keyword arguments",
    "completion_length": "max_new_tokens",
    "warmup_ratio": "warmup_steps",
}

CHOICES = {
    "lr_scheduler_type": ("constant", "linear", "cosine"),
    "truncation_mode": ("keep_start", "keep_end"),
    "scale_rewards": ("group", "batch", "none"),
    ("sft", "loss_type"): ("nll",),
    ("dpo", "loss_type"): ("sigmoid",),
    ("grpo", "loss_type"): ("dapo", "grpo", "bnpo", "dr_grpo"),
}

AT_LEAST = {
    "steps": 1, "micro_batch_size": 1, "warmup_steps": 0, "eval_steps": 1, "num_generations_eval": 1,
    "snapshot_steps": 1, "max_new_tokens": 1, "top_k": 0, "batch_size": 1, "max_length": 2, "prompts_per_step": 1,
    "group_size": 2, "num_iterations": 1, "steps_per_generation": 1, "weight_decay": 0.0, "max_grad_norm": 0.0,
    "lr": 0.0, "beta": 0.0, "epsilon": 0.0, "epsilon_high": 0.0, "adam_beta1": 0.0, "adam_beta2": 0.0,
}  # fmt: skip

ABOVE = {"time_limit": 0.0, "snapshot_gb": 0.0, "temperature": 0.0, "adam_epsilon": 0.0, "top_p": 0.0}
AT_MOST = {"top_p": 1.0}
BELOW = {"adam_beta1": 1.0, "adam_beta2": 1.0}


def make(method: str, given: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings of `method` with `given` over the defaults (or over `base`), checked.

    Raises SettingError for a name that is unknown, a wrong type, a value out of range, or values that do not
    go together.
    """
    kind = METHODS[method]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in given:
        if name not in fields:
            raise SettingError(f"wb.{method} has no setting {name!r}.{_ours(name, fields)}")
    values = {name: _typed(name, value, str(fields[name].type)) for name, value in given.items()}
    settings = dataclasses.replace(base, **values) if base else kind(**values)
    check(method, settings)
    return settings


def _ours(name: str, fields: Mapping[str, Any]) -> str:
    if name in TRL_NAMES:
        return f" TRL's {name} is given here by: {TRL_NAMES[name]}."
    hit = nearest(name, [*fields, *TRL_NAMES])
    hint = f" Did you mean {hit!r}?" if hit else ""
    if hit in TRL_NAMES:
        hint = f" Did you mean TRL's {hit}? It is given here by: {TRL_NAMES[hit]}."
    return f"{hint} Settings: {', '.join(sorted(fields))}."


def _typed(name: str, value: Any, kind: str) -> Any:
    """`value` as the field's type; whole floats pass for int, ints for float, numpy scalars for both."""
    if value is None:
        if "None" in kind:
            return None
        raise SettingError(f"{name}=None: this setting needs a value ({kind}).")
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    base = kind.split(" | ")[0]
    if base == "bool" and isinstance(value, bool):
        return value
    if base == "str" and isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        raise SettingError(f"{name}={value!r} is not a number; it must be {kind}.")
    if not isinstance(value, bool) and isinstance(value, (int, float)):
        if base == "float":
            return float(value)
        if base == "int" and float(value).is_integer():
            return int(value)
    raise SettingError(f"{name}={value!r}: expected {kind}, got {type(value).__name__}.")


def check(method: str, settings: Settings) -> None:
    """Raise SettingError for the first value out of range."""
    values = dataclasses.asdict(settings)
    for name, value in values.items():
        if value is None:
            continue
        options = CHOICES.get((method, name)) or CHOICES.get(name)
        if options and value not in options:
            hint = did_you_mean(str(value), options)
            raise SettingError(f"wb.{method}: {name}={value!r} is not known.{hint} Options: {', '.join(options)}.")
        if name in AT_LEAST and not value >= AT_LEAST[name]:
            raise SettingError(f"wb.{method}: {name}={value!r} must be at least {AT_LEAST[name]}.")
        if name in ABOVE and not value > ABOVE[name]:
            raise SettingError(f"wb.{method}: {name}={value!r} must be above {ABOVE[name]}.")
        if name in AT_MOST and not value <= AT_MOST[name]:
            raise SettingError(f"wb.{method}: {name}={value!r} must be at most {AT_MOST[name]}.")
        if name in BELOW and not value < BELOW[name]:
            raise SettingError(f"wb.{method}: {name}={value!r} must be below {BELOW[name]}.")
        if isinstance(value, float) and math.isinf(value):
            raise SettingError(f"wb.{method}: {name}={value!r} must be finite.")
    if method == "dpo" and settings.beta == 0:
        raise SettingError("wb.dpo: beta=0 gives a constant loss, so nothing would be learned; TRL's default is 0.1.")
    if method == "grpo":
        rows = settings.prompts_per_step * settings.group_size
        if rows % settings.steps_per_generation:
            raise SettingError(
                f"wb.grpo: steps_per_generation={settings.steps_per_generation} does not divide the"
                f" {rows} completions of a step (prompts_per_step x group_size)."
            )


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of step `step` (1 .. steps), as transformers' schedules give it for update `step - 1`.

    So a warm-up starts at zero: with warmup_steps=2 the first step has lr 0 and the third the peak.
    """
    if step <= settings.warmup_steps:
        return settings.lr * (step - 1) / settings.warmup_steps
    span = max(settings.steps - settings.warmup_steps, 1)
    progress = min((step - 1 - settings.warmup_steps) / span, 1.0)
    if settings.lr_scheduler_type == "linear":
        return settings.lr * (1 - progress)
    if settings.lr_scheduler_type == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr


def evaluation_due(settings: Settings, step: int) -> bool:
    """Whether step `step` is one to evaluate at: 0, every `eval_steps`, and the last."""
    every = settings.eval_steps or max(1, settings.steps // 10)
    return step % every == 0 or step == settings.steps
