"""Rewards for naming a class: its label between answer tags, or as the whole completion.

Li et al. 2025, "CLS-RL", arXiv 2503.16188.
"""

from __future__ import annotations

import re
from typing import Any

from workbench.rewards.text import completion_text

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
FORM = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def named_label(text: str) -> str:
    """What a completion answers: what stands between its first answer tags, else all of it; case and white space around
    aside."""
    found = TAGGED.search(text)
    return (found[1] if found else text).strip().lower()


def tagged_label(completions: list, answer: list, **kwargs: Any) -> list[float | None]:
    """1.0 where the label between a completion's answer tags is the row's, case aside, else 0.0; a completion without
    tags counts as a whole. None where the row has no label. CLS-RL's (Li et al. 2025, arXiv 2503.16188)."""
    return [
        None if label is None else float(named_label(completion_text(c)) == str(label).strip().lower())
        for c, label in zip(completions, answer, strict=True)
    ]


def tagged_form(completions: list, **kwargs: Any) -> list[float]:
    """1.0 where a completion is `<think>...</think>`, white space, `<answer>...</answer>` and nothing else, else 0.0.
    CLS-RL's format reward (Li et al. 2025, arXiv 2503.16188)."""
    return [float(FORM.fullmatch(completion_text(c)) is not None) for c in completions]


def whole_label(completions: list, answer: list, **kwargs: Any) -> list[float | None]:
    """1.0 where the whole completion is the row's label, to the letter, else 0.0; "The answer is cat" is not "cat".
    None where the row has no label. The reward without thinking of CLS-RL (Li et al. 2025, arXiv 2503.16188)."""
    return [
        None if label is None else float(completion_text(c) == str(label))
        for c, label in zip(completions, answer, strict=True)
    ]


def _as_it_stands(text: str) -> str:
    return text


tagged_label.extract = named_label  # evaluations vote on it
whole_label.extract = _as_it_stands
