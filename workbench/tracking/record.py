"""What a run's store says of itself to the outside: configuration, data, rollouts. For trackers and model cards."""

from __future__ import annotations

import json
import math
from typing import Any

from workbench.store import Store
from workbench.text import visible

ROLLOUT_COLUMNS = ("step", "group", "prompt", "completion", "reward", "advantage", "finish_reason", "n_tokens")


def data_of(store: Store, which: str = "data") -> dict[str, Any] | None:
    """Where the rows came from ('data', or 'eval' for the held-out ones): kind, source, rows, digest (SHA-256), and of
    a task its name, arguments and rewards. None where there are none."""
    spec = store.get(which)
    if not spec:
        return None
    name = {"data": "train", "eval": "eval"}[which]
    count = store.query("SELECT COUNT(*) FROM rows WHERE name = ?", (name,))[0][0]
    if spec["kind"] == "rows":
        return {"kind": "rows", "source": spec["source"], "rows": count, "digest": spec["digest"]}
    task = spec["task"]
    return {
        "kind": task["kind"],
        "source": task["name"],
        "args": task["args"],
        "rows": count,
        "digest": digest(store, name),
        "rewards": {entry["name"]: entry["weight"] for entry in task["rewards"]},
        "verdict": task["verdict"],
    }


def rewards_at(store: Store, step: int, branch: int | None = None) -> list[dict[str, Any]] | None:
    """The reward functions, as stored, that step `step` of the line to `branch` runs with; None of a run on rows."""
    spec = store.get("data")
    entries = spec["task"]["rewards"] if spec["kind"] == "task" else None
    for event in store.events(branch).itertuples():
        if event.kind == "set" and event.step <= step and "rewards" in event.payload:
            entries = event.payload["rewards"][1]
    return entries


def digest(store: Store, name: str) -> str:
    """`Rows.digest` of the stored rows `name`."""
    from workbench.data import Rows

    return Rows(store.rows(name), (), "prompt_only", "the store").digest()


def config_of(store: Store, line: int) -> dict[str, Any]:
    """All that a tracker shows beside the curves of a line, as JSON values. Settings stand at the top, by name."""
    meta = store.meta
    settings = dict(meta["settings"])
    for payload in _sets(store, line):
        settings |= {name: new for name, (_, new) in payload.get("settings", {}).items()}
    came_from = store.query("SELECT parent, fork_step FROM branches WHERE id = ?", (line,))[0]
    config = settings | {
        "method": meta["method"],
        "policy": meta["policy"],
        "data": data_of(store),
        "eval": data_of(store, "eval"),
        "versions": meta["versions"],
        "parent": meta.get("parent"),
        "branch": line,
        "came_from": None if came_from[0] is None else {"branch": came_from[0], "step": came_from[1]},
    }
    return json.loads(json.dumps(config, default=str))


def _sets(store: Store, line: int) -> list[dict[str, Any]]:
    events = store.events(line)
    return list(events[events["kind"] == "set"]["payload"])


def rollout_table(store: Store, line: int, step: int, most: int, chars: int) -> tuple[list[str], list[list[Any]]]:
    """The first `most` completions of a step, whole groups after each other: (columns, rows)."""
    frame = store.rollouts(step, branch=line, limit=most)
    parts = [name for name in frame.columns if str(name).startswith("rewards/")]
    fixed = {"group": "group_id"}
    columns = [*ROLLOUT_COLUMNS[:5], *parts, *ROLLOUT_COLUMNS[5:]]
    rows = [[plain(row[fixed.get(name, name)], chars) for name in columns] for row in frame.to_dict("records")]
    return columns, rows


def plain(value: Any, chars: int) -> Any:
    """A cell: numbers as they are (NaN and None as None), text in which nothing hides, cut at `chars`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cut = len(text) > chars
    return visible(text[:chars]) + ("…" if cut else "")
