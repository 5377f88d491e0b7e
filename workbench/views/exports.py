"""Chosen rollouts as rows that training reads: what `wb.sft` takes, and pairs for `wb.dpo`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import DataError, SettingError, did_you_mean
from workbench.store import to_json

FORMS = ("sft", "dpo")


@dataclass(frozen=True)
class Rollout:
    """What a row is made of. `prompt`: a text, or messages; `group`: what tells one group from another."""

    prompt: Any
    completion: str
    reward: float = math.nan
    group: Any = None


@dataclass(frozen=True)
class Written:
    """What was written where; `left_out` says in words what was not, and why."""

    path: Path
    rows: int
    form: str
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kind = "pair" if self.form == "dpo" else "row"
        made = f"{self.rows:,} {kind}{'s' * (self.rows != 1)} for wb.{self.form} in {self.path}"
        return "; ".join([made, *self.left_out]) + "."

    def __repr__(self) -> str:
        return f"<{self}>"


def sft_rows(rollouts: Iterable[Rollout]) -> tuple[list[dict[str, Any]], list[str]]:
    """One row a completion, (prompt, completion), and what was left out: completions without text."""
    every = list(rollouts)
    kept = [one for one in every if one.completion]
    rows = [{"prompt": one.prompt, "completion": _answer(one)} for one in kept]
    return rows, _said((len(every) - len(kept), "rollout", "without a completion"))


def dpo_rows(rollouts: Iterable[Rollout]) -> tuple[list[dict[str, Any]], list[str]]:
    """One pair a group, its best completion over its worst by reward, and what was left out: groups whose rewards are
    all the same, or of which only one completion has a reward. Of equals the first counts."""
    groups: dict[Any, list[Rollout]] = {}
    for one in rollouts:
        groups.setdefault(one.group, []).append(one)
    rows, ties, single = [], 0, 0
    for members in groups.values():
        scored = [one for one in members if not math.isnan(one.reward)]
        if len(scored) < 2:
            single += 1
            continue
        best, worst = max(scored, key=lambda one: one.reward), min(scored, key=lambda one: one.reward)
        if best.reward == worst.reward:
            ties += 1
            continue
        rows.append({"prompt": best.prompt, "chosen": _answer(best), "rejected": _answer(worst)})
    return rows, _said((ties, "group", "with equal rewards"), (single, "group", "with fewer than two rewards"))


def write(rollouts: Sequence[Rollout], path: Path, form: str) -> Written:
    """Write JSON Lines. Raises SettingError for another form, DataError where nothing is left to write."""
    if form not in FORMS:
        raise SettingError(f"to_jsonl: form={form!r} is unknown; it is 'sft' or 'dpo'.{did_you_mean(str(form), FORMS)}")
    rows, left_out = sft_rows(rollouts) if form == "sft" else dpo_rows(rollouts)
    if not rows:
        raise DataError(f"to_jsonl: no row for wb.{form} in {len(rollouts)} rollouts. {'; '.join(left_out)}".strip())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(to_json(row) + "\n" for row in rows)
    except OSError as error:
        raise DataError(f"to_jsonl: {path} cannot be written to ({error.strerror}).") from error
    return Written(path, len(rows), form, left_out)


def free_name(folder: Path, form: str) -> Path:
    """`rollouts-sft.jsonl` in `folder`, or the next of that name that is not there yet."""
    path, n = folder / f"rollouts-{form}.jsonl", 2
    while path.exists():
        path, n = folder / f"rollouts-{form}-{n}.jsonl", n + 1
    return path


def as_json(record: dict[str, Any]) -> str:
    """A rollout as JSON for people: indented, NaN as null."""
    plain = json.loads(to_json(record), parse_constant=lambda name: None)
    return json.dumps(plain, ensure_ascii=False, indent=2)


def _answer(one: Rollout) -> Any:
    """The completion in the form of its prompt."""
    return [{"role": "assistant", "content": one.completion}] if isinstance(one.prompt, list) else one.completion


def _said(*counts: tuple[int, str, str]) -> list[str]:
    return [f"left out {n:,} {noun}{'s' * (n != 1)} {why}" for n, noun, why in counts if n]
