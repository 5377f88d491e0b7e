"""Concise self-training: learn from one's own shortest right answers.

For each question draw n answers to the question as it stands and, where `short` has a template with concise worked
examples, n more by that. Drop wrong ones and those that hit the limit of tokens; of the rest keep the one with the
fewest tokens, over both pools. Train on the question as it stands and that answer, its end token included.

    score(answer) = -tokens        (the first of equals)

Munkhbat et al. 2025, "Self-Training Elicits Concise Reasoning in Large Language Models", arXiv 2502.20122. Defaults are
those of the authors' code: n = 16, temperature 0.7, top-k 40, top-p 0.95, 512 new tokens, learning rate 1e-5, batch 16;
their one epoch is `fit_steps` updates here.

Differs: nothing that we know of. Exact duplicates need no dropping where one answer is kept. The concise examples were
written by a strong model; here they are text in `short`. Without it answers shorten less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.methods.answers import PLAIN, Answer, Seen, example
from workbench.methods.bootstrap import Ask, Fit, RoundsSettings, Sample, method
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class ConciseSettings(RoundsSettings):
    """Concise self-training: the shortest right answers."""

    lr: float = knob(1e-5, at_least=0.0)
    batch_size: int = knob(16, at_least=1)
    n: int = knob(16, at_least=1)
    temperature: float = knob(0.7, above=0.0)
    top_k: int = knob(40, at_least=0)
    top_p: float = knob(0.95, above=0.0, at_most=1.0)
    short: str | None = knob(None, fixed=True)
    """a second way to ask: text with {prompt} and, before it, worked examples that are short; None: none"""


def phases(settings: ConciseSettings, round: int) -> list[Any]:
    plain = Ask("plain", PLAIN, settings.n)
    short = [] if settings.short is None else [Ask("short", settings.short, settings.n)]
    return [Sample((plain, *short)), Fit(keep, settings.fit_steps)]


def keep(seen: Seen) -> list[dict]:
    found = ((number, row, shortest(answers)) for number, row, answers in seen)
    return [example(number, row, answer.text, answer.tag) for number, row, answer in found if answer is not None]


def shortest(answers: list[Answer]) -> Answer | None:
    """The right answer with the fewest tokens, the first of equals; None where there is none."""
    return min((answer for answer in answers if answer.right), key=lambda answer: answer.tokens, default=None)


METHOD = method("concise", ConciseSettings, phases)
