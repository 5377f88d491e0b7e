"""Where next-token logits come from: `Slotted`, with a cache of keys and values, or `Plain`, without.

Both hold a batch of rows that grows by `place` and shrinks by `drop`. `Plain` runs the whole sequence again for every
token: slower, but right for every causal model. Which of the two a model gets is said by `workbench.sampling.fitting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from workbench import attention, trunk
from workbench.sampling.graphs import Steps, bucket, capturer
from workbench.sampling.slots import Slots


@dataclass
class Prefilled:
    """A prompt that rows can begin from."""

    prompt: Sequence[int]
    logits: Tensor
    """(V,) after its last token"""
    layers: Sequence[Any] = ()
    """keys and values of the pass it was in, by layer"""
    row: int = 0
    """its row there"""


class Slotted:
    """Next-token logits with keys and values kept in slots, see `workbench.sampling.slots`: at most `places` rows.

    `columns`: how many tokens of a row there is room for at first.
    """

    def __init__(self, model: nn.Module, filler: int, places: int, columns: int):
        self.filler = filler
        self.forward = _Forward(model)
        self.device = next(model.parameters()).device
        capture = capturer(self.device)
        self.steps = None if capture is None else Steps(capture)
        layers = attention.layers(model)
        self.windows = dict(layers)
        self.dtype = trunk.base_of(model).dtype if _is_eager(model) or self.device.type == "cpu" else None
        """of masks that are added; SDPA on a CPU would make such a one of a bool mask in every layer"""
        self.by_kind = len(self.windows) > 1
        places = places if capture is None else bucket(places)
        self.slots = Slots([window for _, window in layers], places, columns, self.device, capture is not None)

    def prefill(self, prompts: list[Sequence[int]]) -> list[Prefilled]:
        """Runs prompts once, padded on the right: causal attention sees no pad before a prompt's last token."""
        cache = Cache(layers=[DynamicLayer() for _ in self.slots.layers])
        logits = self.forward(prompts, self.filler, past_key_values=cache, use_cache=True)
        return [Prefilled(prompt, logits[p], cache.layers, p) for p, prompt in enumerate(prompts)]

    def place(self, begun: list[tuple[Prefilled, int]]) -> Tensor:
        """Adds so many rows of each prompt at the end of the batch. Returns their logits (rows, V)."""
        for prompt, count in begun:
            self.slots.place(prompt.layers, prompt.row, len(prompt.prompt), count)
        return torch.cat([prompt.logits.expand(count, -1) for prompt, count in begun])

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one token (B,) to each row. Returns logits (B, V)."""
        slots = self.slots
        slots.begin()
        given = np.zeros((2, slots.places if slots.whole else slots.batch), dtype=np.int64)
        given[:, : slots.batch] = tokens, slots.positions()
        ids, position = torch.from_numpy(given).to(self.device)[:, :, None]  # (B, 1) each
        inputs = {"ids": ids, "position": position}
        inputs |= {kind: self._ready(slots.visible(window)) for kind, window in self.windows.items()}
        if self.steps is None:
            logits = self._one_token(**inputs)
        else:
            logits = self.steps.run(self._one_token, inputs, slots.batch)
        slots.end()
        return logits

    def drop(self, holes: np.ndarray, movers: np.ndarray, batch: int) -> None:
        """Row `movers[i]` takes the place `holes[i]`; then the first `batch` rows stay."""
        self.slots.drop(holes, movers, batch)

    def _one_token(self, ids: Tensor, position: Tensor, **masks: Tensor) -> Tensor:
        return self.forward.one(
            ids,
            position_ids=position,
            attention_mask=masks if self.by_kind else next(iter(masks.values())),
            past_key_values=self.slots.cache,
            use_cache=True,
        )

    def _ready(self, visible: Tensor) -> Tensor:
        """(B, K) bool as the model's attention takes it (B, 1, 1, K)."""
        visible = visible[:, None, None]
        if self.dtype is None:
            return visible
        least = torch.finfo(self.dtype).min
        return torch.zeros(visible.shape, dtype=self.dtype, device=self.device).masked_fill_(~visible, least)


class Plain:
    """Next-token logits by running the whole sequences again, padded on the right: no cache, no mask."""

    def __init__(self, model: nn.Module, filler: int):
        self.filler = filler
        self.forward = _Forward(model)
        self.rows: list[list[int]] = []

    def prefill(self, prompts: list[Sequence[int]]) -> list[Prefilled]:
        """Runs prompts once."""
        logits = self.forward(prompts, self.filler, use_cache=False)
        return [Prefilled(prompt, logits[p]) for p, prompt in enumerate(prompts)]

    def place(self, begun: list[tuple[Prefilled, int]]) -> Tensor:
        """Adds so many rows of each prompt at the end of the batch. Returns their logits (rows, V)."""
        self.rows += [list(prompt.prompt) for prompt, count in begun for _ in range(count)]
        return torch.cat([prompt.logits.expand(count, -1) for prompt, count in begun])

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one token (B,) to each row. Returns logits (B, V)."""
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self.forward(self.rows, self.filler, use_cache=False)

    def drop(self, holes: np.ndarray, movers: np.ndarray, batch: int) -> None:
        """Row `movers[i]` takes the place `holes[i]`; then the first `batch` rows stay."""
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[batch:]


class _Forward:
    """Next-token logits, and no others: the head sees the hidden states that count, where the model can be cut."""

    def __init__(self, model: nn.Module):
        self.model, self.trunk = model, trunk.of(model)
        self.device = next(model.parameters()).device

    def __call__(self, rows: Sequence[Sequence[int]], filler: int, **inputs: Any) -> Tensor:
        """(B, V) after the last token of each row, padded on the right."""
        last = torch.as_tensor([len(row) - 1 for row in rows])
        width, shortest = int(last.max()) + 1, int(last.min()) + 1
        ids = torch.full((len(rows), width), filler, dtype=torch.long)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        ids, each, last = ids.to(self.device), torch.arange(len(rows), device=self.device), last.to(self.device)
        if self.trunk is not None:
            return self.trunk.logits(self.trunk.run(ids, **inputs).last_hidden_state[each, last])
        logits, _ = trunk.last_logits(self.model, width - shortest + 1, input_ids=ids, **inputs)
        return logits[each, last - shortest + 1]

    def one(self, ids: Tensor, **inputs: Any) -> Tensor:
        """(B, V) after one token a row (B, 1)."""
        if self.trunk is not None:
            return self.trunk.logits(self.trunk.run(ids, **inputs).last_hidden_state[:, -1])
        return trunk.last_logits(self.model, 1, input_ids=ids, **inputs)[0][:, -1]


def _is_eager(model: nn.Module) -> bool:
    return trunk.base_of(model).config.get_text_config(decoder=True)._attn_implementation == "eager"
