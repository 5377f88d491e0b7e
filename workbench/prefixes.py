"""Rows that begin with the same prompt: it goes through the trunk once for all of them."""

from __future__ import annotations

from collections.abc import Sequence


def of(policy, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int] | None:
    """For each row the number of the prompt it shares with others; None where nothing is gained by sharing."""
    return None
