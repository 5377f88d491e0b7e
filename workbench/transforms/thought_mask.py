"""Drafts in the context, only the revision trained (progressive thought refinement), and refining round by round."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.errors import DataError, SettingError
from workbench.rewards.text import completion_text
from workbench.transforms import parts

REFINE = "Please think about it once more and give a more precise answer."
"""what asks for the next answer, in training and when sampled"""


def thought_mask(rows: Any, drafts: int = 3, refine: str = REFINE, min_overlap: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose prompt holds the question, earlier drafts and the request to refine; the better answer is the target.

    A row has a prompt, a `completion` (the better answer, of a stronger model) and `drafts`, a list of texts (of a
    weaker one), of which the last `drafts` are taken. Plain rows: prompt, draft 1, ..., draft n, `refine`, each after
    an empty line. Conversational ones: each draft is a turn of the assistant, followed by `refine` as a turn of the
    user. Only the completion trains. Rows whose last draft shares less than `min_overlap` of its words with the answer
    (see `overlap`) do not belong together and are left out. `drafts=0` returns the rows as they were. Raises DataError
    for a row without drafts or an answer, and where no row is left.
    """
    if isinstance(drafts, bool) or not isinstance(drafts, int) or drafts < 0:
        raise SettingError(f"drafts={drafts!r}: give how many drafts to show, from 0.")
    parts.check_share("min_overlap", min_overlap)
    found = parts.read(rows)
    if drafts == 0:
        return found
    made = [_refined(row, index, drafts, refine, min_overlap) for index, row in enumerate(found)]
    kept = [row for row in made if row is not None]
    if not kept:
        raise DataError(f"No draft shares {min_overlap:g} of its words with its answer; lower min_overlap.")
    return kept


def _refined(row: dict[str, Any], index: int, drafts: int, refine: str, min_overlap: float) -> dict[str, Any] | None:
    if not row.get("prompt") or not row.get("completion"):
        raise DataError(f"row {index} (counting from 0): a revision needs a 'prompt' and a 'completion', the answer.")
    shown = row.get("drafts")
    if not isinstance(shown, list) or not shown or not all(isinstance(draft, str) and draft for draft in shown):
        raise DataError(
            f"row {index} (counting from 0): the column 'drafts' holds {parts.shown(shown)}, not a list of texts."
            " workbench.transforms.thought_mask.drafted samples them from a policy."
        )
    shown = shown[-drafts:]
    if overlap(shown[-1], parts.answer_of(row, index)) < min_overlap:
        return None
    return {**row, "prompt": asked_again(row["prompt"], shown, refine)}


def asked_again(prompt: Any, drafts: Sequence[str], refine: str = REFINE) -> Any:
    """The prompt with the drafts and the request to refine, as text or as messages, whichever it is."""
    if isinstance(prompt, str):
        return "\n\n".join([prompt, *drafts, refine]) + "\n"
    turns = [[{"role": "assistant", "content": draft}, {"role": "user", "content": refine}] for draft in drafts]
    return [*prompt, *(message for turn in turns for message in turn)]


def overlap(draft: str, answer: str) -> float:
    """The share of words that two texts have in common: 2 |A and B| / (|A| + |B|) over their sets of words."""
    one, other = ({word.lower() for word in re.findall(r"\w+", text)} for text in (draft, answer))
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def drafted(policy: Any, rows: Any, n: int = 1, seed: int = 0, **sampling: Any) -> list[dict[str, Any]]:
    """The rows with `n` samples of a (weak) policy each in the column `drafts`. `sampling` goes to `policy.sample`."""
    found = parts.read(rows)
    rollouts = policy.sample([row["prompt"] for row in found], n=n, seed=seed, **sampling)
    drafts: list[list[str]] = [[] for _ in found]
    for row, text in zip(rollouts.row, rollouts.text, strict=True):
        drafts[row].append(text or " ")
    return [{**row, "drafts": texts} for row, texts in zip(found, drafts, strict=True)]


def refined(
    policy: Any, prompts: Sequence[Any], rounds: int = 2, refine: str = REFINE, seed: int = 0, **sampling: Any
) -> list[list[str]]:
    """A policy's answers round by round: the first to the prompts as they are, each later one after the request to
    refine and all answers before it. Element r has one answer a prompt; the paper sees gains end after 2 or 3
    rounds."""
    answers: list[list[str]] = []
    for turn in range(rounds + 1):
        before = [[said[i] or " " for said in answers] for i in range(len(prompts))]
        asked = [asked_again(p, d, refine) if d else p for p, d in zip(prompts, before, strict=True)]
        answers.append([completion_text(text) for text in policy.sample(asked, n=1, seed=seed + turn, **sampling).text])
    return answers


def turned(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """What a round of refining did to answers: the shares `right_to_wrong` and `wrong_to_right` of all."""
    pairs = [(bool(one), bool(other)) for one, other in zip(before, after, strict=True)]
    if not pairs:
        raise DataError("There are no answers to compare.")
    return {
        "right_to_wrong": sum(one and not other for one, other in pairs) / len(pairs),
        "wrong_to_right": sum(other and not one for one, other in pairs) / len(pairs),
    }
