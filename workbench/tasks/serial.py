"""Problems that need one step after another: hard to answer at once for a shallow model, easy with the steps written
out.

`serial` makes them, as a Task; `replayed` checks a completion step by step, exactly. Which problems are of the test
split is decided by a hash of the question. Li et al. 2024, arXiv 2402.12875, who train small transformers
from scratch on such problems; wording, format and sizes are ours. No torch here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise

from workbench import keys
from workbench.data import make
from workbench.errors import SettingError
from workbench.rewards.text import completion_text
from workbench.tasks.task import Task

FINAL = re.compile(r"####[ \t]*([^\n]*?)\s*\Z")
TRIES = 1000
"""problems drawn in search of a new one"""
INPUTS = 3
"""inputs of a circuit"""
Steps = tuple[str, list[str], str]
"""a problem: its question, the lines of its steps, its answer"""


def serial(
    size: int = 500,
    seed: int = 0,
    split: str = "train",
    kind: str = "permutations",
    length: int = 8,
    modulus: int = 97,
    trace: bool = True,
) -> Task:
    """Problems that need one step after another, with exact answers: `size` rows of one kind, as a Task.

        permutations   the product of `length` permutations of 1..5, from left to right (S5, whose word problem is
                       complete for NC1); the steps are the products so far
        squaring       x becomes x^2 modulo `modulus`, `length` times; the steps are the values
        circuit        `length` gates AND, OR, NOT over inputs and earlier gates, in topological order; the steps are
                       their values
        sums           the sum of `length` numbers modulo `modulus`: the control, which can be done in parallel; the
                       steps are the sums so far

    A row's completion is the steps, a line each, and `#### <answer>`; with `trace=False` the answer alone, the same
    one. The rows serve SFT (prompt, completion) and GRPO alike: the reward `correct` is 1.0 where a completion ends in
    `#### <answer>`. Further columns: answer (text), steps (lines), kind, length. Look at accuracy against length, with
    and without the steps: without them only "sums" is easy. Raises SettingError for options out of range, and where
    there are not enough different problems.
    """
    if kind not in KINDS:
        raise SettingError(f"serial: kind={kind!r}; give one of {', '.join(KINDS)}.")
    for name, value, least in (("length", length, 1), ("modulus", modulus, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"serial: {name}={value!r}; give a whole number from {least}.")
    if not isinstance(trace, bool):
        raise SettingError(f"serial: trace={trace!r}; give True or False.")
    rows, seen = [], set()
    for index in range(size):
        rng = random.Random(keys.key("serial", seed, split, kind, length, modulus, index))
        question, lines, answer = _new(rng, kind, length, modulus, split, seen)
        shown = lines if trace else []
        rows.append(
            {
                "prompt": f"Q: {question}\nA:",
                "completion": "\n".join(["", *shown, f"#### {answer}"]),
                "answer": answer,
                "steps": lines,
                "kind": kind,
                "length": length,
            }
        )
    args = {"size": size, "seed": seed, "split": split, "kind": kind, "length": length, "modulus": modulus}
    args["trace"] = trace
    return Task(make(rows, f"serial {kind} ({split})"), [correct], name="serial", kind="serial", args=args)


def final_text(text: str) -> str | None:
    """What follows the last `####` if the text ends there, else None."""
    found = FINAL.search(text)
    return found.group(1) if found and found.group(1) else None


def correct(completions: list, answer: list, **kwargs) -> list[float]:
    """1.0 where the completion ends in `#### <answer>`, white space aside, else 0.0. The steps are optional."""
    said = (final_text(completion_text(completion)) for completion in completions)
    return [float(text == str(right)) for text, right in zip(said, answer, strict=True)]


correct.extract = final_text  # an evaluation lets the samples of a prompt vote on it (eval/maj@n)


def replayed(completion: str, steps: list[str]) -> float:
    """The share of a problem's steps that a completion writes as they should be, up to the first that it does not."""
    lines = [line.strip() for line in completion.strip().split("\n") if not line.startswith("####")]
    right = 0
    for line, step in zip(lines, steps, strict=False):
        if line != step:
            break
        right += 1
    return right / len(steps)


# -- the kinds ---------------------------------------------------------------------------------------------------------


def permutations(rng: random.Random, length: int, modulus: int) -> Steps:
    """A permutation p is written as p(1)p(2)p(3)p(4)p(5); p then q takes i to q(p(i))."""
    drawn = [rng.sample(range(5), 5) for _ in range(length)]
    state, lines = list(range(5)), []
    for one in drawn:
        state = [one[place] for place in state]
        lines.append(_digits(state))
    question = f"apply these permutations of 12345 from left to right: {' '.join(map(_digits, drawn))}"
    return question, lines, lines[-1]


def _digits(permutation: list[int]) -> str:
    return "".join(str(place + 1) for place in permutation)


def squaring(rng: random.Random, length: int, modulus: int) -> Steps:
    values = [rng.randrange(modulus)]
    for _ in range(length):
        values.append(values[-1] ** 2 % modulus)
    lines = [f"{before} * {before} mod {modulus} = {after}" for before, after in pairwise(values)]
    return f"square {values[0]} modulo {modulus}, {length} times", lines, str(values[-1])


def circuit(rng: random.Random, length: int, modulus: int) -> Steps:
    value = {f"x{i + 1}": rng.randrange(2) for i in range(INPUTS)}
    asked, lines = [f"{name} = {bit}" for name, bit in value.items()], []
    for number in range(length):
        names, gate = list(value), rng.choice(("AND", "OR", "NOT"))
        first, second = rng.choice(names[-INPUTS:]), rng.choice(names)
        says = f"NOT {first}" if gate == "NOT" else f"{first} {gate} {second}"
        one, other = value[first], value[second]
        value[f"g{number + 1}"] = {"AND": one & other, "OR": one | other, "NOT": 1 - one}[gate]
        asked.append(f"g{number + 1} = {says}")
        lines.append(f"g{number + 1} = {value[f'g{number + 1}']}")
    return f"{'; '.join(asked)}; what is g{length}?", lines, str(value[f"g{length}"])


def sums(rng: random.Random, length: int, modulus: int) -> Steps:
    drawn, total, lines = [rng.randrange(modulus) for _ in range(length)], 0, []
    for number in drawn:
        before, total = total, (total + number) % modulus
        lines.append(f"{before} + {number} mod {modulus} = {total}")
    return f"{' + '.join(map(str, drawn))} modulo {modulus}", lines, str(total)


KINDS: dict[str, Callable[[random.Random, int, int], Steps]] = {
    "permutations": permutations,
    "squaring": squaring,
    "circuit": circuit,
    "sums": sums,
}
"""kind -> a random problem of it, of a length and a modulus"""


def _new(rng: random.Random, kind: str, length: int, modulus: int, split: str, seen: set[str]) -> Steps:
    """A problem of the split that did not come before."""
    for _ in range(TRIES):
        made = KINDS[kind](rng, length, modulus)
        test = sha256(f"serial:{made[0]}".encode()).digest()[0] % 5 == 0
        if made[0] not in seen and test == (split == "test"):
            seen.add(made[0])
            return made
    raise SettingError(
        f"serial: there are not enough different problems of kind={kind!r}, length={length} (modulus={modulus}) for so"
        f" many rows in the {split} split; {len(seen)} were found."
    )
