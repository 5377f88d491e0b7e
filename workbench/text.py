"""Text as the rest of the bench can keep it. No imports of ours, no torch."""

from __future__ import annotations

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with lone surrogates (halves of a UTF-16 pair, as in `"\\ud83d"`) as U+FFFD; a whole pair
    becomes its character.

    Neither SQLite, nor UTF-8, nor a tokenizer takes a lone surrogate.
    """
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clean_all(value: Any) -> tuple[Any, int]:
    """`value` (text, or lists and dicts of it) with `clean` applied throughout, and the number of texts
    changed.

    What needs no change is returned as it is, not copied.
    """
    if isinstance(value, str):
        cleaned = clean(value)
        return cleaned, int(cleaned is not value)
    if isinstance(value, dict):
        pairs = {key: clean_all(item) for key, item in value.items()}
        changed = sum(count for _, count in pairs.values())
        return ({key: item for key, (item, _) in pairs.items()} if changed else value), changed
    if isinstance(value, list):
        items = [clean_all(item) for item in value]
        changed = sum(count for _, count in items)
        return ([item for item, _ in items] if changed else value), changed
    return value, 0


def shorten(text: str, limit: int = 60) -> str:
    """`text` in quotes on one line for a message, cut in the middle beyond `limit` characters."""
    if len(text) > limit:
        text = text[: limit // 2] + " … " + text[-limit // 2 :]
    return repr(text)


def common_prefix(first: Any, second: Any) -> int:
    """How many leading characters (of text) or items (of lists) the two have in common."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high:  # slices compare in C, so halving beats walking item by item
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
