"""What a local model is asked when it judges, and the rows that teach it to.

A question ends where the verdict is one of two short options, " A" or " B", " Yes" or " No": the model is not made to
write, its probabilities of the two are read. Templates are filled in one pass, so braces in an answer mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.data import explicit_prompt
from workbench.errors import DataError, SettingError
from workbench.rewards.judging import FIELD, as_text
from workbench.rewards.text import completion_text

COMPARE = """Question:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which of the two answers is {principle}, A or B?"""
GRADE = """Question:
{prompt}

Answer:
{completion}

Is this answer right, Yes or No?"""
GRADE_STEPS = """Question:
{prompt}

The first steps of an answer:
{completion}

Are these steps right, and of use for the answer, Yes or No?"""
LEAD = "The verdict is:"


@dataclass(frozen=True)
class JudgePrompt:
    """How a local model is asked.

    compare     the question that compares: {prompt}, {first} and {second} must be in it, and {principle} where there
                are several principles
    grade       the question about one answer: {prompt} and {completion}
    lead        how the model's answer begins; an option follows
    options     the two options of a comparison: the first one is better, the second one is
    yes_no      the two options of a grade
    principles  by what answers are compared; the principles vote
    chat        ask in a conversation, by the tokenizer's chat template; False: as plain text
    system      a system message, in a conversation

    SettingError where these do not hold together.
    """

    compare: str = COMPARE
    grade: str = GRADE
    lead: str = LEAD
    options: tuple[str, ...] = (" A", " B")
    yes_no: tuple[str, ...] = (" Yes", " No")
    principles: tuple[str, ...] = ("better",)
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if said := problem(self.compare, self.options, self.principles):
            raise SettingError(f"JudgePrompt: {said}")
        if missing := {"prompt", "completion"} - set(FIELD.findall(self.grade)):
            raise SettingError(f"JudgePrompt: grade has no {{{min(missing)}}}.")
        if _not_two(self.yes_no):
            raise SettingError(f"JudgePrompt: yes_no={self.yes_no!r} must be two different texts.")

    def comparing(self, prompt: Any, first: Any, second: Any, principle: str) -> str:
        values = {"prompt": as_text(prompt), "first": completion_text(first), "second": completion_text(second)}
        return filled(self.compare, values | {"principle": principle})

    def grading(self, prompt: Any, completion: Any) -> str:
        return filled(self.grade, {"prompt": as_text(prompt), "completion": completion_text(completion)})

    def turns(self, question: str) -> list[dict[str, str]]:
        """The question as a conversation."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, {"role": "user", "content": question}]


def problem(compare: str, options: tuple[str, ...], principles: tuple[str, ...]) -> str | None:
    """What does not hold together in a question that compares; None when all is well."""
    fields = set(FIELD.findall(compare))
    if missing := {"prompt", "first", "second"} - fields:
        return f"the question that compares has no {{{min(missing)}}}, where that goes."
    if _not_two(options):
        return f"options={options!r} must be two different texts, such as (' A', ' B')."
    if len(principles) != len(set(principles)):
        return f"principles={principles!r}: give each once."
    if len(principles) > 1 and "principle" not in fields:
        return "there are several principles, and the question that compares has no {principle}, where they go."
    return None


def _not_two(options: tuple[str, ...]) -> bool:
    return len(options) != 2 or not all(options) or options[0].strip() == options[1].strip()


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its {fields} filled in, in one pass; other braces stay."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def judge_rows(
    pairs: Iterable[dict[str, Any]], prompt: JudgePrompt | None = None, answers: bool = True
) -> list[dict[str, Any]]:
    """Rows for `wb.sft` that teach a model to judge pairs (prompt, chosen, rejected), and to answer.

    Each pair gives, for each principle, a question with the chosen answer in front, whose completion is the first
    option, and one with it behind, whose completion is the second; with `answers` also the prompt with its chosen
    answer. Judge-augmented fine-tuning of Lee et al. 2024 (arXiv 2402.11253). In a conversation (`prompt.chat`) the
    lead is part of the completion, as there. Raises DataError where rows of both kinds do not fit into one list.
    """
    prompt, made = prompt or JudgePrompt(), []
    for number, given in enumerate(pairs):
        if not {"chosen", "rejected"} <= given.keys():
            raise DataError(f"Pair {number} needs chosen and rejected; it has {', '.join(given)}.")
        pair = explicit_prompt(given)
        asked, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
        if answers:
            if isinstance(chosen, str) == prompt.chat:
                kind = "plain" if prompt.chat else "conversational"
                raise DataError(
                    f"Pair {number} is {kind}, and JudgePrompt(chat={prompt.chat}) makes questions that are not: set"
                    f" chat={not prompt.chat}, or leave the answers out with answers=False."
                )
            made.append({"prompt": asked, "completion": chosen})
        for principle in prompt.principles:
            for order, option in ((chosen, rejected), prompt.options[0]), ((rejected, chosen), prompt.options[1]):
                made.append(_row(prompt, prompt.comparing(asked, *order, principle), option))
    return made


def _row(prompt: JudgePrompt, question: str, option: str) -> dict[str, Any]:
    if prompt.chat:
        said = [{"role": "assistant", "content": prompt.lead + option}]
        return {"prompt": prompt.turns(question), "completion": said}
    return {"prompt": f"{question}\n{prompt.lead}", "completion": option}
