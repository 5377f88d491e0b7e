"""Functions as JSON, so that a run can go on in a new process: where to import a reward from, if that is
enough.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from typing import Any


def refer(fn: Callable) -> dict[str, Any] | None:
    """How to rebuild `fn` in a new process: {"path": "module:qualname"} and, for an object or a partial,
    arguments.

    A function: its path, if importing that gives this very function. An object with a call: the path of its
    class and its attributes, if these are exactly the arguments of the class and JSON can carry them. A
    functools.partial with keywords only: the same for what is inside. None for all else: what a notebook or a
    script defines (its module is __main__), functions inside functions, lambdas.
    """
    if isinstance(fn, functools.partial):
        inner = None if fn.args or not _is_json(fn.keywords) else refer(fn.func)
        return None if inner is None else {"partial": inner, "arguments": fn.keywords}
    if inspect.isfunction(fn) or inspect.isbuiltin(fn):
        return _path(fn)
    found = _path(type(fn))
    try:
        arguments = dict(vars(fn))
        accepted = set(inspect.signature(type(fn)).parameters)
    except (TypeError, ValueError):
        return None
    if found is None or set(arguments) != accepted or not _is_json(arguments):
        return None
    return {**found, "arguments": arguments}


def resolve(reference: dict[str, Any]) -> Callable:
    """The function that `refer` described. ImportError or AttributeError where it is not there any more."""
    if "partial" in reference:
        return functools.partial(resolve(reference["partial"]), **reference["arguments"])
    module, _, qualname = reference["path"].partition(":")
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found(**reference["arguments"]) if "arguments" in reference else found


def _path(thing: Any) -> dict[str, Any] | None:
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not module or module == "__main__" or "<" in qualname:
        return None
    reference = {"path": f"{module}:{qualname}"}
    try:
        return reference if resolve(reference) is thing else None
    except (ImportError, AttributeError, ValueError):
        return None


def _is_json(value: Any) -> bool:
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        return False
