"""Fine-tune-CoT: a teacher's chains of thought that end right, several for each question.

For each question the teacher writes n chains. Where `answer` has a text it is put after each chain and the teacher goes
on, greedily, to the answer. A chain is kept if the verdict calls it right, and the policy as it was when the run began
is trained on question -> chain. The more chains a question has, the better: that is the paper's main lever.

The teacher is the policy itself, which makes this a round of self-training, or whoever wrote the chains of a column
(`chains`: a text a row, or a list of them).

Ho et al. 2022, "Large Language Models Are Reasoning Teachers", arXiv 2212.10071. Defaults: temperature 0.7, learning
rate 3e-4 (the authors' for students of GPT-2's and T5's size), 8 chains (theirs: 1 to 64).

Differs: by default the verdict reads the chain itself, and rows are question -> chain. The authors' own way is
answer="\\nTherefore, the answer is", train_prompt="{prompt} ###" and target=" {completion} --> {answer}", with a
verdict that reads the number after the arrow; a held-out task then has to ask with " ###", too. To show the teacher the
answer while it writes, name its column in `template`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.errors import DataError, SettingError
from workbench.methods.answers import PLAIN, Seen, check_column, check_template, example, fill
from workbench.methods.bootstrap import Ask, Fit, RoundsSettings, Sample, method, texts_of
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class FineTuneCotSettings(RoundsSettings):
    """Chains of thought of a teacher."""

    lr: float = knob(3e-4, at_least=0.0)
    n: int = knob(8, at_least=1)
    temperature: float = knob(0.7, above=0.0)
    template: str = knob("{prompt} Let's think step by step.", fixed=True)
    """how the teacher is asked"""
    chains: str | None = knob(None, fixed=True)
    """the column with the teacher's chains, a text or a list of texts a row; None: the policy is the teacher"""
    answer: str | None = knob(None, fixed=True)
    """text put after a chain, upon which the answer is given; None: the chain ends in it"""
    train_prompt: str = knob(PLAIN, fixed=True)
    """how the student is asked"""
    target: str = knob("{completion}", fixed=True)
    """what it learns to say: text with {completion}, the chain, and names of columns"""


def check(task, settings: FineTuneCotSettings) -> None:
    check_template("train_prompt", settings.train_prompt)
    if "{completion}" not in settings.target:
        raise SettingError(f"target={settings.target!r} has no {{completion}}, so the chain would not be learned.")
    if settings.chains is not None:
        check_column(task, "chains", settings.chains)
        for i, row in enumerate(task.rows):
            if not texts_of(row.get(settings.chains)):
                raise DataError(f"Row {i} has no chain in its column {settings.chains!r}.")


def phases(settings: FineTuneCotSettings, round: int) -> list[Any]:
    asks = [Ask("chain", settings.template, settings.n, given=settings.chains)]
    if settings.answer is not None:
        asks.append(Ask("answer", settings.answer, greedy=True, after="chain"))
    return [Sample(tuple(asks)), Fit(keep, settings.fit_steps)]


def keep(seen: Seen) -> list[dict]:
    """The chains that are right, or are followed by a right answer."""
    judged = "chain" if seen.settings.answer is None else "answer"
    made = []
    for number, row, answers in seen:
        good = {answer.number for answer in answers if answer.tag == judged and answer.right}
        for answer in answers:
            if answer.tag == "chain" and answer.whole and answer.number in good:
                text = fill(seen.settings.target, {**row, "completion": answer.text})
                made.append(example(number, row, text, "chain", seen.settings.train_prompt))
    return made


METHOD = method("fine_tune_cot", FineTuneCotSettings, phases, check)
