"""Where the scored tokens of several sequences lie in a padded batch.

A sequence is scored from some position on: token t is predicted by the hidden state at position t - 1. Sequences are
padded on the right, so under a causal mask no attention mask is needed: pads come after everything that counts.
Several sequences may also be laid end to end in one line; their positions then start anew, by which the model keeps
them apart (see `workbench.lines`). `workbench.flat` has another layout, without padding. The scores have one row a
sequence either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import DataError


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


def checked(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
    """Raises DataError for a start that nothing comes before."""
    if len(sequences) != len(starts):
        raise DataError(
            f"token_scores: {len(sequences)} sequences but {len(starts)} starts; give one start a sequence."
        )
    for b, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        if start < 1 or start > len(sequence):
            raise DataError(
                f"token_scores: sequence {b} has {len(sequence)} tokens and cannot be scored from token {start}: "
                "nothing predicts a first token. Start between 1 and the length (an empty prompt needs a BOS "
                "token)."
            )


def check_inputs(
    inputs: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Sequence[Sequence[int]]:
    """`inputs`. Raises DataError where one is not as long as its sequence, or differs before its start."""
    if len(inputs) != len(sequences):
        raise DataError(f"token_scores: {len(sequences)} sequences but {len(inputs)} inputs; give one a sequence.")
    for b, (given, sequence, start) in enumerate(zip(inputs, sequences, starts, strict=True)):
        if len(given) != len(sequence) or list(given[:start]) != list(sequence[:start]):
            raise DataError(f"token_scores: input {b} must be as long as its sequence and have the same prompt.")
    return inputs


def families_of(
    sequences: Sequence[Sequence[int]], starts: Sequence[int], groups: Sequence[int]
) -> list[list[int]]:
    """The sequences of each group, in order. Raises DataError where they do not begin with the same tokens up to their
    start, and for a start that nothing comes before."""
    checked(sequences, starts)
    families: dict[int, list[int]] = {}
    for b, group in enumerate(groups):
        families.setdefault(group, []).append(b)
    for group, rows in families.items():
        prompts = {tuple(sequences[b][: starts[b]]) for b in rows}
        if len(prompts) > 1:
            raise DataError(f"token_scores: the sequences of group {group} do not begin with the same prompt.")
    return list(families.values())


def layout(
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    filler: int,
    device: torch.device | str,
    lines: Sequence[int] | None = None,
    inputs: Sequence[Sequence[int]] | None = None,
) -> Layout:
    """The batch for scoring `sequences[b][starts[b]:]`. Raises DataError for a start below 1.

    `lines`: a number for each sequence; those with the same number are laid end to end, in order. None: each has
    a line of its own. `inputs`: what the model reads in their place (see `check_inputs`).
    """
    checked(sequences, starts)
    read = sequences if inputs is None else check_inputs(inputs, sequences, starts)
    lengths = [len(s) for s in sequences]
    line_of, offset, widths = _end_to_end(lengths, range(len(lengths)) if lines is None else lines)
    width = max(widths, default=0)
    ids = torch.full((len(widths), width), filler, dtype=torch.long)  # (P, L)
    positions = torch.zeros_like(ids)  # pads stay at 0: each is a sequence of its own, within any model's reach
    for sequence, length, line, at in zip(read, lengths, line_of, offset, strict=True):
        ids[line, at : at + length] = torch.as_tensor(sequence, dtype=torch.long)
        positions[line, at : at + length] = torch.arange(length)
    begin = torch.as_tensor(list(starts), dtype=torch.long)
    count = torch.as_tensor(lengths, dtype=torch.long) - begin  # (B,)
    columns = torch.arange(int(count.max()) if len(lengths) else 0)
    mask = columns[None, :] < count[:, None]  # (B, T)
    row, column = mask.nonzero(as_tuple=True)  # (N,)
    line = torch.as_tensor(line_of, dtype=torch.long)[row]
    position = torch.as_tensor(offset, dtype=torch.long)[row] + begin[row] + column - 1
    wanted = [torch.as_tensor(s[start:], dtype=torch.long) for s, start in zip(sequences, starts, strict=True)]
    target = torch.cat([torch.zeros(0, dtype=torch.long), *wanted])
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


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, rows):
        ctx.save_for_backward(rows)
        ctx.count = len(table)
        return table.index_select(0, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, flow):
        (rows,) = ctx.saved_tensors
        return flow.new_zeros(ctx.count, *flow.shape[1:]).index_copy_(0, rows, flow), None


def take(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`, differentiable, where no row is taken twice: then its gradient is a copy, which is faster than
    the sum that indexing has to make, and the same on every run."""
    return _Taken.apply(table, rows)
