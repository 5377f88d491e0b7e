"""Whether a model can be sampled with a cache of slots: looked up where it is certain, then tried on the model."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from workbench import attention, out_of_memory
from workbench.sampling.sources import Plain, Slotted
from workbench.trials import Once
from workbench.trunk import base_of

CLOSE = {torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""of the largest logit: more is not rounding (otherwise 1e-4)"""
_reasons: Once[str | None] = Once()


def why_plain(model: nn.Module, filler: int) -> str | None:
    """Why a model is sampled without a cache; None: it takes slots. Tried once for each model, in eval mode."""
    return _reasons(model, lambda: (why, True) if (why := _unfit(model)) is not None else _tried(model, filler))


def bytes_per_token(model: nn.Module) -> int:
    """Bytes of keys and values of one token of one row."""
    config = base_of(model).config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * base_of(model).dtype.itemsize


def _unfit(model: nn.Module) -> str | None:
    base = base_of(model)
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            return "its adapter puts virtual tokens before the prompt"
        if getattr(config, "alora_invocation_tokens", None) is not None:
            return "its adapter switches on at an invocation text"
    if getattr(base, "_is_stateful", False) or getattr(base.config, "is_encoder_decoder", False):
        return "what it remembers of a text is more than keys and values"
    taken = inspect.signature(base.forward).parameters
    if missing := {"past_key_values", "position_ids", "attention_mask", "use_cache"} - set(taken):
        return f"it takes no {sorted(missing)[0]}"
    try:
        layers = DynamicCache(config=base.config).layers
    except (KeyError, AttributeError, ValueError, TypeError):  # a kind of layer this cache does not know
        layers = [None]
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "its layers keep more than keys and values"
    return None if attention.takes_masks(model) else "its attention takes no ready masks"


def _tried(model: nn.Module, filler: int) -> tuple[str | None, bool]:
    """Compares the two on ragged prompts: first tokens, two more, and one after a row has left. Returns what is wrong,
    and whether that is certain: weights that are not numbers now say nothing about the model."""
    vocabulary = base_of(model).config.get_text_config(decoder=True).vocab_size
    prompts = [[(7 * i + k) % vocabulary for i in range(length)] for k, length in enumerate((5, 2, 3), 1)]
    try:
        slotted, plain = _few_steps(Slotted(model, filler, 4, 8), prompts), _few_steps(Plain(model, filler), prompts)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if out_of_memory.recognised(error):
            raise
        # a model that was written for caches of its own stumbles over ours in ways nobody can list
        return f"it does not run with a cache of slots ({type(error).__name__}: {error})".splitlines()[0][:200], True
    if not plain.isfinite().all():
        return None, False
    close = CLOSE.get(plain.dtype, 1e-4) * plain.abs().max()
    return (None if (slotted - plain).abs().max() <= close else "with a cache of slots its logits are others"), True


def _few_steps(source: Slotted | Plain, prompts: list[list[int]]) -> torch.Tensor:
    first, second, third = source.prefill(prompts)
    seen = [source.place([(first, 1), (second, 2)]), source.step(np.array([3, 4, 5])), source.place([(third, 1)])]
    seen.append(source.step(np.array([6, 7, 8, 9])))
    source.drop(np.array([0]), np.array([3]), 3)
    return torch.cat([*seen, source.step(np.array([2, 1, 3]))])
