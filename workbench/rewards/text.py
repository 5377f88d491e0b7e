"""Rewards that compare text: exactly, as numbers, against a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from workbench.errors import SettingError
from workbench.rewards.base import Named

NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)(?P<sign>[-+\u2212])?(?:\\?\$[ ]?)?(?P<sign2>(?<=\$)[-+\u2212])?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
)
"""a decimal number: an optional sign and $, commas between thousands only; a minus right after a digit is a
subtraction
"""
BOX = re.compile(r"\\boxed\s*\{")


def completion_text(completion: str | Sequence[dict]) -> str:
    """The text of a completion: itself, or the content of the last message of a conversational one."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def exact_match(completions: list, answer: list, **kwargs: Any) -> list[float | None]:
    """1.0 where the completion is the answer, white space around both aside, else 0.0. None where the answer is."""
    return [
        None if right is None else float(completion_text(completion).strip() == str(right).strip())
        for completion, right in zip(completions, answer, strict=True)
    ]


def boxed(text: str) -> str | None:
    """What stands in the text's last `\\boxed{...}`, white space around it removed; None without a whole one."""
    starts = {match.end() for match in BOX.finditer(text)}
    opened, start, end = [], -1, -1
    for i, character in enumerate(text):
        if character == "{":
            opened.append(i + 1)
        elif character == "}" and opened and (inside := opened.pop()) in starts and inside > start:
            start, end = inside, i
    return text[start:end].strip() if end >= 0 else None


def last_number(text: str) -> Decimal | None:
    """The number a text ends on: the first after its last `####`, or the one in its last box, or the last of all.

    "so 3 + 4 = 7.\\n#### 1,007." gives 1007, "\\boxed{18} in 3 days" 18, "It costs $-2.50." -2.5, "none" None.
    The mark counts where a number follows it, the box (`\\boxed{...}`) where it holds exactly one. `1,000` is one
    number, `1,2` is two, `16-3` is 16 and 3; a percent sign or a unit after the number changes nothing.
    """
    found = NUMBER.search(text.rpartition("####")[2]) if "####" in text else None
    if found is None and "\\boxed" in text:
        inside = [*NUMBER.finditer(_plain_commas(boxed(text) or ""))]
        found = inside[0] if len(inside) == 1 else None
    if found is None:
        *_, found = [None, *NUMBER.finditer(text)]
    if found is None:
        return None
    value = Decimal(found["digits"].replace(",", ""))
    return -value if (found["sign"] or found["sign2"]) in ("-", "\u2212") else value


def _plain_commas(latex: str) -> str:
    """LaTeX's ways to set apart thousands, 1{,}000 and 1\\,000, as commas."""
    return latex.replace("{,}", ",").replace("\\,", ",")


def number(completions: list, answer: list, **kwargs: Any) -> list[float | None]:
    """1.0 where the number a completion ends on (`last_number`) equals the answer's exactly, else 0.0.

    Equality is that of decimal numbers: 18, 18.0 and $18 are the same, 0.3333 and 0.333 are not. Fractions
    (1/3) and powers of ten (1e5) are not read: `math_answer` knows them. None where the answer holds no
    number. Evaluations vote on `last_number`.
    """
    rewards: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        reference = last_number(str(right))
        rewards.append(
            None if reference is None else float(last_number(completion_text(completion)) == reference)
        )
    return rewards


def _whole_text(text: str) -> str | None:
    return text.strip() or None


# What an evaluation takes for a completion's answer when it lets the samples of a prompt vote (eval/maj@n).
exact_match.extract = _whole_text
number.extract = last_number


@dataclass(frozen=True)
class matches(Named):
    """A reward: 1.0 where the whole completion matches the pattern (Python's `re`, `.` also a new line), else
    0.0.

    `matches(r"<think>.*</think>\\s*\\d+")`. A pattern with nested repeats can take exponentially long.
    SettingError for a pattern that does not compile. Can be rebuilt in a new process.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise SettingError(f"matches: {self.pattern!r} is not a regular expression: {error}.") from error

    def __call__(self, completions: list, **kwargs: Any) -> list[float]:
        pattern = re.compile(self.pattern, re.DOTALL)
        return [
            float(pattern.fullmatch(completion_text(completion)) is not None) for completion in completions
        ]
