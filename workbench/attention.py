"""Attention masks of our own for transformers models: who may look at whom, said token by token.

transformers takes a ready mask (B, 1, Q, K) in place of one that marks pads, and for models whose layers differ
(full and sliding windows) one for each kind of layer. Only for attention that runs on plain masks: "sdpa" and "eager".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.trunk import base_of

KINDS = ("full_attention", "sliding_attention")
"""kinds of layers for which a mask can be made"""


def takes_masks(model: nn.Module) -> bool:
    """Whether masks made here are right for the model: its attention reads plain masks, and all its layers are of
    KINDS."""
    config = base_of(model).config.get_text_config(decoder=True)
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    return all(kind in KINDS for kind in _kinds(config))


def layers(model: nn.Module) -> list[tuple[str, int | None]]:
    """Of each layer its kind, and the window it looks back over (None: all)."""
    config = base_of(model).config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or _kinds(config) * config.num_hidden_layers
    return [(kind, _window(config, kind)) for kind in kinds]


def mask(model: nn.Module, allowed: Tensor, query: Tensor, key: Tensor) -> Tensor | dict[str, Tensor]:
    """What to pass as `attention_mask`.

    `allowed` (B, Q, K) bool: may this query look at that key, windows aside; `query` (B, Q) and `key` (B, K): their
    positions in their texts, by which a window is measured. A row that may look at nothing (a pad) looks at all.
    """
    config = base_of(model).config.get_text_config(decoder=True)
    dtype = None if config._attn_implementation == "sdpa" else base_of(model).dtype
    kinds = _kinds(config)
    made = {kind: _ready(_within(allowed, query, key, _window(config, kind)), dtype) for kind in kinds}
    return made if getattr(config, "layer_types", None) and len(kinds) > 1 else made[kinds[0]]


def _kinds(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return list(dict.fromkeys(types))
    return ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]


def _window(config: Any, kind: str) -> int | None:
    return config.sliding_window if kind == "sliding_attention" else None


def _within(allowed: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """`allowed` without what lies `window` or more positions back."""
    if window is None:
        return allowed
    return allowed & (query[:, :, None] - key[:, None, :] < window)


def _ready(allowed: Tensor, dtype: torch.dtype | None) -> Tensor:
    """(B, 1, Q, K): bool, or for `dtype` 0 where allowed and the least number elsewhere."""
    allowed = (allowed | ~allowed.any(-1, keepdim=True))[:, None]
    if dtype is None:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
