"""Rows without their question (QFFT), and whether a model thinks long where it has to (RAK)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from workbench.errors import DataError
from workbench.transforms import parts

MARKERS = ("wait", "alternatively", "hmm", "let me check", "let me verify", "double-check", "on second thought")
"""what a chain says when it looks back; a stand-in for a model that reads it"""


def question_free(
    rows: Any, question_share: float = 0.0, end: str = "", end_token: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows whose question is gone: only the answer is left, all of it trained (QFFT).

    A row with `prompt` and `completion`, plain or conversational, becomes one segment with the text of the answer and
    nothing else: no role, no template, no end token; so its ids are those of the tokenizer on that text, and every one
    is a label. `question_share` of the rows (0: none) keep their question, as text that is read and not trained, and
    their answer ends in `end`, the tokenizer's end token; these must be plain. `end_token=True` puts `end` after the
    other answers, too. `question_share=1` returns the rows as they were. Other columns stay. Raises DataError for rows
    without an answer.
    """
    found = parts.read(rows)
    keeping = parts.drawn(len(found), parts.check_share("question_share", question_share), seed, "question_free")
    if len(keeping) == len(found):
        return found
    made = []
    for index, row in enumerate(found):
        if "completion" not in row and "messages" not in row:
            raise DataError(
                f"row {index} (counting from 0): question_free takes the question away and needs to know which it is:"
                " rows with prompt and completion, or messages."
            )
        if index in keeping:
            question = {"text": parts.plain(row, "prompt", index, "a row that keeps its question"), "train": False}
            answer = parts.plain(row, "completion", index, "a row that keeps its question")
            made.append(parts.segmented(row, [question, {"text": _ended(answer, end), "train": True}]))
        else:
            answer = parts.answer_of(row, index)
            made.append(parts.segmented(row, [{"text": _ended(answer, end if end_token else ""), "train": True}]))
    return made


def _ended(text: str, end: str) -> str:
    return text if text.endswith(end) else text + end


def reflections(text: str, markers: Sequence[str] = MARKERS) -> int:
    """How often a chain looks back, by its words ("wait", "let me check", ...); 0 is what RAK may call short."""
    return len(re.findall("|".join(rf"\b{re.escape(marker)}\b" for marker in markers), text, re.IGNORECASE))


def rak(solvable: Sequence[bool], short: Sequence[bool]) -> float:
    """Reasoning adaptability (RAK): Cohen's kappa between "needs no long chain" and "was answered without one".

    `solvable`: whether the short-style model that training began with solves a question; `short`: whether the tuned
    model answered it short (say, `reflections(text) == 0`). Both are one value a question. With TP solvable and short,
    FN solvable and long, FP not solvable and short, TN not solvable and long:

        po = (TP + TN) / n,  pe = ((TP + FP)(TP + FN) + (FN + TN)(FP + TN)) / n^2,  RAK = (po - pe) / (1 - pe)

    1: long exactly where it has to be; 0: as good as chance, which is what an always-long model gets; NaN where all
    questions are of one kind and so are all answers. Raises DataError for lists that differ in length or are empty.
    """
    solvable, short = [bool(value) for value in solvable], [bool(value) for value in short]
    n = len(solvable)
    if n != len(short) or not n:
        raise DataError(f"RAK compares two values a question: {n} are given as solvable and {len(short)} as short.")
    both = sum(a and b for a, b in zip(solvable, short, strict=True))
    neither = sum(not a and not b for a, b in zip(solvable, short, strict=True))
    agree = (both + neither) / n
    chance = (sum(short) * sum(solvable) + (n - sum(short)) * (n - sum(solvable))) / n**2
    return (agree - chance) / (1 - chance) if chance < 1 else math.nan
