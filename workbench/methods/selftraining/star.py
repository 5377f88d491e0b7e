"""STaR: bootstrap rationales from answers, with a hint where the first try fails.

In round r = 1, 2, ... the model M_(r-1) answers every question, with its rationale. Where no answer is right it is
asked again with the right answer shown. D_r = the right first answers, and the right answers of the second try where
there was no right first one, each under the question as it stands: no hint, no worked examples. M_r = M_0, the policy
as it was when the run began, fine-tuned on D_r; its loss is that of rationale and answer.

    updates of round r = floor(fit_steps * growth^(r - 1))

Zelikman et al. 2022, "STaR: Bootstrapping Reasoning With Reasoning", arXiv 2203.14465. Defaults are those of the
authors' code: learning rate 1e-6 after 100 updates of warm-up, 40 updates in the first round and a fifth more in each
that follows, a hint for every failure, one greedy answer (theirs: temperature 0.01), 96 new tokens.

Differs: the batch is `batch_size` rows, not packed sequences (theirs: about 80 rows). A hint is a template with a
column of the task, not the marked choice of a multiple-choice question, which `hint` can be where a column has it.
Their worked examples are text in `template` and `hint`. Where `n` is above 1 every right answer is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.methods.answers import HINT, PLAIN, Seen, check_hint, example
from workbench.methods.bootstrap import SAME, Ask, Fit, RoundsSettings, Sample, method
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class StarSettings(RoundsSettings):
    """STaR: rationales that lead to right answers."""

    rounds: int = knob(4, at_least=1, fixed=True)
    lr: float = knob(1e-6, at_least=0.0)
    warmup_steps: int | float = knob(100, at_least=0)
    fit_steps: int = knob(40, at_least=1, fixed=True)
    """updates of the first round"""
    growth: float = knob(1.2, above=0.0, fixed=True)
    """each round has this times the updates of the one before"""
    n: int = knob(1, at_least=1)
    greedy: bool = True
    """take the likeliest token each time; False: sample"""
    max_new_tokens: int = knob(96, at_least=1)
    template: str = knob(PLAIN, fixed=True)
    """how questions are asked: text with {prompt} and, before it, worked examples"""
    hint: str | None = knob(HINT, fixed=True)
    """how they are asked again where no answer was right: with a column of the task that shows the answer; None: they
    are not, and hard questions never teach anything"""

    def problem(self) -> str | None:
        return (SAME if self.greedy and self.n > 1 else None) or super().problem()


def check(task, settings: StarSettings) -> None:
    if settings.hint is not None:
        check_hint(task, settings.hint)


def phases(settings: StarSettings, round: int) -> list[Any]:
    first = Ask("first", settings.template, settings.n, settings.greedy)
    hinted = [] if settings.hint is None else [Ask("hint", settings.hint, settings.n, settings.greedy, unsolved=True)]
    updates = max(1, int(settings.fit_steps * settings.growth ** (round - 1)))
    return [Sample((first, *hinted)), Fit(keep, updates)]


def keep(seen: Seen) -> list[dict]:
    """All right answers, under the bare question."""
    return [
        example(number, row, answer.text, answer.tag)
        for number, row, answers in seen
        for answer in answers
        if answer.right
    ]


METHOD = method("star", StarSettings, phases, check)
