"""Pairs and groups of answers, built from answers that were judged: what preference methods train on.

    best_over_worst     of each group of answers the best and the worst, as places
    long_over_short     a long answer over a short one that is right, too (ThinkPO)
    sibling_steps       of a search tree: a step on a right path over its siblings (Chain of Preference Optimization)
    answer_groups       all answers of a prompt, each with how right it is (AFT)
    flat_answers        the same, an answer a row

Pure functions; no model is asked, and what could not be judged is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from workbench.errors import DataError, did_you_mean
from workbench.evaluation import RIGHT
from workbench.transforms.parts import shown


def best_over_worst(scores: Sequence[float | None], groups: Sequence[int]) -> list[tuple[int, int]]:
    """(place of the best, place of the worst) answer of each group, in the groups' order.

    A score of None or NaN is no score. Groups in which fewer than two have one, or all have the same, give nothing.
    Of equal ones the first counts.
    """
    known: dict[int, list[int]] = {}
    for place, (score, group) in enumerate(zip(scores, groups, strict=True)):
        known.setdefault(group, [])
        if score is not None and not math.isnan(score):
            known[group].append(place)
    made = []
    for places in filter(None, known.values()):
        best, worst = max(places, key=scores.__getitem__), min(places, key=scores.__getitem__)
        if scores[best] > scores[worst]:
            made.append((best, worst))
    return made


# -- long and short


def long_over_short(
    rows: Iterable[dict[str, Any]], long: str = "completion", short: str = "short", correct: str = "short_correct"
) -> list[dict[str, Any]]:
    """Pairs that differ in style and depth, not in being right: `chosen` is the column `long`, `rejected` the column
    `short`, for rows whose short answer is not blank and whose `correct` says that it is right.

    `correct`: True or False, or a verdict from 0 to 1, of which 1 is right; None (not judged) is not right. All other
    columns are kept. Raises DataError naming the row that is without these columns, or holds something else in them.
    """
    made = []
    for number, row in enumerate(rows):
        for name in ("prompt", long, short, correct):
            if name not in row:
                near = did_you_mean(name, row)
                raise DataError(
                    f"Row {number} has no {name!r}.{near} Long over short needs prompt, {long} (the long answer),"
                    f" {short} and {correct} (whether the short one is right: ask a verifier or a judge)."
                )
        if not (row[correct] is None or isinstance(row[correct], (np.bool_, Real))):
            raise DataError(
                f"Row {number}: column {correct!r} is {shown(row[correct])}; it takes True, False, a number from 0 to"
                " 1, or None (not judged)."
            )
        if not (row[short] is None or _is_answer(row[short])):
            raise DataError(f"Row {number}: column {short!r} is {shown(row[short])}, {NO_ANSWER}.")
        if not is_right(row[correct]) or not _written(row[short]):
            continue
        kept = {name: value for name, value in row.items() if name not in (long, short, correct)}
        made.append({**kept, "chosen": row[long], "rejected": row[short]})
    return made


def is_right(verdict: Any) -> bool:
    """Whether a verdict (a bool, or 0 to 1; None: there is none) says right."""
    return verdict is not None and float(verdict) >= RIGHT


NO_ANSWER = "neither a text nor a list of messages; write numbers as text"


def _is_answer(value: Any) -> bool:
    """Whether it is a text or a list of messages."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, dict) for one in value))


def _written(answer: Any) -> bool:
    """Whether there is anything in an answer, a text or a list of messages."""
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(str(message.get("content") or "").strip() for message in answer or [])


# -- trees


@dataclass(frozen=True)
class Node:
    """A step of an answer: `text` follows the texts of its parents.

    parent   its place among the tree's nodes; -1: the prompt
    depth    0 for first steps
    value    the judge's, 0 to 1; None: not judged
    kept     whether the search went on from here
    ends     whether the answer ends with it
    cut      whether it ran into the limit of tokens, and so is no whole step
    right    of the last step of a path, what the verifier said of the whole answer; None: not asked, or no verdict
    """

    parent: int
    depth: int
    text: str
    value: float | None = None
    kept: bool = False
    ends: bool = False
    cut: bool = False
    right: float | None = None


@dataclass
class Tree:
    """The steps that a search tried on one prompt. `str()` draws it: + on a right path, - thrown away."""

    prompt: Any
    """as the row has it"""
    text: str
    """as the model reads it"""
    row: int = 0
    nodes: list[Node] = field(default_factory=list)

    def path(self, place: int) -> list[int]:
        """The places of the nodes that lead to `place`, itself the last."""
        made = []
        while place >= 0:
            made.append(place)
            place = self.nodes[place].parent
        return made[::-1]

    def answer(self, place: int) -> str:
        """The text of the path to `place`; of the prompt (-1) nothing."""
        return "".join(self.nodes[i].text for i in self.path(place))

    def children(self, parent: int) -> list[int]:
        return [i for i, node in enumerate(self.nodes) if node.parent == parent]

    def on_right_paths(self) -> set[int]:
        """The places of all nodes that lead to a right answer, these included."""
        return {i for leaf, node in enumerate(self.nodes) if is_right(node.right) for i in self.path(leaf)}

    def __str__(self) -> str:
        right, lines = self.on_right_paths(), [self.text.rstrip()]

        def draw(parent: int) -> None:
            for i in self.children(parent):
                node = self.nodes[i]
                value = "   ?" if node.value is None else f"{node.value:.2f}"
                lines.append(f"{'    ' * node.depth}{'+' if i in right else '-'} {value}  {node.text.strip()}")
                draw(i)

        draw(-1)
        return "\n".join(lines)


def sibling_steps(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """For every step on a right path and every sibling (another step after the same prefix) that is on none: a row
    with `prompt` (the question and the steps before), `chosen`, `rejected`; `chosen_ends`, `rejected_ends` say whether
    the answer ends there, `depth` and `row` where the pair is from.

    Steps that were cut, are blank, or say what a right sibling says are in no pair.
    """
    made = []
    for tree in trees:
        right = tree.on_right_paths()
        for place in sorted(right):
            chosen, siblings = tree.nodes[place], tree.children(tree.nodes[place].parent)
            said = {tree.nodes[i].text.strip() for i in siblings if i in right}
            for rejected in [tree.nodes[i] for i in siblings if i not in right] if _step(chosen) else []:
                if _step(rejected) and rejected.text.strip() not in said:
                    made.append(
                        {
                            "prompt": tree.text + tree.answer(chosen.parent),
                            "chosen": chosen.text,
                            "rejected": rejected.text,
                            "chosen_ends": chosen.ends,
                            "rejected_ends": rejected.ends,
                            "depth": chosen.depth,
                            "row": tree.row,
                        }
                    )
    return made


def _step(node: Node) -> bool:
    return not node.cut and bool(node.text.strip())


# -- groups


def answer_groups(rollouts: Any, verdict: str | None = None) -> list[dict[str, Any]]:
    """Scored Rollouts as rows {prompt, answers, correct}, a row a group; `correct` is the reward `verdict` (None: the
    summed reward). Completions without it are left out."""
    scores = rollouts.reward if verdict is None else rollouts.rewards.get(verdict)
    if scores is None:
        raise DataError(
            "These rollouts have no rewards; score them first."
            if verdict is None
            else f"These rollouts have no reward {verdict!r}. They have: {', '.join(rollouts.rewards) or 'none'}."
        )
    made: dict[int, dict[str, Any]] = {}
    for place, group in enumerate(rollouts.group):
        row = made.setdefault(group, {"prompt": rollouts.prompt[place], "answers": [], "correct": []})
        if not math.isnan(scores[place]):
            row["answers"].append(rollouts.text[place])
            row["correct"].append(float(scores[place]))
    return [row for row in made.values() if row["answers"]]


def flat_answers(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows {prompt, answers, correct} as rows {prompt, completion, question, quality}: an answer each, `question` the
    number of the row it is from. All other columns are kept.

    A row's own `completion`, where there is one, is a right answer and comes first. `correct` says of each answer
    whether it is right, or how good it is from 0 to 1 (1: right); None (not judged): the answer is left out. Raises
    DataError naming a row that does not hold together.
    """
    made = []
    for number, row in enumerate(rows):
        if "prompt" not in row or ("completion" not in row and "answers" not in row):
            raise DataError(f"Row {number} needs prompt and answers (a list of texts), or completion, a right answer.")
        answers, correct = row.get("answers"), row.get("correct")
        answers = [] if answers is None else answers
        if not isinstance(answers, (list, tuple)):
            raise DataError(f"Row {number}: column 'answers' is {shown(answers)}, not a list of texts.")
        if not isinstance(correct or [], (list, tuple)) or len(correct or []) != len(answers):
            raise DataError(
                f"Row {number}: {len(answers)} answers need as many entries in correct (True or False, or 0 to 1)."
            )
        each = [("completion", row["completion"], RIGHT)] if row.get("completion") is not None else []
        each += [("answers", *pair) for pair in zip(answers, correct or [], strict=True)]
        kept = {name: value for name, value in row.items() if name not in ("answers", "correct", "completion")}
        for column, answer, quality in each:
            if quality is not None:
                if not _is_answer(answer):
                    raise DataError(f"Row {number}: column {column!r} has {shown(answer)}, {NO_ANSWER}.")
                made.append({**kept, **_answer(number, row["prompt"], answer, quality)})
    return made


def _answer(number: int, prompt: Any, answer: Any, quality: Any) -> dict[str, Any]:
    if not isinstance(quality, (bool, int, float)) or not 0 <= quality <= 1:
        raise DataError(f"Row {number}: correct has {quality!r}; it takes True, False, a number from 0 to 1, or None.")
    if isinstance(answer, str) and not isinstance(prompt, str):
        answer = [{"role": "assistant", "content": answer}]
    return {"completion": answer, "question": number, "quality": float(quality)}
