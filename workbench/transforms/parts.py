"""What row transforms share: rows read and checked once, a share of them drawn, answers read and replaced.

A transform is a pure function of rows, settings and a seed. It reads anything that `wb.rows` reads and returns a list
of dicts; at its neutral setting the rows come back as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench import data, keys
from workbench.errors import DataError, SettingError
from workbench.rewards.text import completion_text
from workbench.text import shorten

ANSWERS = ("completion", "messages", "text")
"""columns that may hold what a row teaches"""


def read(rows: Any) -> list[dict[str, Any]]:
    """The rows as dicts of one's own, after every check of `wb.rows`."""
    return data.rows(rows).to_list()


def check_share(name: str, value: float) -> float:
    """The value, a share from 0 to 1. Raises SettingError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise SettingError(f"{name}={value!r}: give a share from 0 to 1.")
    return float(value)


def part_of(share: float, n: int) -> int:
    """How many of n a share is: rounded, a half upwards."""
    return int(share * n + 0.5)


def drawn(n: int, share: float, *parts: int | str) -> set[int]:
    """`part_of(share, n)` numbers below n, drawn by key; a larger share has those of a smaller one among its own."""
    return set(keys.permutation(keys.key(*parts), n)[: part_of(share, n)].tolist())


def answer_of(row: dict[str, Any], index: int) -> str:
    """The text that a row teaches: its completion, the last of its messages, or its text."""
    column = next((name for name in ANSWERS if name in row), None)
    if column is None:
        raise DataError(f"row {index} (counting from 0) has no answer; its columns are {', '.join(row)}.")
    return completion_text(row[column])


def with_answer(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with another text in its answer's place, as a plain or a conversational row has it."""
    column = next(name for name in ANSWERS if name in row)
    value = row[column]
    return {**row, column: text if isinstance(value, str) else [*value[:-1], {**value[-1], "content": text}]}


def question_of(prompt: Any) -> str:
    """The text of a prompt: itself, or what the user said last."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message.get("role") == "user"] or prompt
    return completion_text(said[-1:])


def plain(row: dict[str, Any], column: str, index: int, what: str) -> str:
    """The row's plain text in a column. Raises DataError where it is missing, or where it holds messages."""
    value = row.get(column)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list):
        raise DataError(
            f"row {index} (counting from 0): column {column!r} holds messages; {what} needs plain text. Write the "
            "conversation out with the chat template first."
        )
    raise DataError(f"row {index} (counting from 0): {what} needs text in the column {column!r}, not {shown(value)}.")


def shown(value: Any) -> str:
    """A value as messages quote it: a text in quotes, a number without, both cut in the middle where they are long."""
    if isinstance(value, str):
        return shorten(value)
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:30]} … {said[-30:]}"


def segmented(row: dict[str, Any], segments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row in segments: its other columns stay."""
    return {name: value for name, value in row.items() if name not in data.KNOWN} | {"segments": list(segments)}
