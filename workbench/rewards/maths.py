"""Mathematical answers compared by math-verify, as TRL's `accuracy_reward` does, in a process that can be
killed.

math-verify's own time-outs need the main thread, and without them an expression can keep it busy for ever, so
it runs in one long-lived process of its own (`killable`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from workbench.errors import RewardError
from workbench.rewards.killable import Killable, StartError, Unanswered
from workbench.rewards.text import completion_text

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

    The decisions are those of TRL's `accuracy_reward`: the completion's answer must stand in LaTeX (`$...$`,
    `\\boxed{...}` first). None where the reference cannot be read, and where math-verify gave no verdict (it
    ran past 10 seconds, ran out of memory, or raised): these are counted in a warning and in the metric
    `rewards/math_answer/unanswered`. Needs the package math-verify.
    """
    rewards: list[float | None] = []
    reasons: list[str] = []
    for completion, right in zip(completions, answer, strict=True):
        try:
            rewards.append(_verifier(str(right), completion_text(completion)))
        except Unanswered as reason:
            rewards.append(None)
            reasons.append(str(reason))
        except StartError as error:
            raise RewardError(
                f"math_answer needs math-verify: pip install 'math-verify[antlr4_13_2]'. ({error})"
            ) from error
    if log_metric is not None:
        log_metric("rewards/math_answer/unanswered", len(reasons))
    if reasons:
        warnings.warn(
            f"math_answer: no verdict for {len(reasons)} of {len(rewards)} completions, counted as None "
            f"(first: {reasons[0]}).",
            stacklevel=2,
        )
    return rewards
