"""Text as the rest of the bench can keep and show it, numbers in words. No imports of ours, no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")

_CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI "
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
).split()

# Characters that act without being seen: control, format (zero width, direction, tags), filler and surrogate code
# points, line and paragraph separators. New line and tab are left; so are the few format characters that have a
# picture of their own (Arabic number signs), and variation selectors, which emoji are full of.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)

SIZES = (" B", " KB", " MB", " GB", " TB")
"""units of bytes, for `scaled`"""


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


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return f"⟨{_CONTROLS[code]}⟩"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"


def visible(value: object) -> str:
    """`value` as text in which nothing hides: control, zero-width and direction characters stand as signs.

    New lines and tabs stay as they are; half a surrogate pair becomes U+FFFD.
    """
    text = value if isinstance(value, str) else str(value)
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_sign, text)


def scaled(n: float, units: Sequence[str]) -> str:
    """`n` to three digits with the unit of its thousands, the smallest first: 5,080,000 is "5.08 MB" in SIZES."""
    power = 0
    while n >= 999.5 and power < len(units) - 1:
        n, power = n / 1000, power + 1
    return f"{n:.3g}{units[power]}"


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
