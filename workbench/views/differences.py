"""What differs between two texts, word by word: one comparison for groups, for steps and for two runs."""

from __future__ import annotations

import re
from collections import Counter
from difflib import SequenceMatcher

from workbench.views.text import visible

Segment = tuple[str, str]

_WORDS = re.compile(r"\S+\s*|\s+")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
MOST_PAIRS = 300_000
"""equal pairs of words that the comparison may look at: what its time grows with"""
MOST_WORDS = 6000


def segments(a: str, b: str) -> list[Segment]:
    """How `b` came from `a`: ("same" | "delete" | "insert", text), in order.

    The texts of "same" and "delete" make up `a`, those of "same" and "insert" make up `b`. Words are compared; long
    texts of few different words are compared by lines, and what is too long even so is deleted and inserted whole.
    """
    start = _common(a, b)
    a_rest, b_rest = a[start:], b[start:]
    end = _common(a_rest[::-1], b_rest[::-1], backwards=True)
    a_rest, b_rest = a_rest[: len(a_rest) - end], b_rest[: len(b_rest) - end]
    middle = _compared(a_rest, b_rest)
    return _joined([("same", a[:start]), *middle, ("same", a[len(a) - end :])])


def shown(parts: list[Segment]) -> list[list[str]]:
    """Segments as a page gets them: lists, and text in which nothing hides."""
    return [[kind, visible(text)] for kind, text in parts]


def _common(a: str, b: str, backwards: bool = False) -> int:
    """Leading characters that both share, up to the last end of a word among them."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high] and len(a) == len(b):
        return high
    while low < high:  # slices compare in C, so halving beats walking
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    while low and not _edge(a, b, low, backwards):
        low -= 1
    return low


def _edge(a: str, b: str, at: int, backwards: bool) -> bool:
    """Whether a word (with the space after it) ends before `at` in both."""
    if backwards:  # the texts run from their end: a word begins where a space was just passed
        return all(at == len(text) or text[at].isspace() for text in (a, b)) and not a[at - 1].isspace()
    return a[at - 1].isspace() and all(at == len(text) or not text[at].isspace() for text in (a, b))


def _compared(a: str, b: str) -> list[Segment]:
    for pattern in (_WORDS, _LINES):
        left, right = pattern.findall(a), pattern.findall(b)
        counts = Counter(right)
        pairs = sum(n * counts[word] for word, n in Counter(left).items())
        if pairs <= MOST_PAIRS and max(len(left), len(right)) <= MOST_WORDS:
            return _matched(left, right)
    return [("delete", a), ("insert", b)]


def _matched(left: list[str], right: list[str]) -> list[Segment]:
    made: list[Segment] = []
    for tag, i, j, k, m in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            made.append(("same", "".join(left[i:j])))
        else:
            made += _replaced("".join(left[i:j]), "".join(right[k:m]))
    return made


def _replaced(a: str, b: str) -> list[Segment]:
    """One stretch for another; the space that both end with is no difference."""
    end = 0
    while end < min(len(a), len(b)) and a[-1 - end] == b[-1 - end] and a[-1 - end].isspace():
        end += 1
    cut = len(a) - end
    return [("delete", a[:cut]), ("insert", b[: len(b) - end]), ("same", a[cut:])]


def _joined(parts: list[Segment]) -> list[Segment]:
    """Without empty ones, and neighbours of a kind as one."""
    made: list[Segment] = []
    for kind, text in parts:
        if text and made and made[-1][0] == kind:
            made[-1] = (kind, made[-1][1] + text)
        elif text:
            made.append((kind, text))
    return made
