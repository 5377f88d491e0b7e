"""Long chains beside short rewrites of them (LS-Mixture), and rewriting with a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench import keys
from workbench.errors import DataError
from workbench.rewards.text import boxed, last_number
from workbench.transforms import parts

REWRITE = (
    "Rewrite the solution below to be much shorter. Keep the order of its steps, its turning points and its final"
    " answer, in the same form; leave out what is said twice.\n\n"
    "Question:\n{question}\n\nSolution:\n{solution}\n\nShort solution:\n"
)
BALANCED = "Think as long as the question needs and no longer, then answer."
"""to be put before a question when a model that was trained so is asked"""


def final_answer(text: str) -> Any:
    """What a text answers, to compare: the last box as text where there is one, else the number that it ends on."""
    inside = boxed(text)
    return "".join(inside.split()) if inside else last_number(text)


def ls_mixture(
    rows: Any,
    mix_ratio: float = 1.0,
    extract: Callable[[str], Any] = final_answer,
    length: Callable[[str], int] = len,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows with long chains, and for each a second row with its short rewrite (LS-Mixture), in one shuffled set.

    A row has its long chain in the completion and a rewrite of it, text, in the column `short` (`rewritten` makes
    that). A rewrite is used where it is shorter, by `length` (characters, or your tokenizer's count), and `extract`
    finds the same answer in both, and any at all; otherwise the long chain stays alone. `mix_ratio` is the share of the
    usable rewrites that go in, drawn by `seed`; 0 returns the rows as they were. Raises DataError for rows without a
    `short`, and where no rewrite is usable.
    """
    found = parts.read(rows)
    if parts.check_share("mix_ratio", mix_ratio) == 0:
        return found
    usable = [index for index, row in enumerate(found) if _usable(row, index, extract, length)]
    if not usable:
        raise DataError("No rewrite is shorter than its chain and has its final answer; see the column 'short'.")
    picked = parts.drawn(len(usable), mix_ratio, seed, "ls_mixture")
    short = [parts.with_answer(found[index], found[index]["short"]) for at, index in enumerate(usable) if at in picked]
    both = found + short
    return [both[place] for place in keys.permutation(keys.key(seed, "ls_mixture, order"), len(both)).tolist()]


def _usable(row: dict[str, Any], index: int, extract: Callable[[str], Any], length: Callable[[str], int]) -> bool:
    long, short = parts.answer_of(row, index), row.get("short")
    if "short" not in row or not isinstance(short, str | None):
        raise DataError(
            f"row {index} (counting from 0): the column 'short' holds {parts.shown(short)}, not the rewrite as text."
            " workbench.transforms.ls_mixture.rewritten makes it."
        )
    if not short or length(short) >= length(long):
        return False
    answer = extract(long)
    return answer is not None and answer == extract(short)


def rewritten(rows: Any, rewriter: Callable[[dict], str | None] | Sequence[str | None]) -> list[dict[str, Any]]:
    """The rows with the column `short`: `rewriter(row)` gives the short chain as text, or None where it has none. A
    list with one text a row does, too (`by_policy` makes one)."""
    found = parts.read(rows)
    texts = [rewriter(row) for row in found] if callable(rewriter) else list(rewriter)
    if len(texts) != len(found):
        raise DataError(f"There are {len(texts)} rewrites for {len(found)} rows; give one a row, or None for a row.")
    return [{**row, "short": text} for row, text in zip(found, texts, strict=True)]


def by_policy(policy: Any, rows: Any, instruction: str = REWRITE, seed: int = 0, **sampling: Any) -> list[str]:
    """A policy's rewrite of each row's chain, one sample a row: `rewritten(rows, by_policy(policy, rows))`.

    `instruction` has {question} and {solution} in it; conversational rows are asked in one turn of the user. `sampling`
    goes to `policy.sample`.
    """
    found = parts.read(rows)
    asked = []
    for index, row in enumerate(found):
        question, chain = parts.question_of(row.get("prompt") or ""), parts.answer_of(row, index)
        text = instruction.replace("{question}", question.strip()).replace("{solution}", chain.strip())
        asked.append([{"role": "user", "content": text}] if isinstance(row.get("prompt"), list) else text)
    return list(policy.sample(asked, n=1, seed=seed, **sampling).text)
