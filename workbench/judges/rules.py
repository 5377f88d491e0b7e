"""Judges made of reward functions: verifiers, rules of thumb, and the judge behind an endpoint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

from workbench import rewards
from workbench.errors import SettingError
from workbench.judges.base import Judge, Verdicts
from workbench.rewards.signature import GIVEN, names, short, unwrapped
from workbench.rewards.text import completion_text

OTHER = "other"
"""the column in which a comparing function finds the other answer"""
COMPARE = """How does the answer below compare with another answer to the same question? From {low} (the other one is
far better) over the middle of the scale (they are as good) to {high} (it is far better than the other one).

Question:
{prompt}

Answer:
{completion}

The other answer:
{other}

Say in a few sentences what speaks for each of the two. Then end with a line of the form
Score: <a number from {low} to {high}>"""
"""the rubric of an endpoint that compares"""


class rule(Judge):
    """A verifier or any reward function, fn(prompts, completions, **columns) -> list[float | None], as a judge.

    `scale`: the (lowest, highest) that it gives, which become 0 and 1. A reward of None is no verdict.
    """

    def __init__(self, fn: Callable, scale: tuple[float, float] = (0.0, 1.0), name: str | None = None):
        rewards.check_functions([fn])
        low, high = scale
        if not low < high:
            raise SettingError(f"rule: scale={short(scale, 60)} must rise: the lowest reward comes first.")
        self.fn, self.scale, self.name = fn, (float(low), float(high)), name or names([fn])[0]
        self.tells = not isinstance(unwrapped(fn), rewards.judge)

    def _score(self, prompts: list, completions: list, columns: dict[str, Any]) -> Verdicts:
        values = _asked(self.fn, prompts, completions, columns)
        low, high = self.scale
        return [None if value is None else (value - low) / (high - low) for value in values]


class comparison(Judge):
    """A reward function that sees both answers: its column `other` is the one that the completion is compared with.

    It gives how much better the completion is, 0 to 1 (one half: as good). Both orders are asked, and averaged as
    p = (s(first | second) + 1 - s(second | first)) / 2; without one of them there is no verdict.
    """

    def __init__(self, fn: Callable, name: str | None = None):
        rewards.check_functions([fn])
        self.fn, self.name = fn, name or names([fn])[0]
        self.tells = not isinstance(unwrapped(fn), rewards.judge)

    def _prefer(self, prompts: list, first: list, second: list, columns: dict[str, Any]) -> Verdicts:
        twice = {name: [*values, *values] for name, values in columns.items() if name not in GIVEN}
        others = [_apart(answer) for answer in (*second, *first)]
        found = _asked(self.fn, [*prompts, *prompts], [*first, *second], {**twice, OTHER: others})
        orders = zip(found[: len(prompts)], found[len(prompts) :], strict=True)
        return [None if None in pair else (pair[0] + 1 - pair[1]) / 2 for pair in orders]


def endpoint(url: str, model: str, compare: bool = False, **settings: Any) -> Judge:
    """A model behind an OpenAI-compatible server: `workbench.rewards.judge(url, model, **settings)` as a judge.

    It grades single answers; `prefer` compares their grades. `compare=True`: it is shown both answers instead, once in
    either role, by the rubric `COMPARE` or by a `prompt` of yours with {completion} and {other} in it. A server that is
    silent, fails or gives no score in the form asked for gives None, and says so.
    """
    if not compare:
        made = rewards.judge(url, model, **settings)
        return rule(made, name=made.name)
    made = rewards.judge(url, model, **({"prompt": COMPARE} | settings))
    if OTHER not in made.columns:
        raise SettingError("endpoint: a prompt that compares needs {other}, where the other answer goes.")
    return comparison(made, name=made.name)


def _asked(fn: Callable, prompts: list, completions: list, columns: dict[str, Any]) -> Verdicts:
    """What the function gives, checked as the rewards of a task are."""
    if not prompts:
        return []
    ids = columns.get("completion_ids")
    per_row = {name: values for name, values in columns.items() if name not in GIVEN}
    table = rewards.score([fn], None, prompts, completions, ids, per_row)
    return [None if math.isnan(value) else float(value) for value in table.total]


def _apart(answer: Any) -> str:
    """An untrusted answer between marks that it cannot foresee."""
    text = completion_text(answer)
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"[begin {mark}]\n{text}\n[end {mark}]"
