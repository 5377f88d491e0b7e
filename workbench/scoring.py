"""Scoring given tokens: log-probability, entropy and top-1 of each, from a model's logits. Pure functions of
tensors.

A sequence is scored from some position on: token t is predicted by the logits at position t - 1. Sequences
are padded on the right, so under a causal mask no attention mask is needed: pads come after everything that
counts. Several sequences may also be laid end to end in one line; their positions then start anew, by which the
model keeps them apart (see `workbench.lines`). The scores have one row a sequence either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import DataError

CHUNK = 1 << 24
"""logits taken to float32 at a time (64 MiB); without gradients this bounds the memory of a score"""


@dataclass
class TokenScores:
    """What a model says of each scored token; row b, column t is the t-th scored token of sequence b."""

    logprob: Tensor
    """(B, T) nats, float32 (float64 for a float64 model); 0 where mask is False"""
    entropy: Tensor | None
    """(B, T) nats, of the whole next-token distribution; None if it was not asked for"""
    top1: Tensor
    """(B, T) bool: the token is the model's first choice"""
    mask: Tensor
    """(B, T) bool: there is a token here"""
    mean_logprob: Tensor | None = None
    """(B, T) nats: the mean over the vocabulary of log p, differentiable; None if it was not asked for"""
    log_sum_sq: Tensor | None = None
    """(B, T) nats: log of the sum over the vocabulary of p squared, no gradient; None if it was not asked for"""


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


@dataclass(frozen=True)
class Layout:
    """B sequences as one right-padded batch of P lines, and where in it the N scored tokens are."""

    ids: Tensor
    """(P, L)"""
    positions: Tensor | None
    """(P, L) each token's place in its own sequence; None when each line is one sequence"""
    row: Tensor
    """(N,) the sequence of each scored token"""
    line: Tensor
    """(N,) the line it is in"""
    position: Tensor
    """(N,) the place in the line that predicts it, one before its own"""
    column: Tensor
    """(N,) its place among the scored tokens of its sequence"""
    target: Tensor
    """(N,) its id"""
    mask: Tensor
    """(B, T) bool"""
    first: int
    """the first position that predicts a scored token; logits are needed from here on"""

    @property
    def keep(self) -> int:
        """How many positions, counted from the end of the batch, need logits."""
        return self.ids.shape[1] - self.first


def layout(
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    filler: int,
    device: torch.device | str,
    lines: Sequence[int] | None = None,
) -> Layout:
    """The batch for scoring `sequences[b][starts[b]:]`. Raises DataError for a start below 1.

    `lines`: a number for each sequence; those with the same number are laid end to end, in order. None: each has
    a line of its own.
    """
    if len(sequences) != len(starts):
        raise DataError(
            f"token_scores: {len(sequences)} sequences but {len(starts)} starts; give one start a sequence."
        )
    lengths = [len(s) for s in sequences]
    for b, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        if start < 1 or start > length:
            raise DataError(
                f"token_scores: sequence {b} has {length} tokens and cannot be scored from token {start}: "
                "nothing predicts a first token. Start between 1 and the length (an empty prompt needs a BOS "
                "token)."
            )
    line_of, offset, widths = _end_to_end(lengths, range(len(lengths)) if lines is None else lines)
    width = max(widths, default=0)
    ids = torch.full((len(widths), width), filler, dtype=torch.long)  # (P, L)
    positions = torch.zeros_like(ids)  # pads stay at 0: each is a sequence of its own, within any model's reach
    for sequence, length, line, at in zip(sequences, lengths, line_of, offset, strict=True):
        ids[line, at : at + length] = torch.as_tensor(sequence, dtype=torch.long)
        positions[line, at : at + length] = torch.arange(length)
    begin = torch.as_tensor(list(starts), dtype=torch.long)
    count = torch.as_tensor(lengths, dtype=torch.long) - begin  # (B,)
    columns = torch.arange(int(count.max()) if len(lengths) else 0)
    mask = columns[None, :] < count[:, None]  # (B, T)
    row, column = mask.nonzero(as_tuple=True)  # (N,)
    line = torch.as_tensor(line_of, dtype=torch.long)[row]
    position = torch.as_tensor(offset, dtype=torch.long)[row] + begin[row] + column - 1
    target = ids[line, position + 1]
    first = int(position.min()) if len(position) else max(width - 1, 0)
    moved = [t.to(device) for t in (ids, positions, row, line, position, column, target, mask)]
    if len(widths) == len(lengths):
        moved[1] = None
    return Layout(*moved, first=first)


def _end_to_end(lengths: Sequence[int], lines: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Per sequence its line (numbered from 0) and where it begins there; per line its width."""
    number: dict[int, int] = {}
    line_of, offset, widths = [], [], []
    for length, name in zip(lengths, lines, strict=True):
        line = number.setdefault(name, len(widths))
        if line == len(widths):
            widths.append(0)
        line_of.append(line)
        offset.append(widths[line])
        widths[line] += length
    return line_of, offset, widths


def statistics(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    entropy: bool = True,
    needs: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """`logprob` of `target`, `entropy` of the distribution, whether the target is its `top1`: each (N,).

    `logits` (N, V) are divided by `temperature` (0 counts as 1: a greedy choice has no distribution of its
    own) and normalised in float32, or in float64 if they are float64. `needs`: "entropy" makes the entropy
    differentiable; "mean_logprob" and "log_sum_sq" add those (see `TokenScores`).
    """
    z = logits if logits.dtype == torch.float64 else logits.float()  # (N, V)
    if temperature not in (0, 1):
        z = z / temperature
    normaliser = torch.logsumexp(z, dim=-1)  # (N,)
    made = {"logprob": z.gather(-1, target[:, None])[:, 0] - normaliser, "top1": z.detach().argmax(-1) == target}
    if entropy:
        with torch.set_grad_enabled("entropy" in needs and torch.is_grad_enabled()):
            logp = z - normaliser[:, None]  # (N, V)
            made["entropy"] = -(logp.exp() * logp).sum(-1)
    if "mean_logprob" in needs:
        made["mean_logprob"] = z.mean(-1) - normaliser
    if "log_sum_sq" in needs:
        made["log_sum_sq"] = (torch.logsumexp(2 * z, dim=-1) - 2 * normaliser).detach()
    return made


def score(
    forward: Callable[[Tensor, int, Tensor | None], Tensor],
    batch: Layout,
    temperature: float = 1.0,
    entropy: bool = True,
    needs: frozenset[str] = frozenset(),
) -> TokenScores:
    """Scores of a batch; `forward(ids (P, L), keep, positions)` gives the logits (P, keep, V) of the last `keep`
    positions.
    """
    logits = forward(batch.ids, batch.keep, batch.positions) if batch.target.numel() else None
    dtype = torch.float64 if logits is not None and logits.dtype == torch.float64 else torch.float32
    parts = []
    size = CHUNK if logits is None else max(1, CHUNK // logits.shape[-1])
    for lines, position, target in zip(
        batch.line.split(size), batch.position.split(size), batch.target.split(size), strict=True
    ):
        if logits is not None:
            parts.append(statistics(logits[lines, position - batch.first], target, temperature, entropy, needs))

    def spread(name: str) -> Tensor:
        kind = torch.bool if name == "top1" else dtype
        out = torch.zeros(batch.mask.shape, dtype=kind, device=batch.mask.device)  # (B, T)
        return out.index_put((batch.row, batch.column), torch.cat([p[name] for p in parts])) if parts else out

    wanted = ["logprob", "top1", *["entropy"] * entropy, *sorted(needs & {"mean_logprob", "log_sum_sq"})]
    return TokenScores(**{"entropy": None} | {name: spread(name) for name in wanted}, mask=batch.mask)


def divergence(policy: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Of two models' logits (N, V): KL(policy || other) in nats, and whether both have the same top; each
    (N,).
    """
    p, q = torch.log_softmax(policy, -1), torch.log_softmax(other, -1)
    return (p.exp() * (p - q)).sum(-1), policy.argmax(-1) == other.argmax(-1)
