"""Chains with their steps or their content disturbed, to see which of the two a model learns from."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from workbench import keys
from workbench.errors import DataError, SettingError
from workbench.transforms import parts
from workbench.transforms.samples import judged

KEYWORDS = ("wait", "alternatively", "however", "hmm", "let me check", "double-check", "on second thought")
"""words at which a chain turns back"""
THOUGHTS = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
"""what a chain stands between, where that is marked; without a mark the last step is the answer"""
NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")
TURNS = re.compile("|".join(rf"\b{re.escape(word)}\b,?[ ]*" for word in KEYWORDS), re.IGNORECASE)


def perturb(rows: Any, kind: str = "shuffle", strength: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose chains are disturbed in one way, by `strength` f from 0 (the rows as they were) to 1.

    Structure, of the chain's steps (see `steps`; the answer after the chain stays):
        shuffle   a share f of the steps change places among themselves
        delete    a share f of the steps is gone
        insert    as many steps as a share f come in between, each from the chain of another row
    Content, of the whole answer:
        digits    each digit becomes another one with probability f
        numbers   each number becomes a whole number from 0 to 10 with probability f
        keywords  each word at which a chain turns back ("wait", "alternatively", ...) goes with probability f
        wrong     a share f of the rows that have a wrong answer in the column `wrong` teach that one instead

    Draws are by the row's place and `seed`. Rows are plain or conversational; the last message is the answer. Raises
    SettingError for another kind, DataError for rows without an answer, and where `wrong` finds no wrong one.
    """
    if kind not in KINDS:
        raise SettingError(f"kind={kind!r}: give one of {', '.join(map(repr, KINDS))}.")
    parts.check_share("strength", strength)
    found = parts.read(rows)
    if strength == 0:
        return found
    answers = [parts.answer_of(row, index) for index, row in enumerate(found)]
    changed = KINDS[kind](found, answers, strength, seed)
    return [parts.with_answer(row, text) for row, text in zip(found, changed, strict=True)]


def steps(chain: str) -> tuple[list[str], str]:
    """A chain's steps and what stands between them: paragraphs where it has an empty line, else lines."""
    between = "\n\n" if "\n\n" in chain.strip() else "\n"
    return chain.split(between), between


def apart(answer: str) -> tuple[str, list[str], str, str]:
    """An answer as what stands before its chain, the chain's steps, what is between them, and what follows."""
    for opens, closes in THOUGHTS:
        if closes in answer:
            at, end = answer.find(opens), answer.index(closes)
            begin = at + len(opens) if 0 <= at < end else 0
            chain, rest = answer[begin:end], answer[end:]
            before, after = _margins(chain)
            pieces, between = steps(chain.strip())
            return answer[:begin] + before, pieces, between, after + rest
    before, after = _margins(answer)
    pieces, between = steps(answer.strip())
    return before, pieces[:-1], between, pieces[-1] + after


def _margins(text: str) -> tuple[str, str]:
    """The white space at both ends."""
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""


def together(before: str, pieces: list[str], between: str, after: str) -> str:
    """The answer again; an answer that is not marked off by white space or a tag is one more step."""
    tagged = any(after.lstrip().startswith(closes) for _, closes in THOUGHTS)
    return before + between.join(pieces if tagged else [*pieces, after]) + (after if tagged else "")


def _structure(change: Callable) -> Callable:
    def of(rows: list[dict], answers: list[str], strength: float, seed: int) -> list[str]:
        found = [apart(text) for text in answers]
        chains = [pieces for _, pieces, _, _ in found]
        made = []
        for index, (before, pieces, between, after) in enumerate(found):
            places = sorted(parts.drawn(len(pieces), strength, seed, "perturb", index))
            made.append(together(before, change(chains, index, places, seed), between, after))
        return made

    return of


def _shuffle(chains: list[list[str]], index: int, places: list[int], seed: int) -> list[str]:
    made = list(chains[index])
    for place, other in zip(places, keys.permutation(keys.key(seed, "shuffle", index), len(places)), strict=True):
        made[place] = chains[index][places[other]]
    return made


def _delete(chains: list[list[str]], index: int, places: list[int], seed: int) -> list[str]:
    return [step for place, step in enumerate(chains[index]) if place not in places]


def _insert(chains: list[list[str]], index: int, places: list[int], seed: int) -> list[str]:
    others = [number for number, chain in enumerate(chains) if number != index and chain]
    if places and not others:
        raise DataError("perturb(kind='insert') takes steps from other rows, and no other row has a chain of steps.")
    made = []
    for place, step in enumerate(chains[index]):
        if place in places:
            which, where = keys.uniforms(keys.key(seed, "insert", index, place), 2)
            chain = chains[others[int(which * len(others))]]
            made.append(chain[int(where * len(chain))])
        made.append(step)
    return made


def _content(pattern: re.Pattern, change: Callable[[str, float], str]) -> Callable:
    def of(rows: list[dict], answers: list[str], strength: float, seed: int) -> list[str]:
        made = []
        for index, text in enumerate(answers):
            n = len(pattern.findall(text))
            chances = iter(keys.uniforms(keys.key(seed, "perturb", index), 2 * n).reshape(2, n).T)

            def one(match: re.Match, chances=chances) -> str:
                happens, which = next(chances)
                return change(match.group(), which) if happens < strength else match.group()

            made.append(pattern.sub(one, text))
        return made

    return of


def _other_digit(digit: str, chance: float) -> str:
    return str((int(digit) + 1 + int(chance * 9)) % 10)


def _small_number(number: str, chance: float) -> str:
    return str(int(chance * 11))


def _wrong(rows: list[dict], answers: list[str], strength: float, seed: int) -> list[str]:
    having = [index for index, row in enumerate(rows) if isinstance(row.get("wrong"), str) and row["wrong"]]
    if not having:
        raise DataError(
            "perturb(kind='wrong') needs a wrong answer, text, in the column 'wrong' of some rows."
            " workbench.transforms.perturb.wrong_answers samples them from a policy."
        )
    picked = parts.drawn(len(having), strength, seed, "wrong")
    taken = {index for at, index in enumerate(having) if at in picked}
    return [rows[index]["wrong"] if index in taken else text for index, text in enumerate(answers)]


KINDS = {
    "shuffle": _structure(_shuffle),
    "delete": _structure(_delete),
    "insert": _structure(_insert),
    "digits": _content(re.compile(r"[0-9]"), _other_digit),
    "numbers": _content(NUMBER, _small_number),
    "keywords": _content(TURNS, lambda word, chance: ""),
    "wrong": _wrong,
}
"""kind of perturbation -> what it makes of rows, their answers, the strength and the seed"""


def wrong_answers(
    policy: Any, rows: Any, verdict: Callable | None = None, *, n: int = 4, seed: int = 0, **sampling: Any
) -> list[dict[str, Any]]:
    """The rows with the column `wrong`: the first of a policy's `n` samples that is wrong, None where all are right.

    `rows`: a Task, judged by its verdict, or rows with a reward function `verdict` (right: 1.0 or more). `sampling`
    goes to `policy.sample`.
    """
    found = parts.read(getattr(rows, "rows", rows))
    answers = judged(policy, rows, verdict, n=n, seed=seed, **sampling)
    wrong = [next((text for text, right in samples if not right and text), None) for samples in answers]
    return [{**row, "wrong": text} for row, text in zip(found, wrong, strict=True)]
