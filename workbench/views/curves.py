"""The numbers of a run as curves: read from the store step by step, and arranged into charts that fit the method."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from workbench.store import Store
from workbench.views.text import duration, number, one_line, visible

ENDED = ("finished", "failed", "killed", "stopped")
MOST_POINTS = 2000
"""a longer curve is thinned before it is sent: a chart has no more pixels than that"""


@dataclass(frozen=True)
class Panel:
    """A chart that a method should have. `names` are metrics; one `*` stands for any text."""

    title: str
    unit: str
    names: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    band: str | None = None
    """a metric whose value is drawn as a band around the first name"""
    always: bool = False
    """shown before the first value comes, too"""


@dataclass(frozen=True)
class Chart:
    """A chart with the metrics it has in this run. `main` charts stand in front; the others are folded away."""

    title: str
    unit: str
    names: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    band: str | None = None
    main: bool = True

    def to_dict(self) -> dict[str, Any]:
        shown = asdict(self)
        return shown | {"names": list(self.names), "labels": [one_line(name, 60) for name in self.names]}


# Panels that several methods show.
_REWARDS = Panel(
    "Implicit rewards", "beta × nats per answer",
    ("rewards/margins", "rewards/chosen", "rewards/rejected"), always=True,
)  # fmt: skip
_HELD_OUT_REWARDS = Panel(
    "Held-out implicit rewards", "beta × nats per answer",
    ("eval/rewards/margins", "eval/rewards/chosen", "eval/rewards/rejected"),
)  # fmt: skip
_RANKED = Panel("Pairs ranked right", "share", ("rewards/accuracies", "eval/rewards/accuracies"), 0, 1, always=True)
_ENTROPY = Panel("Entropy", "nats per token", ("entropy", "eval/entropy"))

# The loss never comes first in RL: with one update a step and no KL it is zero by construction.
PANELS: dict[str, tuple[Panel, ...]] = {
    "grpo": (
        Panel("Reward", "reward", ("reward", "rewards/*/mean"), band="reward_std", always=True),
        Panel("Held-out tasks solved", "share", ("eval/accuracy", "eval/pass@*", "eval/maj@*"), 0, 1),
        Panel("Entropy", "nats per token", ("entropy", "eval/entropy"), always=True),
        Panel("Completion length", "tokens", ("completions/mean_length", "eval/completions/mean_length"), always=True),
        Panel(
            "Dead groups and cut-off completions",
            "share",
            (
                "frac_reward_zero_std", "completions/clipped_ratio", "eval/completions/clipped_ratio", "sampling/yield",
            ),
            0, 1, always=True,
        ),
        Panel("KL to the reference", "nats per token", ("kl",)),
    ),
    "dpo": (
        _REWARDS,
        _RANKED,
        Panel("Log-probability of the answers", "nats per answer", ("logps/chosen", "logps/rejected"), always=True),
        Panel("Loss", "nats per pair", ("loss", "eval/loss"), always=True),
        Panel("Parts of the loss", "loss, before its weight", ("loss/*",)),
        _HELD_OUT_REWARDS,
        _ENTROPY,
    ),
    "orpo": (
        Panel("Log-odds of chosen over rejected", "nats", ("log_odds_chosen", "eval/log_odds_chosen"), always=True),
        _RANKED,
        Panel("Log-probability of the answers", "nats per token", ("logps/chosen", "logps/rejected"), always=True),
        Panel("Loss", "nats", ("loss", "eval/loss"), always=True),
        Panel("Likelihood of the chosen text", "nats per token", ("nll_loss", "eval/nll_loss"), always=True),
        _ENTROPY,
    ),
    "kto": (
        _REWARDS,
        Panel("Baseline: estimate of the KL", "nats per answer", ("kl", "eval/kl"), always=True),
        Panel("Log-probability of the answers", "nats per answer", ("logps/chosen", "logps/rejected"), always=True),
        Panel("Loss", "loss per answer", ("loss", "eval/loss"), always=True),
        _HELD_OUT_REWARDS,
        _ENTROPY,
    ),
    "sft": (
        Panel("Loss", "nats per token", ("loss", "eval/loss"), always=True),
        Panel(
            "Tokens predicted right", "share", ("mean_token_accuracy", "eval/mean_token_accuracy"), 0, 1, always=True
        ),
        Panel("Entropy", "nats per token", ("entropy", "eval/entropy"), always=True),
    ),
}  # fmt: skip
PANELS["cpo"] = PANELS["dpo"]


UNITS = {
    "num_tokens": "tokens", "completions/": "tokens", "eval/completions/": "tokens", "learning_rate": "learning rate",
    "grad_norm": "norm", "clip_ratio/": "share", "frac_": "share", "rewards/": "reward", "eval/reward": "reward",
    "logps/": "nats per answer", "entropy_coef": "coefficient", "entropy": "nats per token", "kl": "nats per token",
    "sampling/rounds": "rounds", "sampling/importance": "weight", "sampling/": "nats", "cispo_clip_ratio": "share",
    "vespo/": "weight", "policy_loss": "loss", "loss": "loss",
}  # fmt: skip
"""of metrics that stand in no panel, by the beginning of their name"""


def _matches(pattern: str, names: list[str]) -> list[str]:
    head, star, tail = pattern.partition("*")
    if not star:
        return [pattern] if pattern in names else []
    return [n for n in names if n.startswith(head) and n.endswith(tail) and len(n) > len(head) + len(tail)]


def arrange(method: str, names: list[str]) -> list[Chart]:
    """The charts of a run that has the metrics `names`: those that fit the method, then all others, folded."""
    charts, used = [], set()
    for panel in PANELS.get(method, ()):
        found = tuple(n for pattern in panel.names for n in _matches(pattern, names) if n not in used)
        if found or panel.always:
            charts.append(Chart(panel.title, panel.unit, found, panel.low, panel.high, panel.band))
            used |= {*found, panel.band}
    families = defaultdict(list)
    for name in names:
        if name not in used:
            # metrics of one family and ending share a scale; others get a chart each
            head, _, tail = name.rpartition("/")
            families[f"{head.split('/')[0]} {tail}" if head.startswith("rewards") else head or name].append(name)
    main = not charts
    for found in families.values():
        title = visible(found[0] if len(found) == 1 else _common(found))
        unit = next((unit for start, unit in UNITS.items() if found[0].startswith(start)), "value")
        charts.append(Chart(title, unit, tuple(found), main=main))
    return charts


def _common(names: list[str]) -> str:
    head = names[0].split("/")[0]
    return head + " " + names[0].rpartition("/")[2] if head == "rewards" else names[0].rpartition("/")[0]


class Curves:
    """Every metric of a run by branch, kept up to date from its store.

    `refresh` reads only what was committed since the last call. `line` is the path to the branch that is being
    written, [(branch, last step that counts), ...], newest first; what does not lie on it was given up.
    """

    def __init__(self, store: Store):
        self.store = store
        self.points: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
        self.line: list[tuple[int, int]] = []
        self.events: list[dict[str, Any]] = []
        self._last: dict[int, int] = {}
        self._last_event = 0

    def refresh(self) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
        """Read what is new; returns it as (name, branch, steps, values) pieces."""
        self.line = self.store.path_to()
        pieces = []
        for branch, fork_step in self.store.query("SELECT id, fork_step FROM branches ORDER BY id"):
            last = self.store.query("SELECT MAX(step) FROM steps WHERE branch = ?", (branch,))[0][0]
            seen = self._last.get(branch, -1 if fork_step is None else fork_step)
            if last is None or last <= seen:
                continue
            self._last[branch] = last
            new = self.store.metrics_long(branch=branch, since=seen)
            for name, part in new[(new["branch"] == branch) & (new["step"] <= last)].groupby("name", sort=False):
                steps, values = part["step"].to_numpy("<f8"), part["value"].to_numpy("<f8")
                held = self.points.setdefault(name, {}).setdefault(branch, ([], []))
                held[0].extend(steps.tolist())
                held[1].extend(values.tolist())
                pieces.append((name, branch, steps, values))
        self._read_events()
        return pieces

    def _read_events(self) -> None:
        new = self.store.query(
            "SELECT id, created, step, branch, kind, payload FROM events WHERE id > ? ORDER BY id", (self._last_event,)
        )
        for self._last_event, created, step, branch, kind, payload in new:
            said = describe(kind, json.loads(payload))
            self.events.append(
                {"created": created, "step": step, "branch": branch, "kind": visible(kind), "text": said}
            )

    @property
    def names(self) -> list[str]:
        """Metrics in the order in which they first came, held-out ones after those of the training."""
        return list(self.points)

    @property
    def span(self) -> tuple[float, float]:
        """First and last step of all curves: the charts of a run share their x axis."""
        ends = [end for branches in self.points.values() for x, _ in branches.values() for end in (x[0], x[-1])]
        return (min(ends), max(ends)) if ends else (0.0, 1.0)

    def everything(self) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
        """All pieces, thinned to what a chart can show."""
        return [
            (name, branch, *thin(np.asarray(steps, "<f8"), np.asarray(values, "<f8")))
            for name, branches in self.points.items()
            for branch, (steps, values) in branches.items()
        ]

    def main(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values (float64, (n,)) of `name` along the line that counts."""
        steps, values = [], []
        for branch, limit in reversed(self.line):
            x, y = self.points.get(name, {}).get(branch, ((), ()))
            kept = [i for i, step in enumerate(x) if step <= limit]
            steps += [x[i] for i in kept]
            values += [y[i] for i in kept]
        return np.asarray(steps, "<f8"), np.asarray(values, "<f8")

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


def describe(kind: str, payload: dict[str, Any]) -> str:
    """An event in words."""
    if kind == "rewind":
        return visible(f"went back here from step {payload.get('from_step', '?')}")
    if kind == "error":
        return visible(payload.get("message", "error"))
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
        return f"{_short(value[0])} → {_short(value[1])}"
    return _short(value)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
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
