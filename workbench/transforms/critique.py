"""Rows whose target is a critique of a given solution, and such rows made from a policy's own samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from workbench.errors import DataError
from workbench.transforms import parts
from workbench.transforms.samples import judged

INSTRUCTION = "Here is a question and a solution to it. Say whether the solution is right, and why."
TEMPLATE = "{instruction}\n\nQuestion:\n{question}\n\nSolution:\n{solution}\n\nCritique:\n"
CONCLUSION = re.compile(r"Conclusion:[ \t]*(right|wrong)\b", re.IGNORECASE)


def critique(rows: Any, share: float = 1.0, instruction: str = INSTRUCTION, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that ask for a critique of a solution in place of a solution.

    Each row has a `prompt`, a `solution` (right or wrong), and either a `critique` (a teacher's, or anyone's) or the
    verdict `correct` (true or false), of which a critique is written by rule: what is wrong, the row's own `completion`
    as a right solution where it has one, and the line `Conclusion: right` or `Conclusion: wrong`. The result has the
    instruction, the question and the solution as its prompt and the critique as its completion, plain or conversational
    as the row was; so the critique alone trains. `share` of the rows, drawn by `seed`, are turned so, the others stay
    (0: all stay). Raises DataError for a row without a solution or without a critique and a verdict.
    """
    found = parts.read(rows)
    turned = parts.drawn(len(found), parts.check_share("share", share), seed, "critique")
    return [_turned(row, index, instruction) if index in turned else row for index, row in enumerate(found)]


def _turned(row: dict[str, Any], index: int, instruction: str) -> dict[str, Any]:
    solution = parts.plain(row, "solution", index, "a critique")
    target = row["critique"] if row.get("critique") else written(row.get("correct"), row.get("completion"), index)
    question = parts.question_of(row["prompt"]).strip() if row.get("prompt") else ""
    if not question:
        raise DataError(f"row {index} (counting from 0): a critique needs the question in the column 'prompt'.")
    prompt = TEMPLATE.format(instruction=instruction, question=question, solution=solution.strip())
    if isinstance(row["prompt"], list):
        talk = {"role": "user", "content": prompt.removesuffix("\n\nCritique:\n")}
        return {**row, "prompt": [talk], "completion": [{"role": "assistant", "content": target}]}
    return {**row, "prompt": prompt, "completion": target}


def written(correct: Any, reference: Any = None, index: int = 0) -> str:
    """A critique by rule, of a verdict and, where there is one, a right solution."""
    if correct not in (True, False):
        raise DataError(
            f"row {index} (counting from 0) has neither a 'critique' nor a verdict in the column 'correct' (it holds"
            f" {parts.shown(correct)}). workbench.transforms.critique.sampled makes rows with a verdict."
        )
    if correct:
        return "The solution is right.\n\nConclusion: right"
    shown = parts.answer_of({"completion": reference}, index).strip() if reference else ""
    return "The solution is wrong." + (f" A right one is:\n{shown}" if shown else "") + "\n\nConclusion: wrong"


def verdict_of(text: str) -> bool | None:
    """What a critique concludes: True (right), False (wrong), or None where it does not say."""
    found = CONCLUSION.findall(text)
    return found[-1].lower() == "right" if found else None


def verdict_accuracy(critiques: Iterable[str], correct: Iterable[bool]) -> dict[str, float]:
    """How a critic does against a verifier: `accuracy` over all (no verdict is wrong) and `parsed`, the share that
    concludes. Report it beside the accuracy as a solver: the two can part."""
    pairs = [(verdict_of(text), bool(right)) for text, right in zip(critiques, correct, strict=True)]
    if not pairs:
        raise DataError("There are no critiques to compare with the verifier's verdicts.")
    said = sum(verdict is not None for verdict, _ in pairs) / len(pairs)
    return {"accuracy": sum(verdict is right for verdict, right in pairs) / len(pairs), "parsed": said}


def sampled(
    policy: Any, rows: Any, verdict: Callable | None = None, *, n: int = 1, seed: int = 0, **sampling: Any
) -> list[dict[str, Any]]:
    """Rows to criticise, from a policy's own samples and a verifier: `n` a row, each with `solution` and `correct`.

    `rows`: a Task, judged by its verdict, or rows with a prompt and a reward function `verdict` (right: 1.0 or more).
    The other columns of a row stay, so a `completion` is there as the right solution. Samples without a word are left
    out. `sampling` goes to `policy.sample`. `wb.method("critique")(policy, sampled(policy, task, n=4), ...)` trains on
    them; for a teacher's critiques add a column `critique`.
    """
    found = parts.read(getattr(rows, "rows", rows))
    answers = judged(policy, rows, verdict, n=n, seed=seed, **sampling)
    return [
        {**row, "solution": text, "correct": right}
        for row, samples in zip(found, answers, strict=True)
        for text, right in samples
        if text.strip()
    ]
