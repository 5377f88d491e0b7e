"""Linear layers as plain sums, W + scaling * B A, and the one weight that such a sum is.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds a product of two thin matrices to a weight. Where weight and product are
precise enough, their sum is made once, in a copy, and a layer costs one matrix product instead of three. Several layers
that read the same input (queries, keys and values) can have their sums side by side in one copy.

On a CPU a copy can be laid out in blocks of its outputs (see `workbench.adapters.products`): 4 to 64 rows go through
such a product 1.2 to 2.6 times as fast, a single one somewhat slower. All copies of a model lie in one piece of memory,
in large pages where the system has them (see `workbench.adapters.pages`): every token reads all of it.

No sum: half-precision layers (it would round a small update away), quantised ones, adapters with more to them (DoRA and
other variants, biases of B), merged ones and layers with hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from workbench.adapters import pages
from workbench.adapters.products import BLOCK, Weight, takes_blocks

EXACT = (torch.float32, torch.float64)
LINE = 64
"""bytes: a weight begins where a line of the processor's caches does"""
_buffers: WeakKeyDictionary[nn.Module, dict[torch.device, Tensor]] = WeakKeyDictionary()
"""by model the memory of its weights on each device"""


@dataclass
class Sum:
    """A layer: `weight` (out, in) and what comes on top of it, scaling, B and A of each active adapter."""

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    parts: list[tuple[float, Tensor, Tensor]]

    def bytes(self) -> int:
        """Of the weight."""
        return self.weight.numel() * self.weight.element_size()


def find(model: nn.Module) -> dict[nn.Module, Sum]:
    """The layers of `model` that are plain sums, also of nothing but their weight."""
    return {found.layer: found for found in _found(model)}


def made(model: nn.Module, groups: Sequence[tuple[nn.Module, Sequence[Sum]]], cut: bool) -> dict[nn.Module, Weight]:
    """By owner the weights (out, in) of its sums, one after the other, as one; in memory that is kept for `model`.

    `cut`: those that can be are laid out in blocks.
    """
    if not groups:
        return {}
    starts, sizes = [], {}
    for _, group in groups:
        device = group[0].weight.device
        starts.append(sizes.get(device, 0))
        sizes[device] = starts[-1] + -(-sum(part.bytes() for part in group) // LINE) * LINE
    buffers = _kept(model, sizes)
    weights = {}
    for (owner, group), start in zip(groups, starts, strict=True):
        first, outs = group[0].weight, [len(part.weight) for part in group]
        shape = (sum(outs), first.shape[1])
        if cut and can_be_cut(group):
            shape = (shape[0] // BLOCK, shape[1], BLOCK)
        room = buffers[first.device][start : start + sum(part.bytes() for part in group)]
        weights[owner] = weight = Weight(room.view(first.dtype).view(shape))
        for part, each in zip(group, weight.split(outs), strict=True):
            each.set(part.weight, part.parts)
    return weights


def forget(model: nn.Module) -> None:
    """Lets go of the memory that is kept for `model`."""
    _buffers.pop(model, None)


def _kept(model: nn.Module, sizes: dict[torch.device, int]) -> dict[torch.device, Tensor]:
    """So many bytes on each device, those of the last time if they are as many."""
    kept = _buffers.get(model)
    if kept is None or {device: len(buffer) for device, buffer in kept.items()} != sizes:
        forget(model)
        kept = _buffers[model] = {device: pages.empty(size, device) for device, size in sizes.items()}
    return kept


def can_be_cut(sums: Sequence[Sum]) -> bool:
    """Whether their weights can lie in blocks, and are where that helps."""
    return sums[0].weight.device.type == "cpu" and takes_blocks([part.weight for part in sums])


def is_free(module: nn.Module) -> bool:
    """Whether a module has no hooks and its class's own forward."""
    return "forward" not in module.__dict__ and not module._forward_hooks and not module._forward_pre_hooks


def _found(model: nn.Module) -> Iterator[Sum]:
    from peft.tuners.lora.layer import Linear as LoraLinear
    from transformers.pytorch_utils import Conv1D

    within: set[nn.Module] = set()
    for module in model.modules():  # a layer comes before what is in it
        if type(module) is LoraLinear:
            within.update(module.modules())
            base = module.get_base_layer()
            if type(base) in (nn.Linear, Conv1D) and _is_plain(module) and is_free(module) and is_free(base):
                weight = base.weight.t() if type(base) is Conv1D else base.weight
                yield Sum(module, weight, base.bias, _parts(module))
        elif type(module) is nn.Linear and module not in within:
            if module.weight.dtype in EXACT and is_free(module):
                yield Sum(module, module.weight, module.bias, [])


def _is_plain(layer: Any) -> bool:
    """Whether a LoRA layer is W + scaling * B A, all of it in a precision in which that is exact enough."""
    used = _used(layer)
    weights = [layer.get_base_layer().weight]
    weights += [part[name].weight for name in used for part in (layer.lora_A, layer.lora_B)]
    variants = any(name in layer.lora_variant or layer.lora_bias[name] for name in used)
    same = weights[0].dtype in EXACT and len({weight.dtype for weight in weights}) == 1
    return same and not variants and not layer.merged


def _parts(layer: Any) -> list[tuple[float, Tensor, Tensor]]:
    return [(layer.scaling[name], layer.lora_B[name].weight, layer.lora_A[name].weight) for name in _used(layer)]


def _used(layer: Any) -> list[str]:
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
