"""Which rows of an update go through the model together: micro-batches that waste little and fit into memory.

What a micro-batch costs is counted in tokens: those that go through the trunk, padding included, and FIXED more for
each pass through the model, however short. `plan` cuts the rows where the sum is least; `budget` says how many tokens
fit. Neither changes a result: normalisers are global to the update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from workbench.memory import free_bytes
from workbench.trunk import base_of

FIXED = {"cpu": 64, "cuda": 1024}
"""tokens that go through the model in the time that a micro-batch costs beside its own. CPU: 25 ms at 0.48 ms a token
(hidden 256, 6 layers), 70 ms at 2.2 ms (512, 8), one thread, forward and backward, and nearly twice that on two.
CUDA: the launches of 28 layers and of their backward pass; an estimate, not a measurement"""
FASTEST = {"cpu": 2048, "cuda": 32768}
"""tokens in a micro-batch beyond which it gets no faster; on a CPU it gets slower (caches): 0.48 ms a token at 2048,
0.55 at 4096, and at 1024 the same"""
SHARE = 0.5
"""of the free memory that a micro-batch may take: what its backward pass needs beside what was kept is not counted"""
_kept: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
_ALL = 2**62


@dataclass
class Batch:
    """The rows of one update.

    sequences  token ids of prompt and completion, one list a row
    starts     the first scored position of each row; everything from there on is scored
    columns    per row: a number, or one number per scored token. `strength`: what the adapter is multiplied with while
               the row goes through an update; rows of another strength go in another micro-batch
    unit       rows that belong together and are never split (2 for preference pairs)
    lines      a number for each row: rows with the same number are laid end to end in one line and are a unit;
               only for models that keep them apart (see `workbench.lines`). None: a line for each row
    inputs     what the model reads in place of `sequences`, which stay what it is asked for: as many ids a row, the
               same ones before its start. None: it reads `sequences`
    share      how much of each embedding is that of `inputs`, the rest that of `sequences`
    """

    sequences: list[list[int]]
    starts: list[int]
    columns: dict[str, Sequence] = field(default_factory=dict)
    unit: int = 1
    lines: list[int] | None = None
    inputs: list[list[int]] | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: Sequence[int]) -> Batch:
        return Batch(
            [self.sequences[i] for i in rows],
            [self.starts[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            self.unit,
            None if self.lines is None else [self.lines[i] for i in rows],
            None if self.inputs is None else [self.inputs[i] for i in rows],
            self.share,
        )

    def units(self) -> list[list[int]]:
        """The rows of each unit, in order."""
        if self.lines is None:
            return [list(range(i, i + self.unit)) for i in range(0, len(self), self.unit)]
        made: dict[int, list[int]] = {}
        for row, line in enumerate(self.lines):
            made.setdefault(line, []).append(row)
        return list(made.values())

    def scored(self) -> list[int]:
        """Scored tokens per row."""
        return [len(ids) - start for ids, start in zip(self.sequences, self.starts, strict=True)]

    def lengths(self) -> list[int]:
        """Tokens per row."""
        return [len(ids) for ids in self.sequences]


# -- cost


@dataclass(frozen=True)
class Unit:
    """Rows that stay together, as they are laid out."""

    rows: list[int]
    count: int
    """lines, where rows are padded"""
    width: int
    """tokens of the longest line"""
    own: int
    """tokens of all rows that go through the trunk in one line: without a prompt that they share with other rows, and
    without each row's last token, which predicts nothing"""
    prompt: int | None = None
    """the number of that prompt; None: there is none"""
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Rate:
    """What a micro-batch costs.

    fixed   beside its tokens, in tokens
    padded  lines are as wide as the widest of their micro-batch; otherwise what counts is the sum of the tokens, each
            prompt that rows share once
    """

    fixed: int = FIXED["cpu"]
    padded: bool = True


def rate_of(policy, padded: bool = True) -> Rate:
    """That of the policy's device."""
    return Rate(FIXED.get(policy.device.type, FIXED["cpu"]), padded)


def units_of(batch: Batch, shared: Sequence[int] | None = None) -> list[Unit]:
    """The units of `batch`; `shared`: rows with the same number share a prompt (see `prefixes.of`)."""
    lengths = batch.lengths()
    members = Counter(shared or ())
    made = []
    for rows in batch.units():
        whole = sum(lengths[i] for i in rows)
        count, width = (len(rows), max(lengths[i] for i in rows)) if batch.lines is None else (1, whole)
        prompts = set() if shared is None else {shared[i] for i in rows}
        if len(prompts) == 1 and members[shared[rows[0]]] > 1:
            start = batch.starts[rows[0]]
            made.append(Unit(rows, count, width, whole - len(rows) * (start + 1), shared[rows[0]], start))
        else:
            made.append(Unit(rows, count, width, whole if shared is None else whole - len(rows)))
    return made


def tokens_of(units: Sequence[Unit], padded: bool = True) -> int:
    """Tokens of a micro-batch of these units that go through the trunk: see `Rate`."""
    if padded:
        return sum(unit.count for unit in units) * max(unit.width for unit in units)
    prompts = {unit.prompt: unit.prompt_tokens for unit in units if unit.prompt is not None}
    return sum(unit.own for unit in units) + sum(prompts.values())


def cost_of(units: Sequence[Unit], rate: Rate) -> int:
    """What a micro-batch of these units costs, in tokens."""
    return tokens_of(units, rate.padded) + rate.fixed


# -- plan


def plan(
    batch: Batch,
    size: int | None = None,
    most: int | None = None,
    *,
    rate: Rate = Rate(),
    shared: Sequence[int] | None = None,
) -> list[list[int]]:
    """Rows of each micro-batch, the largest first: it shows at once whether they fit. Units stay whole.

    size    units a micro-batch, in order; None: as many as cost least
    most    tokens a micro-batch may have, padding included; a unit with more goes alone. None: any number
    shared  the number of each row's prompt (see `prefixes.of`)

    Padded units are taken by length, others prompt by prompt.
    """
    strengths = batch.columns.get("strength", ())
    if len(set(strengths)) > 1:
        return _apart(strengths, batch, size, most, rate, shared)
    most = _ALL if most is None else most
    units = units_of(batch, shared)
    units.sort(key=(lambda unit: -unit.width) if rate.padded else _by_prompt(units))
    cut = _cut(units, most, rate) if size is None else _chunks(units, size, most, rate)
    cut.sort(key=lambda part: -tokens_of(part, rate.padded))
    return [[row for unit in part for row in unit.rows] for part in cut]


def _apart(strengths: Sequence[float], batch: Batch, size, most, rate, shared) -> list[list[int]]:
    """The plan where rows of unlike strength go through the model apart."""
    made = []
    for strength in sorted(set(strengths)):
        rows = [row for row, one in enumerate(strengths) if one == strength]
        prompts = None if shared is None else [shared[row] for row in rows]
        made += [[rows[i] for i in part] for part in plan(batch.take(rows), size, most, rate=rate, shared=prompts)]
    return sorted(made, key=lambda part: -sum(len(batch.sequences[row]) for row in part))


def _by_prompt(units: Sequence[Unit]) -> Callable[[Unit], tuple[int, int]]:
    """Units that share a prompt together, in the order of the prompts' first units; the longest first."""
    first: dict[int, int] = {}
    for number, unit in enumerate(units):
        if unit.prompt is not None:
            first.setdefault(unit.prompt, number)
    place = {id(unit): first.get(unit.prompt, number) for number, unit in enumerate(units)}
    return lambda unit: (place[id(unit)], -unit.own)


def _chunks(units: list[Unit], size: int, most: int, rate: Rate) -> list[list[Unit]]:
    """`size` units each, in order, but no more tokens than `most`."""
    made = []
    for chunk in (units[i : i + size] for i in range(0, len(units), size)):
        made += [chunk] if tokens_of(chunk, rate.padded) <= most else _cut(chunk, most, rate)
    return made


def _cut(units: list[Unit], most: int, rate: Rate) -> list[list[Unit]]:
    """Where to cut `units`, in their order, so that the cost of all parts is least: by dynamic programming from the
    end, over the parts that begin at each unit."""
    n = len(units)
    best, until = np.zeros(n + 1), [0] * n
    for i, tokens in _parts(units, rate.padded):
        total = np.where(tokens <= most, tokens + rate.fixed + best[i + 1 : i + 1 + len(tokens)], np.inf)
        total[0] = tokens[0] + rate.fixed + best[i + 1]  # alone it goes, however long
        until[i] = i + 1 + int(total.argmin())
        best[i] = total[until[i] - i - 1]
    made, at = [], 0
    while at < n:
        made.append(units[at : until[at]])
        at = until[at]
    return made


def _parts(units: list[Unit], padded: bool) -> Iterator[tuple[int, np.ndarray]]:
    """For each i, from the last to the first: tokens of the parts that begin with unit i and end before j, for j =
    i + 1 to n. Each follows from what was known of the parts that begin with unit i + 1."""
    n = len(units)
    before = np.cumsum([0, *((unit.count if padded else unit.own) for unit in units)])  # lines, or tokens
    width, prompts = np.zeros((2, n + 1), dtype=np.int64)
    seen: dict[int, int] = {}
    for i in reversed(range(n)):
        unit, ends = units[i], slice(i + 1, n + 1)
        if padded:
            np.maximum(width[ends], unit.width, out=width[ends])
            yield i, (before[ends] - before[i]) * width[ends]
            continue
        if unit.prompt is not None:
            # parts that reach another unit with this prompt have counted it already
            prompts[i + 1 : seen.get(unit.prompt, n) + 1] += unit.prompt_tokens
            seen[unit.prompt] = i
        yield i, before[ends] - before[i] + prompts[ends]


# -- budget


def bytes_per_token(policy, grad: bool = True, gradient_checkpointing: bool = False) -> float:
    """Bytes that each token of a micro-batch takes until it is done.

    With gradients: what is kept for the backward pass, by all layers and the head; measured on the model itself, with
    the adapter it has, in a forward of a few tokens (once for each model). With checkpointing one layer keeps that, and
    all others their input. Without gradients a layer's tensors go as the next one's come. Attention that keeps its
    weights (eager) takes more for long rows.
    """
    if policy.model not in _kept:
        _kept[policy.model] = (_kept_by(policy, 48) - _kept_by(policy, 16)) / 32
    kept = max(1.0, _kept[policy.model])
    config = base_of(policy.model).config.get_text_config(decoder=True)
    layers = max(1, getattr(config, "num_hidden_layers", 1))
    if not grad:
        return kept / layers
    if gradient_checkpointing:
        return kept / layers + layers * config.hidden_size * policy.model.dtype.itemsize
    return kept


def _kept_by(policy, length: int) -> int:
    """Bytes of the storages that a forward of one row of `length` tokens keeps for its backward pass."""
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    training = [module for module in policy.model.modules() if module.training]
    policy.model.eval()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.token_scores([[(7 * i + 1) % policy.vocab_size for i in range(length)]], [1], needs=frozenset())
    finally:
        for module in training:
            module.training = True
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def budget(policy, grad: bool = True, gradient_checkpointing: bool = False) -> int:
    """Tokens that a micro-batch of `policy` may have: as many as SHARE of the free memory holds, but no more than are
    of use. A power of two, so that a little more or less free memory does not change the plan."""
    most = FASTEST.get(policy.device.type, FASTEST["cpu"])
    free = free_bytes(policy.device)
    if free is None:
        return most
    room = int(free * SHARE / bytes_per_token(policy, grad, gradient_checkpointing))
    return min(most, 1 << max(0, room.bit_length() - 1))


class Budget:
    """Tokens that fit into a micro-batch of one run: found when first asked for, and less after memory ran out."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, bool], int] = {}
        self._fitted: dict[bool, int] = {}

    def tokens(self, policy, settings, grad: bool) -> int | None:
        """None: any number, where `micro_batch_size` says how many units go together and all have fitted so far."""
        if settings.micro_batch_size is not None:
            return self._fitted.get(grad)
        how = grad, settings.gradient_checkpointing
        if how not in self._found:
            self._found[how] = budget(policy, *how)
        return min(self._found[how], self._fitted.get(grad, _ALL))

    def lower(self, tokens: int, grad: bool) -> None:
        """No more than `tokens` from now on."""
        self._fitted[grad] = min(tokens, self._fitted.get(grad, tokens))
