"""What makes two solutions the same: their equations, lines or text; how far texts are apart; and arithmetic that is
read, never executed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

CLOSE = 1e-3
"""the sides of an equation that holds differ by less"""
CALCULATOR = re.compile(r"<<([^>]*)>>")
"""GSM8K's calculator marks: <<3*4=12>>"""
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?%?"
WRITTEN = re.compile(rf"(?<![\w.)])[-(]*{_NUMBER}\)*(?:[ \t]*[-+*/][ \t]*[-(]*{_NUMBER}\)*)+[ \t]*=[ \t]*-?{_NUMBER}")
"""an equation in plain text: numbers and signs, then what they come to"""
TOKEN = re.compile(r"\s*(?:(\d+(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)|([-+*/()%]))")
DEEP = 50
"""parentheses within parentheses"""


def value(text: str) -> float | None:
    """The value of an expression of numbers, + - * / ( ) and % (a hundredth); None for anything else.

    A recursive descent over tokens: text of a model is read, nothing in it is ever run.
    """
    tokens = _tokens(text)
    if not tokens:
        return None
    try:
        found, rest = _sum(tokens, 0, 0)
    except (ZeroDivisionError, OverflowError):
        return None
    return found if rest == len(tokens) else None


def _tokens(text: str) -> list[str] | None:
    made, at = [], 0
    text = text.strip()
    while at < len(text):
        if (found := TOKEN.match(text, at)) is None:
            return None
        made.append((found[1] or found[2]).replace(",", ""))
        at = found.end()
    return made


def _sum(tokens: list[str], at: int, depth: int) -> tuple[float | None, int]:
    left, at = _product(tokens, at, depth)
    while left is not None and at < len(tokens) and tokens[at] in "+-":
        sign = 1 if tokens[at] == "+" else -1
        right, at = _product(tokens, at + 1, depth)
        left = None if right is None else left + sign * right
    return left, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[float | None, int]:
    left, at = _factor(tokens, at, depth)
    while left is not None and at < len(tokens) and tokens[at] in "*/":
        divides = tokens[at] == "/"
        right, at = _factor(tokens, at + 1, depth)
        left = None if right is None else left / right if divides else left * right
    return left, at


def _factor(tokens: list[str], at: int, depth: int) -> tuple[float | None, int]:
    sign = 1
    while at < len(tokens) and tokens[at] in "+-":
        sign = -sign if tokens[at] == "-" else sign
        at += 1
    if at >= len(tokens) or depth > DEEP:
        return None, at
    if tokens[at] == "(":
        found, at = _sum(tokens, at + 1, depth + 1)
        if found is None or at >= len(tokens) or tokens[at] != ")":
            return None, at
    elif tokens[at][0].isdigit() or tokens[at][0] == ".":
        found = float(tokens[at])
    else:
        return None, at
    at += 1
    while at < len(tokens) and tokens[at] == "%":
        found, at = found / 100, at + 1
    return sign * found, at


def equations_of(text: str) -> list[str]:
    """The equations that a text shows: what stands in calculator marks, or where there are none, in plain text."""
    return CALCULATOR.findall(text) or WRITTEN.findall(text)


def holds(equation: str) -> bool:
    """Whether the first two sides of an equation are the same number; False where either cannot be read."""
    left, equals, rest = equation.partition("=")
    sides = [value(left), value(rest.partition("=")[0])]
    return bool(equals) and None not in sides and abs(sides[0] - sides[1]) < CLOSE


def equations(text: str) -> str | None:
    """The equations of a text without spaces, joined; None where one of them does not hold."""
    found = equations_of(text)
    return "|".join("".join(one.split()) for one in found) if all(map(holds, found)) else None


def lines(text: str) -> str:
    """The distinct lines of a text, sorted."""
    return "\n".join(sorted({" ".join(line.split()) for line in text.splitlines() if line.strip()}))


KEYS: dict[str, Callable[[str], str | None]] = {"equations": equations, "lines": lines, "text": str.strip}
"""by which solutions are told apart; None: not to be kept"""


def edits(a: str, b: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of characters."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def farther(text: str, than: str, others: Iterable[str]) -> bool:
    """Whether `text` is farther from the `others` (without `than`) than `than` is, by the sum of edits."""
    rest = [other for other in others if other != than]
    return sum(edits(text, other) for other in rest) > sum(edits(than, other) for other in rest)


def alike(a: Collection[str], b: Collection[str]) -> float:
    """Jaccard's similarity of two sets of tokens."""
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a | b else 1.0
