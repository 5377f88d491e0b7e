"""Stop strings: whether a completion's text contains one of them, asked after each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MARGIN = 8
"""tokens looked at beyond those that a stop string can span, as text may begin in the middle of a letter"""


class StopStrings:
    """Which completions contain one of `strings`; `text` gives the text of ids.

    Only the last tokens are decoded, as many as have the text of the longest string and some more: so they hold any
    stop string that the newest token completes. The whole completion is decoded to confirm it.
    """

    def __init__(self, strings: Sequence[str], text: Callable[[list[int]], str]):
        self.strings, self.text = tuple(strings), text
        self.reach = max(len(string.encode()) for string in strings) + MARGIN
        self.ids: dict[int, list[int]] = {}

    def completed(self, row: int, token: int) -> bool:
        """Whether this token of the row completes a stop string."""
        ids = self.ids.setdefault(row, [])
        ids.append(token)
        size = self.reach
        tail = self.text(ids[-size:])
        while len(tail.encode()) < self.reach and size < len(ids):  # tokens without text stand among them
            size *= 2
            tail = self.text(ids[-size:])
        if not any(string in tail for string in self.strings):
            return False
        whole = self.text(ids)
        return any(string in whole for string in self.strings)
