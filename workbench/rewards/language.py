"""Rewards against repetition and for writing in one script."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from workbench.errors import RewardError, SettingError, did_you_mean
from workbench.rewards.base import Named, finite, store, whole
from workbench.rewards.signature import short
from workbench.rewards.text import completion_text

UNITS = ("tokens", "words", "characters")
SCRIPTS = (
    "arabic", "armenian", "bengali", "cyrillic", "devanagari", "ethiopic", "georgian", "greek", "gujarati", "gurmukhi",
    "han", "hangul", "hebrew", "hiragana", "kannada", "katakana", "khmer", "lao", "latin", "malayalam", "mongolian",
    "myanmar", "sinhala", "tamil", "telugu", "thai", "tibetan",
)  # fmt: skip
"""Unicode scripts by the word that the names of their letters start with"""


@dataclass(frozen=True)
class repetition(Named):
    """A reward against n-grams that come again: from 0 (none does) towards `max_penalty`, which is at most 0.

    (1 - different n-grams / n-grams) x max_penalty; 0 for a completion with fewer than `ngram` units. Never None.
    Yeo et al. 2025 (arXiv 2502.03373, appendix C.2) give every repeated token a penalty of its own; one number a
    completion is TRL's `get_repetition_penalty_reward`, which this equals.

    `unit`: what an n-gram is made of: "tokens" (as TRL; any language), "words" (what white space separates) or
    "characters", for text that was not sampled and so has no tokens: Chinese, say, has no spaces to tell words by.
    SettingError for a penalty above 0. Can be rebuilt in a new process.
    """

    ngram: int = 3
    max_penalty: float = -1.0
    unit: str = "tokens"

    def __post_init__(self) -> None:
        penalty = finite("repetition", "max_penalty", self.max_penalty)
        if penalty > 0:
            raise SettingError(f"repetition: max_penalty={penalty:g} must not be above 0: it is a penalty.")
        if self.unit not in UNITS:
            near = did_you_mean(str(self.unit), UNITS)
            raise SettingError(f"repetition: unit={self.unit!r} is not one of {', '.join(UNITS)}.{near}")
        store(self, ngram=whole("repetition", "ngram", self.ngram, 1), max_penalty=penalty)

    def __call__(self, completions: list, completion_ids: list | None = None, **kwargs: Any) -> list[float]:
        if self.unit == "tokens":
            if completion_ids is None:
                raise RewardError(
                    "repetition counts tokens, and these completions were given as text: use unit='words' or "
                    "'characters'."
                )
            return [self._penalty(ids) for ids in completion_ids]
        texts = [completion_text(completion) for completion in completions]
        return [self._penalty(text.split() if self.unit == "words" else text) for text in texts]

    def _penalty(self, units: Any) -> float:
        count = len(units) - self.ngram + 1
        different = len({tuple(units[i : i + self.ngram]) for i in range(count)})
        return self.max_penalty * (1 - different / count) if different < count else 0.0


@dataclass(frozen=True)
class language_share(Named):
    """A reward: the share, 0 to 1, of a completion's letters that belong to the script, or to one of several.

    (letters of `script`) / (letters). Digits, marks, spaces and symbols count on neither side; nor do letters of no
    script (a mathematical x, the micro sign) or of one that `SCRIPTS` lacks. None where a completion has no letters.
    It tells scripts, not languages: English and Vietnamese are both "latin"; Japanese is
    `["han", "hiragana", "katakana"]`. A pi in a formula counts as a Greek letter.

    One minus it is the language-mixing penalty of GreenMind (2025, arXiv 2504.16832); the consistency reward of
    DeepSeek-R1 (Guo et al. 2025, arXiv 2501.12948) counts words instead of letters. SettingError for a script that
    is not in `SCRIPTS`. Can be rebuilt in a new process.
    """

    script: str | list[str] = "latin"

    def __post_init__(self) -> None:
        wanted = [self.script] if isinstance(self.script, str) else self.script
        if not isinstance(wanted, (list, tuple, set)) or not wanted:
            raise SettingError(f"language_share: script must be a name or a list of names, not {short(self.script)}.")
        for name in wanted:
            if name not in SCRIPTS:
                near = did_you_mean(str(name), SCRIPTS)
                raise SettingError(f"language_share: no script {name!r}.{near} Scripts: {', '.join(SCRIPTS)}.")
        store(self, script=self.script if isinstance(self.script, str) else sorted(wanted))

    def __call__(self, completions: list, **kwargs: Any) -> list[float | None]:
        return [self._share(completion_text(completion)) for completion in completions]

    def _share(self, text: str) -> float | None:
        wanted = {self.script} if isinstance(self.script, str) else set(self.script)
        found = [script for script in map(script_of, text) if script is not None]
        return sum(script in wanted for script in found) / len(found) if found else None


@lru_cache(maxsize=65536)
def script_of(letter: str) -> str | None:
    """The script of one character by its Unicode name; None for what is not a letter or belongs to none of them."""
    if not letter.isalpha():
        return None
    words = unicodedata.name(letter, "").split(" ")
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    word = "han" if words[0] == "CJK" else words[0].lower()
    return word if word in SCRIPTS else None
