"""Mathematical answers compared by math-verify, as TRL's `accuracy_reward` does, in a process that can be
killed.

math-verify's own time-outs need the main thread, and without them an expression can keep it busy for ever, so
it runs in one long-lived process of its own (`killable`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench import worker
from workbench.errors import RewardError
from workbench.rewards.killable import Killable, StartError, Unanswered
from workbench.rewards.text import boxed, completion_text

TIMEOUT = 10.0
"""seconds for reading and comparing one answer"""

_verifier = Killable("workbench.rewards.mathverify:verdict", timeout=TIMEOUT)


def math_answer(
    completions: list,
    answer: list,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """1.0 where the completion's LaTeX answer equals the answer mathematically (1/2, 0.5 and \\frac{1}{2}),
    else 0.0.

    The decisions are those of TRL's `accuracy_reward`: the completion's answer must stand in LaTeX, in
    `\\boxed{...}` or, without a box, in `$...$` after words such as "the answer is". None where the reference is
    None or cannot be read, and where math-verify gave no verdict (it ran past 10 seconds, ran out of memory, or
    raised): these are counted in a warning and in the metric `rewards/math_answer/unanswered`. Needs the package
    math-verify. Evaluations vote on the text in the last box.
    """
    return _judged("math_answer", [completion_text(completion) for completion in completions], answer, log_metric)


def reasoning_math_answer(
    completions: list,
    answer: list,
    log_metric: Callable[[str, float], None] | None = None,
    reasoning_delimiters: Sequence[str] = ("</think>",),
    **kwargs: Any,
) -> list[float | None]:
    """`math_answer` of what follows the reasoning; 0.0 where the reasoning does not end.

    The reasoning ends at the last occurrence of the first of `reasoning_delimiters` that is there at all; other
    ones are given by functools.partial. The decisions are those of TRL's `reasoning_accuracy_reward`: None where
    the reference cannot be read, but for a completion whose reasoning does not end, which is 0.0 all the same.
    The metric is `rewards/reasoning_math_answer/unanswered`.
    """
    texts = [after_reasoning(completion_text(completion), reasoning_delimiters) for completion in completions]
    return _judged("reasoning_math_answer", texts, answer, log_metric)


def after_reasoning(text: str, delimiters: Sequence[str] = ("</think>",)) -> str | None:
    """What follows the last occurrence of the first delimiter that is there; None where none is."""
    found = next((delimiter for delimiter in delimiters if delimiter in text), None)
    return None if found is None else text.rpartition(found)[2]


def _judged(
    name: str, texts: Sequence[str | None], answer: list, log_metric: Callable[[str, float], None] | None
) -> list[float | None]:
    """math-verify's verdict on each text, 0.0 for None; warns of those it did not give."""
    rewards: list[float | None] = []
    reasons: list[str] = []
    for text, right in zip(texts, answer, strict=True):
        try:
            if text is None or right is None:
                rewards.append(0.0 if text is None else None)
            else:
                rewards.append(_verifier(str(right), text))
        except Unanswered as reason:
            rewards.append(None)
            reasons.append(str(reason))
        except StartError as error:
            raise RewardError(f"{name} needs math-verify: pip install 'math-verify[antlr4_13_2]'. ({error})") from error
    if log_metric is not None:
        log_metric(f"rewards/{name}/unanswered", len(reasons))
    if reasons:
        worker.warn(
            f"{name}: no verdict for {len(reasons)} of {len(rewards)} completions, counted as None "
            f"(first: {reasons[0]})."
        )
    return rewards


def _box(text: str) -> str | None:
    found = boxed(text)
    return "".join(found.split()) or None if found else None


def _box_after_reasoning(text: str) -> str | None:
    return _box(after_reasoning(text) or "")


# What an evaluation takes for a completion's answer when it lets the samples of a prompt vote (eval/maj@n).
math_answer.extract = _box
reasoning_math_answer.extract = _box_after_reasoning
