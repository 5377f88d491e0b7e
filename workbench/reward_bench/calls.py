"""Calling reward functions as training does, whatever they do: raise, hang, change what they are given.

A function is called through `rewards.score`, so that it gets what training would give it, in copies. All calls are
made on one thread of their own, which can be given up when a call takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import functools
import inspect
import math
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench import rewards, worker
from workbench.errors import RewardError
from workbench.reward_bench.answers import Answer
from workbench.rewards import asynchronous
from workbench.rewards.score import as_number
from workbench.rewards.signature import is_async, short
from workbench.text import clean

LATE_CALLS = 3
"""calls that may run past the time-out before a function is not called any more"""
GRACE = 1.0
"""seconds that a call which is asked to stop gets"""


@dataclass
class Cell:
    """What one function made of one answer. `state`: "number", "none", "nan", "infinite", "raised", "late" (past the
    time-out), "wrong" (no list of rewards) or "not called"."""

    state: str
    value: float = math.nan
    trouble: str = ""
    """what went wrong, for people, on one line"""
    trace: str = ""
    """the whole traceback, where it raised"""


@dataclass
class Called:
    """One function over all answers."""

    name: str
    cells: list[Cell] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """of a completion: the time of a call over the completions in it"""
    differs: list[int] = field(default_factory=list)
    """answers that a second call scored otherwise"""
    together: str = ""
    """what went wrong with several completions, though with none alone"""
    late: int = 0
    stuck: bool = False
    """a call could not be stopped: it goes on in the background"""


class Late(Exception):
    """A call ran past its time-out. `stuck`: it could not be stopped either."""

    def __init__(self, stuck: bool):
        super().__init__()
        self.stuck = stuck


class _Stop(BaseException):
    """Raised inside a call that takes too long. Not an Exception: the function is not to catch it."""


class _Hand:
    """A thread that makes calls, one at a time, and is left behind when one hangs."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._loop, name="workbench-rewards", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            call, done, answer, cell = job
            worker.set_cell_parent(cell)  # what the function prints belongs under the cell that asked
            try:
                answer.append((call(), None))
            except BaseException as error:  # the caller raises it
                answer.append((None, error))
            finally:
                done.set()
            if isinstance(answer[0][1], _Stop):
                return

    def do(self, call: Callable[[], Any], seconds: float) -> Any:
        done, answer = threading.Event(), []
        self.jobs.put((call, done, answer, worker.cell_parent()))
        try:
            if not done.wait(seconds):
                raise Late(self._stop(done))
        except KeyboardInterrupt:
            self._stop(done)
            raise
        value, error = answer[0]
        if error is not None:
            raise error
        return value

    def _stop(self, done: threading.Event) -> bool:
        """Ask the call to stop and leave this thread behind. True where it does not stop (it is not in Python)."""
        global _hand
        _hand = None
        self.jobs.put(None)  # should the function catch even that, its thread ends with the call
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(_Stop))
        return not done.wait(GRACE)


_hand: _Hand | None = None


def _do(call: Callable[[], Any], seconds: float) -> Any:
    global _hand
    if _hand is None or not _hand.thread.is_alive():
        _hand = _Hand()
    return _hand.do(call, seconds)


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """The global generators of Python, NumPy and torch stand afterwards as they stood before. torch's on the worker:
    in the middle of a step it is the step's."""
    torch = sys.modules.get("torch")
    ours, arrays = random.getstate(), np.random.get_state()
    tensors = None if torch is None else worker.call(torch.get_rng_state)
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(arrays)
        if tensors is not None:
            worker.call(torch.set_rng_state, tensors)


def run(
    functions: Mapping[str, Callable],
    answers: Sequence[Answer],
    rows: Any,
    timeout: float,
    before: Mapping[str, Called] | None = None,
) -> dict[str, Called]:
    """Every function over every answer. The answers to one row are one call, as a group is in training; where that goes
    wrong, each of them is a call of its own, so that what went wrong has a place. Then all is called once more.

    `before`: earlier calls of the same functions, whose late ones count.
    """
    by_row: dict[int, list[int]] = {}
    for at, answer in enumerate(answers):
        by_row.setdefault(answer.row, []).append(at)
    made = {}
    for name, fn in functions.items():
        called = made[name] = Called(name, [Cell("not called")] * len(answers))
        called.late = before[name].late if before else 0
        for row, places in by_row.items():
            _one_row(called, fn, rows[row], places, answers, timeout)
    return made


def _one_row(
    called: Called, fn: Callable, row: dict, places: list[int], answers: Sequence[Answer], timeout: float
) -> None:
    if called.late >= LATE_CALLS:
        return
    own = [answers[i] for i in places]
    cells = _call(called, fn, row, own, timeout)
    if isinstance(cells, Cell):
        trouble = cells.trouble
        if cells.state == "not called":
            for place in places:
                called.cells[place] = cells
            return
        for place in places:
            if called.late < LATE_CALLS:
                alone = _call(called, fn, row, [answers[place]], timeout)
                called.cells[place] = alone if isinstance(alone, Cell) else alone[0]
        if all(called.cells[place].state in ("number", "none", "nan", "infinite") for place in places):
            called.together = called.together or trouble
        return
    for place, cell in zip(places, cells, strict=True):
        called.cells[place] = cell
    second = _call(called, fn, row, own, timeout)
    for n, place in enumerate(places):
        again = second if isinstance(second, Cell) else second[n]
        first = called.cells[place]
        if again.state != first.state or not (again.value == first.value or again.value != again.value):
            called.differs.append(place)


def _call(called: Called, fn: Callable, row: dict, own: Sequence[Answer], timeout: float) -> list[Cell] | Cell:
    """The cells of these answers, or one that says what went wrong with all of them."""
    watch = Watch(fn, len(own), timeout)
    try:
        # what waits for others is stopped by its own loop, and gets the time for that
        _do(lambda: watch.through(called.name, row, own), timeout + GRACE * is_async(fn))
        if watch.late:
            raise Late(stuck=False)
    except Late as late:
        called.late += 1
        called.stuck |= late.stuck
        return Cell("late", trouble=f"took longer than {timeout:g} s")
    except RewardError as error:  # it was not called at all
        said = str(error).removesuffix(" Nothing was updated.").removeprefix(f"The reward function {called.name!r} ")
        return Cell("not called", trouble=said)
    called.seconds.append(watch.seconds / len(own))
    if watch.error is not None:
        return Cell("raised", trouble=describe(watch.error), trace=trace_of(watch.error))
    return cells_of(watch.output, len(own))


class Watch:
    """A reward function that notes what it answers or raises, and how long it takes."""

    def __init__(self, fn: Callable, n: int, timeout: float):
        self.fn, self.n, self.timeout = fn, n, timeout
        self.output: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.late = False

    def through(self, name: str, row: dict, own: Sequence[Answer]) -> None:
        """Called by `rewards.score`, with copies of one row of a task and so many answers to it."""
        ids = [list(answer.ids) for answer in own] if all(answer.ids is not None for answer in own) else None
        rows = [copy.deepcopy(row) for _ in own]  # in training, too, each completion has its own
        prompts = [own_row.pop("prompt") for own_row in rows]
        columns = {column: [own_row[column] for own_row in rows] for column in rows[0]}
        texts = [answer.text for answer in own]
        rewards.score([self.wrapped()], None, prompts, texts, ids, columns, reward_names=[name])

    def wrapped(self) -> Callable:
        """A function with the same signature that always answers with zeros."""
        if is_async(self.fn):

            async def waits(**given: Any) -> list[float]:
                began = time.perf_counter()
                try:
                    async with asyncio.timeout(self.timeout) as limit:
                        self.output = _kept(await self.fn(**given))
                except _Stop:
                    raise
                except BaseException as error:  # a user's function may raise anything, SystemExit too
                    self.error, self.late = error, limit.expired()
                self.seconds = time.perf_counter() - began
                return [0.0] * self.n

            return functools.wraps(self.fn)(waits)

        def watched(**given: Any) -> list[float]:
            began = time.perf_counter()
            try:
                output = self.fn(**given)
                if inspect.isawaitable(output):
                    (output,) = asynchronous.gather([lambda: output])
                    if isinstance(output, BaseException):
                        raise output
                self.output = _kept(output)
            except _Stop:
                raise
            except BaseException as error:  # a user's function may raise anything, SystemExit too
                self.error = error
            self.seconds = time.perf_counter() - began
            return [0.0] * self.n

        return functools.wraps(self.fn)(watched)


def _kept(output: Any) -> Any:
    """What a function answered; a generator run to its end, as it may raise on its way."""
    if isinstance(output, Iterable) and not hasattr(output, "__len__"):
        return list(output)
    return output


def cells_of(output: Any, n: int) -> list[Cell] | Cell:
    """Each reward of an answer as `rewards.score` reads it, but NaN and infinity are noted, not refused."""
    if output is None:
        return Cell("wrong", trouble="returned None, not a list: is a `return` missing?")
    if (
        isinstance(output, (str, bytes, Mapping, Set))
        or getattr(output, "ndim", 1) != 1
        or not hasattr(output, "__len__")
    ):
        return Cell(
            "wrong", trouble=f"returned {short(output, 80)} ({type(output).__name__}), not a list of {n} rewards"
        )
    values = output.tolist() if hasattr(output, "tolist") else list(output)
    if len(values) != n:
        return Cell("wrong", trouble=f"returned {len(values)} rewards for {n} completions")
    return [_cell(value) for value in values]


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell("none")
    number = as_number(value)
    if number is None:
        return Cell("wrong", trouble=f"returned {short(value, 60)} ({type(value).__name__}), which is no number")
    if math.isnan(number):
        return Cell("nan", trouble="returned NaN")
    if math.isinf(number):
        return Cell("infinite", trouble=f"returned {number}")
    return Cell("number", number)


def describe(error: BaseException) -> str:
    """The error on one line, with the last line of the user's own code."""
    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(worker.PACKAGE)
    ]
    last = own[-1] if own else None
    place = f" (line {last.lineno} of {last.filename.rpartition('/')[2]}: {last.line})" if last else ""
    return f"{type(error).__name__}: {_said(error)[:300]}{place}"


def trace_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(worker.PACKAGE)] or list(frames)
    return "".join(traceback.format_list(own))[-4000:] + f"{type(error).__name__}: {_said(error)[:1000]}"


def _said(error: BaseException) -> str:
    try:
        return clean(str(error))
    except (Exception, SystemExit):  # somebody else's __str__
        return "(an error whose text cannot be had)"
