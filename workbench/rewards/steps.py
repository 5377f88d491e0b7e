"""Rewards for worked steps: key steps that occur, steps that are in order, and both with the answer (StepGRPO).

Zhang et al. 2025, "R1-VL", arXiv 2503.12937: the rewards are text, the images its task has are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import RewardError, SettingError, did_you_mean
from workbench.rewards.base import Named, finite, store
from workbench.rewards.lengths import DECIDERS
from workbench.rewards.signature import short
from workbench.rewards.text import completion_text

STEP = re.compile(r"### Step (\d+):")
STEP_TEXT = re.compile(r"### Step \d+:[ \t]*(.*?)(?=\n###|\Z)", re.DOTALL)
ANSWER = "### The final answer is:"


@dataclass(frozen=True)
class key_steps(Named):
    """A reward: the share, 0 to 1, of a problem's key steps that a completion's steps name.

    The column `key_steps` has for each problem a list of key steps, each a short phrase or a list of accepted variants
    ("x = 4", or ["x = 4", "x is 4"]). One counts where a variant occurs, case aside, in the text under "### Step k:"
    headings. None where a problem has no list; 0.0 for an empty one. RewardError for anything else. Zhang et al. 2025,
    arXiv 2503.12937. Can be rebuilt in a new process.
    """

    def __call__(self, completions: list, key_steps: list, **kwargs: Any) -> list[float | None]:
        return [_share(completion_text(c), wanted) for c, wanted in zip(completions, key_steps, strict=True)]


def _share(text: str, wanted: Any) -> float | None:
    if wanted is None:
        return None
    if isinstance(wanted, dict):  # as in the authors' data
        wanted = wanted.get("Steps", [])
    variants = [[one] if isinstance(one, str) else one for one in wanted] if isinstance(wanted, list) else [None]
    if not all(isinstance(v, list) and all(isinstance(one, str) for one in v) for v in variants):
        raise RewardError(f"key_steps must be a list of phrases, or of lists of variants, not {short(wanted)}.")
    steps = " ".join(STEP_TEXT.findall(text)).lower()
    return sum(any(one.lower() in steps for one in v) for v in variants) / len(variants) if variants else 0.0


@dataclass(frozen=True)
class valid_steps(Named):
    """A reward: 1.0 where a completion has all headings, its steps are numbered 1, 2, ... in order, and the answer
    comes after the last of them; else 0.0.

    Steps begin with "### Step k:", the answer with "### The final answer is:". `headings`: what must be there, too; the
    paper asks for "### Image Description:" and "### Rationales:" (Zhang et al. 2025, arXiv 2503.12937). Never None.
    SettingError for headings that are not a list of texts. Can be rebuilt in a new process.
    """

    headings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        store(self, headings=_texts("valid_steps", self.headings))

    def __call__(self, completions: list, **kwargs: Any) -> list[float]:
        return [float(valid(completion_text(completion), self.headings)) for completion in completions]


def valid(text: str, headings: Iterable[str] = ()) -> bool:
    """Whether a completion is built as `valid_steps` asks."""
    steps = [*STEP.finditer(text)]
    numbers = [int(step[1]) for step in steps]
    ordered = bool(steps) and numbers == [*range(1, len(steps) + 1)]
    return ordered and text.rfind(ANSWER) > steps[-1].start() and all(heading in text for heading in headings)


def _texts(reward: str, values: Any) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable) or not all(isinstance(v, str) for v in values):
        raise SettingError(f"{reward}: headings must be a list of texts, not {short(values)}.")
    return list(values)


@dataclass(frozen=True)
class step_grpo(Named):
    """A reward with partial credit for steps: right (1 or 0) + 0.1 * share of key steps named + valid steps (1 or 0).

    Two of four key steps, a right answer and broken numbering give 1 + 0.05 + 0. The answer is what follows "### The
    final answer is:", the whole completion where that is missing; `correct` tells whether it equals the column
    `answer`: "math_answer", "number" or "exact_match". Key steps: the column `key_steps` (`key_steps`); validity,
    `headings`: `valid_steps`. The three parts are logged as step_grpo/right, step_grpo/key_steps and step_grpo/valid;
    as rewards of their own they are `rewards=[key_steps(), valid_steps(), ...]` with weights. None where the answer
    cannot be judged.

    StepGRPO is GRPO with this reward, which raises the share of groups whose rewards differ: Zhang et al. 2025,
    "R1-VL", arXiv 2503.12937, with 4 completions at temperature 1.2. Its key steps were extracted by a strong model and
    are data here; its images and its warm-up are left out. SettingError for settings that do not fit. Can be rebuilt in
    a new process.
    """

    correct: str = "math_answer"
    key_weight: float = 0.1
    headings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.correct not in DECIDERS:
            near = did_you_mean(str(self.correct), DECIDERS)
            raise SettingError(f"step_grpo: correct={self.correct!r} is not one of {', '.join(DECIDERS)}.{near}")
        weight = finite("step_grpo", "key_weight", self.key_weight)
        store(self, key_weight=weight, headings=_texts("step_grpo", self.headings))

    def __call__(
        self,
        completions: list,
        answer: list,
        key_steps: list,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        ends = [text.rpartition(ANSWER)[2].strip() for text in texts]
        right = [
            None if verdict is None else float(verdict >= 1.0)
            for verdict in DECIDERS[self.correct](ends, answer, log_metric=log_metric)
        ]
        keys = [_share(text, wanted) or 0.0 for text, wanted in zip(texts, key_steps, strict=True)]
        held = [float(valid(text, self.headings)) for text in texts]
        if log_metric is not None and texts:
            for name, values in (("right", [r for r in right if r is not None]), ("key_steps", keys), ("valid", held)):
                if values:
                    log_metric(f"step_grpo/{name}", sum(values) / len(values))
        return [None if r is None else r + self.key_weight * k + v for r, k, v in zip(right, keys, held, strict=True)]
