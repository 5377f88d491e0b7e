"""Abstention by semantic entropy: answer where the model's meanings agree, abstain where they scatter (Tjandra et al.
2024, "Fine-Tuning Large Language Models to Appropriately Abstain with Semantic Entropy", arXiv 2410.17234). No gold
answers are needed.

For each question one answer at a low temperature, and M samples at temperature 1. Samples that mean the same form a
cluster C_i (entailment both ways):

    SE = - sum_i (|C_i| / M) log(|C_i| / M)          nats: 0 for one meaning, log M for M of them

SE above `tau` makes "I don't know the answer." the target, else the low-temperature answer is. Then plain SFT on these
rows. `distance` is the accuracy-engagement distance, sqrt(I^2 + (D - C)^2) / sqrt(2 D^2) of I wrong and C right among D
questions; lower is better; by it tau is picked on held-out questions (the paper tries 0.25 to 2.25).

What means the same is asked of `same(question, a, b)`: an entailment model or a judge. The default compares normalised
strings, or what the task's verdict extracts, which does for short answers only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.errors import SettingError
from workbench.policy import Policy
from workbench.selection.cache import Cache

ABSTAIN = "I don't know the answer."
Same = Callable[[Any, str, str], bool]


@dataclass(frozen=True)
class Graded:
    """Questions with what the model answered: `answer` at a low temperature, `samples`, `entropy` in nats."""

    prompts: list[Any]
    answers: list[str]
    samples: list[list[str]]
    entropy: np.ndarray

    def rows(self, tau: float, abstain: str = ABSTAIN) -> Rows:
        """Rows to train on: the model's own answer, or `abstain` where its entropy is above `tau`."""
        if not tau >= 0:
            raise SettingError(f"tau={tau!r} must be a number of nats from 0.")
        found = zip(self.prompts, self.answers, self.entropy, strict=True)
        made = [
            {
                "prompt": prompt,
                "completion": abstain if se > tau else answer,
                "entropy": float(se),
                "abstains": bool(se > tau),
            }
            for prompt, answer, se in found
        ]
        return read_rows(made)


def grade(
    policy: Policy,
    prompts: Sequence[Any],
    m: int = 10,
    same: Same | None = None,
    low: float = 0.1,
    max_new_tokens: int = 64,
    seed: int = 0,
    cache: Cache | None = None,
) -> Graded:
    """Samples `m` + 1 answers of each question and takes their semantic entropy.

    `low`: the temperature of the standard answer. `cache`: completions that were sampled before. Raises SettingError
    for m below 2, for it takes two to disagree.
    """
    if m < 2:
        raise SettingError(f"m={m!r} must be at least 2: one sample says nothing about agreement.")
    cache = cache or Cache(policy)
    standard = cache.rollouts(prompts, 1, seed, temperature=low, max_new_tokens=max_new_tokens)
    drawn = cache.rollouts(prompts, m, seed, temperature=1.0, max_new_tokens=max_new_tokens)
    samples = [drawn.text[p * m : (p + 1) * m] for p in range(len(prompts))]
    means = same or (lambda question, a, b: normalised(a) == normalised(b))
    entropy = [entropy_of(sizes(question, texts, means)) for question, texts in zip(prompts, samples, strict=True)]
    return Graded(list(prompts), list(standard.text), samples, np.array(entropy))


def sizes(question: Any, texts: Sequence[str], same: Same) -> list[int]:
    """How many texts each cluster has: a text joins the first one whose first member means the same both ways."""
    clusters: list[list[str]] = []
    for text in texts:
        for cluster in clusters:
            if same(question, cluster[0], text) and same(question, text, cluster[0]):
                cluster.append(text)
                break
        else:
            clusters.append([text])
    return [len(cluster) for cluster in clusters]


def entropy_of(counts: Sequence[int]) -> float:
    """Nats."""
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts) + 0.0


def distance(wrong: int, right: int, questions: int) -> float:
    """The accuracy-engagement distance: 0 when all are answered right, 1 when all are answered wrong."""
    return math.sqrt(wrong**2 + (questions - right) ** 2) / math.sqrt(2 * questions**2)


def normalised(text: str) -> str:
    """Lower case, without punctuation and double spaces."""
    return " ".join(re.sub(r"[^\w\s.-]", " ", text.lower()).split()).strip(" .")
