"""RFT: rejection sampling for distinct right solutions.

Draw n solutions of every question. Keep a solution whose answer is right and whose every equation holds (within 1e-3).
Its key is its equations, joined in order, without spaces; of each (question, key) keep one: of two with the same key
the one with the larger sum of edit distances to the solutions kept under other keys. Train the policy as it was when
the run began on the written solutions and what was kept.

    round: [fit the written solutions, sft_steps updates]  ->  sample  ->  fit written + kept, from the beginning

Yuan et al. 2023, "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models", arXiv
2308.01825. Defaults are theirs: 100 samples at temperature 0.7, learning rate 2e-5, cosine, warm-up of 3 %. Their 3
epochs in batches of 128 are `fit_steps` updates of `batch_size` here.

Differs: equations are read by a small arithmetic parser of numbers, + - * / ( ) and %; nothing that a model wrote is
ever executed. Where a text has no calculator marks <<...>>, equations like 3*4=12 in the plain text count; `key` may
be "lines" or "text" for tasks that have no equations. What counts as the same solution is told within a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.methods.answers import PLAIN, Answer, Seen, check_gold, example
from workbench.methods.bootstrap import Ask, Fit, RoundsSettings, Sample, method
from workbench.methods.distinct import KEYS, farther
from workbench.settings.base import knob
from workbench.settings.schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class RftSettings(RoundsSettings):
    """Rejection sampling: right solutions that differ."""

    lr_scheduler_type: str = knob("cosine", choices=SCHEDULES)
    warmup_steps: int | float = knob(0.03, at_least=0)
    n: int = knob(100, at_least=1)
    temperature: float = knob(0.7, above=0.0)
    template: str = knob(PLAIN, fixed=True)
    """how questions are asked"""
    key: str = knob("equations", choices=tuple(KEYS))
    """what makes two solutions the same: their 'equations', their 'lines' (in any order) or their whole 'text'"""
    gold: str | None = knob(None, fixed=True)
    """the column with written solutions, which are trained on beside the model's own; None: only its own"""
    sft_steps: int = knob(0, at_least=0, fixed=True)
    """updates on the written solutions before sampling; 0: the policy has learned the task already"""


def check(task, settings: RftSettings) -> None:
    if settings.gold is not None or settings.sft_steps:
        check_gold(task, settings.gold or "completion")


def phases(settings: RftSettings, round: int) -> list[Any]:
    first = [Fit(written, settings.sft_steps)] if settings.sft_steps else []
    ask = Ask("paths", settings.template, settings.n)
    return [*first, Sample((ask,)), Fit(lambda seen: written(seen) + kept(seen), settings.fit_steps)]


def written(seen: Seen) -> list[dict]:
    gold = seen.settings.gold or ("completion" if seen.settings.sft_steps else None)
    return [] if gold is None else [example(number, row, row[gold], "gold") for number, row, _ in seen]


def kept(seen: Seen) -> list[dict]:
    return [
        example(number, row, text, "own")
        for number, row, answers in seen
        for text in distinct(answers, seen.settings.key)
    ]


def distinct(answers: list[Answer], key: str) -> list[str]:
    """The right answers that are kept, one a key, in the order in which keys came up."""
    found: dict[str, str] = {}
    for answer in answers:
        name = KEYS[key](answer.text) if answer.right else None
        if name is not None and (name not in found or farther(answer.text, found[name], found.values())):
            found[name] = answer.text
    return list(found.values())


METHOD = method("rft", RftSettings, phases, check)
