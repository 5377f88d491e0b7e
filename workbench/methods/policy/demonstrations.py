"""Demonstrations in policy-gradient steps: what is read of them before a run, and how one joins the group of a prompt.

A task's rows have them in a column, as text or as messages of an assistant; a row may lack one. They are tokenised
once, with the stop token, after the prompt that the group shares; one that is longer than `max_new_tokens` is cut
there, as completions are, so that it fits wherever they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench import tokenise
from workbench.errors import DataError, SettingError
from workbench.methods import grpo
from workbench.methods.context import Context
from workbench.methods.evaluate import join, score
from workbench.methods.rl_batch import first_of_groups
from workbench.sampling.rollouts import Rollouts
from workbench.tasks import Task

COLUMN = "demonstration"
SHOWN = "shown"
"""the column of rollouts that says which of them are demonstrations: 1, completions 0"""


@dataclass
class Demonstrated(grpo.Prompts):
    """A task with its prompts and demonstrations tokenised."""

    answers: list[list[int]] = field(default_factory=list)
    """by row its demonstration's ids, the stop token included; empty where there is none"""


def prepare(tokenizer, task: Task, settings: Any, changes: grpo.Variant = grpo.PLAIN) -> Demonstrated:
    """Prompts and demonstrations. DataError where the column is missing and `settings.demonstrates`, where a
    demonstration is neither text nor messages, or where no row has one."""
    made = grpo.prepare(tokenizer, task, settings, changes)
    answers: list[list[int]] = [[] for _ in task.rows]
    if COLUMN in task.rows.columns:
        for i, row in enumerate(task.rows):
            if row.get(COLUMN):
                answers[i] = _ids(tokenizer, row, made.prompts[i], i)
    if settings.demonstrates and not any(answers):
        raise DataError(
            f"This method learns from demonstrations, and {task.rows.source} has none: give rows a column {COLUMN!r}"
            " with a good answer to the prompt, as text (or as messages)."
        )
    return Demonstrated(task, made.prompts, answers)


def _ids(tokenizer, row: dict, prompt: tokenise.PromptTokens, i: int) -> list[int]:
    """The demonstration's ids after the ids of the prompt as it is sampled from."""
    given, before = row[COLUMN], row["prompt"]
    if not isinstance(given, (str, list)):
        raise DataError(f"Row {i}: {COLUMN} must be text or messages, not {type(given).__name__}.")
    if not isinstance(before, str) and isinstance(given, str):
        given = [{"role": "assistant", "content": given}]
    try:
        (example,) = tokenise.fit_rows([{"prompt": before, "completion": given}], tokenizer, max_length=None).items
    except DataError as error:
        raise DataError(f"Row {i}, {COLUMN}: {error}") from error
    last = max(t for t, trained in enumerate(example.mask) if trained)
    if example.ids[: len(prompt.ids)] == prompt.ids:
        return example.ids[len(prompt.ids) : last + 1]
    # the prompt's last tokens change once text follows; the group's prompt stays as it was sampled from
    text = given if isinstance(given, str) else given[-1]["content"]
    return [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], example.ids[last]]


def notice(data: Demonstrated, settings: Any) -> str | None:
    """What to say before a run: how many demonstrations are cut."""
    cut = sum(len(ids) > settings.max_new_tokens for ids in data.answers)
    if not cut or not settings.demonstrates:
        return None
    return (
        f"{cut} of {sum(map(bool, data.answers))} demonstrations are longer than"
        f" max_new_tokens={settings.max_new_tokens} and are cut there, without their end."
    )


def answer(ctx: Context, row: int) -> list[int]:
    """The demonstration of a row, cut where completions are; empty where it has none."""
    return ctx.data.answers[row][: ctx.settings.max_new_tokens]


def into_groups(ctx: Context, made: Rollouts, step: int) -> Rollouts:
    """`made` with each group's demonstration as its last member, scored like the others and tagged in `SHOWN`.

    `step`: how many are done.
    """
    made.columns[SHOWN] = [0] * len(made)
    at = [i for i in first_of_groups(made) if answer(ctx, made.row[i])]
    if not at:
        return made
    shown = given(ctx, made, at, lambda i: answer(ctx, made.row[i]))
    shown.columns[SHOWN] = [1] * len(shown)
    score(ctx, ctx.data.task, shown, step)
    both = join([made, shown])
    return both.take(sorted(range(len(both)), key=lambda i: both.group[i]))


def given(ctx: Context, made: Rollouts, at: list[int], ids: Callable[[int], list[int]]) -> Rollouts:
    """Completions `ids(i)` for the prompts of the rollouts `at`, in their groups: nobody sampled them, so that their
    log-probs and entropies are not known."""
    pick = made.take(at)
    pick.ids = [ids(i) for i in at]
    pick.text = [ctx.policy.text_of(one) for one in pick.ids]
    pick.finish_reason = ["given"] * len(at)
    pick.logprob = [np.full(len(one), np.nan, dtype=np.float32) for one in pick.ids]
    pick.entropy = [np.full(len(one), np.nan, dtype=np.float32) for one in pick.ids]
    size = {group: made.group.count(group) for group in pick.group}
    pick.sample = [size[group] for group in pick.group]
    pick.pieces = ctx.policy.pieces.of(pick.ids)
    return pick


def check_no_column(task: Task, name: str) -> None:
    """Raise SettingError where the task has a column under a name that the rollouts need for themselves."""
    if name in task.rows.columns:
        raise SettingError(f"The task's rows have a column {name!r}, which this method needs for itself: rename it.")
