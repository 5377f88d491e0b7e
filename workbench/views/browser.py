"""What the browser says of one rollout: whole, beside its group, over the steps, and against another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import DataError
from workbench.store import Store
from workbench.views import differences
from workbench.views.exports import as_json
from workbench.views.records import INNER, TEXTS
from workbench.views.text import number_or_dash, one_line, visible, whole

if TYPE_CHECKING:
    from workbench.views.base import Ask
    from workbench.views.records import Records

LABELS = {"group_id": "group", "finish_reason": "finish", "n_tokens": "tokens"}
MOST_MEMBERS = 32
"""members of a group that stand side by side"""
MOST_SAMPLES = 3000
"""rollouts of one task that are drawn over the steps"""
LONG = 80
"""characters beyond which a value is no fact beside others, but a text of its own"""


def label_of(name: str) -> str:
    return LABELS.get(name, name.removeprefix("rewards/"))


class Details:
    """Mixed into the browser: what it answers about single rollouts. Needs `records` and `order()`."""

    records: Records
    source: Any

    def on_detail(self, ask: Ask, id: int) -> dict[str, Any]:
        at = self.records.position(int(id))
        (record,) = self.records.records([at])
        given = {name: record[name] for name in record if name not in TEXTS and not name.startswith("rewards/")}
        own = [name for name in self.records.shown if name in given and name != "reward"]
        further = [name for name in given if name not in own and name not in INNER and name != "reward"]
        inner = [name for name in given if name in INNER and name not in own]
        said = [(name, _said(given[name])) for name in (*further, *own, *inner)]
        long = [(name, text) for name, text in said if len(text) > LONG or "\n" in text]
        members = self._members(at)
        return {
            "id": int(self.records.ids[at]),
            "members": [int(self.records.ids[i]) if isinstance(self.source, Store) else int(i) for i in members],
            "member": members.index(at),
            "prompt": whole(record["prompt"]) if "prompt" in record else None,
            "completion": whole(record["completion"]) if "completion" in record else None,
            "reward": finite(record.get("reward")),
            "parts": _parts(record),
            "facts": [[visible(label_of(name)), text] for name, text in said if (name, text) not in long],
            "texts": [[visible(label_of(name)), text] for name, text in long],
            "gone": bool(self.records.gone[at]),
            "step": finite(record.get("step")),
            "group": finite(record.get("group_id")),
            "json": as_json(record),
        }

    def _members(self, at: int) -> list[int]:
        """Positions of the rollout's group, itself among them; the first ones of a large group."""
        groups = self.records.groups()
        positions = np.flatnonzero(groups == groups[at]).tolist()
        first = positions[:MOST_MEMBERS]
        return first if at in first else [at, *first[:-1]]

    def on_group(self, ask: Ask, id: int, against: Any = None, sort: str = "sample") -> dict[str, Any]:
        """The members of a rollout's group, each as it differs from the one it is held against (the best, unless one
        is chosen)."""
        records = self.records
        at = records.position(int(id))
        groups, positions = records.groups(), self._members(at)
        more = int((groups == groups[at]).sum()) - len(positions)
        members = records.records(positions)
        rewards = [_float(member.get("reward")) for member in members]
        known = [reward for reward in rewards if not math.isnan(reward)]
        best, worst = (max(known), min(known)) if known else (math.nan, math.nan)
        ids = [int(records.ids[i]) for i in positions]
        chosen = ids.index(against) if against in ids else rewards.index(best) if known else 0
        texts = records.texts("completion", positions)
        cards = [
            {
                "id": ids[i], "sample": finite(member.get("sample")), "reward": finite(rewards[i]),
                "advantage": finite(member.get("advantage")), "parts": _parts(member),
                "finish": one_line(member.get("finish_reason", ""), 30), "tokens": finite(member.get("n_tokens")),
                "best": best != worst and rewards[i] == best, "worst": best != worst and rewards[i] == worst,
                "segments": _against(texts[chosen], texts[i]) if i != chosen else [["same", visible(texts[i])]],
            }
            for i, member in enumerate(members)
        ]  # fmt: skip
        if sort == "reward":  # those without one last
            cards.sort(key=lambda card: (card["reward"] is None, -(card["reward"] or 0)))
        first = members[0]
        further = [n for n in first if n not in INNER and not n.startswith("rewards/") and n not in _OWN]
        return {
            "members": cards, "against": ids[chosen], "more": more,
            "prompt": whole(first["prompt"]) if "prompt" in first else None,
            "facts": [[visible(label_of(n)), _said(first[n])] for n in further if _alike(members, n)],
            "title": ", ".join(f"{label_of(n)} {_said(first[n])}" for n in ("step", "group_id") if n in first),
        }  # fmt: skip

    def on_time(self, ask: Ask, id: int, gone: bool = False) -> dict[str, Any]:
        """All rollouts of the same task, by step."""
        records = self.records
        at = records.position(int(id))
        if "step" not in records.names or not records.is_number("step"):
            raise DataError("These rollouts have no column `step`, so they are of one time.")
        positions = records.tasks(at)
        positions = positions[~records.gone[positions] | gone | (positions == at)]
        steps = records.column("step")
        positions = positions[np.argsort(steps[positions], kind="stable")]
        more = max(0, len(positions) - MOST_SAMPLES)
        positions = positions[:: math.ceil(len(positions) / MOST_SAMPLES)]
        rewards = records.column("reward") if "reward" in records.names else np.full(len(records), math.nan)
        samples = records.column("sample") if "sample" in records.names else np.zeros(len(records))
        same_row = "row" in records.names and records.is_number("row")
        return {
            "samples": [
                {
                    "id": int(records.ids[i]), "step": finite(steps[i]), "sample": finite(samples[i]),
                    "reward": finite(rewards[i]), "gone": bool(records.gone[i]),
                }
                for i in positions
            ],
            "more": more,
            "by": f"row {_said(records.column('row')[at])} of the task" if same_row else "the same prompt",
        }  # fmt: skip

    def on_difference(self, ask: Ask, a: int, b: int) -> dict[str, Any]:
        """What differs between two completions, and between their prompts."""
        positions = [self.records.position(int(i)) for i in (a, b)]
        prompts, texts = (self.records.texts(name, positions) for name in ("prompt", "completion"))
        prompt = differences.shown(differences.segments(*prompts)) if prompts[0] != prompts[1] else None
        return {"segments": differences.shown(differences.segments(*texts)), "prompt": prompt}


_OWN = {"id", "step", "group_id", "sample", "prompt", "completion", "reward", "advantage", "finish_reason", "n_tokens"}
"""what a card shows of a member itself, or the group's title says"""


def finite(value: Any) -> float | None:
    """A number as JSON has it: None where there is none, text for infinity is left to the page's own columns."""
    made = _float(value)
    return None if not math.isfinite(made) else made


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else math.nan


def _said(value: Any) -> str:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number_or_dash(float(value)) if number else whole(value)


def _parts(record: dict[str, Any]) -> list[list[Any]]:
    names = [name for name in record if name.startswith("rewards/")]
    return [[one_line(label_of(name), 60), finite(record[name])] for name in names]


def _against(reference: str, text: str) -> list[list[str]]:
    """A text as what it shares with the reference and what it has instead."""
    return [part for part in differences.shown(differences.segments(reference, text)) if part[0] != "delete"]


def _alike(members: Sequence[dict[str, Any]], name: str) -> bool:
    first = whole(members[0][name])
    return all(whole(member.get(name)) == first for member in members)
