"""The lesson task: small sums in words and signs, rewarded only when the completion ends in `#### <number>`.

Questions have two or three terms of one or two digits ("Q: Mia has 27 apples and buys 38 more. How many
apples does Mia have now?\\nA:"). The last line `#### 65` is GSM8K's answer mark (arXiv 2110.14168), so what
is learnt about the reward here carries over. Which questions are held out is decided by a hash of the sum
itself ("27+38-9"), whatever words stand around it: no sum of the test split is ever a training question, nor
does it stand anywhere in the text that the shipped model was trained on, not even as a step.

Rewards have TRL's signature and are plain functions. No torch here.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

from workbench.errors import DataError, SettingError
from workbench.keys import key

SPLITS = ("train", "test")
MAX_ROWS = 50_000
"""per call; far below the number of different sums, so that drawing without repetition stays quick"""

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lily", "Omar", "Kate", "Sam", "Nina", "Leo", "Ravi", "Zoe")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps", "eggs", "cards", "stones", "cakes")

FINAL = re.compile(r"####[ \t]*(-?\d+)\s*\Z")
EQUATION = re.compile(r"(?<![\d+\-])(\d+(?:[+\-]\d+)+)=(-?\d+)(?!\d)")

PLAIN = ("What is {sum}?", "Work out {sum}.", "{sum} = ?")
"""asked in signs; the sum is written with spaces, as people write it"""
STORIES = {
    "+": (
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in one box and {b} in another. How many {things} are there in all?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} out. How many {things} are left?",
    ),
    "++": (
        "{name} has {a} {things}, buys {b} more and finds {c}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} adds {b}, then {c} more. How many {things} are there in all?",
    ),
    "+-": (
        "{name} has {a} {things}, buys {b} more and loses {c}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} adds {b} and takes {c} out. How many {things} are left?",
    ),
    "-+": (
        "{name} has {a} {things}, gives away {b} and finds {c}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} out and adds {c}. How many {things} are there in all?",
    ),
    "--": (
        "{name} has {a} {things}, gives away {b} and loses {c}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} out, then {c} more. How many {things} are left?",
    ),
}


@dataclass(frozen=True)
class Question:
    """One question: `terms` with their signs (27, 38, -9), its words, and who and what it is about."""

    terms: tuple[int, ...]
    text: str
    name: str
    things: str

    @property
    def sum(self) -> str:
        """The sum in signs, no spaces: "27+38-9"."""
        return written(self.terms)

    @property
    def answer(self) -> int:
        return sum(self.terms)


def written(terms: tuple[int, ...], space: str = "") -> str:
    """`(27, 38, -9)` as "27+38-9", or with spaces around the signs."""
    first, *rest = terms
    return str(first) + "".join(f"{space}{'-' if term < 0 else '+'}{space}{abs(term)}" for term in rest)


def split_of(sum_text: str) -> str:
    """The split that a sum ("27+38-9") belongs to: "test" for one in five, by SHA-256."""
    return "test" if hashlib.sha256(f"sums:{sum_text}".encode()).digest()[0] % 5 == 0 else "train"


def draw_question(rng: random.Random) -> Question:
    """A random question of either split: 2 terms (40 %) or 3; no running total below 0."""
    terms = [rng.randint(10, 99)]
    signs = ""
    for position in range(1, 2 if rng.random() < 0.4 else 3):
        size = rng.randint(10, 99) if position == 1 else rng.randint(2, 19)
        sign = -1 if rng.random() < 0.5 else 1
        if sign < 0 and size > sum(terms):
            if position == 1:
                terms[0], size = size, terms[0]
            else:
                sign = 1
        terms.append(sign * size)
        signs += "-" if sign < 0 else "+"
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    templates = PLAIN if rng.random() < 0.4 else STORIES[signs]
    sizes = dict(zip("abc", map(abs, terms), strict=False))
    text = rng.choice(templates).format(name=name, things=things, sum=written(tuple(terms), " "), **sizes)
    return Question(tuple(terms), text, name, things)


def make_rows(size: int, seed: int = 0, split: str = "train") -> list[dict]:
    """`size` rows `{prompt, answer, sum, terms}`: prompt a plain string, answer an int, terms 2 or 3.

    Row i depends on (seed, split, i) and, where a sum would come twice, on the rows before it: a longer call
    starts with the shorter one. No sum comes twice in a call. SettingError for an unknown split or a size
    outside 1..MAX_ROWS.
    """
    if split not in SPLITS:
        raise SettingError(f"sums has the splits 'train' and 'test', not {split!r}.")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_ROWS:
        raise SettingError(f"size must be a whole number from 1 to {MAX_ROWS}, not {size!r}.")
    rows: list[dict] = []
    seen: set[str] = set()
    for index in range(size):
        rng = random.Random(key("sums", seed, split, index))
        question = draw_question(rng)
        while question.sum in seen or split_of(question.sum) != split:
            question = draw_question(rng)
        seen.add(question.sum)
        rows.append(
            {
                "prompt": f"Q: {question.text}\nA:",
                "answer": question.answer,
                "sum": question.sum,
                "terms": len(question.terms),
            }
        )
    return rows


def completion_text(completion: str | list[dict]) -> str:
    """The text of a completion: the string itself, or the last message's content; else a DataError."""
    if isinstance(completion, str):
        return completion
    try:
        return str(completion[-1]["content"])
    except (TypeError, KeyError, IndexError) as error:
        raise DataError(
            "A completion must be a string or a list of messages such as "
            f"[{{'role': 'assistant', 'content': '...'}}], not {str(completion)[:80]!r}."
        ) from error


def final_number(text: str) -> int | None:
    """The number after the last `####` if the text ends there, else None: "27+38=65\\n#### 65" gives 65."""
    found = FINAL.search(text)
    return int(found.group(1)) if found else None


def correct(completions: list, answer: list, **kwargs) -> list[float]:
    """1.0 where the completion ends in `#### <answer>`, else 0.0. Working it out is optional."""
    numbers = (final_number(completion_text(completion)) for completion in completions)
    return [float(number == int(right)) for number, right in zip(numbers, answer, strict=True)]


correct.extract = final_number  # an evaluation lets the samples of a prompt vote on it (eval/maj@n)


def worked(completions: list, **kwargs) -> list[float]:
    """The share of the equations shown ("27+38=65") that hold; 0.0 where none is shown."""
    shares = []
    for completion in completions:
        shown = EQUATION.findall(completion_text(completion))
        held = [sum(map(int, re.findall(r"[+-]?\d+", left))) == int(right) for left, right in shown]
        shares.append(sum(held) / len(held) if held else 0.0)
    return shares
