"""The value head of an actor-critic run: one linear layer on the last hidden state, zero at first.

Its tensors live in `state.tensors` and its moments in `state.optim`, under the names below; so rewind, fork, resume and
snapshots have it exactly, and no saved adapter or exported model has it at all. It is there from the first update on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from workbench.heads import ValueHead
from workbench.state import State
from workbench.trunk import base_of

WEIGHT = "value/weight"
BIAS = "value/bias"


def of(state: State | None, policy: Any, detached: bool = False) -> ValueHead:
    """The head as it stands in `state`; zeros where there is none yet. Nothing is kept: `update.apply` does that."""
    kept = {} if state is None else state.tensors
    if WEIGHT in kept:
        weight, bias = kept[WEIGHT], kept[BIAS]
    else:
        size = base_of(policy.model).config.get_text_config(decoder=True).hidden_size
        exact = torch.float64 if policy.model.dtype == torch.float64 else torch.float32
        weight, bias = (torch.zeros(shape, dtype=exact, device=policy.device) for shape in ((size,), ()))
    return ValueHead(nn.Parameter(weight), nn.Parameter(bias), detached)


def named(head: ValueHead | None) -> dict[str, nn.Parameter]:
    """Its parameters by name; none without a head."""
    return {} if head is None else {WEIGHT: head.weight, BIAS: head.bias}
