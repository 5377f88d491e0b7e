"""Tables of settings: name, default, values, meaning; from the dataclasses and the docstrings under their fields."""

from __future__ import annotations

import dataclasses
from typing import Any

from docs.generator import source
from docs.generator.markdown import code, line, table
from workbench import settings

MANY = 8
"""more choices than these are told by their page, not in the table"""


def methods() -> list[str]:
    return list(settings.METHODS)


def common() -> str:
    """What every method takes."""
    rows = [_row(settings.Settings, field) for field in dataclasses.fields(settings.Settings)]
    head = (
        "### Settings of every method\n\nChecked before any work starts; `run.set(...)` changes them from the next"
        " step on, but for those marked *fixed*."
    )
    return f"{head}\n\n{_table(rows)}"


def own(method: str) -> str:
    """What this method takes besides, and where its default is another one."""
    kind = settings.METHODS[method]
    usual = {field.name: field for field in dataclasses.fields(settings.Settings)}
    rows, moved = [], []
    for field in dataclasses.fields(kind):
        if field.name not in usual:
            rows.append(_row(kind, field))
        elif _default(field) != _default(usual[field.name]):
            moved.append(_row(kind, field))
    said = (
        f"Settings of `wb.{method}` beyond [those of every method](#settings-of-every-method)"
        + ("; the first rows are those with another default" if moved else "")
        + ":"
    )
    return f"{said}\n\n{_table(moved + rows)}"


def _table(rows: list[list[str]]) -> str:
    return table(["setting", "default", "values", "what it does"], rows)


def _row(kind: type, field: dataclasses.Field) -> list[str]:
    return [code(field.name), code(literal(_default(field))), _values(field), line(docstring_of(kind, field.name))]


def _default(field: dataclasses.Field) -> Any:
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def literal(value: Any) -> str:
    """A value as it would be written in a cell: strings in double quotes, 1e-5 as such."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float) and value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, _, exponent = f"{value:.15e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return repr(value)


def _values(field: dataclasses.Field) -> str:
    """The type and the rule: `int | None ≥ 1`."""
    rule, said = field.metadata, []
    choices = [choice for choice in rule.get("choices", ()) if isinstance(choice, str)]
    kind = str(field.type)
    if choices:
        listed = ", ".join(code(literal(choice)) for choice in choices)
        said.append(listed if len(choices) <= MANY else f"one of {len(choices)}: see [losses](losses.md)")
        kind = " | ".join(part for part in kind.split(" | ") if part != "str")
    if kind:
        said.append(code(kind))
    signs = {"at_least": "≥", "above": ">", "at_most": "≤", "below": "<"}
    said += [f"{sign} {rule[name]:g}" for name, sign in signs.items() if rule.get(name) is not None]
    if rule.get("fixed"):
        said.append("*fixed*")
    return " ".join(said)


def docstring_of(kind: type, name: str) -> str:
    """The words under the field, of the class nearest to `kind` that has any.

    One docstring may stand under several fields that begin with the same word (`vespo_k_pos`, `vespo_k_neg`).
    """
    for owner in kind.__mro__:
        written = list(vars(owner).get("__annotations__", {}))
        if name not in written:
            continue
        members = source.find(owner.__module__, owner.__name__).members
        for other in written[written.index(name) :]:
            if other.split("_")[0] != name.split("_")[0]:
                break
            if said := source.docstring(members[other]):
                return said
    return ""
