"""Rewards of a completion's length in tokens, the stop token included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError, did_you_mean
from workbench.rewards.base import Named, above_zero, finite, store, whole
from workbench.rewards.maths import math_answer
from workbench.rewards.text import exact_match, number

DECIDERS: dict[str, Callable] = {"math_answer": math_answer, "number": number, "exact_match": exact_match}


@dataclass(frozen=True)
class length(Named):
    """A reward: how far a completion of n tokens is from `target`, or above `limit`; 0 at best, -1 at worst.

    -min(d / width, 1), where d = |n - target|, or d = max(n - limit, 0); exactly one of the two is given. `width`:
    the tokens over which the reward falls from 0 to -1; None: the target or limit itself. Never None.

    With weight alpha x width the target form is the length term -alpha |n - target| of LCPO-Exact (Aggarwal and
    Welleck 2025, arXiv 2503.04697), but that it stops falling at -1. `soft_overlong(L, C)` is
    `length(limit=L - C, width=C)`. SettingError for lengths that are not whole numbers above 0. Can be rebuilt in
    a new process.
    """

    target: int | None = None
    limit: int | None = None
    width: float | None = None

    def __post_init__(self) -> None:
        if (self.target is None) == (self.limit is None):
            raise SettingError("length takes a target or a limit, one of the two: length(limit=200).")
        name = "target" if self.limit is None else "limit"
        goal = whole("length", name, getattr(self, name), 1)
        store(self, **{name: goal}, width=above_zero("length", "width", goal if self.width is None else self.width))

    def __call__(self, completion_ids: list, **kwargs: Any) -> list[float]:
        counts = [len(ids) for ids in completion_ids]
        if self.limit is None:
            distances = [abs(n - self.target) for n in counts]
        else:
            distances = [max(n - self.limit, 0) for n in counts]
        return [-min(distance / self.width, 1.0) if distance else 0.0 for distance in distances]


@dataclass(frozen=True)
class soft_overlong(Named):
    """A reward: 0 up to `max_length` - `cache` tokens, then falling evenly to -1 at `max_length`, and -1 beyond.

    For n tokens: 0 where n <= L - C; ((L - C) - n) / C where L - C < n <= L; -1 where n > L. Never None. Equation
    13 of DAPO (Yu et al. 2025, arXiv 2503.14476), as TRL's `get_soft_overlong_punishment`. A completion is cut at
    `max_new_tokens`, so with `max_length` equal to that nothing is beyond it. SettingError unless
    0 <= cache <= max_length. Can be rebuilt in a new process.
    """

    max_length: int
    cache: int

    def __post_init__(self) -> None:
        most, cache = whole("soft_overlong", "max_length", self.max_length, 1), self.cache
        cache = whole("soft_overlong", "cache", cache, 0)
        if cache > most:
            raise SettingError(f"soft_overlong: cache={cache} must be at most max_length={most}.")
        store(self, max_length=most, cache=cache)

    def __call__(self, completion_ids: list, **kwargs: Any) -> list[float]:
        free = self.max_length - self.cache
        return [
            -1.0 if len(ids) > self.max_length else (free - len(ids)) / self.cache if len(ids) > free else 0.0
            for ids in completion_ids
        ]


@dataclass(frozen=True)
class cosine_length(Named):
    """A reward for right and wrong completions that follows a cosine over their length, n tokens.

    long + (short - long) (1 + cos(pi u)) / 2, with u = min(n / max_length, 1), where
    right: short = max_value_correct, long = min_value_correct: a right answer is worth more where it is shorter;
    wrong: short = min_value_wrong, long = max_value_wrong: a wrong one costs less where it is longer, so that the
    policy goes on searching.

    Names, defaults and the clamp at `max_length` are those of TRL's `get_cosine_scaled_reward`. The paper (Yeo et
    al. 2025, arXiv 2502.03373, appendix C.1) has other values and a reward of its own past the limit:
    `cosine_length(L, min_value_wrong=-10, max_value_wrong=0, min_value_correct=1, max_value_correct=2, exceed=-10)`;
    there a completion that reaches the limit gets it, here one of more than `max_length` tokens, so keep
    `max_length` below the longest completion that is sampled.

    `correct`: which function of (completions, answer) tells right (1.0) from wrong: "math_answer" (TRL's rule),
    "number" or "exact_match". None where that function gives None. SettingError for values that are not numbers.
    Can be rebuilt in a new process.
    """

    max_length: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0
    exceed: float | None = None
    correct: str = "math_answer"

    def __post_init__(self) -> None:
        store(self, max_length=whole("cosine_length", "max_length", self.max_length, 1))
        for name in ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct", "exceed"):
            value = getattr(self, name)
            if value is not None or name != "exceed":
                store(self, **{name: finite("cosine_length", name, value)})
        if self.correct not in DECIDERS:
            near = did_you_mean(str(self.correct), DECIDERS)
            raise SettingError(f"cosine_length: correct={self.correct!r} is not one of {', '.join(DECIDERS)}.{near}")

    def __call__(
        self,
        completions: list,
        answer: list,
        completion_ids: list,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        verdicts = DECIDERS[self.correct](completions, answer, log_metric=log_metric)
        return [
            None if verdict is None else self._value(verdict >= 1.0, len(ids))
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]

    def _value(self, right: bool, n: int) -> float:
        if self.exceed is not None and n > self.max_length:
            return self.exceed
        short, long = (
            (self.max_value_correct, self.min_value_correct) if right else (self.min_value_wrong, self.max_value_wrong)
        )
        return long + (short - long) * (1 + math.cos(math.pi * min(n / self.max_length, 1.0))) / 2
