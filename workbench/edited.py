"""Reward functions that were edited in a notebook while a run still uses the earlier ones.

A run holds the function objects it was given. Defining `correct` again in a cell makes another object, which the run
does not know of: after each cell this is noticed, and said once for each edit, with the call that makes the run use it.

Covered are functions, lambdas, `functools.partial` and callable objects that stand in a variable of the notebook; two
are the same where their code, default values, and what they hold (plain values, other functions) are the same, so a
cell that is run again unchanged says nothing. What a function finds by name when it is called (a helper of the
notebook) needs no call, since Python uses the new one at once, and neither does a function that autoreload changes in
its place: that is said, as the run's record would not show it.
Not covered: what a function imports, data it reads, and objects that are no plain values.
"""

from __future__ import annotations

import dis
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from workbench.rewards.signature import names as names_of

PLAIN = (int, float, complex, str, bytes, bool, type(None))
ITSELF = ""
MOST = 100
"""items of a container that are compared"""


@dataclass(frozen=True)
class Edit:
    """The run rewards with an earlier `variable` than the notebook has."""

    name: str
    """of the reward, as the run's metrics have it"""
    variable: str
    function: Callable
    """the new one"""
    call: str
    """what makes the run use it"""


@dataclass
class _Seen:
    """What is known of a reward function that a run uses."""

    function: Callable
    variable: str | None
    helpers: dict[str, Any] = field(default_factory=dict)
    said: Any = None
    """the fingerprint of the last edit that was said"""


_watched: weakref.WeakKeyDictionary[Any, dict[str, _Seen]] = weakref.WeakKeyDictionary()


def watch(run: Any) -> None:
    """Compare the run's reward functions with the notebook's after each cell; nothing outside IPython."""
    shell = _shell()
    if shell is None:
        return
    _watched[run] = {}
    _look(run, shell.user_ns)
    if _after_cell not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _after_cell)


def edits(run: Any) -> list[Edit]:
    """What was edited and is not used by the run yet."""
    shell = _shell()
    if shell is None or run not in _watched:
        return []
    space = shell.user_ns
    changed = {name: seen.variable for name, seen in _look(run, space).items() if _edited(seen, space)}
    if not changed:
        return []
    call = _call(run, space)
    return [Edit(name, variable, space[variable], call) for name, variable in changed.items()]


def with_edits(run: Any) -> tuple[dict[str, Callable], list[float]]:
    """The run's reward functions by name, in their order, the edited ones new; and their weights."""
    task = _task(run)
    return task.functions | {edit.name: edit.function for edit in edits(run)}, list(task.weights)


def variable_of(run: Any) -> str:
    """The notebook's variable that holds the run; "run" where there is none."""
    shell = _shell()
    return (_bound(run, shell.user_ns) if shell is not None else None) or "run"


# -- after a cell ----------------------------------------------------------------------------------------------


def _after_cell(_result: Any = None) -> None:
    shell = _shell()
    if shell is None:
        return
    for run in list(_watched):
        now = edits(run)
        for name in _watched[run].keys() - {edit.name for edit in now}:
            _watched[run][name].said = None  # taken back: said again when it comes again
        found = [edit for edit in now if _unsaid(run, edit)]
        if found:
            print(_note(run, found))
        for name, helper in _new_helpers(run, shell.user_ns):
            one = f"`{helper}`, which the reward `{name}` of run {run.name} calls,"
            if helper == ITSELF:
                one = f"The reward `{name}` of run {run.name}"
            print(
                f"{one} was edited: the run scores with the new one from its next step on, and its record does not show"
                f" that. To have it there: {_call(run, shell.user_ns)}"
            )


def _note(run: Any, found: list[Edit]) -> str:
    variables = " and ".join(f"`{edit.variable}`" for edit in found)
    were, ones = ("was", "one") if len(found) == 1 else ("were", "ones")
    return (
        f"{variables} {were} edited, but run {run.name} still rewards with the earlier {ones}."
        f" To use {'it' if len(found) == 1 else 'them'} from the next step: {found[0].call}"
    )


def _unsaid(run: Any, edit: Edit) -> bool:
    """Whether this edit was not said yet; from now on it was."""
    seen, now = _watched[run][edit.name], fingerprint(edit.function)
    if seen.said == now:
        return False
    seen.said = now
    return True


def _new_helpers(run: Any, space: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(reward, helper) for each helper of the notebook, or the reward itself, that was edited where it stands since it
    was looked at last."""
    for name, seen in _look(run, space).items():
        now = _helpers(seen.function)
        for helper, made in now.items():
            if seen.helpers.get(helper, made) != made and not _edited(seen, space):
                yield name, helper
        seen.helpers = now


# -- looking ---------------------------------------------------------------------------------------------------


def _shell() -> Any:
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def _task(run: Any) -> Any:
    """The task of a run that may still take a step here, or None."""
    if run._released or run._lock is None or run.engine.finished():
        return None
    return getattr(run.engine.live.data, "task", None)


def _look(run: Any, space: Mapping[str, Any]) -> dict[str, _Seen]:
    """The reward functions that the run uses now, and the variables they stand in."""
    task = _task(run)
    known = _watched[run]
    functions = {} if task is None else task.functions
    for name in [name for name in known if name not in functions]:
        del known[name]
    for name, function in functions.items():
        if name not in known or known[name].function is not function:
            known[name] = _Seen(function, _first_bound(function, space), _helpers(function))
    return known


def _first_bound(function: Callable, space: Mapping[str, Any]) -> str | None:
    """The variable of `function`: its own name before any other. A function of the notebook whose name means another
    one by now was edited before it was looked at."""
    own = getattr(function, "__name__", "")
    if own in space and (space[own] is function or getattr(function, "__module__", None) == "__main__"):
        return own
    return _bound(function, space)


def _bound(value: Any, space: Mapping[str, Any]) -> str | None:
    """The variable that holds `value` itself; not one of IPython's (`_`, `_12`)."""
    return next((name for name, held in list(space.items()) if held is value and not name.startswith("_")), None)


def _edited(seen: _Seen, space: Mapping[str, Any]) -> bool:
    now = space.get(seen.variable) if seen.variable else None
    if now is seen.function or not callable(now) or isinstance(now, type):
        return False
    return fingerprint(now) != fingerprint(seen.function)


def _variable(seen: _Seen, space: Mapping[str, Any]) -> str | None:
    """Where the function, or what was made of it since, stands in the notebook."""
    held = callable(space.get(seen.variable)) if seen.variable else False
    return seen.variable if held else _bound(seen.function, space)


def _call(run: Any, space: Mapping[str, Any]) -> str:
    """`run.set(rewards=[...])` with the notebook's names, in the run's order and with its weights."""
    task = _task(run)
    written = {name: _variable(seen, space) for name, seen in _look(run, space).items()}
    made = [space[variable] if variable else task.functions[name] for name, variable in written.items()]
    unknown = [name for name, variable in written.items() if variable is None]
    if names_of(made) == task.reward_names:
        listed = f"[{', '.join(variable or '...' for variable in written.values())}]"
    else:
        listed = "{" + ", ".join(f"{name!r}: {variable or '...'}" for name, variable in written.items()) + "}"
    weights = "" if set(task.weights) == {1.0} else f", weights={[float(f'{w:g}') for w in task.weights]}"
    rest = f" (for each ... the function that you gave for {', '.join(unknown)})" if unknown else ""
    return f"{variable_of(run)}.set(rewards={listed}{weights}){rest}"


# -- what a function is ----------------------------------------------------------------------------------------


def fingerprint(thing: Any, around: tuple[int, ...] = ()) -> Any:
    """Equal for two callables that do the same by all that can be seen in them."""
    if id(thing) in around:
        return "itself"
    around = (*around, id(thing))
    if isinstance(thing, partial):
        return "partial", fingerprint(thing.func, around), _held(thing.args, around), _held(thing.keywords, around)
    if isinstance(thing, MethodType):
        return "method", fingerprint(thing.__func__, around), _held(thing.__self__, around)
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents if _filled(cell) else None for cell in thing.__closure__ or ()]
        held = (thing.__defaults__ or (), thing.__kwdefaults__ or {}, cells)
        return "function", _code(thing.__code__, thing.__doc__), _held(held, around)
    call = getattr(type(thing), "__call__", None)  # noqa: B004
    made = fingerprint(call, around) if isinstance(call, FunctionType) else None
    return type(thing).__qualname__, made, _held(getattr(thing, "__dict__", {}), around)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _held(value: Any, around: tuple[int, ...]) -> Any:
    """Plain values as they are, functions and containers by what is in them; of anything else its kind alone."""
    if isinstance(value, PLAIN):
        return type(value).__name__, repr(value) if value != value else value  # NaN is not itself
    if isinstance(value, (list, tuple)):
        return type(value).__name__, len(value), [_held(item, around) for item in value[:MOST]]
    if isinstance(value, dict):
        items = list(value.items())[:MOST]
        return "dict", len(value), [(str(key), _held(item, around)) for key, item in items]
    if isinstance(value, (FunctionType, partial, MethodType)):
        return fingerprint(value, around)
    return type(value).__qualname__


def _code(code: CodeType, doc: str | None = None) -> Any:
    """What the code does: not where it stands, nor how its lines are laid out, nor what its docstring says."""
    constants = [_code(c) if isinstance(c, CodeType) else (type(c).__name__, c) for c in code.co_consts]
    if doc is not None and code.co_consts[:1] == (doc,):
        constants[0] = ("NoneType", None)  # as without one
    kinds = code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, kinds


def _helpers(function: Any, found: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `function` runs beside what was given: the functions of the notebook that it calls by name, theirs too, with
    their fingerprints; and itself, which `autoreload` changes in its place."""
    while isinstance(function, partial):
        function = function.func
    if found is None:
        found = {ITSELF: _code(function.__code__, function.__doc__)} if isinstance(function, FunctionType) else {}
    if not isinstance(function, FunctionType):
        function = getattr(type(function), "__call__", None)  # noqa: B004
    if not isinstance(function, FunctionType) or function.__module__ != "__main__":
        return found
    for name in _names(function.__code__):
        helper = function.__globals__.get(name)
        if isinstance(helper, FunctionType) and helper.__module__ == "__main__" and name not in found:
            found[name] = fingerprint(helper)
            _helpers(helper, found)
    return found


def _names(code: CodeType) -> list[str]:
    """Those that the code looks up, not those of attributes."""
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c)]
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return [*own, *inner]
