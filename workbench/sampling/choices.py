"""How to draw, and what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How to draw; `checked()` says what is wrong with a setting.

    In transformers' order: repetition_penalty, temperature, top_k, top_p, min_p.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0: always the likeliest token"""
    top_p: float = 1.0
    """keep the fewest tokens that hold this much probability (nucleus sampling, arXiv 1904.09751)"""
    top_k: int = 0
    """keep so many of the likeliest tokens, before top_p; 0: all"""
    min_p: float = 0.0
    """keep tokens with at least this share of the likeliest one's probability (Nguyen et al. 2024, arXiv 2407.01082)"""
    repetition_penalty: float = 1.0
    """positive logits of tokens that stand in the prompt or the completion are divided by it, negative ones multiplied
    (Keskar et al. 2019, CTRL, arXiv 1909.05858); 1: none"""
    stop_strings: Sequence[str] = ()
    """texts that end a completion, which keeps the tokens up to and with the one that completed such a text"""

    def checked(self) -> Sampling:
        """Itself, if every setting makes sense. Raises SettingError."""
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("top_k", self.top_k, 0)
        if not (_is_number(self.temperature) and 0 <= self.temperature < float("inf")):
            raise SettingError(f"temperature={self.temperature!r} must be a number of at least 0; 0 is greedy.")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise SettingError(f"top_p={self.top_p!r} must be above 0 and at most 1; 1 keeps every token.")
        if not (_is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise SettingError(f"min_p={self.min_p!r} must be at least 0 and at most 1; 0 keeps every token.")
        if not (_is_number(self.repetition_penalty) and 0 < self.repetition_penalty < float("inf")):
            raise SettingError(f"repetition_penalty={self.repetition_penalty!r} must be above 0; 1 is none.")
        check_stop_strings(self.stop_strings)
        return self


@dataclass
class Drawn:
    """One completion: ids with the stop token, and per token log-prob and entropy in nats."""

    ids: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    finish_reason: str = "length"


def check_stop_strings(value: Any) -> None:
    """Raises SettingError unless `value` is a list of texts, none of them empty."""
    if isinstance(value, str):
        raise SettingError(f"stop_strings={value!r} must be a list of texts: stop_strings=[{value!r}].")
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) and text for text in value):
        raise SettingError(f"stop_strings={value!r} must be a list of texts, none of them empty.")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises SettingError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SettingError(f"{name}={value!r} must be a whole number of at least {least}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
