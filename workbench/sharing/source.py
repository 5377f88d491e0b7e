"""Functions as source text, for a script that defines them again: a notebook's reward functions and what they use."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from workbench.errors import WorkbenchError


class NoSource(WorkbenchError):
    """Why a function cannot be written down."""


def definition(fn: Callable) -> tuple[list[str], dict[str, str]]:
    """Import lines, and {name: source} of `fn` with the helpers and constants it uses, what is used before its user.

    Raises NoSource for what has no source of its own: lambdas, methods, objects, functions that use variables of a
    function around them, or names whose value cannot be written down.
    """
    imports: list[str] = []
    parts: dict[str, str] = {}
    _collect(fn, imports, parts)
    return imports, parts


def _collect(fn: Any, imports: list[str], parts: dict[str, str]) -> None:
    if not isinstance(fn, FunctionType) or fn.__name__ == "<lambda>":
        raise NoSource("it is not a plain function with a name")
    if fn.__code__.co_freevars:
        raise NoSource(f"it uses {', '.join(fn.__code__.co_freevars)} of the function around it")
    try:
        text = textwrap.dedent(inspect.getsource(fn))
        tree = ast.parse(text)
    except (OSError, SyntaxError) as error:
        raise NoSource("this process has no source text of it") from error
    if len(tree.body) != 1 or not isinstance(tree.body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise NoSource("its source is not one definition")
    parts[fn.__name__] = ""  # first, so that functions may use each other; filled below
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {fn.__name__}
    for name in sorted(used):
        if name in fn.__globals__ and name not in parts:
            _need(name, fn.__globals__[name], imports, parts)
        elif name not in fn.__globals__ and not hasattr(builtins, name) and name not in _own(tree):
            raise NoSource(f"it uses {name}, which is not defined")
    del parts[fn.__name__]
    parts[fn.__name__] = text if text.endswith("\n") else text + "\n"


def _own(tree: ast.AST) -> set[str]:
    """Names that the function itself makes: arguments, assignments, loops, imports, definitions inside."""
    made = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    made |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {
        a.asname or a.name.split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, (ast.Import, ast.ImportFrom))
        for a in n.names
    }
    made |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return made | {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}


def _need(name: str, value: Any, imports: list[str], parts: dict[str, str]) -> None:
    """What the global `name` of a function is, as an import or as a definition."""
    if isinstance(value, ModuleType):
        line = f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    elif (module := getattr(value, "__module__", None)) not in (None, "__main__") and _importable(value, module):
        own = value.__qualname__
        line = f"from {module} import {own}" + (f" as {name}" if own != name else "")
    elif isinstance(value, FunctionType):
        _collect(value, imports, parts)
        if value.__name__ != name:
            parts[name] = f"{name} = {value.__name__}\n"
        return
    else:
        parts[name] = f"{name} = {_literal(name, value)}\n"
        return
    if line not in imports:
        imports.append(line)


def _importable(value: Any, module: str) -> bool:
    qualname = getattr(value, "__qualname__", "")
    return qualname.isidentifier() and getattr(sys.modules.get(module), qualname, None) is value


def _literal(name: str, value: Any) -> str:
    if isinstance(value, re.Pattern):
        return f"__import__('re').compile({value.pattern!r}, {value.flags})"
    try:
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    except (ValueError, SyntaxError, TypeError, MemoryError):
        pass
    try:
        shown = json.dumps(value, default=repr)[:40]
    except (TypeError, ValueError):
        shown = type(value).__name__
    raise NoSource(f"it uses {name}, whose value ({shown}) cannot be written down")
