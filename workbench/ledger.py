"""What a piece of torch code allocates, told from a run of it on little: the same code on more is then foretold.

`recorded` notes every tensor that comes into being and goes while a function runs. The code on twice the tokens makes
the same tensors in the same order, each larger: none of it grows faster than the square of the length. So three runs at
small lengths say how each tensor grows, and with that what lives at any moment of a run at full length (`Growth`).

Tensors are seen as operations return them: what an operation needs only within itself (a kernel's workspace) is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Ledger(TorchDispatchMode):
    """While it is on: `sizes` of the storages that come into being, and `events`, their numbers in order: n + 1 where
    number n comes, -(n + 1) where it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.events: list[int] = []
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, new=False)  # weights and what else was there before
        made = function(*args, **kwargs)
        for tensor in _tensors(made):
            self._note(tensor, new=True)
        return made

    def _note(self, tensor: torch.Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        place, number = storage._cdata, len(self.sizes) if new else -1
        if place in self._seen or not storage.nbytes():
            return
        if new:
            self.sizes.append(storage.nbytes())
            self.events.append(number + 1)

        def gone(_) -> None:
            self._seen.pop(place, None)
            if number >= 0:
                self.events.append(-(number + 1))

        self._seen[place] = weakref.ref(storage, gone)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@dataclass(frozen=True)
class Record:
    """Sizes in bytes of the storages a function made, in order, and when each came (n + 1) and went (-(n + 1))."""

    sizes: np.ndarray
    """(N,) int64"""
    events: np.ndarray
    """(E,) int64"""
    between: np.ndarray
    """(N,) bool: no storage, but the most that lived at once between two halves, which is not followed further"""

    def peak(self) -> int:
        """Most bytes alive at once."""
        return int(_course(self.sizes, self.events).max(initial=0))


def recorded(function: Callable[[], object], trunk: nn.Module | None = None) -> Record:
    """What `function()` allocates. What it returns is let go only after the record has ended.

    `trunk`: what comes after a forward of this module, until its backward pass or its next forward begins, is told by
    the most that it holds: how many pieces it is done in may hang on how much there is to do.
    """
    ledger = _Ledger()
    marks: list[tuple[int, bool]] = []
    with _marking(trunk, lambda begins: marks.append((len(ledger.events), begins))), ledger:
        kept = function()
    marks.append((len(ledger.events), False))
    regions = [(at, until) for (at, begins), (until, _) in pairwise(marks) if begins]
    made = _folded(ledger.sizes, ledger.events, regions)
    del kept
    return made


@contextmanager
def _marking(trunk: nn.Module | None, mark: Callable[[bool], None]) -> Iterator[None]:
    """Calls `mark(True)` where a forward of `trunk` ends, `mark(False)` where one begins or its backward does."""
    if trunk is None:
        yield
        return

    def ends(_module, _inputs, output) -> None:
        mark(True)
        hidden = output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda _grad: mark(False))

    hooks = [trunk.register_forward_pre_hook(lambda *_: mark(False)), trunk.register_forward_hook(ends)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _folded(sizes: Sequence[int], events: Sequence[int], regions: Sequence[tuple[int, int]]) -> Record:
    """The record with each region of the events as one coming and going of the most that lived in it; then what was
    born there and lives on comes, and what died there goes."""
    made_sizes: list[int] = []
    made_events: list[int] = []
    between: list[bool] = []
    number: dict[int, int] = {}

    def come(size: int, name: int | None = None) -> int:
        made_sizes.append(size)
        between.append(name is None)
        made_events.append(len(made_sizes))
        if name is not None:
            number[name] = len(made_sizes)
        return len(made_sizes)

    def follow(part: Sequence[int]) -> None:
        for event in part:
            if event > 0:
                come(sizes[event - 1], event)
            else:
                made_events.append(-number[-event])

    at = 0
    for first, last in regions:
        follow(events[at:first])
        part, at = events[first:last], last
        made_events.append(-come(int(_course(np.array(sizes), np.array(part, dtype=np.int64)).max(initial=0))))
        born, died = {e for e in part if e > 0}, {-e for e in part if e < 0}
        follow([e for e in part if (e > 0 and e not in died) or (e < 0 and -e not in born)])
    follow(events[at:])
    return Record(np.array(made_sizes, dtype=np.int64), np.array(made_events, dtype=np.int64), np.array(between, bool))


def _course(sizes: np.ndarray, events: np.ndarray) -> np.ndarray:
    """(E,) bytes alive after each event."""
    return np.cumsum(np.sign(events) * sizes[np.abs(events) - 1]) if len(events) else np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class Peak:
    """The fullest moment: bytes alive then, by kind."""

    bytes: float
    gradients: float
    """of tensors that do not grow with the text and stay to the end: gradients of weights"""
    head: float
    """of what lives between the trunk's two halves only"""
    activations: float
    """everything else"""


@dataclass(frozen=True)
class Growth:
    """How each storage grows with the size x of the work: bytes = constant + linear x + square x^2."""

    constant: np.ndarray
    linear: np.ndarray
    square: np.ndarray
    events: np.ndarray
    between: np.ndarray
    largest: np.ndarray
    """(N,) bytes at the largest size of the records"""
    slope: np.ndarray
    """(N,) bytes that what lives between the halves gains with its own unit of size"""

    def at(self, x: float, more: float = 1.0, head: float = 0.0) -> Peak:
        """The fullest moment at size `x`.

        `more`: the growing parts are so many times as large (more rows of the same length). `head`: how much larger
        what lives between the halves is than in the largest record, in the unit that `growth` was told of.
        """
        sizes = self.constant + more * (self.linear * x + self.square * x * x)
        sizes[self.between] = (self.largest + head * self.slope)[self.between]
        if not len(self.events):
            return Peak(0.0, 0.0, 0.0, 0.0)
        course = _course(sizes, self.events)
        last = int(course.argmax())
        alive = np.zeros(len(sizes), dtype=bool)
        for event in self.events[: last + 1]:
            alive[abs(event) - 1] = event > 0
        stays = np.ones(len(sizes), dtype=bool)
        stays[-self.events[self.events < 0] - 1] = False
        fixed = stays & (self.linear == 0) & (self.square == 0) & ~self.between
        kinds = (fixed, self.between, ~fixed & ~self.between)
        return Peak(float(course[last]), *(float(sizes[alive & kind].sum()) for kind in kinds))


def alike(records: Sequence[Record]) -> bool:
    """Whether the records tell of the same tensors in the same order."""
    return all(np.array_equal(one.events, records[0].events) for one in records)


def growth(records: Sequence[Record], sizes: Sequence[float], heads: Sequence[float] = (0, 0, 0)) -> Growth:
    """How what the three `records` allocated at `sizes` grows; `heads`: the sizes of what lives between two halves,
    which need not grow with the others.

    Where they are not `alike` (experts that get tokens or none), the largest
    stands alone: what has the same size in all of them is constant, the rest is taken to grow with the size.
    """
    first, second, third = records
    if alike(records):
        y = np.stack([one.sizes for one in records]).astype(np.float64)  # (3, N)
        a, b, c = map(float, sizes)
        square = ((y[2] - y[1]) / (c - b) - (y[1] - y[0]) / (b - a)) / (c - a)
        square = np.where(square * c * c > 1e-6 * y[2], square, 0.0)
        linear = np.maximum((y[2] - y[0]) / (c - a) - square * (a + c), 0.0)
        constant = np.maximum(y[2] - linear * c - square * c * c, 0.0)
        slope = np.maximum(y[2] - y[0], 0.0) / (heads[2] - heads[0] or np.inf)
    else:
        fixed = np.isin(third.sizes, first.sizes) & np.isin(third.sizes, second.sizes)
        constant = np.where(fixed, third.sizes, 0.0)
        linear, square = np.where(fixed, 0.0, third.sizes / sizes[2]), np.zeros(len(third.sizes))
        slope = np.ones(len(third.sizes))
    return Growth(constant, linear, square, third.events, third.between, third.sizes.astype(np.float64), slope)
