"""Gradient checkpointing: each layer's activations are computed again in the backward pass, not kept.

Chen et al. 2016, arXiv 1604.06174. torch's own `checkpoint` without re-entry is put around the layers for the
length of an update, so that frozen embeddings need no gradient, dropout draws the same numbers twice, and a model
that trains in eval mode (without dropout) recomputes as well. Sampling never sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from workbench.forwards import replaced

KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")
"""PEFT's adapters that hand a model a cache"""


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers offers for recomputing; none in models that do not support it, and none under an
    adapter that puts keys and values before the text: a layer that is run again would append to them again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if any(config.peft_type in KEYS_AND_VALUES for config in getattr(model, "peft_config", {}).values()):
        return []
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Within the block the model's layers are recomputed; afterwards they are as they were."""
    with replaced({layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in layers(model)}):
        yield
