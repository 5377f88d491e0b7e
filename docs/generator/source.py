"""The package as griffe reads it from its source: nothing of it is imported for its signatures and docstrings."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import griffe

from docs.generator import markdown

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
"""a longer signature has a line for each parameter"""


@cache
def module(path: str) -> griffe.Module:
    """A module of the package, from its file alone. (A whole package in one tree would hide `rewards/score.py`
    behind the function `score` that rewards/__init__.py imports from it.)"""
    folder = ROOT.joinpath(*path.split("."))
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return griffe.visit(path, filepath=file, code=file.read_text(encoding="utf-8"))


def find(path: str, name: str) -> griffe.Object:
    """The object `name` of the module `path`, wherever it was imported from."""
    found = module(path).members[name]
    if not found.is_alias:
        return found
    origin, _, there = found.target_path.rpartition(".")
    return find(origin, there)


def docstring(thing: griffe.Object) -> str:
    return thing.docstring.value if thing.docstring else ""


def signature(called: str, function: griffe.Function, result: bool = True) -> str:
    """`called(...) -> ...` in a Python block, without `self`."""
    given = parameters(function)
    answer = f" -> {function.returns}" if result and function.returns is not None else ""
    short = f"{called}({', '.join(given)}){answer}"
    if len(short) > WIDTH and given:
        short = f"{called}(\n" + "".join(f"    {one},\n" for one in given) + f"){answer}"
    return f"```python\n{short}\n```"


def parameters(function: griffe.Function) -> list[str]:
    """Each parameter as it is written, without `self`."""
    kind = griffe.ParameterKind
    made, star = [], False
    for one in function.parameters:
        if one.name in ("self", "cls"):
            continue
        if one.kind is kind.keyword_only and not star:
            made.append("*")
        star = star or one.kind in (kind.keyword_only, kind.var_positional)
        mark = {kind.var_positional: "*", kind.var_keyword: "**"}.get(one.kind, "")
        said = f"{mark}{one.name}" + (f": {one.annotation}" if one.annotation is not None else "")
        equals = " = " if one.annotation else "="
        made.append(said + ("" if one.default is None or mark else f"{equals}{quoted(str(one.default))}"))
    return made


def required(function: griffe.Function) -> str:
    """The parameters that must be given, by name; `...` for the others."""
    kind = griffe.ParameterKind
    given = [p for p in function.parameters if p.name not in ("self", "cls")]
    must = [p for p in given if p.default is None and p.kind not in (kind.var_positional, kind.var_keyword)]
    return ", ".join([p.name for p in must] + ["..."] * (len(must) < len(given)))


def quoted(value: str) -> str:
    """A default with double quotes, as the source has them."""
    return re.sub(r"'([^'\"\\\\]*)'", r'"\1"', value)


def public(owner: griffe.Object) -> dict[str, griffe.Object]:
    """The members that are defined there and meant for others, in the order of the source."""
    return {
        name: member
        for name, member in owner.members.items()
        if not name.startswith("_") and not member.is_alias and member.runtime
    }


def fields(owner: griffe.Class) -> dict[str, griffe.Attribute]:
    """The annotated attributes of a dataclass, in order."""
    return {
        name: member
        for name, member in public(owner).items()
        if member.is_attribute and "property" not in member.labels and member.annotation is not None
    }


def is_dataclass(owner: griffe.Class) -> bool:
    return any(str(decorator.value).startswith("dataclass") for decorator in owner.decorators)


def constructor(called: str, owner: griffe.Class) -> str:
    """The call that makes one: of a dataclass its fields, else `__init__`."""
    if "__init__" in owner.members:
        return signature(called, owner.members["__init__"], result=False)
    given = [
        f"{name}: {field.annotation}" + (f" = {quoted(_default(str(field.value)))}" if field.value is not None else "")
        for name, field in fields(owner).items()
    ]
    short = f"{called}({', '.join(given)})"
    if len(short) > WIDTH and given:
        short = f"{called}(\n" + "".join(f"    {one},\n" for one in given) + ")"
    return f"```python\n{short}\n```"


def _default(value: str) -> str:
    """`field(default_factory=lambda: ["a"])` as `["a"]`, `field(default_factory=list)` as `[]`."""
    if value.startswith("field(default_factory="):
        made = value.removeprefix("field(default_factory=").removesuffix(")").removeprefix("lambda: ")
        return {"list": "[]", "dict": "{}", "set": "set()", "tuple": "()"}.get(made, made)
    return value


def attribute_rows(owner: griffe.Class) -> list[list[str]]:
    """Name and meaning of each documented attribute, of each property, and of each second name of a method."""
    rows = []
    for name, member in public(owner).items():
        if not member.is_attribute:
            continue
        said = markdown.line(docstring(member))
        if not said and "property" in member.labels and member.annotation is not None:
            said = markdown.code(str(member.annotation))
        if not said and str(member.value) in owner.members and owner.members[str(member.value)].is_function:
            said = f"the same as `{member.value}()`"
        if said:
            rows.append([markdown.code(name), said])
    return rows
