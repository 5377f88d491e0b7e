"""How strong an adapter is: theta + a * delta for any a, while a block lasts.

A LoRA layer is W x + s B A x, so multiplying its scaling s by a scales what the adapter changes in the weights by
exactly a: 0 is the base, 1 the adapter as trained, 2 twice as far along the same direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from workbench.errors import SettingError


def check(policy: Any, what: str) -> None:
    """Raise SettingError where the adapter's strength is not one number: `what` needs it."""
    config = policy.adapter
    if config is None or config.peft_type.value != "LORA":
        kind = "it has none" if config is None else f"this is {config.peft_type.value}"
        raise SettingError(f"{what} scales a LoRA adapter, and {kind}. Attach one: policy.attach(wb.LoRA(r=16)).")
    odd = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if getattr(config, name, None)]
    odd += ["bias"] * (config.bias != "none")
    if odd:
        raise SettingError(
            f"{what} scales B A, and with {odd[0]} the adapter changes more than that: at strength 0 the policy would"
            " not be its base. Attach a plain LoRA."
        )


@contextmanager
def dialled(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """Yields what sets the strength of the model's LoRA adapters; after the block, also after an error, it is as it
    was."""
    before = {layer: dict(layer.scaling) for layer in _layers(model)}

    def turn(strength: float) -> None:
        for layer, scalings in before.items():
            layer.scaling.update({name: scaling * float(strength) for name, scaling in scalings.items()})

    try:
        yield turn
    finally:
        for layer, scalings in before.items():
            layer.scaling.update(scalings)


@contextmanager
def scaled(policy: Any, strength: float) -> Iterator[Any]:
    """The policy with `strength` times its LoRA adapter: `with scaled(policy, 0.5) as half: half.sample(...)`.

    0 is the base model, 1 the adapter as it is; below 0 and above 1 it goes on along the same line. For sampling,
    scoring and evaluation; afterwards, also after an error, it is as it was. Raises SettingError for a policy without a
    plain LoRA.
    """
    check(policy, "scaled()")
    with dialled(policy.model) as turn:
        turn(strength)
        yield policy


def _layers(model: nn.Module) -> list[Any]:
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
