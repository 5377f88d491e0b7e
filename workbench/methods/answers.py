"""What self-training works with between sampling and training: prompts from templates, and answers to make rows of.

A template is plain text with `{prompt}` in it; `{name}` of any other column is put in, too. It goes around a plain
prompt, or around the last message of a conversation. `Seen` is what a round has sampled, read back from the store: a
method's rows are a pure function of it (see `workbench.methods.bootstrap`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import DataError, RunError, SettingError, did_you_mean
from workbench.rewards.signature import unwrapped
from workbench.rewards.text import completion_text
from workbench.sampling.rollouts import Rollouts
from workbench.tasks import Task
from workbench.text import shorten

PLAIN = "{prompt}"
"""the template that changes nothing"""
HINT = "The answer is {answer}.\n{prompt}"
"""a template that shows the answer"""
TAG = "template"
"""the column of rollouts that says by which template they were asked"""
FIELD = re.compile(r"\{(\w+)\}")


def fill(template: str, values: Mapping[str, Any]) -> str:
    """`template` with `{name}` replaced by that value; braces around anything else stay (LaTeX has many). One pass:
    what is put in is not looked through again."""
    return FIELD.sub(lambda found: str(values.get(found[1], found[0])), template)


def asked(template: str, row: Mapping[str, Any], **more: Any) -> str | list[dict]:
    """The row's prompt as `template` asks it: text, or messages whose last is filled in."""
    prompt = row["prompt"]
    values = {**row, **more, "prompt": completion_text(prompt)}
    if isinstance(prompt, str):
        return fill(template, values)
    return [*prompt[:-1], {**prompt[-1], "content": fill(template, values)}]


def said(prompt: Any, text: str) -> str | list[dict]:
    """A completion of `prompt`: text, or the assistant's message where the prompt is a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def check_template(name: str, template: str) -> None:
    """Raise SettingError for a template that leaves the question out."""
    if PLAIN not in template:
        raise SettingError(f"{name}={template!r} has no {PLAIN} in it, so the question would not be asked.")


def check_hint(task: Task, hint: str) -> None:
    """Raise SettingError for a hint that leaves the question out, or shows nothing of the answer."""
    check_template("hint", hint)
    others = [name for name in task.rows.columns if name != "prompt"]
    if not set(FIELD.findall(hint)) & set(others):
        raise SettingError(
            f"hint={hint!r} shows nothing of the answer: write the column that has it in braces"
            f" ({', '.join(others) or 'the task has none beside its prompts'})."
        )


def check_column(task: Task, setting: str, column: str) -> None:
    """Raise DataError where the task has no such column."""
    if column not in task.rows.columns:
        raise DataError(
            f"{setting}={column!r} names no column of {task.rows.source}.{did_you_mean(column, task.rows.columns)}"
            f" There are: {', '.join(task.rows.columns)}."
        )


def check_gold(task: Task, column: str) -> None:
    """Raise DataError where a row has no written answer in `column`."""
    check_column(task, "gold", column)
    for i, row in enumerate(task.rows):
        value = row.get(column)
        texts = (str,) if isinstance(row["prompt"], str) else (str, list)
        if not value or not isinstance(value, texts):
            raise DataError(f"Row {i}: gold={column!r} should be its written answer, and is {shorten(repr(value))}.")


def extractor(task: Task) -> Any:
    """The function that tells what a completion answers, text -> answer or None. Raises DataError where there is none.

    It is the attribute `extract` of the task's verdict function, which evaluations let samples vote by.
    """
    extract = getattr(unwrapped(task.functions[task.verdict]), "extract", None)
    if extract is None:
        raise DataError(
            f"This needs to know what a completion answers, and the task's verdict function {task.verdict!r} does not"
            f" say. Give it: {task.verdict}.extract = fn, where fn(text) is the answer, or None for none."
        )
    return extract


def check_judge(task: Task, judge: str | None) -> None:
    """Raise SettingError where `judge` names no reward function of the task."""
    if judge is not None and judge not in task.reward_names:
        raise SettingError(
            f"judge={judge!r} names no reward function of the task.{did_you_mean(judge, task.reward_names)} There are:"
            f" {', '.join(task.reward_names)}. Any function can be one: wb.Task(rows, rewards=[verdict, judge],"
            " weights=[1, 0])."
        )


def right(task: Task, rollouts: Rollouts, settings: Any) -> list[bool]:
    """Which completions are right: at least `accept` by the judge (None: the task's verdict), and not cut off at the
    limit of tokens, for a text that does not end is nothing to learn from."""
    name = settings.judge or task.verdict
    if name not in rollouts.rewards:
        raise RunError(
            f"The stored completions have no reward {name!r}, by which right and wrong are told: the rewards were"
            " changed within the round. Rewind to the round's beginning, or give that function again."
        )
    judged = zip(rollouts.rewards[name], rollouts.finish_reason, strict=True)
    return [bool(value >= settings.accept) and reason != "length" for value, reason in judged]  # NaN: no reward, no


@dataclass(frozen=True)
class Answer:
    """One completion of a row, as it was sampled."""

    text: str
    right: bool = True
    tag: str = ""
    """the template that asked for it"""
    tokens: int = 0
    """with its stop token"""
    number: int = 0
    """0 .. n - 1 among those of its row and template"""
    whole: bool = True
    """it ended by itself, not at the limit of tokens"""
    judged: bool = True
    """there is a reward to judge it by"""

    @property
    def wrong(self) -> bool:
        """It was judged, ended, and is not right. One that was cut off, or that nothing judged, is neither: it may only
        have lacked tokens, and to end where it was cut is not what it did."""
        return self.judged and self.whole and not self.right


@dataclass(frozen=True)
class Seen:
    """What a round has sampled: goes over (row number, row, its answers), rows without any answer included."""

    task: Task
    settings: Any
    answers: dict[int, list[Answer]]
    tokenizer: Any = None

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any], list[Answer]]]:
        for number, row in enumerate(self.task.rows):
            yield number, row, self.answers.get(number, [])


def seen(task: Task, settings: Any, rollouts: list[Rollouts], tokenizer: Any = None) -> Seen:
    """The stored completions of some steps, by row."""
    answers: dict[int, list[Answer]] = {}
    for part in rollouts:
        verdicts, values = right(task, part, settings), part.rewards[settings.judge or task.verdict]
        for i in range(len(part)):
            made = Answer(
                part.text[i],
                verdicts[i],
                part.columns[TAG][i],
                len(part.ids[i]),
                part.sample[i],
                whole=part.finish_reason[i] != "length",
                judged=not np.isnan(values[i]),
            )
            answers.setdefault(part.row[i], []).append(made)
    return Seen(task, settings, answers, tokenizer)


def example(number: int, row: Mapping[str, Any], text: Any, source: str, template: str = PLAIN) -> dict[str, Any]:
    """A row to train on: the question as `template` asks it, and an answer; `source` says where that is from."""
    prompt = asked(template, row)
    completion = said(prompt, text) if isinstance(text, str) else text
    return {"prompt": prompt, "completion": completion, "row": number, "source": source}


def text_of(value: Any) -> str:
    """A written answer as text, whether it is text or messages."""
    return value if isinstance(value, str) else completion_text(value)
