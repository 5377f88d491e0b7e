"""The hidden states of rows that begin with the same prompts, each of which goes through the trunk once.

First the prompts, whose keys and values are kept; then what follows them, each row looking at its prompt's keys and
values and at its own. Gradients flow back through both, into the prompt from all of its rows. The trunk sees
G x P + B x T tokens and not B x (P + T) (the idea of Prefix Grouper, Liu et al. 2025, arXiv 2506.05433, with a cache in
place of a mask over one long line, whose cost grows with the square of its length).

Nothing here changes while a layer runs, so layers may be computed again in the backward pass (see `recompute`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from workbench import attention
from workbench.layouts import Shared, take
from workbench.trunk import Trunk


def states(model: nn.Module, trunk: Trunk, batch: Shared) -> Tensor:
    """(N, D): what predicts each scored token, in the batch's order."""
    layers = trunk.base.config.get_text_config(decoder=True).num_hidden_layers
    kept = [_Prompt() for _ in range(layers)]
    prompts = _run(trunk, batch.prompts, kept)  # (G, P, D)
    width = prompts.shape[1]
    ends = [group * width + length - 1 for group, length in enumerate(batch.lengths)]
    last = take(prompts.flatten(0, 1), torch.tensor(ends, device=prompts.device))  # (G, D)
    first = take(_Repeated.apply(last, batch.counts), batch.begun)  # (B', D)
    if not batch.place.numel():
        return first
    mask = attention.mask(model, batch.allowed, batch.positions, batch.seen)
    forked = [_Rows(layer, batch.counts) for layer in kept]
    rest = _run(trunk, batch.ids, forked, attention_mask=mask, position_ids=batch.positions)  # (B, T - 1, D)
    return torch.cat([first, take(rest.flatten(0, 1), batch.place)])


def _run(trunk: Trunk, ids: Tensor, layers: list[CacheLayerMixin], **inputs) -> Tensor:
    return trunk.run(ids, past_key_values=Cache(layers=layers), use_cache=True, **inputs).last_hidden_state


class _Layer(CacheLayerMixin):
    """What transformers asks of a layer's cache and is of no account here."""

    is_sliding = False
    """windows are in the masks"""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _Prompt(_Layer):
    """Keeps the keys and values (G, H, P, d) of a layer as it sees them first."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


class _Rows(_Layer):
    """Puts a prompt's keys and values before those of each of its rows (B, H, T, d)."""

    def __init__(self, prompt: _Prompt, counts: Sequence[int]):
        super().__init__()
        self.keys, self.values, self.counts = prompt.keys, prompt.values, counts

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys = _Joined.apply(self.keys, key_states, self.counts)
        return keys, _Joined.apply(self.values, value_states, self.counts)

    def get_seq_length(self) -> int:
        return self.keys.shape[-2]


class _Joined(torch.autograd.Function):
    """(B, H, P + T, d) of prompts (G, H, P, d), each for its next `counts[g]` rows, and rows (B, H, T, d)."""

    @staticmethod
    def forward(ctx, prompts, rows, counts):
        ctx.counts, ctx.length = counts, prompts.shape[2]
        made = rows.new_empty(*rows.shape[:2], ctx.length + rows.shape[2], rows.shape[3])
        made[:, :, ctx.length :] = rows
        for mine, prompt in zip(made.split(counts), prompts, strict=True):
            mine[:, :, : ctx.length] = prompt
        return made

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, flow):
        by_prompts = torch.stack([mine.sum(0) for mine in flow[:, :, : ctx.length].split(ctx.counts)])
        return by_prompts, flow[:, :, ctx.length :], None


class _Repeated(torch.autograd.Function):
    """(B, D): row g of `table` (G, D) `counts[g]` times, one after the other."""

    @staticmethod
    def forward(ctx, table, counts):
        ctx.counts = counts
        return torch.cat([row.expand(count, -1) for row, count in zip(table[:, None], counts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, flow):
        return torch.stack([mine.sum(0) for mine in flow.split(ctx.counts)]), None
