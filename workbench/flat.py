"""Rows without a single pad: all tokens of a batch in one line, each prompt once, and attention by spans of that line.

Everything in a transformer but attention works on tokens by themselves, so rows may lie end to end in one line of N
tokens. Attention then goes row by row: over the row's own keys, and those of the prompt it shares with others, if any.
The trunk sees each prompt once (the idea of Prefix Grouper, Liu et al. 2025, arXiv 2506.05433) and no pads; the cost of
attention is that of the rows, not the square of the line's length.

transformers lets attention be replaced by a registered function; ours finds the spans among its arguments, and without
them is the one that stood there before. Whether a model passes them on and gives the same numbers is tried on the model
itself (`workbench.prefixes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from workbench import attention
from workbench.layouts import check_inputs, families_of, take
from workbench.trunk import Trunk, base_of

NAME = "workbench_spans"


@dataclass(frozen=True)
class Block:
    """`count` rows of `length` tokens that follow each other in the line."""

    count: int
    length: int
    prompt: bool = False
    """what the blocks after it may look at"""
    ahead: bool = False
    """they look at the prompt before"""


@dataclass(frozen=True)
class Spans:
    """The blocks of a line, and the window of each layer of the model (None: all)."""

    blocks: list[Block]
    windows: list[int | None]
    masks: dict[tuple, Tensor] = field(default_factory=dict)
    """made once for all layers"""

    @property
    def sizes(self) -> list[int]:
        return [block.count * block.length for block in self.blocks]

    def mask(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """(1, 1, Q, K) bool for the last `queries` of `keys` tokens; None where causal attention needs none."""
        if window is not None and window >= keys:
            window = None
        if queries == keys and window is None:
            return None
        key = queries, keys, window
        if key not in self.masks:
            back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
            self.masks[key] = ((back >= 0) & (back < (window or keys)))[None, None]
        return self.masks[key]


@dataclass(frozen=True)
class Flat:
    """B sequences as one line of tokens, and where the N scored ones are predicted in it.

    A family is rows that share a prompt, or one row by itself, and lies together. Of the scored tokens first come those
    that a shared prompt predicts, family by family, then the others, row by row.
    """

    ids: Tensor
    """(1, L)"""
    positions: Tensor
    """(1, L) places in the sequence"""
    blocks: list[Block]
    ends: Tensor
    """(F,) the last token of each shared prompt"""
    counts: list[int]
    """rows of each that have a scored token"""
    place: Tensor
    """of the other scored tokens: what predicts them"""
    row: Tensor
    """(N,) the sequence, as given"""
    column: Tensor
    """(N,) its place among the scored tokens of its sequence"""
    target: Tensor
    """(N,)"""
    mask: Tensor
    """(B, T) bool, sequences as given"""


def layout(
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    groups: Sequence[int],
    device: torch.device | str,
    inputs: Sequence[Sequence[int]] | None = None,
) -> Flat:
    """The line for scoring `sequences[b][starts[b]:]`, where sequences with the same number in `groups` begin with the
    same tokens, up to their start. A row's last token predicts nothing and is left out.

    `inputs`: what the model reads in place of the sequences (see `layouts.check_inputs`). Raises DataError where they
    do not, and for a start below 1.
    """
    families = families_of(sequences, starts, groups)
    read = sequences if inputs is None else check_inputs(inputs, sequences, starts)
    ids: list[int] = []
    positions, blocks, ends, counts = [], [], [], []
    first: list[tuple[int, int, int]] = []  # row, column and id of tokens that a shared prompt predicts
    rest: list[tuple[int, int, int, int]] = []  # the same of the others, and the place of what predicts them
    for rows in families:
        shared = len(rows) > 1
        start = starts[rows[0]] if shared else 0
        if shared:
            ids += sequences[rows[0]][:start]
            positions += range(start)
            blocks.append(Block(1, start, prompt=True))
            begun = [b for b in rows if len(sequences[b]) > start]
            ends.append(len(ids) - 1)
            counts.append(len(begun))
            first += [(b, 0, sequences[b][start]) for b in begun]
        for b in sorted(rows, key=lambda b: -len(sequences[b])):
            own, at = read[b][start:-1], len(ids)
            if not own:
                continue
            ids += own
            positions += range(start, start + len(own))
            blocks.append(Block(1, len(own), ahead=shared))
            skipped = 1 if shared else 0
            for column in range(skipped, len(sequences[b]) - starts[b]):
                predicts = starts[b] + column - 1 - start
                rest.append((b, column, sequences[b][starts[b] + column], at + predicts))
    width = max((len(s) - at for s, at in zip(sequences, starts, strict=True)), default=0)
    scored = torch.tensor([len(s) - at for s, at in zip(sequences, starts, strict=True)])
    made = torch.tensor([(b, c, t, 0) for b, c, t in first] + rest, dtype=torch.long).reshape(-1, 4)
    tensors = dict(
        ids=torch.tensor([ids], dtype=torch.long), positions=torch.tensor([positions], dtype=torch.long),
        ends=torch.tensor(ends, dtype=torch.long), place=made[len(first) :, 3], row=made[:, 0], column=made[:, 1],
        target=made[:, 2], mask=torch.arange(width)[None, :] < scored[:, None],
    )  # fmt: skip
    return Flat(**{name: t.to(device) for name, t in tensors.items()}, blocks=_merged(blocks), counts=counts)


def _merged(blocks: list[Block]) -> list[Block]:
    """Neighbours of one length that look at the same prompt, or at none, as one block; prompts stay by themselves."""
    made: list[Block] = []
    for block in blocks:
        if made and not block.prompt and replace(made[-1], count=1) == block:
            block = replace(block, count=made.pop().count + 1)
        made.append(block)
    return made


def states(model: nn.Module, trunk: Trunk, batch: Flat) -> Tensor:
    """(N, D): what predicts each scored token, in the batch's order."""
    spans = Spans(batch.blocks, [window for _, window in attention.layers(model)])
    # a mask that is ready is passed on as it is, and not looked at by `attend`
    ready = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
    with attending(model):
        output = trunk.run(batch.ids, position_ids=batch.positions, attention_mask=ready, use_cache=False, spans=spans)
    hidden = output.last_hidden_state[0]  # (L, D)
    first = _Repeated.apply(take(hidden, batch.ends), batch.counts)
    return torch.cat([first, take(hidden, batch.place)])


@contextmanager
def attending(model: nn.Module) -> Iterator[None]:
    """Within the block the model's attention is `attend`; where layers are computed again in the backward pass, that
    has to be within it, too."""
    config = base_of(model).config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    spans: Spans | None = None,
    **how: Any,
) -> tuple[Tensor, None]:
    """Attention of query, key and value (1, H, L, d) by spans; returns (1, L, H, d). Without spans, SDPA."""
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    window = spans.windows[module.layer_idx]
    made, before = [], None
    parts = (tensor[0].split(spans.sizes, dim=1) for tensor in (query, key, value))
    for block, *own in zip(spans.blocks, *parts, strict=True):
        q, k, v = (t.unflatten(1, (block.count, block.length)).transpose(0, 1) for t in own)  # (R, H, T, d)
        if block.prompt:
            before = k, v
        elif block.ahead:
            k, v = (torch.cat([b.expand(block.count, -1, -1, -1), t], 2) for b, t in zip(before, (k, v), strict=True))
        mask = spans.mask(block.length, k.shape[2], window, q.device)
        made.append(_attention(module, q, k, v, mask, **how).flatten(0, 1))
    return torch.cat(made)[None], None


def _attention(module, query, key, value, mask, softcap: float | None = None, **how: Any) -> Tensor:
    """(R, T, H, d) of query (R, H, T, d), key and value (R, H', K, d) under a mask (1, 1, T, K) bool; None: causal."""
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, **how)[0]
    again = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(again, 1) for t in (key, value))
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * how["scaling"] / softcap)
    weights = torch.softmax(scores.float().masked_fill(~mask, -torch.inf), -1).to(query.dtype)
    return (torch.dropout(weights, how.get("dropout", 0.0), module.training) @ value).transpose(1, 2)


class _Repeated(torch.autograd.Function):
    """Row f of `table` (F, D) `counts[f]` times, one after the other. Its gradient is a sum over neighbours, the same
    on every run."""

    @staticmethod
    def forward(ctx, table, counts):
        ctx.counts = counts
        return table.repeat_interleave(torch.tensor(counts, dtype=torch.long, device=table.device), 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, flow):
        if not ctx.counts:
            return flow.new_zeros(0, flow.shape[1]), None
        return torch.stack([mine.sum(0) for mine in flow.split(ctx.counts)]), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
