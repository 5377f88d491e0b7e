"""What a reward function is called, and what it asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workbench.errors import DataError, SettingError, did_you_mean

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""what every call offers besides the rows' columns, as in TRL"""
NOT_PASSED = ("prompt", "completion", "completion_ids")
"""columns that TRL does not hand on: the lists above stand for them"""


def unwrapped(fn: Callable) -> Callable:
    """The function inside functools.partial, however deep."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def is_async(fn: Callable) -> bool:
    """Whether calling `fn` gives a coroutine: async functions, partials of them, objects with an async
    call.
    """
    fn = unwrapped(fn)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def names(rewards: Iterable[Callable]) -> list[str]:
    """A name for each function: its `__name__` (an object's class), "name_2" where one comes again.

    Used in metrics as `rewards/<name>/mean`.
    """
    taken: list[str] = []
    for fn in rewards:
        inner = unwrapped(fn)
        base = str(getattr(inner, "__name__", type(inner).__name__)).strip("<>") or "reward"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.append(name)
    return taken


def parameters(fn: Callable) -> tuple[list[str], list[str], bool]:
    """(all names, those without a default, whether any further keyword is taken) of `fn`, self left out.

    A callable without a readable signature counts as taking anything.
    """
    try:
        found = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return [], [], True
    by_name = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in by_name if p.default is p.empty]
    required += [p.name for p in found if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    return [p.name for p in by_name], required, any(p.kind is p.VAR_KEYWORD for p in found)


def select(fn: Callable, offered: dict[str, Any]) -> dict[str, Any]:
    """The part of `offered` that `fn` takes: all of it with `**kwargs`, else what it names."""
    known, _, takes_all = parameters(fn)
    return dict(offered) if takes_all else {name: offered[name] for name in known if name in offered}


def weight_list(weights: Any, reward_names: Sequence[str]) -> Any:
    """Weights by name as a list in the order of the functions, 1 for those not named; all else as it is.

    SettingError for a name that no function has.
    """
    if not isinstance(weights, Mapping):
        return weights
    for name in weights:
        if name not in reward_names:
            near = did_you_mean(str(name), reward_names)
            raise SettingError(
                f"weights has {name!r}, which is no reward function.{near} There are: {', '.join(reward_names)}."
            )
    return [weights.get(name, 1.0) for name in reward_names]


def check_functions(rewards: Any, weights: Any = None) -> None:
    """Raise SettingError unless `rewards` is a non-empty list of callables and `weights` goes with it."""
    if callable(rewards):
        raise SettingError(f"rewards must be a list of functions: write rewards=[{names([rewards])[0]}].")
    if isinstance(rewards, str) or not isinstance(rewards, Sequence) or len(rewards) == 0:
        raise SettingError(f"rewards must be a list of at least one function, not {short(rewards)}.")
    for i, fn in enumerate(rewards):
        if inspect.isclass(fn):
            raise SettingError(f"rewards[{i}] is the class {fn.__name__}; make one: {fn.__name__}(...).")
        if any((c.__module__, c.__name__) == ("torch.nn.modules.module", "Module") for c in type(fn).__mro__):
            raise SettingError(
                f"rewards[{i}] is a torch module ({type(fn).__name__}), not a function. Write one that "
                "tokenises the completions, calls the model and returns a list of numbers."
            )
        if not callable(fn):
            raise SettingError(
                f"rewards[{i}] is {short(fn)}, not a function fn(prompts, completions, **columns)."
            )
    if weights is None:
        return
    if isinstance(weights, (str, dict)) or not hasattr(weights, "__len__") or len(weights) != len(rewards):
        count = len(weights) if hasattr(weights, "__len__") else 1
        raise SettingError(
            f"weights must be one number per reward function: {len(rewards)} functions, {count} weights."
        )
    for i, weight in enumerate(weights):
        if isinstance(weight, (str, bool)) or not _finite(weight):
            raise SettingError(f"weights[{i}] is {short(weight)}; a weight is a finite number.")


def check_columns(rewards: Sequence[Callable], reward_names: Sequence[str], columns: Iterable[str]) -> None:
    """Raise DataError unless the rows have a column for each parameter that a function cannot do without."""
    columns = [name for name in columns if name not in NOT_PASSED]
    for clash in sorted(set(columns) & set(GIVEN)):
        raise DataError(f"Rename the row column {clash!r}: reward functions have another use for it.")
    for fn, name in zip(rewards, reward_names, strict=True):
        for parameter in parameters(fn)[1]:
            if parameter in columns or parameter in GIVEN:
                continue
            raise DataError(
                f"The reward function {name!r} needs {parameter!r}, which is not a column of the rows."
                f"{did_you_mean(parameter, [*columns, *GIVEN])} "
                f"Columns: {', '.join(columns) or 'only the prompt'}; always there: {', '.join(GIVEN)}. "
                "Give the parameter a default if the function can do without."
            )


def short(value: Any, limit: int = 160) -> str:
    """`repr` for a message: control characters escaped, the middle left out where it is long."""
    try:
        text = repr(value)
    except Exception:  # a repr of someone else's, or a whole number of more than 4,300 digits
        text = f"<{type(value).__name__}>"
    if len(text) <= limit:
        return text
    return f"{text[: limit - 50]} ... {text[-40:]}"


def _finite(value: Any) -> bool:
    try:
        return abs(float(value)) != float("inf") and float(value) == float(value)
    except (TypeError, ValueError):
        return False
