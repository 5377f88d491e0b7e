"""Packing: which documents go together into packs of a given size. Pure functions of lengths.

    bfd         best fit decreasing: the longest document first, each into the fullest pack that has room for it
                (Ding et al. 2024, arXiv 2404.10830); what is longer than a pack loses its end
    bfd_split   the same, but a document longer than a pack is cut into several
    wrapped     one stream of tokens, cut wherever a pack is full; documents of a pack see each other

The packs are those of TRL 1.16's `pack_dataset`, which packs every thousand documents by themselves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

CHUNK = 1000
"""documents that are packed together, as in TRL"""


class Piece(NamedTuple):
    """Tokens [start, end) of document `document`."""

    document: int
    start: int
    end: int


def compose(lengths: Sequence[int], size: int, strategy: str = "bfd") -> list[list[Piece]]:
    """The pieces of each pack of at most `size` tokens, in order; documents without tokens are left out."""
    packs: list[list[Piece]] = []
    for first in range(0, len(lengths), CHUNK):
        chunk = [(first + i, n) for i, n in enumerate(lengths[first : first + CHUNK]) if n]
        if strategy == "wrapped":
            packs += _wrapped(chunk, size)
            continue
        if strategy == "bfd":
            pieces = [Piece(document, 0, min(n, size)) for document, n in chunk]
        else:
            pieces = [Piece(d, at, min(at + size, n)) for d, n in chunk for at in range(0, n, size)]
        packs += [[pieces[i] for i in pack] for pack in best_fit([p.end - p.start for p in pieces], size)]
    return packs


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Best fit decreasing: the documents of each pack, none longer than `size`.

    Equal lengths keep their order; of packs with the same room left, the one that got it first is taken.
    """
    packs: list[list[int]] = []
    rooms: list[int] = []  # sorted: what is left in the packs that are begun, each value once
    waiting: dict[int, deque[list[int]]] = {}  # room -> packs with it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, lengths[i])
        if at < len(rooms):
            room = rooms[at]
            pack = waiting[room].popleft()
            if not waiting[room]:
                rooms.pop(at)
        else:
            room, pack = size, []
            packs.append(pack)
        pack.append(i)
        room -= lengths[i]
        if room:
            if not waiting.setdefault(room, deque()):
                insort(rooms, room)
            waiting[room].append(pack)
    return packs


def side_by_side(lengths: Sequence[int]) -> list[int]:
    """A line for each sequence, so that the sequences laid end to end take few lines as wide as the longest one."""
    made = [0] * len(lengths)
    for line, pack in enumerate(best_fit(lengths, max(lengths, default=0))):
        for i in pack:
            made[i] = line
    return made


def _wrapped(chunk: list[tuple[int, int]], size: int) -> list[list[Piece]]:
    packs: list[list[Piece]] = []
    room = 0
    for document, n in chunk:
        at = 0
        while at < n:
            if not room:
                packs.append([])
                room = size
            end = min(n, at + room)
            packs[-1].append(Piece(document, at, end))
            room -= end - at
            at = end
    return packs
