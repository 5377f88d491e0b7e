"""The decoder layers of a model, and hooks on what they add to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import SettingError
from workbench.trunk import base_of


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by the names the model gives them, in order. Raises SettingError where there is no list of them."""
    count = getattr(base_of(model).config.get_text_config(decoder=True), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return {f"{name}.{number}": layer for number, layer in enumerate(module)}
    raise SettingError(f"{type(base_of(model)).__name__} does not say which modules its decoder layers are.")


@contextmanager
def outputs(model: nn.Module, calls: Mapping[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Within the block the residual stream after layer n (from 0), (B, T, D), goes through `calls[n]`; None leaves it
    as it is. The hooks are gone afterwards, also after an error."""
    layers = list(decoder_layers(model).values())
    with ExitStack() as stack:
        for number, call in calls.items():
            stack.callback(layers[number].register_forward_hook(partial(_hook, call)).remove)
        yield


def _hook(call: Callable[[Tensor], Tensor | None], layer: nn.Module, given: Any, output: Any) -> Any:
    """Layers return the stream alone or first of several things."""
    made = call(output[0] if isinstance(output, tuple) else output)
    if made is None:
        return None
    return (made, *output[1:]) if isinstance(output, tuple) else made


def project_out(basis: Tensor, stream: Tensor) -> Tensor:
    """(..., D): h - Q (Q^T h), for orthonormal columns Q (D, k); in float32 at least, whatever surrounds it."""
    exact = torch.float64 if stream.dtype == torch.float64 else torch.float32
    with torch.autocast(stream.device.type, enabled=False):
        h, q = stream.to(exact), basis.to(stream.device, exact)
        return (h - (h @ q) @ q.t()).to(stream.dtype)


def ablating(model: nn.Module, bases: Mapping[int, Tensor]):
    """Within the block the directions `bases[n]` (D, k; orthonormal columns) are taken out of the stream after layer n,
    at all positions; gradients flow through the projection."""
    return outputs(model, {number: partial(project_out, basis) for number, basis in bases.items()})
