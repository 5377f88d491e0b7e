"""The numbers of a run as curves: read from the store step by step, thinned to what a chart can show."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from workbench.store import Store, metrics
from workbench.views.panels import Chart, arrange
from workbench.views.text import duration, number, visible

ENDED = ("finished", "failed", "killed", "stopped")
MOST_POINTS = 2000
"""a longer curve is thinned before it is sent: a chart has no more pixels than that"""

Piece = tuple[str, int, np.ndarray, np.ndarray]
"""name, branch, steps, values"""


class Curves:
    """Every metric of a run by branch, kept up to date from its store.

    `refresh` reads only what was committed since the last call. `line` is the path to the branch that is being
    written, [(branch, last step that counts), ...], newest first; what does not lie on it was given up. A curve is
    held with at most 2 * MOST_POINTS points: the lowest and the highest of each stretch, the first and the last.
    """

    def __init__(self, store: Store):
        self.store = store
        self.points: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
        self.line: list[tuple[int, int]] = []
        self.events: list[dict[str, Any]] = []
        self.step = -1
        """the last step that was read, of any branch"""
        self._version: Any = None
        self._last: dict[int, int] = {}
        self._tokens: dict[int, float | None] = {}
        self._last_event = 0

    def refresh(self) -> list[Piece]:
        """Read what is new; returns it as (name, branch, steps, values) pieces. Cheap where nothing is."""
        version = metrics.version(self.store)  # before reading: what is committed meanwhile counts as new
        if version == self._version:
            return []
        self.line = self.store.path_to()
        pieces = []
        branches = "SELECT id, parent, fork_step, (SELECT MAX(step) FROM steps WHERE branch = id) FROM branches"
        for branch, parent, fork_step, last in self.store.query(f"{branches} ORDER BY id"):
            seen = self._last.get(branch, -1 if fork_step is None else fork_step)
            if last is None or last <= seen:
                continue
            if branch not in self._last:
                known = parent is not None
                self._tokens[branch] = metrics.tokens_at(self.store, fork_step, parent) if known else None
            pieces += self._read(branch, seen, last)
            self._last[branch] = last
            self.step = max(self.step, last)
        self._read_events()
        self._version = version  # only now: what could not be read is read the next time
        return pieces

    def _read(self, branch: int, seen: int, last: int) -> list[Piece]:
        found = metrics.pieces(self.store, branch, seen, last, MOST_POINTS)
        if all(name != metrics.RATE for name, *_ in found):
            rate, self._tokens[branch] = metrics.rates(self.store, branch, seen, last, self._tokens[branch])
            found.append(rate)
        pieces = []
        for name, *points in found:
            steps, values = thin(*(np.asarray(part, "<f8") for part in points))
            if len(steps):
                self._hold(name, branch, steps, values)
                pieces.append((name, branch, steps, values))
        return pieces

    def _hold(self, name: str, branch: int, steps: np.ndarray, values: np.ndarray) -> None:
        held = self.points.setdefault(name, {}).setdefault(branch, ([], []))
        held[0].extend(steps.tolist())
        held[1].extend(values.tolist())
        if len(held[0]) > 2 * MOST_POINTS:
            fewer = thin(*(np.asarray(part, "<f8") for part in held))
            self.points[name][branch] = tuple(part.tolist() for part in fewer)

    def _read_events(self) -> None:
        new = self.store.query(
            "SELECT id, created, step, branch, kind, payload FROM events WHERE id > ? ORDER BY id", (self._last_event,)
        )
        for self._last_event, created, step, branch, kind, payload in new:
            given = json.loads(payload)
            self.events.append({
                "created": created, "step": step, "branch": branch, "kind": visible(kind), "mark": mark_of(kind, given),
                "text": describe(kind, given),
            })  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Metrics in the order in which they first came, held-out ones after those of the training."""
        return list(self.points)

    @property
    def span(self) -> tuple[float, float]:
        """First and last step of all curves: the charts of a run share their x axis."""
        ends = [end for branches in self.points.values() for x, _ in branches.values() for end in (x[0], x[-1])]
        return (min(ends), max(ends)) if ends else (0.0, 1.0)

    def charts(self) -> list[Chart]:
        """The charts that fit the run's method, with the metrics it has."""
        return arrange(self.store.get("method", ""), self.names)

    def everything(self) -> list[Piece]:
        """All pieces, thinned to what a chart can show."""
        return [
            (name, branch, *thin(np.asarray(steps, "<f8"), np.asarray(values, "<f8")))
            for name, branches in self.points.items()
            for branch, (steps, values) in branches.items()
        ]

    def between(self, first: int, last: int) -> list[Piece]:
        """The steps from `first` to `last` alone, read anew: what a chart shows that was zoomed into."""
        pieces = []
        for branch in list(self._last):
            for name, *points in metrics.pieces(self.store, branch, first - 1, last, MOST_POINTS):
                pieces.append((name, branch, *(np.asarray(part, "<f8") for part in points)))
            if metrics.RATE in self.points and all(piece[:2] != (metrics.RATE, branch) for piece in pieces):
                before = metrics.tokens_at(self.store, first - 1, branch)
                (name, *points), _ = metrics.rates(self.store, branch, first - 1, last, before)
                pieces.append((name, branch, *thin(*(np.asarray(part, "<f8") for part in points))))
        return [piece for piece in pieces if len(piece[2])]

    def main(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values (float64, (n,)) of `name` along the line that counts."""
        parts = []
        for branch, limit in reversed(self.line):
            held = self.points.get(name, {}).get(branch)
            if held is not None:
                x, y = np.asarray(held[0], "<f8"), np.asarray(held[1], "<f8")
                parts.append((x[x <= limit], y[x <= limit]))
        if not parts:
            return np.empty(0, "<f8"), np.empty(0, "<f8")
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def given_up(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same for steps that a rewind left behind, one pair per branch."""
        limits = dict(self.line)
        left = []
        for branch, (x, y) in self.points.get(name, {}).items():
            x, y = np.asarray(x, "<f8"), np.asarray(y, "<f8")
            limit = limits.get(branch, -1)
            if (x > limit).any():
                left.append((x[x >= limit], y[x >= limit]))  # from the step it parted at
        return left


def thin(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: of every stretch the lowest and the highest, so that no spike is lost."""
    if len(steps) <= most:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), max(1, most // 2 - 1)):
        known = part[~np.isnan(values[part])]
        kept |= (
            {int(part[0])}
            if not len(known)
            else {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        )
    index = np.array(sorted(kept))
    return steps[index], values[index]


def mark_of(kind: str, payload: dict[str, Any]) -> str:
    """Which mark an event has on the axis: 'set', 'reward', 'rewind', 'warning', 'error' or 'note'."""
    if kind == "set":
        return "reward" if {"rewards", "weights"} & payload.keys() else "set"
    if kind in ("rewind", "error"):
        return kind
    return "warning" if kind in ("warning", "alarm", "tracking") else "note"


def describe(kind: str, payload: dict[str, Any]) -> str:
    """An event in words."""
    if kind == "rewind":
        return visible(f"went back here from step {payload.get('from_step', '?')}")
    if kind in ("error", "warning") and "message" in payload:
        return visible(re.sub(r"^Step \d+: ", "", payload["message"]))  # the mark has the step
    parts = []
    for name, value in payload.items():
        if isinstance(value, dict):
            parts += [f"{key} {_change(item)}" for key, item in value.items()]
        elif value is not None:
            parts.append(f"{name} {_change(value)}")
    said = ", ".join(parts)
    return visible((said or kind) if kind == "set" else f"{kind}: {said}" if said else kind)


def _change(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        before, after = map(_short, value)
        return f"{before} → {after}" if before != after else f"{after}, edited"
    return _short(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict) and "name" in value:  # a reward function
        weight = value.get("weight", 1.0)
        return str(value["name"]) if weight == 1 else f"{weight:g} × {value['name']}"
    return f"[{', '.join(map(_short, value))}]" if isinstance(value, list) else str(value)


def headline(store: Store) -> dict[str, Any]:
    """What the head of a view says: name, method, step, steps, status, left (words), note (words)."""
    settings = store.settings()
    step, steps = store.last_step(), settings.get("steps")
    status = store.status
    return {
        "name": visible(store.get("name") or store.folder.name),
        "method": visible(store.get("method") or "run"),
        "step": step,
        "steps": steps if isinstance(steps, int) else None,
        "status": visible(status),
        "left": _time_left(store, step, steps) if status == "running" else "",
        "note": _note(store, status, step),
    }


def progress(head: dict[str, Any]) -> str:
    """'step 3 of 10', as far as it is known."""
    if head["step"] < 0:
        return "no step yet"
    return f"step {head['step']}" + (f" of {head['steps']}" if head["steps"] else "")


def _time_left(store: Store, step: int, steps: Any) -> str:
    recent = store.query(
        "SELECT seconds FROM steps WHERE branch = ? AND step > 0 ORDER BY step DESC LIMIT 20", (store.branch,)
    )
    if not recent or not isinstance(steps, int) or step >= steps:
        return ""
    return f"about {duration((steps - step) * sum(s for (s,) in recent) / len(recent))} left"


def _note(store: Store, status: str, step: int) -> str:
    if status == "killed":
        return f"The process that wrote this run is gone. Its last whole step is {step}; wb.resume goes on from there."
    if status == "failed":
        found = store.query("SELECT payload FROM events WHERE kind = 'error' ORDER BY id DESC LIMIT 1")
        said = json.loads(found[0][0]).get("message", "") if found else ""
        return visible(f"The run stopped after step {step}. {said}".strip())
    if step <= 0 and status == "running":
        return "Waiting for the first step."
    if step <= 0 and status in ("new", "paused"):
        return "Not started yet."
    return ""


def last_values(curves: Curves, name: str) -> tuple[float | None, float | None]:
    """First and last value of `name` on the line that counts; None where it has none."""
    _, values = curves.main(name)
    return (float(values[0]), float(values[-1])) if len(values) else (None, None)


def changed(first: float | None, last: float | None) -> str:
    """'0.1 → 0.4', or one number where there is only one."""
    if first is None or last is None:
        return "–"
    same = first == last or (math.isnan(first) and math.isnan(last))
    return number(last) if same else f"{number(first)} → {number(last)}"
