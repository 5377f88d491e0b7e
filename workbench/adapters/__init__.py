"""Adapters: what is trained instead of the whole model.

`LoRA` covers the usual case; any `peft.PeftConfig` does as well. Importing this module imports neither torch
nor peft.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError, nearest

EDITS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that change the weights of the base model as they attach (peft `init_lora_weights`)"""


PEFT_NAMES = {
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "modules": "targets",
}
"""what LoRA's arguments are called elsewhere"""


def _answering(cls: type) -> type:
    """Answer an argument that `cls`, a dataclass, does not have with the one it has. SettingError."""
    plain = cls.__init__

    @functools.wraps(plain)
    def __init__(self, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in cls.__dataclass_fields__:
                ours = PEFT_NAMES.get(name) or nearest(name, cls.__dataclass_fields__)
                hint = f" Did you mean {ours!r}?" if ours else ""
                raise SettingError(
                    f"{cls.__name__} has no {name!r}.{hint} It has {', '.join(cls.__dataclass_fields__)}; for more,"
                    " attach a peft.LoraConfig."
                )
        plain(self, *args, **given)

    cls.__init__ = __init__
    return cls


@_answering
@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation, W + (alpha / r) B A with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685)."""

    r: int = 16
    """rank of the update"""
    alpha: float = 32
    """the update is scaled by alpha / r"""
    targets: str | Sequence[str] = "all-linear"
    """which layers: "all-linear" (all but the output head), names that layers end in, or one regular
    expression
    """
    dropout: float = 0.0
    """share of the adapter's inputs zeroed while training"""

    def config(self):
        """The `peft.LoraConfig` that says the same. Raises SettingError for a value that makes no sense."""
        from peft import LoraConfig

        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise SettingError(f"LoRA: r={self.r!r} must be a whole number of at least 1.")
        if not self.alpha > 0:
            raise SettingError(
                f"LoRA: alpha={self.alpha!r} must be above 0; at 0 the adapter would do nothing."
            )
        if not 0 <= self.dropout < 1:
            raise SettingError(f"LoRA: dropout={self.dropout!r} must be at least 0 and below 1.")
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        if not targets:
            raise SettingError('LoRA: targets is empty; name layers, or use "all-linear".')
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=targets,
            lora_dropout=self.dropout,
            task_type="CAUSAL_LM",
        )


def as_peft(config: Any, quantized: bool = False):
    """A fresh `peft.PeftConfig` for a causal LM, from a `LoRA` or any PeftConfig (which is left as it is).

    Raises SettingError for what is none, or cannot sit on the base (`quantized`: held in 4 or 8 bits).
    """
    from peft import PeftConfig, TaskType

    if isinstance(config, LoRA):
        return config.config()
    if isinstance(config, type):
        raise SettingError(
            f"attach: {config.__name__} is a class; pass an instance, as in {config.__name__}()."
        )
    if not isinstance(config, PeftConfig):
        raise SettingError(
            f"attach: {type(config).__name__} is no adapter; pass wb.LoRA(...) or a peft config."
        )
    config = copy.deepcopy(config)
    if config.task_type not in (None, TaskType.CAUSAL_LM):
        raise SettingError(
            f"attach: this {type(config).__name__} is for task_type={config.task_type!s}; a policy is a "
            "causal LM. "
            'Leave task_type out, or say "CAUSAL_LM".'
        )
    if quantized and edits_base(config):
        raise SettingError(
            f"attach: init_lora_weights={config.init_lora_weights!r} changes the base's weights, and quantised ones "
            "would be rounded again by it. Load without quantize, or leave init_lora_weights out."
        )
    config.task_type = TaskType.CAUSAL_LM
    config.inference_mode = False
    return config


def take_off(model: Any) -> None:
    """Removes what an attach that failed half-way has left on the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def edits_base(config: Any) -> bool:
    """Whether attaching this peft config changes the weights of the base model (PiSSA and its kin)."""
    how = getattr(config, "init_lora_weights", None)
    return isinstance(how, str) and how.lower().startswith(EDITS_BASE)


def from_dict(record: dict[str, Any]):
    """The peft config that `to_record` wrote down."""
    from peft import PeftConfig

    return PeftConfig.from_peft_type(**record)


def to_record(config: Any) -> dict[str, Any]:
    """A peft config as plain JSON values, enough to build it again with `from_dict`."""
    return {name: _plain(value) for name, value in config.to_dict().items() if name != "runtime_config"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "value"):  # an enum
        return value.value
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@contextlib.contextmanager
def without(model: Any) -> Iterator[None]:
    """The base model alone inside. peft marks all of an adapter as training when it switches it on again; what was
    marked before is what counts."""
    marks = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for p, mark in marks:
            p.requires_grad_(mark)
