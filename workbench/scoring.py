"""Scoring given tokens: log-probability, entropy and top-1 of each, and the likeliest alternatives.

Hidden states are gathered where a token is scored, and only those go through the head (`workbench.heads`), so that
logits of a whole batch are never held. Models that cannot be cut into trunk and head give the logits of the positions
that matter, as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench import flat, heads, trunk
from workbench.errors import SettingError
from workbench.flat import Flat
from workbench.heads import statistics
from workbench.layouts import Layout, take


@dataclass
class TokenScores:
    """What a model says of each scored token; row b, column t is the t-th scored token of sequence b."""

    logprob: Tensor
    """(B, T) nats, float32 (float64 for a float64 model); 0 where mask is False"""
    entropy: Tensor
    """(B, T) nats, of the whole next-token distribution; differentiable if that was asked for"""
    top1: Tensor
    """(B, T) bool: the token is the model's first choice"""
    mask: Tensor
    """(B, T) bool: there is a token here"""
    mean_logprob: Tensor | None = None
    """(B, T) nats: the mean over the vocabulary of log p, differentiable; None if it was not asked for"""
    log_sum_sq: Tensor | None = None
    """(B, T) nats: log of the sum over the vocabulary of p squared, no gradient; None if it was not asked for"""
    value: Tensor | None = None
    """(B, T): what a value head says before each token, differentiable; None without one"""


@dataclass
class Scores:
    """`policy.score`: per completion its ids and, aligned with them, arrays of float32 in nats."""

    ids: list[list[int]]
    logprob: list[np.ndarray]
    entropy: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        tokens = sum(map(len, self.ids))
        mean = np.concatenate(self.logprob).mean() if tokens else float("nan")
        return f"<Scores: {len(self)} completions, {tokens} tokens, mean log-prob {mean:.3f} a token>"


@dataclass
class Predictions:
    """What predicts each of N tokens, before the head."""

    states: Tensor
    """(N, D) hidden states; (N, V) logits of a model that cannot be cut"""
    target: Tensor
    """(N,)"""
    halves: trunk.Trunk | None

    def logits(self, part: slice) -> Tensor:
        """(n, V) of some of the tokens, by the head as it is now."""
        states = self.states[part]
        return states if self.halves is None else self.halves.logits(states)

    def parts(self, vocab: int) -> Iterator[slice]:
        """The tokens in parts of at most `heads.CHUNK` logits."""
        size = max(1, heads.CHUNK // vocab)
        return (slice(first, first + size) for first in range(0, len(self.target), size))


def predictions(model: nn.Module, batch: Layout | Flat) -> Predictions:
    """One pass of the trunk over the batch, of at least one scored token. A `Flat` batch takes a model that can be
    cut."""
    halves = trunk.of(model)
    if isinstance(batch, Flat):
        return Predictions(flat.states(model, halves, batch), batch.target, halves)
    apart = {} if batch.positions is None else {"position_ids": batch.positions}
    if halves is None:
        # counted from the end, so that virtual tokens of a prompt-learning adapter in front do not matter
        logits = trunk.last_logits(model, batch.keep, input_ids=batch.ids, use_cache=False, **apart)[0]
        return Predictions(logits[batch.line, batch.position - batch.first], batch.target, None)
    hidden = halves.run(batch.ids, use_cache=False, **apart).last_hidden_state  # (P, L, D)
    place = batch.line * hidden.shape[1] + batch.position
    return Predictions(take(hidden.flatten(0, 1), place), batch.target, halves)


def score(
    model: nn.Module,
    batch: Layout | Flat,
    temperature: float = 1.0,
    needs: frozenset[str] = frozenset(),
    value: heads.ValueHead | None = None,
) -> TokenScores:
    """Scores of a batch. `needs`: see `heads.statistics`. `value`: a head of its own on the same hidden states."""
    names = ["logprob", "entropy", "top1", *sorted(needs & {"mean_logprob", "log_sum_sq"}), *["value"] * bool(value)]
    made = _made(model, batch, temperature, needs, value) if batch.target.numel() else {}

    def spread(name: str) -> Tensor:
        if name not in made:
            return torch.zeros(batch.mask.shape, dtype=torch.bool if name == "top1" else None, device=batch.mask.device)
        flat = made[name].new_zeros(batch.mask.numel())
        return flat.index_copy(0, batch.row * batch.mask.shape[1] + batch.column, made[name]).view(batch.mask.shape)

    return TokenScores(**{name: spread(name) for name in names}, mask=batch.mask)


def _made(
    model: nn.Module, batch: Layout | Flat, temperature: float, needs: frozenset[str], value: heads.ValueHead | None
) -> dict[str, Tensor]:
    """The statistics of all scored tokens, each (N,)."""
    ahead = predictions(model, batch)
    if ahead.halves is not None:
        made = heads.of(ahead.halves, ahead.states, ahead.target, temperature, needs)
        return made if value is None else made | {"value": value.of(ahead.states)}
    if value is not None:
        raise SettingError(
            "A value head reads the hidden states before the model's output matrix, and this model (or its adapter)"
            " cannot be cut there. Take a LoRA adapter, or a method without a value head (wb.grpo)."
        )
    parts = ahead.parts(ahead.states.shape[1])
    return heads.joined([statistics(ahead.states[p], ahead.target[p], temperature, needs) for p in parts])


def gather(scored: Callable[[int], TokenScores], parts: Sequence[Sequence[int]], rows: int, width: int) -> TokenScores:
    """The scores of all micro-batches as one table (rows, width) each.

    `parts`: the rows of each micro-batch; `scored(number)`: its scores, of at most `width` tokens a row.
    """
    tables: dict[str, Tensor] = {}
    for number, mine in enumerate(parts):
        for name, values in vars(scored(number)).items():
            if values is not None:
                table = tables.setdefault(name, values.new_zeros(rows, width))
                table[mine, : values.shape[1]] = values
    return TokenScores(**tables)


@dataclass
class Alternatives:
    """Of T tokens what else could have stood there."""

    logprob: Tensor
    """(T,) nats, of the token itself"""
    entropy: Tensor
    """(T,) nats"""
    rank: Tensor
    """(T,) how many tokens were likelier"""
    top_ids: Tensor
    """(T, k) the likeliest, first one first"""
    top_logprob: Tensor
    """(T, k) nats"""


def alternatives(ahead: Predictions, vocab: int, k: int, temperature: float = 1.0) -> Alternatives:
    """The `k` likeliest tokens at each place, without gradients; a part of the logits at a time."""
    done = []
    with torch.no_grad():
        for part in ahead.parts(vocab):
            logp, ids = softened(ahead.logits(part), temperature), ahead.target[part, None]
            own, top = logp.gather(-1, ids), logp.topk(min(k, logp.shape[-1]))
            rank = (logp > own).sum(-1)
            spread = -torch.linalg.vecdot(logp.exp(), logp)
            done.append((own[:, 0], spread, rank, top.indices, top.values))
    return Alternatives(*(torch.cat(values) for values in zip(*done, strict=True)))


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Log-probs (N, V) of softmax(logits / temperature), float32 (float64 of a float64 model); 0 counts as 1."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(z if temperature in (0, 1) else z / temperature, -1)


def divergence(policy: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of two models' logits (N, V): KL(policy || other) in nats, and whether both have the same top; each
    (N,).
    """
    p, q = torch.log_softmax(policy, -1), torch.log_softmax(other, -1)
    return (p.exp() * (p - q)).sum(-1), policy.argmax(-1) == other.argmax(-1)
