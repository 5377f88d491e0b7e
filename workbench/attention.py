"""What a model's attention can take: ready masks, which transformers accepts in place of one that marks pads, and
how far each layer looks back. Only for attention that runs on plain masks: "sdpa" and "eager".
"""

from __future__ import annotations

from typing import Any

from torch import nn

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


def _kinds(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return list(dict.fromkeys(types))
    return ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]


def _window(config: Any, kind: str) -> int | None:
    return config.sliding_window if kind == "sliding_attention" else None
