"""Traces of functions on integer lists, with noise that stays where it is or noise that spreads (traced integers).

`traced_integers` makes them, as a Task; `held` is the exact checker of a trace: whether each line follows from the line
before it, as that stands. Which questions are of the test split is decided by a hash of the function and the list.
Havrilla and Iyer 2024, arXiv 2402.04004, whose framework records arbitrary Python functions: the functions, the format
of traces and the units of static noise are ours. No torch here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from workbench import keys
from workbench.data import make
from workbench.errors import SettingError
from workbench.tasks.sums import correct
from workbench.tasks.task import Task

UNITS = ("character", "digit", "line")
SIGNS = "0123456789+-*=(), "
"""what an altered character may become"""
TRIES = 1000
"""questions drawn in search of a new one"""


@dataclass(frozen=True)
class Function:
    """A fold over a list: its name in the question, and the line of a step from the value so far and the next item."""

    words: str
    line: Callable[[int, int], str]
    value: Callable[[int, int], int]


FUNCTIONS = {
    "sum": Function("sum", lambda a, x: f"{a} + {x}", lambda a, x: a + x),
    "difference": Function("difference from left to right", lambda a, x: f"{a} - {x}", lambda a, x: a - x),
    "max": Function("maximum", lambda a, x: f"max({a}, {x})", max),
    "min": Function("minimum", lambda a, x: f"min({a}, {x})", min),
    "product": Function("product modulo 100", lambda a, x: f"{a} * {x} mod 100", lambda a, x: a * x % 100),
    "digits": Function("last digits joined modulo 1000", lambda a, x: f"{a} * 10 + {x} mod 1000",
                       lambda a, x: (a * 10 + x) % 1000),
}  # fmt: skip
"""the functions, by name"""


def traced_integers(
    size: int = 500,
    seed: int = 0,
    split: str = "train",
    function: str = "sum",
    length: int = 4,
    largest: int = 20,
    static: float = 0.0,
    dynamic: float = 0.0,
    contamination: float = 1.0,
    unit: str = "character",
) -> Task:
    """Execution traces of functions on integer lists, with static and dynamic noise: `size` rows, as a Task.

    A row asks for a function of `length` integers from 0 to `largest`; `function` is a name of FUNCTIONS or "mixed".
    Its completion is the trace, a line a step, and the answer:

        Q: sum of [3, 9, 2]?          3 + 9 = 12
        A:                            12 + 2 = 14
                                      #### 14

    Static noise is put on after the trace is made: each character is altered with probability `static`
    (`unit="character"`: becomes another one; "digit": digits only, becomes another digit), or each line is left out
    with that probability ("line"). The answer below the trace stays right. Dynamic noise happens while the trace is
    made: each value is altered with probability `dynamic`, and the computation goes on from it, so that the answer is
    usually wrong. Each row has noise at all with probability `contamination`. The questions are the same whatever the
    noise.

    The rows serve SFT (prompt, completion) and GRPO alike: the column `answer` is always the right one, and the reward
    `correct` is 1.0 where a completion ends in `#### <answer>`. Further columns: function, numbers, noised. Raises
    SettingError for options out of range, and where there are not enough different questions.
    """
    shares = {"static": static, "dynamic": dynamic, "contamination": contamination}
    _check(function, length, largest, shares, unit)
    noisy = keys.uniforms(keys.key("traced_integers", seed, split, "noised"), size) < contamination
    rows, seen = [], set()
    for index in range(size):
        rng = random.Random(keys.key("traced_integers", seed, split, index))
        name, numbers = _question(rng, function, length, largest, split, seen)
        noised = bool(noisy[index]) and bool(static or dynamic)
        lines, last = trace(name, numbers, dynamic if noised else 0.0, rng)
        lines = altered(lines, static if noised else 0.0, unit, rng)
        rows.append(
            {
                "prompt": f"Q: {FUNCTIONS[name].words} of {numbers}?\nA:",
                "completion": "\n".join(["", *lines, f"#### {last}"]),
                "answer": trace(name, numbers)[1],
                "function": name,
                "numbers": numbers,
                "noised": noised,
            }
        )
    args = {"size": size, "seed": seed, "split": split, "function": function, "length": length, "largest": largest}
    args |= shares | {"unit": unit}
    return Task(
        make(rows, f"traced_integers ({split})"), [correct], name="traced_integers", kind="traced_integers", args=args
    )


def trace(
    function: str, numbers: list[int], dynamic: float = 0.0, rng: random.Random | None = None
) -> tuple[list[str], int]:
    """The lines of a run and its last value; each value is altered with probability `dynamic`, and goes on so."""
    rng = rng or random.Random(0)
    made, value = FUNCTIONS[function], numbers[0]
    lines = []
    for number in numbers[1:]:
        before, value = value, made.value(value, number)
        if rng.random() < dynamic:
            value += rng.choice((-1, 1)) * rng.randint(1, 9)
        lines.append(f"{made.line(before, number)} = {value}")
    return lines, value


def altered(lines: list[str], static: float, unit: str, rng: random.Random) -> list[str]:
    """The lines with static noise; what is altered always differs from what was."""
    if not static:
        return lines
    if unit == "line":
        return [line for line in lines if rng.random() >= static]

    def one(sign: str) -> str:
        signs = SIGNS if unit == "character" else SIGNS[:10]
        if sign not in signs and unit == "digit" or rng.random() >= static:
            return sign
        return rng.choice([other for other in signs if other != sign])

    return ["".join(map(one, line)) for line in lines]


def held(function: str, numbers: list[int], completion: str) -> list[bool]:
    """Of each line of a trace (those before the answer) whether it follows from what the line before it says.

    A clean trace holds in every line and has one for each number after the first. With dynamic noise the altered
    values' own lines do not, all others do; with static noise also lines after an altered one do not. Nothing is
    executed: each line is compared with the one that should stand there.
    """
    lines = [line for line in completion.strip("\n").split("\n") if not line.startswith("####")]
    made, value = FUNCTIONS[function], numbers[0]
    found = []
    for place, line in enumerate(lines):
        number = numbers[place + 1] if place + 1 < len(numbers) else None
        found.append(
            value is not None
            and number is not None
            and line == f"{made.line(value, number)} = {made.value(value, number)}"
        )
        said = re.search(r"= (-?\d{1,18})\Z", line)
        value = int(said.group(1)) if said else None
    return found


def _question(
    rng: random.Random, function: str, length: int, largest: int, split: str, seen: set[tuple]
) -> tuple[str, list[int]]:
    for _ in range(TRIES):
        name = rng.choice(sorted(FUNCTIONS)) if function == "mixed" else function
        numbers = [rng.randint(0, largest) for _ in range(length)]
        asked = (name, *numbers)
        test = sha256(f"traced_integers:{asked}".encode()).digest()[0] % 5 == 0
        if asked not in seen and test == (split == "test"):
            seen.add(asked)
            return name, numbers
    raise SettingError(
        f"traced_integers: there are not enough different questions of length={length}, largest={largest} for so many"
        f" rows in the {split} split; {len(seen)} were found."
    )


def _check(function: str, length: int, largest: int, shares: dict[str, float], unit: str) -> None:
    if function != "mixed" and function not in FUNCTIONS:
        raise SettingError(f"traced_integers: function={function!r}; give 'mixed' or one of {', '.join(FUNCTIONS)}.")
    for name, value, least in (("length", length, 2), ("largest", largest, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"traced_integers: {name}={value!r}; give a whole number from {least}.")
    for name, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise SettingError(f"traced_integers: {name}={value!r}; give a share from 0 to 1.")
    if unit not in UNITS:
        raise SettingError(f"traced_integers: unit={unit!r}; give one of {', '.join(UNITS)}.")
