"""What each setting means, in the words that stand under its field: for a list that a person edits."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache

from workbench.settings import of


@cache
def meanings(method: str) -> dict[str, str]:
    """Setting -> what it does; the words of the class nearest to the method's own. "" where there are none."""
    kind = of(method)
    written = [_of_module(owner.__module__).get(owner.__name__, {}) for owner in kind.__mro__]
    return {name: next((words[name] for words in written if words.get(name)), "") for name in kind.__dataclass_fields__}


@cache
def _of_module(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the string under it. A string may stand under several fields whose names begin alike."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):  # no source: a frozen or built-in module
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(owner: ast.ClassDef) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in owner.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            waiting = [other for other in waiting if other.split("_")[0] == name.split("_")[0]] + [name]
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= dict.fromkeys(waiting, " ".join(node.value.value.split()))
            waiting = []
    return found
