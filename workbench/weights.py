"""Weights of rows, messages and segments: how much the loss of their tokens counts. Checked where they are read.

    of a row       the column `weight`; it multiplies all of the row's tokens
    of a message   the key `weight` of an assistant's message, as in OpenAI's fine-tuning format; with
                   `assistant_only_loss`, which trains the assistant's turns one by one
    of a segment   the key `weight` of a segment

They multiply each other. A weight of 0 makes a token context: it is read and not trained. The setting
`loss_reduction` says what the weighted sum is divided by.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import Any

from workbench.errors import DataError
from workbench.templates import Segment, Split


def number(value: Any, what: str) -> float:
    """The weight as a float, 1 where there is none. Raises DataError for anything but a finite number from 0 up."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise DataError(
            f"{what} is {value!r}, not a number. If it is not meant as the loss's weight, give it another name."
        )
    if not 0 <= value < math.inf:
        raise DataError(f"{what} is {value!r}; it must be a finite number of at least 0 (0: not trained).")
    return float(value)


def of_row(split: Split, row: dict[str, Any]) -> Split:
    """The split with the row's weight multiplied in; what has weight 0 is not trained."""
    weight = number(row.get("weight"), "column 'weight'")
    made = [replace(s, weight=s.weight * weight, train=s.train and s.weight * weight > 0) for s in split.segments]
    return Split(tuple(made), split.notes)


def check_messages(messages: list[dict[str, Any]], assistant_only: bool) -> None:
    """Raises DataError for a message's weight that is no weight or that nothing would use."""
    for turn, message in enumerate(messages):
        weight = number(message.get("weight"), f"the 'weight' of message {turn}")
        if weight == 1:
            continue
        if message["role"] != "assistant":
            raise DataError(f"message {turn} ({message['role']}) has a weight; only the assistant's turns are trained.")
        if not assistant_only:
            raise DataError(
                f"message {turn} has a weight, which needs assistant_only_loss=True: it trains the assistant's turns"
                " one by one."
            )


def segments(row: dict[str, Any]) -> Split:
    """A row given as segments: the text as it stands; a segment is trained unless it says `train=False`."""
    made = []
    for i, segment in enumerate(row["segments"]):
        train = segment.get("train") is not False
        role = segment.get("role") or ("completion" if train else "prompt")
        weight = number(segment.get("weight"), f"the 'weight' of segment {i}")
        made.append(Segment(segment["text"], role, train, weight))
    return Split(tuple(s for s in made if s.text))
