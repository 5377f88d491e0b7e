"""What a token id stands for, as text that people can read, one id at a time. No torch here.

A token is often no text by itself: in byte-level vocabularies it may be a part of a character, in others its leading
space is written as ▁. So that nothing is lost in showing one, a part of a character stands as its bytes, ⟨E2 82⟩.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from workbench.text import clean

Piece = tuple[str, bool]
"""text, and whether it is a special token"""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The pieces of a tokenizer's ids; each is worked out once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.known: dict[int, Piece] = {}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = {int(i) for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)

    def __getitem__(self, token_id: int) -> Piece:
        found = self.known.get(token_id)
        if found is None:
            found = self.known[token_id] = self._make(token_id)
        return found

    def of(self, sequences: Iterable[Iterable[int]]) -> dict[int, Piece]:
        """The pieces of all ids in `sequences`, each id once."""
        return {i: self[i] for i in set().union(*sequences)}

    def _make(self, token_id: int) -> Piece:
        token = self.tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self.tokenizer) else None
        if token is None:  # a row of the output matrix that no token uses
            return f"⟨id {token_id}⟩", False
        if token_id in self.special:
            return clean(token), True
        text = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if "\ufffd" in text:
            raw = bytes_of(token)
            text = text if raw is None else show_bytes(raw)
        elif token.startswith("▁") and not text.startswith(" "):  # decoding drops the space of a first word
            text = token.replace("▁", " ")
        return clean(text), False


def bytes_of(token: str) -> bytes | None:
    """The bytes that a vocabulary's entry stands for: `<0xE2>`, or letters that stand for bytes; else None."""
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    alphabet = _alphabet()
    return bytes(alphabet[c] for c in token) if token and all(c in alphabet for c in token) else None


def show_bytes(raw: bytes) -> str:
    """The bytes as text, those that are no whole character as ⟨E2 82⟩."""
    made, at = [], 0
    while at < len(raw):
        try:
            made.append(raw[at:].decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            made.append(raw[at : at + error.start].decode("utf-8"))
            made.append(f"⟨{raw[at + error.start : at + error.end].hex(' ').upper()}⟩")
            at += error.end
    return "".join(made)


@cache
def _alphabet() -> dict[str, int]:
    """Byte-level vocabularies' letters (Radford et al. 2019, GPT-2): printable bytes of Latin-1 stand for themselves,
    the others, in order, for the code points from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}
