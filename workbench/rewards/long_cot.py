"""Rewards that let chains of thought grow without running away: the length cosine and the price of repeated tokens.

Yeo et al. 2025, arXiv 2502.03373; constants are those of its appendix, and of its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError
from workbench.rewards.base import Named, finite, store, whole
from workbench.rewards.lengths import cosine_length


@dataclass(frozen=True)
class length_cosine(cosine_length):
    """A reward that follows a cosine over the length: right answers are worth more where short, wrong ones cost less
    where long.

    For n tokens and u = n / max_length, up to 1:

        right   1 + (2 - 1) (1 + cos(pi u)) / 2         from 2 (short) to 1 (long)
        wrong   0 + (-10 - 0) (1 + cos(pi u)) / 2       from -10 (short) to 0 (long): go on searching
        n >= max_length                                 `exceed`, -10; None: the cosine at its end

    so a wrong short answer is as bad as one that never ends. The numbers are the paper's (Yeo et al. 2025,
    arXiv 2502.03373); `cosine_length` has TRL's, and its `exceed` begins one token later. Give `max_new_tokens` as
    `max_length`: a completion that is cut there has exceeded. `correct`: which function tells right from wrong,
    "math_answer", "number" or "exact_match" (column `answer`). The paper adds a price for repeated tokens, without
    which wrong answers grow by repeating themselves: `rewards=[length_cosine(512), repeated_tokens()]`.

    Differs from the paper: no PPO with a discount of its own for each reward; both are rewards of a whole completion.
    SettingError for values that are not numbers. Can be rebuilt in a new process.
    """

    min_value_wrong: float = -10.0
    max_value_wrong: float = 0.0
    min_value_correct: float = 1.0
    max_value_correct: float = 2.0
    exceed: float | None = -10.0

    def _value(self, right: bool, n: int) -> float:
        return self.exceed if self.exceed is not None and n >= self.max_length else super()._value(right, n)


@dataclass(frozen=True)
class repeated_tokens(Named):
    """A reward against repetition: `penalty` for each token that lies in an n-gram which came before in the completion.

    -0.05 a token with n = 40 (Yeo et al. 2025, arXiv 2502.03373), where it is a reward of each token with a discount
    of its own; here it is their sum, undiscounted, one number a completion. `penalties(ids)` gives them token by token.
    Never None. `repetition` is the other form, a share of repeated n-grams. SettingError for a penalty above 0. Can be
    rebuilt in a new process.
    """

    ngram: int = 40
    penalty: float = -0.05

    def __post_init__(self) -> None:
        penalty = finite("repeated_tokens", "penalty", self.penalty)
        if penalty > 0:
            raise SettingError(f"repeated_tokens: penalty={penalty:g} must not be above 0: it is a penalty.")
        store(self, ngram=whole("repeated_tokens", "ngram", self.ngram, 1), penalty=penalty)

    def __call__(self, completion_ids: list, **kwargs: Any) -> list[float]:
        return [sum(self.penalties(ids)) for ids in completion_ids]

    def penalties(self, ids: list[int]) -> list[float]:
        """Of each token: the penalty where an n-gram over it is not the first of its kind, else 0."""
        seen: set[tuple[int, ...]] = set()
        made = [0.0] * len(ids)
        for start in range(len(ids) - self.ngram + 1):
            gram = tuple(ids[start : start + self.ngram])
            if gram in seen:
                made[start : start + self.ngram] = [self.penalty] * self.ngram
            seen.add(gram)
        return made
