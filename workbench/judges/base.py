"""What every judge is: answers in, verdicts out; those that are missing are counted and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench import worker
from workbench.errors import DataError, RewardError, SettingError

Verdicts = list[float | None]


class Judge:
    """Says how good answers are, or which of two is better. A kind of judge has `_score`, `_prefer` or both.

    `name`: of its curves and in messages. It can be called as a reward function, and then scores.
    """

    name = "judge"
    tells = True
    """whether missing verdicts are told here; False where what is asked tells them itself"""

    @property
    def __name__(self) -> str:
        return self.name

    def score(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence) -> Verdicts:
        """How good each completion is, from 0 (worthless, wrong) to 1 (could not be better, right); None: no verdict.

        `columns`: the rows' further columns, a value for each prompt, for judges that read them. Raises DataError for
        lists that do not go together, SettingError for a judge that only compares.
        """
        self._check(prompts, completions)
        return self._told(self._score(list(prompts), list(completions), columns))

    def prefer(
        self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any], **columns: Sequence
    ) -> Verdicts:
        """The probability that `first[i]` is a better answer to `prompts[i]` than `second[i]`; None: no verdict.

        prefer(a, b) = 1 - prefer(b, a). A judge that only scores is sure: 1 where the first scores higher, 0 where it
        scores lower, one half where both score the same. Raises as `score` does.
        """
        self._check(prompts, first, second)
        return self._told(self._prefer(list(prompts), list(first), list(second), columns))

    def __call__(
        self,
        prompts: list,
        completions: list,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> Verdicts:
        verdicts = self.score(prompts, completions, **columns)
        if log_metric is not None and verdicts:
            log_metric(f"judge/{self.name}/none_share", verdicts.count(None) / len(verdicts))
        return verdicts

    def _score(self, prompts: list, completions: list, columns: dict[str, Any]) -> Verdicts:
        raise SettingError(f"{self.name} compares two answers and does not score one: call its prefer().")

    def _prefer(self, prompts: list, first: list, second: list, columns: dict[str, Any]) -> Verdicts:
        twice = {name: [*values, *values] if _listed(values, prompts) else values for name, values in columns.items()}
        scores = self._score([*prompts, *prompts], [*first, *second], twice)
        pairs = zip(scores[: len(prompts)], scores[len(prompts) :], strict=True)
        return [None if None in pair else 0.5 + 0.5 * ((pair[0] > pair[1]) - (pair[0] < pair[1])) for pair in pairs]

    def _check(self, prompts: Sequence[Any], *answers: Sequence[Any]) -> None:
        for given in (prompts, *answers):
            if isinstance(given, str):
                raise DataError(f"{self.name}: give lists of prompts and answers, not one text: {given!r:.60}")
            if len(given) != len(prompts):
                raise DataError(f"{self.name}: {len(prompts)} prompts but {len(given)} answers; give one a prompt.")

    def _told(self, verdicts: Verdicts) -> Verdicts:
        for place, verdict in enumerate(verdicts):
            if verdict is not None and not 0 <= verdict <= 1:
                raise RewardError(
                    f"{self.name} gave {verdict!r} for answer {place}; a verdict is a number from 0 to 1, or None."
                    " A reward on another scale: rule(fn, scale=(low, high))."
                )
        if (missing := verdicts.count(None)) and self.tells:
            worker.warn(f"{self.name}: no verdict for {missing} of {len(verdicts)} answers; they are left out.")
        return verdicts


def _listed(values: Any, prompts: list) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == len(prompts)
