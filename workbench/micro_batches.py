"""Which rows of an update go through the model together: micro-batches that waste little and fit into memory.

What a micro-batch costs is counted in tokens: those that go through the trunk, padding included, and FIXED more for
each pass through the model, however short. `plan` cuts the rows where the sum is least; `budget` says how many tokens
fit. Neither changes a result: normalisers are global to the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from workbench import prefixes
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
    columns    per row: a number, or one number per scored token
    unit       rows that belong together and are never split (2 for preference pairs)
    lines      a number for each row: rows with the same number are laid end to end in one line and are a unit;
               only for models that keep them apart (see `workbench.lines`). None: a line for each row
    """

    sequences: list[list[int]]
    starts: list[int]
    columns: dict[str, Sequence] = field(default_factory=dict)
    unit: int = 1
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def take(self, rows: Sequence[int]) -> Batch:
        return Batch(
            [self.sequences[i] for i in rows],
            [self.starts[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
            self.unit,
            None if self.lines is None else [self.lines[i] for i in rows],
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
    """lines"""
    width: int
    """tokens of the longest line"""
    prompt: int | None = None
    """the number of the prompt that these rows, and rows of other units, begin with; None: each has its own"""
    prompt_tokens: int = 0
    own: int = 0
    """tokens of the longest line after the prompt that go through the trunk; the last one predicts nothing"""


@dataclass(frozen=True)
class Rate:
    """What a micro-batch costs.

    fixed         beside its tokens, in tokens
    padding_free  rows are laid end to end (see `lines.of`): what counts is their sum
    """

    fixed: int = FIXED["cpu"]
    padding_free: bool = False


def rate_of(policy, padding_free: bool = False) -> Rate:
    """That of the policy's device."""
    return Rate(FIXED.get(policy.device.type, FIXED["cpu"]), padding_free)


def units_of(batch: Batch, shared: Sequence[int] | None = None) -> list[Unit]:
    """The units of `batch`; `shared`: see `prefixes.of`."""
    lengths, scored = batch.lengths(), batch.scored()
    made = []
    for rows in batch.units():
        width = max(lengths[i] for i in rows)
        if batch.lines is not None:
            made.append(Unit(rows, 1, sum(lengths[i] for i in rows)))
        elif shared is not None and len({shared[i] for i in rows}) == 1:
            own = max(0, max(scored[i] for i in rows) - 1)
            made.append(Unit(rows, len(rows), width, shared[rows[0]], batch.starts[rows[0]], own))
        else:
            made.append(Unit(rows, len(rows), width))
    return made


def tokens_of(units: Sequence[Unit], padding_free: bool = False) -> int:
    """Tokens of a micro-batch of these units, padding included: lines as wide as the widest, or prompts once and what
    follows them, where that pays (see `prefixes`)."""
    return _tokens(units, padding_free)[0]


def cost_of(units: Sequence[Unit], rate: Rate) -> int:
    """What a micro-batch of these units costs, in tokens; prompts apart are a second pass."""
    tokens, passes = _tokens(units, rate.padding_free)
    return tokens + passes * rate.fixed


def _tokens(units: Sequence[Unit], padding_free: bool) -> tuple[int, int]:
    """Tokens, and passes through the trunk."""
    if padding_free:
        return sum(unit.count * unit.width for unit in units), 1
    lines = sum(unit.count for unit in units)
    plain = lines * max(unit.width for unit in units)
    if any(unit.prompt is None for unit in units):
        return plain, 1
    prompts = len({unit.prompt for unit in units})
    once = prompts * max(unit.prompt_tokens for unit in units) + lines * max(unit.own for unit in units)
    return (once, 2) if prompts < lines and _pays(plain, once) else (plain, 1)


def _pays(plain, once):
    """Whether prompts go apart (see `prefixes.worth_it`) that make `once` tokens of `plain` ones; also of arrays."""
    return (plain - once >= prefixes.SAVED_TOKENS) & (plain - once >= prefixes.SAVED_SHARE * plain)


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

    size    units a micro-batch, sorted by length; None: as many as cost least
    most    tokens a micro-batch may have, padding included; a unit with more goes alone. None: any number
    shared  the number of each row's prompt, where prompts may go through the trunk once (see `prefixes.of`)
    """
    most = _ALL if most is None else most
    units = sorted(units_of(batch, shared), key=_length)
    if size is None:
        orders = [units] if shared is None else [units, _grouped(units, most)]
        cuts = [_cut(order, most, rate) for order in orders]
    else:
        orders = [units] if shared is None else [units, sorted(units, key=lambda unit: unit.prompt or 0)]
        cuts = [_chunks(order, size, most, rate) for order in orders]
    cut = min(cuts, key=lambda cut: sum(cost_of(part, rate) for part in cut))
    cut.sort(key=lambda part: -tokens_of(part, rate.padding_free))
    return [[row for unit in part for row in unit.rows] for part in cut]


def _length(unit: Unit) -> int:
    """The longest come first."""
    return -unit.width if unit.prompt is None else -unit.own


def _chunks(units: list[Unit], size: int, most: int, rate: Rate) -> list[list[Unit]]:
    """`size` units each, in order, but no more tokens than `most`."""
    made = []
    for chunk in (units[i : i + size] for i in range(0, len(units), size)):
        fits = tokens_of(chunk, rate.padding_free) <= most
        made += [chunk] if fits else _cut(sorted(chunk, key=_length), most, rate)
    return made


def _grouped(units: list[Unit], most: int) -> list[Unit]:
    """Units that share a prompt made one, where that is no larger than `most`; by length again."""
    groups: dict[tuple, list[Unit]] = {}
    for number, unit in enumerate(units):
        groups.setdefault((unit.prompt,) if unit.prompt is not None else (None, number), []).append(unit)
    made = []
    for group in groups.values():
        rows, count = [row for unit in group for row in unit.rows], sum(unit.count for unit in group)
        width, own = max(unit.width for unit in group), max(unit.own for unit in group)
        whole = Unit(rows, count, width, group[0].prompt, group[0].prompt_tokens, own)
        made += [whole] if tokens_of(group) <= most else group
    return sorted(made, key=_length)


def _cut(units: list[Unit], most: int, rate: Rate) -> list[list[Unit]]:
    """Where to cut `units`, in their order, so that the cost of all parts is least: by dynamic programming from the
    end, over the parts that begin at each unit."""
    n = len(units)
    best, until = np.zeros(n + 1), [0] * n
    for i, tokens, passes in _parts(units, rate.padding_free):
        total = np.where(tokens <= most, tokens + passes * rate.fixed + best[i + 1 : i + 1 + len(tokens)], np.inf)
        total[0] = tokens[0] + passes[0] * rate.fixed + best[i + 1]  # alone it goes, however long
        until[i] = i + 1 + int(total.argmin())
        best[i] = total[until[i] - i - 1]
    made, at = [], 0
    while at < n:
        made.append(units[at : until[at]])
        at = until[at]
    return made


def _parts(units: list[Unit], padding_free: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each i, from the last to the first: tokens and passes (see `_tokens`) of the parts that begin with unit i and
    end before j, for j = i + 1 to n. Each follows from what was known of the parts that begin with unit i + 1."""
    n = len(units)
    before = np.cumsum([0, *(unit.count for unit in units)])  # lines before unit j
    filled = np.cumsum([0, *(unit.count * unit.width for unit in units)])
    apart = any(unit.prompt is None for unit in units)
    width, own, longest, prompts = np.zeros((4, n + 1), dtype=np.int64)
    seen: dict[int | None, int] = {}
    for i in reversed(range(n)):
        unit, ends = units[i], slice(i + 1, n + 1)
        lines, ones = before[ends] - before[i], np.ones(n - i, dtype=np.int64)
        if padding_free:
            yield i, filled[ends] - filled[i], ones
            continue
        np.maximum(width[ends], unit.width, out=width[ends])
        plain = lines * width[ends]
        if apart:
            yield i, plain, ones
            continue
        np.maximum(own[ends], unit.own, out=own[ends])
        np.maximum(longest[ends], unit.prompt_tokens, out=longest[ends])
        prompts[i + 1 : seen.get(unit.prompt, n) + 1] += 1
        seen[unit.prompt] = i
        once = prompts[ends] * longest[ends] + lines * own[ends]
        pays = (prompts[ends] < lines) & _pays(plain, once)
        yield i, np.where(pays, once, plain), np.where(pays, 2, 1)


# -- budget


def free_bytes(device: torch.device) -> int | None:
    """Memory to be had on `device`: CUDA's free memory with what torch holds in reserve; on a CPU what is there
    without swapping, within this control group's limit. None where that cannot be told."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    try:
        fields = dict(text.split(":") for text in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        used, limit = ((group / name).read_text().strip() for name in ("memory.current", "memory.max"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        return free if limit == "max" else min(free, max(0, int(limit) - int(used) + int(cached)))
    except (OSError, KeyError, ValueError):
        return free


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
