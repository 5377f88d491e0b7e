"""A small language for choosing rollouts: `reward < 0.5 and n_tokens > 200`, read by Python's parser, run over columns.

    reward, step, n_tokens, finish_reason, prompt, completion, answer, ...     the columns
    rewards.correct, rewards["odd name"], columns["odd name"]                  reward parts; a part's bare name will do
    < <= > >= == != in, not in, + - * /, and, or, not                          0.2 < reward <= 0.5, step in (1, 2, 3)
    reward is None, advantage is not nan                                       whether there is a value
    contains(completion, "x"), "x" in completion                               without regard to case; exactly
    startswith(), endswith(), len(), lower(), abs()

Nothing else is understood: an expression is never run as Python. What has no value fits no comparison but `!=`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import DataError, did_you_mean
from workbench.views.text import one_line, whole

ALIASES = {"group": "group_id", "finish": "finish_reason", "tokens": "n_tokens", "text": "completion"}
MISSING = {"nan", "null", "missing"}
LONGEST = 4000
DEEPEST = 60

HINTS = {
    "&&": "write and", "||": "write or", "&": "write and", "|": "write or", "~": "write not", "=": "for equal write ==",
}  # fmt: skip
_COMPARE = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}


@dataclass(frozen=True)
class Value:
    """What a part of an expression stands for: `data` is an array (N,), or one value for all rows."""

    kind: str
    """number, text, truth, missing, or list"""
    data: Any

    def __str__(self) -> str:
        return {"missing": "None", "list": "a list", "truth": "true or false"}.get(self.kind, f"a {self.kind}")


def mask(expression: str, column: Callable[[str], np.ndarray], names: Sequence[str], n: int) -> np.ndarray:
    """Which of `n` rows fit: bool (n,). `column(name)` gives the values of one of `names`, (n,).

    Raises DataError, saying where, for what cannot be read.
    """
    if not expression.strip():
        return np.ones(n, dtype=bool)
    source = " ".join(expression.split("\n")).strip()
    reader = _Reader(source, column, names, n)
    with np.errstate(all="ignore"):
        made = reader.truth(reader.tree)
    return np.broadcast_to(np.asarray(made, dtype=bool), (n,)).copy()


class _Reader:
    """One expression over one table; a method for each kind of node that may stand in it."""

    def __init__(self, source: str, column: Callable[[str], np.ndarray], names: Sequence[str], n: int):
        self.source, self.column, self.n = source, column, n
        self.names = dict.fromkeys(names)
        self.depth = 0
        self.tree = self._parse()

    def _parse(self) -> ast.expr:
        if len(self.source) > LONGEST:
            raise DataError(f"The filter is {len(self.source):,} characters long; {LONGEST:,} is the most.")
        try:
            return ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            raise DataError(self._unread(error)) from None
        except (ValueError, RecursionError, MemoryError):  # NUL characters, or nested beyond reason
            raise DataError("The filter cannot be read: it has characters or depths that no filter needs.") from None

    def _unread(self, error: SyntaxError) -> str:
        at = error.offset or 0
        if not at:
            return f"The filter ends too early: {self._cited(len(self.source))}"
        near = self.source[max(0, at - 2) : at + 1]
        hint = next((f" ({hint})" for sign, hint in HINTS.items() if sign in near and "==" not in near), "")
        return f"The filter cannot be read at character {at}{hint}: {self._cited(at)}"

    def _cited(self, at: int) -> str:
        """The expression, or what stands around character `at` of a long one."""
        start = max(0, at - 60)
        return one_line(self.source[start:], 120) if start == 0 else "…" + one_line(self.source[start:], 100)

    def wrong(self, node: ast.AST, why: str) -> DataError:
        offset = getattr(node, "col_offset", 0)  # in bytes
        at = len(self.source.encode()[:offset].decode("utf-8", "ignore")) + 1
        return DataError(f"The filter cannot be used: {why} (at character {at} of: {self._cited(at)})")

    # -- values ----------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> Value:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.wrong(node, f"it has no {_said(node)}.{_hint_of(node)}")
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.wrong(node, "it is nested too deeply.")
        made = method(node)
        self.depth -= 1
        return made

    def truth(self, node: ast.expr) -> Any:
        made = self.value(node)
        if made.kind != "truth":
            raise self.wrong(node, f"{_short(node)} is {made}; compare it with something, as in {_short(node)} == …")
        return made.data

    def _constant(self, node: ast.Constant) -> Value:
        if node.value is None:
            return Value("missing", None)
        if isinstance(node.value, bool):
            return Value("truth", node.value)
        if isinstance(node.value, str):
            return Value("text", node.value)
        if isinstance(node.value, (int, float)):
            try:
                return Value("number", float(node.value))
            except OverflowError:
                return Value("number", math.inf)
        raise self.wrong(node, f"{_short(node)} is neither a number nor a text.")

    def _name(self, node: ast.Name) -> Value:
        if node.id in MISSING and node.id not in self.names:
            return Value("missing", None)
        alias = ALIASES.get(node.id, node.id)
        for name in (node.id, alias, f"rewards/{node.id}"):
            if name in self.names:
                return self._column(name)
        if node.id in ("true", "false"):
            return Value("truth", node.id == "true")
        bare = {name.removeprefix("rewards/") for name in self.names}
        raise self.wrong(node, f"there is no column {node.id!r}.{did_you_mean(node.id, bare) or self._columns()}")

    def _attribute(self, node: ast.Attribute) -> Value:
        if isinstance(node.value, ast.Name) and node.value.id == "rewards":
            return self._part(node, node.attr)
        raise self.wrong(node, f"{_short(node)} means nothing here; only rewards.<name> has a dot.")

    def _subscript(self, node: ast.Subscript) -> Value:
        of, key = node.value, node.slice
        if isinstance(of, ast.Name) and isinstance(key, ast.Constant) and isinstance(key.value, str):
            if of.id == "rewards":
                return self._part(node, key.value)
            if of.id == "columns" and key.value in self.names:
                return self._column(key.value)
            if of.id == "columns":
                raise self.wrong(node, f"there is no column {key.value!r}.{did_you_mean(key.value, self.names)}")
        raise self.wrong(node, 'brackets stand in rewards["name"] and columns["name"] only.')

    def _part(self, node: ast.expr, name: str) -> Value:
        if f"rewards/{name}" in self.names:
            return self._column(f"rewards/{name}")
        parts = [n.removeprefix("rewards/") for n in self.names if n.startswith("rewards/")]
        known = did_you_mean(name, parts) or f" Its parts: {', '.join(parts) or 'none'}."
        raise self.wrong(node, f"no reward is called {name!r}.{known}")

    def _columns(self) -> str:
        return f" Columns: {', '.join(name for name in self.names if name.isidentifier())}."

    def _column(self, name: str) -> Value:
        values = self.column(name)
        if values.dtype == bool:
            return Value("truth", values)
        if values.dtype.kind in "iuf":
            return Value("number", values.astype("f8"))
        if all(type(v) is str for v in values):
            return Value("text", values)
        known = [v for v in values if v is not None]
        # true and false with gaps are 1, 0 and NaN: a gap is neither
        if known and all(isinstance(v, (int, float, np.number)) for v in known):
            return Value("number", np.array([math.nan if v is None else float(v) for v in values]))
        return Value("text", np.array([_text(v) for v in values], dtype=object))

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> Value:
        items = [self.value(item) for item in node.elts]
        if any(isinstance(item.data, np.ndarray) or item.kind in ("list", "missing") for item in items):
            raise self.wrong(node, "a list holds numbers or texts.")
        if len({item.kind for item in items}) > 1:
            raise self.wrong(node, "a list holds either numbers or texts.")
        return Value("list", items)

    _tuple = _set = _list

    # -- operators -------------------------------------------------------------------------------------------

    def _boolop(self, node: ast.BoolOp) -> Value:
        parts = [self.truth(value) for value in node.values]
        made = parts[0]
        for part in parts[1:]:
            made = np.logical_and(made, part) if isinstance(node.op, ast.And) else np.logical_or(made, part)
        return Value("truth", made)

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return Value("truth", np.logical_not(self.truth(node.operand)))
        if isinstance(node.op, ast.Invert):
            raise self.wrong(node, "~ means nothing here; write not.")
        data = self._number(node.operand)
        return Value("number", -data if isinstance(node.op, ast.USub) else data)

    def _binop(self, node: ast.BinOp) -> Value:
        apply = _ARITHMETIC.get(type(node.op))
        if apply is None:
            raise self.wrong(node, f"only + - * / are known.{_hint_of(node)}")
        return Value("number", apply(self._number(node.left), self._number(node.right)))

    def _number(self, node: ast.expr) -> Any:
        made = self.value(node)
        if made.kind not in ("number", "truth"):
            raise self.wrong(node, f"{_short(node)} is {made}, not a number.")
        return made.data if made.kind == "number" else np.asarray(made.data, dtype="f8")

    def _compare(self, node: ast.Compare) -> Value:
        made, left = None, node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self._one(op, left, right, node)
            made = part if made is None else np.logical_and(made, part)
            left = right
        return Value("truth", made)

    def _one(self, op: ast.cmpop, left: ast.expr, right: ast.expr, node: ast.Compare) -> Any:
        if isinstance(op, (ast.In, ast.NotIn)):
            made = self._within(left, right)
            return np.logical_not(made) if isinstance(op, ast.NotIn) else made
        a, b = self.value(left), self.value(right)
        if "missing" in (a.kind, b.kind):
            if type(op) not in (ast.Is, ast.IsNot, ast.Eq, ast.NotEq):
                raise self.wrong(node, "None has no size; write `is None` or `is not None`.")
            empty = _missing(a if b.kind == "missing" else b)
            return np.logical_not(empty) if isinstance(op, (ast.IsNot, ast.NotEq)) else empty
        if isinstance(op, (ast.Is, ast.IsNot)):
            raise self.wrong(node, "`is` goes with None only; write == or !=.")
        kinds = {"number" if v.kind == "truth" else v.kind for v in (a, b)}
        if len(kinds) > 1 or "list" in kinds:
            raise self.wrong(node, f"{_short(left)} is {a} and {_short(right)} is {b}: they cannot be compared.")
        apply = _COMPARE[type(op)]
        if kinds == {"number"}:
            return apply(np.asarray(a.data, dtype="f8"), np.asarray(b.data, dtype="f8"))
        unequal = isinstance(op, ast.NotEq)
        return self._each(lambda x, y: unequal if x is None or y is None else apply(x, y), a, b)

    def _within(self, left: ast.expr, right: ast.expr) -> Any:
        """`x in (1, 2)`, `"x" in completion`."""
        a, b = self.value(left), self.value(right)
        if b.kind == "list":
            items = {item.data for item in b.data}
            if items and a.kind != b.data[0].kind:
                raise self.wrong(left, f"{_short(left)} is {a}, and the list holds {b.data[0]} each.")
            if a.kind == "number":
                return np.isin(a.data, list(items))
            return self._each(lambda x, _: x in items, a, a)
        if a.kind == b.kind == "text":
            return self._each(lambda x, y: x is not None and y is not None and x in y, a, b)
        raise self.wrong(right, f"`in` looks into a text or a list, and {_short(right)} is {b}.")

    def _each(self, test: Callable[[Any, Any], Any], a: Value, b: Value) -> Any:
        if not isinstance(a.data, np.ndarray) and not isinstance(b.data, np.ndarray):
            return bool(test(a.data, b.data))
        pairs = zip(self._spread(a), self._spread(b), strict=True)
        return np.fromiter((test(x, y) for x, y in pairs), dtype=bool, count=self.n)

    def _spread(self, value: Value) -> Any:
        return value.data if isinstance(value.data, np.ndarray) else (value.data,) * self.n

    # -- functions -------------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Value:
        known = {"contains": 2, "startswith": 2, "endswith": 2, "len": 1, "lower": 1, "abs": 1}
        if not isinstance(node.func, ast.Name):
            raise self.wrong(node, f"{_short(node.func)} cannot be called. Functions: {', '.join(known)}.")
        name = node.func.id
        if name not in known:
            hint = did_you_mean(name, known) or f" Functions: {', '.join(known)}."
            raise self.wrong(node, f"there is no function {name!r}.{hint}")
        if len(node.args) != known[name] or node.keywords:
            raise self.wrong(node, f"{name}() takes {known[name]} value{'s' * (known[name] > 1)}.")
        if name == "abs":
            return Value("number", np.abs(self._number(node.args[0])))
        values = [self._words(arg) for arg in node.args]
        if name == "len":
            return Value("number", self._mapped(values[0], lambda x: math.nan if x is None else float(len(x)), "f8"))
        if name == "lower":
            return Value("text", self._mapped(values[0], lambda x: None if x is None else x.lower(), object))
        tests = {
            "contains": lambda x, y: y.lower() in x.lower(),
            "startswith": str.startswith,
            "endswith": str.endswith,
        }
        test = tests[name]
        return Value("truth", self._each(lambda x, y: x is not None and y is not None and test(x, y), *values))

    def _words(self, node: ast.expr) -> Value:
        made = self.value(node)
        if made.kind != "text":
            raise self.wrong(node, f"{_short(node)} is {made}, not a text.")
        return made

    def _mapped(self, value: Value, change: Callable[[Any], Any], kind: Any) -> Any:
        if not isinstance(value.data, np.ndarray):
            return change(value.data)
        made = np.empty(self.n, dtype=kind)
        made[:] = [change(v) for v in value.data]
        return made


def _missing(value: Value) -> Any:
    if value.kind == "missing":
        return True
    if not isinstance(value.data, np.ndarray):
        return value.kind == "number" and math.isnan(value.data)
    if value.kind == "number":
        return np.isnan(value.data)
    return np.fromiter((v is None for v in value.data), dtype=bool, count=len(value.data))


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str) else whole(value)


def _short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _said(node: ast.AST) -> str:
    names = {"IfExp": "if … else", "Lambda": "lambda", "JoinedStr": "f-strings", "NamedExpr": ":=", "Dict": "{…: …}"}
    return names.get(type(node).__name__, type(node).__name__.lower())


def _hint_of(node: ast.AST) -> str:
    signs = {ast.BitAnd: " Write and for &.", ast.BitOr: " Write or for |."}
    return signs.get(type(getattr(node, "op", None)), "")
