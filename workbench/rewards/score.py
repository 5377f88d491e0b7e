"""Calling reward functions as TRL 1.16 does (GRPOTrainer._calculate_rewards), and checking what they answer.

The differences, all towards telling more: a function without `**kwargs` gets only what it names (TRL would
raise); numbers are kept in float64 (TRL: float32); NaN and infinity are errors (TRL takes NaN for None and
lets infinity into the update).
"""

from __future__ import annotations

import inspect
import math
import numbers
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np

from workbench.errors import Interrupted, RewardError, did_you_mean
from workbench.rewards import asynchronous
from workbench.rewards.signature import (
    GIVEN,
    NOT_PASSED,
    check_functions,
    is_async,
    names,
    parameters,
    select,
    short,
)

LOOK_SECONDS = 10.0
"""how long to look for the row that makes a function raise, when it raised on a batch"""
NOTHING_DONE = "Nothing was updated."


@dataclass(frozen=True)
class TrainerState:
    """What a reward that asks for `trainer_state` sees: the fields of transformers' TrainerState that
    apply.
    """

    global_step: int = 0
    """steps done so far"""
    max_steps: int = 0
    epoch: float = 0.0


@dataclass(frozen=True)
class RewardTable:
    """Rewards of N completions.

    `parts`: by function name, float64 (N,), NaN where the function returned None. `total`: float64 (N,), the
    weighted sum over the parts that are numbers; NaN where none is. `logged_metrics`: what functions gave to
    `log_metric`, the mean where a name was logged more than once. `extra`: what they gave to `log_extra`, one
    value a completion.
    """

    parts: dict[str, np.ndarray]
    total: np.ndarray
    logged_metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.total)


@dataclass
class _Call:
    """One function, what it is called with, and what it logs while it runs."""

    name: str
    fn: Callable
    offered: dict[str, Any]
    completions: list
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        number = as_number(value)
        if number is None:
            raise TypeError(f"log_metric({name!r}, {short(value, 60)}): a metric is one number")
        self.metrics.setdefault(str(name), []).append(number)

    def log_extra(self, column: str, values: Iterable) -> None:
        self.extra.setdefault(str(column), []).extend(values)

    def arguments(self, rows: Sequence[int] | None = None, quiet: bool = False) -> dict[str, Any]:
        """Keyword arguments for the rows (None: all), in fresh lists: no function can spoil another's."""

        def pick(values):
            return list(values) if rows is None else [values[i] for i in rows]

        per_row = {name: pick(values) for name, values in self.offered.items() if name != "trainer_state"}
        logs = (
            {"log_metric": _ignore, "log_extra": _ignore}
            if quiet
            else {"log_metric": self.log_metric, "log_extra": self.log_extra}
        )
        return select(self.fn, {**per_row, **logs, "trainer_state": self.offered["trainer_state"]})


def score(
    rewards: Sequence[Callable],
    weights: Sequence[float] | None,
    prompts: Sequence[str | list[dict]],
    completions: Sequence[str | list[dict]],
    completion_ids: Sequence[Sequence[int]] | None,
    columns: Mapping[str, Sequence],
    *,
    reward_names: Sequence[str] | None = None,
    trainer_state: Any = None,
) -> RewardTable:
    """Rewards of N completions, as TRL 1.16 computes them.

    `prompts`, `completions`, `completion_ids` and each of `columns` have length N (a column: the row's value,
    repeated for each of its completions). Completions are text; where the prompts are conversations each is
    handed on as `[{"role": "assistant", "content": text}]`. `completion_ids` is None where there are none.
    Every function gets prompts, completions, completion_ids, the columns (but `prompt` and `completion`),
    trainer_state, log_extra and log_metric by keyword, or what it names of them. Async functions run side by
    side, after the others.

    When a function raises on the batch it is called again row by row, with a log that goes nowhere and for 10
    seconds at most, only to name the first row that makes it raise: a function with side effects sees those
    calls. Raises RewardError when a function raises, answers with the wrong number of rewards, or with
    something that is not a finite number or None; then no function's answer is used.
    """
    check_functions(rewards, weights)
    reward_names = list(reward_names) if reward_names is not None else names(rewards)
    offered = _offer(prompts, completions, completion_ids, columns)
    offered["trainer_state"] = TrainerState() if trainer_state is None else trainer_state
    n = len(prompts)
    calls = [
        _Call(name, fn, offered, offered["completions"])
        for name, fn in zip(reward_names, rewards, strict=True)
    ]
    for call in calls:
        _check_offer(call)
    answers: dict[str, np.ndarray] = {}
    if n == 0:
        answers = {name: np.zeros(0) for name in reward_names}
    else:
        later = [call for call in calls if is_async(call.fn)]
        for call in (call for call in calls if not is_async(call.fn)):
            answers[call.name] = _parse(call, _call_one(call), n)
        outputs = asynchronous.gather([_starter(call) for call in later])
        for call, output in zip(later, outputs, strict=True):
            if isinstance(output, BaseException):
                _raised(call, output)
            answers[call.name] = _parse(call, output, n)
    parts = {name: answers[name] for name in reward_names}
    return RewardTable(parts, total(parts, weights), _merge_metrics(calls), _merge_extra(calls, n))


def total(parts: Mapping[str, np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted sum (N,) over the parts (N,) that are numbers; NaN where all are NaN."""
    stacked = np.stack(list(parts.values()), axis=1)  # (N, F)
    weighted = stacked * (np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64))
    return np.where(np.isnan(stacked).all(axis=1), np.nan, np.nansum(weighted, axis=1))


def _offer(prompts, completions, completion_ids, columns) -> dict[str, Any]:
    """Everything a function can ask for that has one entry a completion; RewardError where lengths differ."""
    prompts = list(prompts)
    chat = bool(prompts) and not isinstance(prompts[0], str)
    wrapped = [
        [{"role": "assistant", "content": c}] if chat and isinstance(c, str) else c for c in completions
    ]
    offered = {name: list(values) for name, values in columns.items() if name not in NOT_PASSED}
    for clash in sorted(set(offered) & set(GIVEN)):
        raise RewardError(f"Rename the row column {clash!r}: reward functions have another use for it.")
    offered = {"prompts": prompts, "completions": wrapped, **offered}
    if completion_ids is not None:
        offered["completion_ids"] = [list(ids) for ids in completion_ids]
    for name, values in offered.items():
        if len(values) != len(prompts):
            raise RewardError(f"Scoring {len(prompts)} completions: {name!r} has {len(values)} entries.")
    # Text without ids: completions that were given as text. An empty list would pass for a length of 0.
    ids = offered.get("completion_ids", [])
    if any(text and not own for text, own in zip(completions, ids, strict=False)):
        del offered["completion_ids"]
    return offered


def _check_offer(call: _Call) -> None:
    for parameter in parameters(call.fn)[1]:
        if parameter in call.offered or parameter in ("log_extra", "log_metric"):
            continue
        if parameter == "completion_ids":
            raise _wrong(call, "needs completion_ids, but these completions were given as text: sample them.")
        options = [*call.offered, "log_extra", "log_metric"]
        near = did_you_mean(parameter, options)
        what = f"needs {parameter!r}, which is not a column of the rows.{near}"
        raise _wrong(call, f"{what} There are: {', '.join(options)}.")


def _wrong(call: _Call, what: str) -> RewardError:
    return RewardError(f"The reward function {call.name!r} {what} {NOTHING_DONE}")


def _starter(call: _Call) -> Callable:
    return lambda: call.fn(**call.arguments())


def _call_one(call: _Call, rows: Sequence[int] | None = None, quiet: bool = False) -> Any:
    """What the function gives, awaited if need be; errors as `_raised` tells them, unless `quiet`."""
    try:
        output = call.fn(**call.arguments(rows, quiet))
        if inspect.isawaitable(output):
            (output,) = asynchronous.gather([lambda: output])
            if isinstance(output, BaseException):
                raise output
        return output
    except Interrupted:
        raise
    except Exception as error:  # a user's function may raise anything
        if quiet:
            raise
        _raised(call, error)


def _raised(call: _Call, error: BaseException) -> NoReturn:
    """RewardError for a function that raised: which row it was, found by calling it on single rows."""
    if isinstance(error, Interrupted) or not isinstance(error, Exception):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    what = f"raised {type(error).__name__}: {str(error)[:500]}{place}"
    raise _wrong(call, f"{what}, {_find_row(call)}") from error


def _find_row(call: _Call) -> str:
    n = len(call.completions)
    if n == 1:
        return f"for row 0, the completion {short(call.completions[0])}."
    deadline = time.monotonic() + LOOK_SECONDS
    for i in range(n):
        if time.monotonic() > deadline:
            return f"for a batch of {n} completions; the first {i}, each alone, are not the cause."
        try:
            _call_one(call, [i], quiet=True)
        except Interrupted:
            raise
        except Exception:  # a user's function: this is the row it fails on
            return f"for row {i} of {n} (counted from 0), the completion {short(call.completions[i])}."
    return f"for the batch of {n} completions, though for none of them alone."


def _parse(call: _Call, output: Any, n: int) -> np.ndarray:
    """float64 (N,) from what a function answered: None becomes NaN; RewardError for anything not a reward."""
    values = _as_list(call, output, n)
    if len(values) != n:
        raise _wrong(
            call,
            f"returned {len(values)} rewards for {n} completions; it must return exactly one per completion, "
            "None where it does not apply.",
        )
    answer = np.full(n, np.nan)
    for i, value in enumerate(values):
        if value is None:
            continue
        number = as_number(value)
        if number is None or not math.isfinite(number):
            advice = "a reward must be finite"
            if number is None:
                advice = "a reward is a number or None"
            elif math.isnan(number):
                advice = "return None where the function does not apply"
            what = f"{short(value, 60)} ({type(value).__name__}) for row {i} of {n} (counted from 0)"
            raise _wrong(call, f"returned {what}; {advice}. Completion: {short(call.completions[i])}.")
        answer[i] = number
    return answer


def _as_list(call: _Call, output: Any, n: int) -> list:
    if output is None:
        raise _wrong(call, "returned None, not a list: is a `return` missing?")
    unordered = isinstance(output, (str, bytes, Mapping, Set)) or not isinstance(output, Iterable)
    if unordered or getattr(output, "ndim", 1) == 0:
        what = f"{short(output, 80)} ({type(output).__name__})"
        raise _wrong(call, f"returned {what}, not a list of {n} rewards, one per completion.")
    if hasattr(output, "tolist"):  # numpy arrays, torch tensors, pandas series
        if getattr(output, "ndim", 1) != 1:
            shape = tuple(output.shape)
            raise _wrong(call, f"returned an array of shape {shape}; ({n},) is one reward per completion.")
        return output.tolist()
    try:
        return list(output)
    except Exception as error:  # a generator that raises on its way
        _raised(call, error)


def as_number(value: Any) -> float | None:
    """`value` as a float; None if it is not one number. numpy scalars, 0-d arrays and tensors are."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (numbers.Real, Decimal)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def _merge_metrics(calls: Sequence[_Call]) -> dict[str, float]:
    logged: dict[str, list[float]] = {}
    for call in calls:
        for name, values in call.metrics.items():
            logged.setdefault(name, []).extend(values)
    return {name: sum(values) / len(values) for name, values in logged.items()}


def _merge_extra(calls: Sequence[_Call], n: int) -> dict[str, list]:
    """One list of N per logged column; "<function>/<column>" where two functions logged different ones."""
    merged: dict[str, list] = {}
    for call in calls:
        for column, values in call.extra.items():
            if len(values) != n:
                given = f"gave log_extra({column!r}, ...) {len(values)} values for {n} completions"
                raise _wrong(call, f"{given}; give one per completion.")
            clash = column in merged and merged[column] != values
            merged[f"{call.name}/{column}" if clash else column] = values
    return merged


def _ignore(*args: Any, **kwargs: Any) -> None:
    """A log that goes nowhere."""
