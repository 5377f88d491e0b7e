"""Settings every method takes, and `knob`, which writes a setting's rule beside its default."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.settings.schedules import SCHEDULES

OPTIMISERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "adafactor",
    "sgd",
    "rmsprop",
)
"""what `optim` may be; `workbench.optimiser` has them"""
PAGED = ("paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit")
ADAMW = dict.fromkeys(("adam", "adamw"), "Did you mean 'adamw_torch'?")
PLATEAU = "It follows the loss, and here a schedule follows from the step: run.set(lr=...) when the loss stays."
NOT_PAGED = "Moments are not paged out to the CPU here; optim='adamw_8bit' gives paged_adamw_8bit's numbers."


def knob(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    hints: Mapping[str, str] | None = None,
    fixed: bool = False,
) -> Any:
    """A dataclass field with the rule its value must keep (each element of it, where it is a list).

    `fixed`: it cannot change within a run, because rows and draws follow from it. `hints`: what to say of values
    that are no choice here but may be looked for.
    """
    rule = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=rule | {"fixed": fixed, "hints": dict(hints or {})})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every method takes."""

    steps: int = knob(100, at_least=1)
    """steps in all; a step is one committed unit (for GRPO: one sampling with all its updates)"""
    lr: float = knob(1e-5, at_least=0.0)
    """peak learning rate"""
    seed: int = knob(0, fixed=True)
    """seed of the order of rows, of sampling and of dropout"""
    micro_batch_size: int | None = knob(None, at_least=1)
    """rows (DPO: pairs) that go through the model at once; None: as many as are fastest and fit into memory, rows of
    like length together. Where memory runs out the update is done again in smaller ones. It never changes a result (but
    for the draws of dropout), only memory and time"""
    optim: str = knob("adamw_torch", choices=OPTIMISERS, hints=ADAMW | dict.fromkeys(PAGED, NOT_PAGED))
    """the optimiser: 'adamw_torch' (moments in the parameters' precision), 'adamw_torch_fused' (one kernel for all of
    it), 'adamw_8bit' or 'adamw_bnb_8bit' (the same: bitsandbytes' AdamW with 8-bit moments), 'adafactor', 'sgd' or
    'rmsprop'. Changed within a run, the new one starts without moments"""
    weight_decay: float = knob(0.0, at_least=0.0)
    """the optimiser's decay (AdamW's is decoupled from the gradient); biases and norms are left out"""
    adam_beta1: float = knob(0.9, at_least=0.0, below=1.0)
    """AdamW: how much of the mean of gradients is kept at each update"""
    adam_beta2: float = knob(0.999, at_least=0.0, below=1.0)
    """AdamW: how much of the mean of squared gradients is kept at each update"""
    adam_epsilon: float = knob(1e-8, above=0.0)
    """AdamW: added to the root of the squared gradients' mean"""
    max_grad_norm: float = knob(1.0, at_least=0.0)
    """gradients are scaled down to this global norm; 0 leaves them as they are"""
    lr_scheduler_type: str = knob(
        "constant", choices=SCHEDULES, hints=dict.fromkeys(("reduce_lr_on_plateau", "greedy"), PLATEAU)
    )
    """how the learning rate goes after the warm-up, by transformers' names: 'constant' (or 'constant_with_warmup', the
    same here), 'linear' and 'cosine' (to zero at the last step), 'cosine_with_restarts', 'polynomial', 'inverse_sqrt',
    'cosine_with_min_lr', 'cosine_warmup_with_min_lr', 'warmup_stable_decay'"""
    lr_scheduler_kwargs: dict | None = None
    """what the schedule takes beyond that, as in transformers, e.g. {"min_lr_rate": 0.1} or {"num_decay_steps": 20}"""
    warmup_steps: int | float = knob(0, at_least=0)
    """steps over which the learning rate rises from zero; below 1: that share of all steps"""
    disable_dropout: bool = False
    """train without dropout, whatever the model and the adapter say"""
    gradient_checkpointing: bool = False
    """compute each layer's activations again in the backward pass instead of keeping them: less memory, about a
    third more time, the same numbers"""
    bf16: bool = False
    """bfloat16 mixed precision: the layers compute in bfloat16; weights, optimiser, logits and losses stay float32.
    Faster, with gradients about 1 % off. For CPUs with AMX or AVX512-BF16 and for GPUs; sampling keeps float32"""
    padding_free: bool = False
    """lay rows end to end instead of padding each to the longest: the same numbers (but for the draws of dropout). Most
    models go through updates without a pad anyway; this is for others, as far as they keep documents apart by position
    ids"""
    eval_steps: int | None = knob(None, at_least=1)
    """evaluate every so many steps, from step 0 on and at the end; None: about ten times in the run.
    Needs `eval_dataset`"""
    num_generations_eval: int = knob(8, at_least=1)
    """completions per held-out prompt, where the evaluation samples; pass@k is given for k up to it"""
    snapshot_steps: int = knob(10, at_least=1)
    """write a snapshot every so many steps; the steps between are restored by replaying the stored record"""
    snapshot_gb: float = knob(10.0, above=0.0)
    """most disk that snapshots take; past it the oldest go first, never the first or the latest"""
    time_limit: float | None = knob(None, above=0.0)
    """stop after so many seconds of steps (wall clock); None: no limit"""
    max_new_tokens: int = knob(512, at_least=1)
    """longest completion that is sampled"""
    temperature: float = knob(1.0, above=0.0)
    """sampling temperature; log-probs, entropy and KL are those of the distribution at this temperature"""
    top_p: float = knob(1.0, above=0.0, at_most=1.0)
    """sample among the fewest likeliest tokens that together have this probability; 1: all"""
    top_k: int = knob(0, at_least=0)
    """sample among the k likeliest tokens only; 0: all"""
    min_p: float | None = knob(None, at_least=0.0, at_most=1.0)
    """sample among the tokens that have at least this share of the likeliest one's probability (Nguyen et al. 2024,
    arXiv 2407.01082); None: all"""
    repetition_penalty: float = knob(1.0, above=0.0)
    """divide positive logits of tokens that stand in the prompt or the completion so far by it, and multiply negative
    ones (Keskar et al. 2019, arXiv 1909.05858). Log-probs are recorded, and trained on, without it, so that samples are
    off-policy by as much as it changes; 1: none"""
    stop_strings: tuple[str, ...] | None = None
    """texts that end a completion, e.g. ["\\n\\nQ:"]; it keeps the tokens up to and with the one that completed it"""
    shuffle_dataset: bool = True
    """draw the rows of each epoch in a new order; False: in the order given"""

    @classmethod
    def resolve(cls, given: Mapping[str, Any], base: Settings | None = None) -> dict[str, Any]:
        """What was given, spelt out (a preset as what it sets). `base`: the settings it will change, if any."""
        return dict(given)

    def problem(self) -> str | None:
        """What does not go together among the values, in a sentence; None when all is well."""
        return None

    def course(self, step: int) -> tuple[int, int]:
        """Where a step is in the course of the learning rate: its number there, from 1, and how many there are."""
        return step, self.steps

    def for_evaluation(self) -> Settings:
        """The settings by which held-out data is prepared."""
        return self

    def unread(self, given: Collection[str]) -> list[str]:
        """Of the settings that were `given`, those that change nothing beside the others: a sentence each."""
        return []


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """Of methods that compare the policy with a reference: the reference may follow the policy."""

    sync_ref_model: bool = False
    """move the reference towards the policy now and then (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656)"""
    ref_model_mixup_alpha: float = knob(0.6, at_least=0.0, at_most=1.0)
    """the reference becomes alpha * policy + (1 - alpha) * reference"""
    ref_model_sync_steps: int = knob(512, at_least=1)
    """updates between two such moves"""
