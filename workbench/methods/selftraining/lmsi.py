"""LMSI: self-consistency as the label. No right answers are needed.

For each question sample n rationales. y* = the answer that most of them end in; the share of them is the question's
consistency. Every rationale that ends in y* is kept and written in four formats, and the policy as it was when the run
began is trained on all of them together:

    1 cot     question by the chain-of-thought template    -> rationale
    2 direct  question by the direct-answer template       -> y* alone
    3 cue     question and a cue to think                  -> rationale
    4 bare    question alone                               -> y* alone

    consistency(question) = count(y*) / n

Huang et al. 2022, "Large Language Models Can Self-Improve", arXiv 2210.11610. Defaults are theirs: 32 samples at
temperature 0.7, learning rate 5e-5, batch 32; their 10,000 updates are `fit_steps` here, and they sample at 1.2 from
what was trained, whose answers are peaked.

What a completion answers is told by the verdict function's `extract` (see `wb.Task`); completions without an answer
have no vote but count among the n, and so do those that were cut off at the limit of tokens. Of answers with as many
votes the one that came first wins. The verdict is read only for the metrics of what is solved, and so `judge` and
`accept` change nothing else here. Differs: their templates hold few-shot examples; those here are instructions to
replace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import SettingError
from workbench.methods.answers import PLAIN, Seen, check_template, example, extractor, fill
from workbench.methods.bootstrap import Ask, Fit, RoundsSettings, Sample, method
from workbench.settings.base import knob

FORMATS = {"cot": True, "direct": False, "cue": True, "bare": False}
"""whether the rationale is the target, or the answer alone"""


@dataclass(frozen=True, kw_only=True)
class LmsiSettings(RoundsSettings):
    """Self-improvement by majority vote."""

    lr: float = knob(5e-5, at_least=0.0)
    batch_size: int = knob(32, at_least=1)
    n: int = knob(32, at_least=1)
    temperature: float = knob(0.7, above=0.0)
    formats: tuple[str, ...] = knob(tuple(FORMATS), choices=tuple(FORMATS), fixed=True)
    """in which forms a kept rationale is trained on"""
    cot: str = knob("Work it out step by step.\n{prompt}", fixed=True)
    """the chain-of-thought template, by which rationales are sampled; the paper's has worked examples"""
    direct: str = knob("Give the answer only.\n{prompt}", fixed=True)
    """the template that asks for the answer alone"""
    cue: str = knob("{prompt} Let's think step by step.", fixed=True)
    """the question with a cue to think"""
    target: str = knob(" {answer}", fixed=True)
    """how an answer alone is written"""
    min_consistency: float = knob(0.0, at_least=0.0, at_most=1.0)
    """leave questions out whose majority is a smaller share of the samples; the paper keeps all"""

    def unread(self, given: Collection[str]) -> list[str]:
        idle = [name for name in ("judge", "accept") if name in given]
        said = f"{' and '.join(idle)} changes only the metrics of what is solved: the majority's answer is the label."
        return [*[said] * bool(idle), *super().unread(given)]


def templates(settings: LmsiSettings) -> dict[str, str]:
    return {"cot": settings.cot, "direct": settings.direct, "cue": settings.cue, "bare": PLAIN}


def check(task, settings: LmsiSettings) -> None:
    extractor(task)
    asked: dict[str, str] = {}
    for name in settings.formats:
        template = templates(settings)[name]
        check_template(name, template)
        if template in asked and FORMATS[name] != FORMATS[asked[template]]:
            raise SettingError(
                f"The formats {asked[template]!r} and {name!r} ask by the same template {template!r}, one for a"
                " rationale and one for an answer alone. Give another template, or leave one out of formats."
            )
        asked[template] = name
    if "{answer}" not in settings.target:
        raise SettingError(f"target={settings.target!r} has no {{answer}} in it.")


def phases(settings: LmsiSettings, round: int) -> list[Any]:
    return [Sample((Ask("cot", settings.cot, settings.n),)), Fit(keep, settings.fit_steps)]


def keep(seen: Seen) -> list[dict]:
    settings, extract = seen.settings, extractor(seen.task)
    made = []
    for number, row, answers in seen:
        found = [extract(answer.text) if answer.whole else None for answer in answers]
        best, share = majority(found)
        if best is None or share < settings.min_consistency:
            continue
        paths = [answer.text for answer, one in zip(answers, found, strict=True) if one == best]
        alone = fill(settings.target, {"answer": best})
        for name in settings.formats:
            made += [
                example(number, row, text if FORMATS[name] else alone, name, templates(settings)[name])
                for text in paths
            ]
    return made


def majority(answers: Sequence[Any]) -> tuple[Any, float]:
    """The most frequent answer, the first of equals, and its share of all; (None, 0) where nobody answers."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None, 0.0
    best, count = votes.most_common(1)[0]
    return best, count / len(answers)


METHOD = method("lmsi", LmsiSettings, phases, check)
