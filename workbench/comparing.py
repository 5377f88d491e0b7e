"""Two runs side by side: what differs in their settings, numbers and answers. Everything is read from their stores."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import methods
from workbench import settings as settings_of
from workbench.errors import SettingError, StoreError, did_you_mean
from workbench.store import Store
from workbench.text import visible
from workbench.tracking.record import data_of, rewards_at

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = ("eval/accuracy", "eval/pass@", "eval/maj@")
"""means over held-out prompts of numbers between 0 and 1"""
HIGHER = ("reward", "rewards/margins", "rewards/accuracies", "mean_token_accuracy", "accuracy", "log_odds_chosen")
LOWER = ("loss", "nll_loss")
EQUAL = 1e-9
"""mean rewards this near each other are a tie"""
DRAWS = 2000


def compare(run_a: Any, run_b: Any, *, steps: int | Sequence[int] | None = None, by: str | None = None) -> Comparison:
    """`run_a` and `run_b` side by side: settings, events, curves, numbers, and the prompts each does better on.

    The runs: Run objects, folders or Stores; a run and its fork, or twice the same run. `steps`: how far to look, one
    number or one for each run, so that `compare(run, run, steps=(10, 40))` is a run against its own past. `by`: the
    reward that wins are counted by, "reward" or "rewards/<name>"; by default "reward" where both runs have the same
    reward functions, else the first function that both have. Raises SettingError and StoreError.
    """
    upto = list(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else [steps, steps]
    if len(upto) != 2:
        raise SettingError(f"steps takes one number, or one for each of the two runs; got {steps!r}.")
    a, b = (_side(run, step, name) for run, step, name in zip((run_a, run_b), upto, ("a", "b"), strict=True))
    made = Comparison(a, b)
    made.by = made.choose(by)
    return made


@dataclass(frozen=True)
class Side:
    """One of the two: a run's store, looked at as far as step `upto`."""

    store: Store
    upto: int

    @property
    def name(self) -> str:
        return visible(self.store.get("name") or self.store.folder.name)

    @property
    def method(self) -> str:
        return str(self.store.get("method") or "run")

    def rewards(self) -> list[dict[str, Any]] | None:
        """The reward functions of the last step, as stored; None where there are none."""
        return rewards_at(self.store, self.upto + 1) if self.store.get("data") else None

    def path(self) -> tuple[str, list]:
        """SQL for the steps of the line that count."""
        line = self.store.path_to()
        marks = " OR ".join(["(branch = ? AND step <= ?)"] * len(line))
        return f"({marks})", [v for branch, limit in line for v in (branch, min(limit, self.upto))]


def _side(run: Any, step: int | None, which: str) -> Side:
    if isinstance(run, (str, os.PathLike)):
        run = Store(run)
    store = run if isinstance(run, Store) else getattr(run, "store", None)
    if not isinstance(store, Store):
        raise SettingError(
            f"compare takes runs (wb.open(...), wb.grpo(...)) or their folders; run_{which} is a {type(run).__name__}."
        )
    last = store.last_step()
    if step is None:
        return Side(store, last)
    step = settings_of.typed("steps", step, "int")
    if not 0 <= step <= last:
        raise SettingError(f"steps={step}: {store.folder.name} has the steps 0 to {last}.")
    return Side(store, step)


class Comparison:
    """What `wb.compare` returns; it shows itself as a view in a notebook. In all tables `a` is the first run, `b` the
    second, and a difference is b - a."""

    def __init__(self, a: Side, b: Side):
        self.a, self.b = a, b
        self.by: str | None = "reward"
        self._view: Any = None

    # -- tables ----------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> pd.DataFrame:
        """What differs, one row a setting: of (run, model, data, held out, rewards, versions, start), name, a, b,
        default. NA where a run has no such thing."""
        import pandas as pd

        sides = [_facts(side) for side in (self.a, self.b)]
        rows = []
        for key in dict.fromkeys([*sides[0], *sides[1]]):
            values = [side.get(key, pd.NA) for side in sides]
            if any(value is pd.NA for value in values) or values[0] != values[1]:
                rows.append([*key, *values, _defaults(self.a.method).get(key[1], pd.NA) if key[0] == "run" else pd.NA])
        return pd.DataFrame(rows, columns=["of", "name", "a", "b", "default"], dtype=object)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row for each metric that both runs have (index `metric`): a, b (last values), difference; step_a,
        step_b; best_a, best_b, better ('a', 'b', '' by the best) where higher or lower is better; se_a, se_b, se (of
        the difference) for means over held-out prompts: sqrt(p (1 - p) / prompts), which is what it is at most."""
        import pandas as pd

        a, b = (_ends(side) for side in (self.a, self.b))
        held_out = [
            side.store.query("SELECT COUNT(*) FROM rows WHERE name = 'eval'")[0][0] for side in (self.a, self.b)
        ]
        rows = {name: _metric(name, self.a.method, [a[name], b[name]], held_out) for name in a if name in b}
        columns = ["a", "b", "difference", "step_a", "step_b", "best_a", "best_b", "better", "se_a", "se_b", "se"]
        made = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        made.index.name = "metric"
        return made

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """One row for each prompt that both runs sampled: prompt, a, b (mean reward over the completions of the last
        step at which the run drew it), difference, winner ('a', 'b', 'tie'), step_a, step_b, n_a, n_b.

        Completions of held-out prompts are not stored, so these are those of the training; after a fork only the
        steps since then count. Empty where no completions, or no reward in common, are stored.
        """
        import pandas as pd

        columns = ["prompt", "a", "b", "difference", "winner", "step_a", "step_b", "n_a", "n_b"]
        if self.by is None:
            return pd.DataFrame(columns=columns)
        a, b = (_by_prompt(side, self.by, self._since) for side in (self.a, self.b))
        made = a.merge(b, on="prompt", suffixes=("_a", "_b"))
        made = made.rename(columns={"reward_a": "a", "reward_b": "b"})
        made["difference"] = made["b"] - made["a"]
        tie = made["difference"].abs() <= EQUAL
        made["winner"] = np.where(tie, "tie", np.where(made["difference"] > 0, "b", "a"))
        return made[columns]

    @cached_property
    def wins(self) -> dict[str, Any]:
        """prompts, a, b, ties: who has the higher mean reward on how many; p_value of the two-sided sign test;
        difference: the mean over prompts, with its 95 % bootstrap interval `low` to `high` (percentiles)."""
        counts = self.prompts["winner"].value_counts()
        a, b, ties = (int(counts.get(name, 0)) for name in ("a", "b", "tie"))
        low, high = interval(self.prompts["difference"].to_numpy(float))
        mean = float(self.prompts["difference"].mean()) if len(self.prompts) else math.nan
        said = {"prompts": a + b + ties, "a": a, "b": b, "ties": ties, "p_value": sign_test(a, b)}
        return said | {"difference": mean, "low": low, "high": high}

    @cached_property
    def events(self) -> pd.DataFrame:
        """What was changed during each run: run ('a' or 'b'), step, kind, text."""
        import pandas as pd

        from workbench.views.curves import describe

        rows = []
        for which, side in (("a", self.a), ("b", self.b)):
            for event in side.store.events(None).itertuples():
                if event.step <= side.upto + 1:
                    rows.append([which, event.step, visible(event.kind), describe(event.kind, event.payload)])
        return pd.DataFrame(rows, columns=["run", "step", "kind", "text"])

    def completions(self, position: int) -> tuple[list[dict], list[dict]]:
        """The completions of the prompt in row `position` of `prompts`, of each run, the highest reward first: id,
        completion, reward, parts, finish_reason, n_tokens."""
        row = self.prompts.iloc[position]
        return tuple(
            _completions(side, row["prompt"], int(row[f"step_{name}"])) for side, name in ((self.a, "a"), (self.b, "b"))
        )

    # -- in words --------------------------------------------------------------------------------------------

    @property
    def same(self) -> bool:
        """Whether both are one run at one step."""
        here, there = self.a.store.folder.resolve(), self.b.store.folder.resolve()
        return here == there and self.a.upto == self.b.upto

    @cached_property
    def identical(self) -> bool:
        """Whether nothing differs: settings, and the numbers of every step (seconds apart)."""
        if self.same:
            return True
        if len(self.settings) or self.a.upto != self.b.upto:
            return False
        if not (self.metrics["a"] == self.metrics["b"]).all():
            return False  # which is quicker seen than step by step
        a, b = (
            side.store.query(f"SELECT step, name, value FROM metrics WHERE {path} ORDER BY step, name", values)
            for side in (self.a, self.b)
            for path, values in [side.path()]
        )
        return a == b and self.a.upto > 0

    @property
    def notes(self) -> list[str]:
        """What one has to know to read the tables."""
        if self.same:
            return ["These are the same run: nothing differs."]
        said = ["The two are identical: the same settings, the same numbers at every step."] if self.identical else []
        a, b = self.a, self.b
        if a.store.folder.resolve() == b.store.folder.resolve():
            said.append(f"One run, after step {a.upto} (a) and after step {b.upto} (b).")
        said += self._notes_on_forks()
        if a.method != b.method:
            said.append(f"Different methods ({a.method} and {b.method}): only metrics that both have are compared.")
        return said + self._notes_on_prompts()

    def _notes_on_forks(self) -> list[str]:
        if self._shared is None:
            return []
        origin, step = self._shared
        for child, parent in ((self.b, self.a), (self.a, self.b)):
            if origin != parent.store.folder.resolve():
                continue
            fork = child.store.get("parent")
            if Path(fork["folder"]) == origin and int(fork["step"]) == step:
                return [f"{child.name} was forked from {parent.name} after step {step}: up to there they are one."]
            return [f"{child.name} goes back to {parent.name}: up to step {step} they are one."]
        return [f"Both go back to {visible(origin.name)}: up to step {step} they are one."]

    def _notes_on_prompts(self) -> list[str]:
        for side in (self.a, self.b):
            if not side.store.query(f"SELECT 1 FROM rollouts WHERE {side.path()[0]} LIMIT 1", side.path()[1]):
                return [f"{side.name} has no stored completions, so answers are not compared."]
        if self.by is None:
            names = [", ".join(entry["name"] for entry in side.rewards() or ()) or "none" for side in (self.a, self.b)]
            return [visible(
                f"The runs have no reward function in common ({names[0]}; {names[1]}), so wins are not counted."
                " by='reward' counts them by the total all the same."
            )]  # fmt: skip
        if not len(self.prompts):
            return ["The runs have no prompt in common, so answers are not compared."]
        what = "the total reward" if self.by == "reward" else f"the reward {self.by.removeprefix('rewards/')}"
        return [visible(
            f"Wins: by {what}, the mean over the completions of a prompt at the last step at which each run drew it in"
            " training (completions of held-out prompts are not stored)."
        )]  # fmt: skip

    # -- choosing --------------------------------------------------------------------------------------------

    @cached_property
    def _shared(self) -> tuple[Path, int] | None:
        """The run that both go back to, through forks of forks too, and the step up to which they are one. None for
        runs that share nothing, and for a run beside itself, whose past is what is compared."""
        a, b = _line(self.a), _line(self.b)
        if self.a.store.folder.resolve() == self.b.store.folder.resolve():
            return None
        steps = [(min(a[at], b[at]), at[0]) for at in a if at in b]
        step, origin = max(steps, key=lambda found: found[0], default=(0, None))
        return None if origin is None else (origin, step)

    @property
    def _since(self) -> int:
        """The step up to which both are one."""
        return self._shared[1] if self._shared else 0

    def choose(self, by: str | None) -> str | None:
        """The reward to count wins by; None where the runs have none in common. Raises SettingError for one that is
        not there."""
        entries = [side.rewards() for side in (self.a, self.b)]
        names = [[entry["name"] for entry in some or ()] for some in entries]
        shared = [f"rewards/{name}" for name in names[0] if name in names[1]]
        if by is not None:
            parts = shared if all(names) else [f"rewards/{name}" for name in _stored_parts(self.a, self.b)]
            if by not in ("reward", *parts):
                options = ["reward", *parts]
                raise SettingError(f"by={by!r}: both runs have {', '.join(options)}.{did_you_mean(str(by), options)}")
            return by
        weighed = [[(entry["name"], entry.get("weight")) for entry in some or ()] for some in entries]
        if weighed[0] == weighed[1] or not all(names):
            return "reward"
        return shared[0] if shared else None

    # -- showing ---------------------------------------------------------------------------------------------

    def show(self):
        """The view; in a terminal its text."""
        return self._widget().show()

    def _widget(self):
        if self._view is None:
            from workbench.views.compare import CompareView

            self._view = CompareView(self)
        return self._view

    def _ipython_display_(self) -> None:
        self._widget()._ipython_display_()

    def __repr__(self) -> str:
        wins = self.wins
        said = f"; {wins['a']} prompts to a, {wins['b']} to b, {wins['ties']} ties" if wins["prompts"] else ""
        return f"<Comparison of a: {self.a.name}, b: {self.b.name}; {len(self.settings)} settings differ{said}>"


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of so many wins and losses where both are equally likely, ties left out: exact, from the
    binomial distribution. 1 where there are neither."""
    n, least = wins + losses, min(wins, losses)
    tail, term = 0, 1
    for k in range(least + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def interval(differences: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the mean over `draws` resamples of the prompts (Efron 1979); always the same
    for the same numbers. NaN for fewer than two."""
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    means = [known[rng.integers(0, len(known), len(known))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def direction(method: str, name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither can be said."""
    bare = name.removeprefix("eval/")
    if bare in HIGHER or bare.startswith(("pass@", "maj@")) or (bare.startswith("rewards/") and bare.endswith("/mean")):
        return 1
    return -1 if bare in LOWER and method != "grpo" else 0


def _line(side: Side) -> dict[tuple[Path, int], int]:
    """What a run is made of: {(folder, branch): the last step of it that counts}, its own branches first, then those of
    the runs it was forked from, back to the first, or to one whose folder is gone."""
    store, limit = side.store, side.upto
    line = {(store.folder.resolve(), branch): min(last, limit) for branch, last in store.path_to()}
    fork = store.get("parent")
    while fork and Path(fork["folder"]) not in {folder for folder, _ in line}:
        folder, limit = Path(fork["folder"]), min(limit, int(fork["step"]))
        line[folder, fork["branch"]] = limit
        try:
            store = Store(folder)
            line |= {(folder, branch): min(last, limit) for branch, last in store.path_to(fork["branch"])}
        except StoreError:
            break
        fork = store.get("parent")
        store.close()
    return line


@dataclass(frozen=True)
class Ends:
    """A metric of a run: its last number and when that was, the lowest and the highest."""

    last: float
    step: int
    low: float
    high: float


def _ends(side: Side) -> dict[str, Ends]:
    """Of each metric that has numbers, in the order in which they came."""
    path, values = side.path()
    found = side.store.query(
        # of the row with the largest step SQLite gives the value beside it
        f"SELECT name, value, MAX(step) FROM metrics WHERE {path} AND value IS NOT NULL GROUP BY name",
        values,
    )
    ranges = side.store.query(
        f"SELECT name, MIN(value), MAX(value) FROM metrics WHERE {path} AND value IS NOT NULL GROUP BY name"
        " ORDER BY MIN(step), name", values
    )  # fmt: skip
    last = {name: (value, step) for name, value, step in found}
    return {name: Ends(*last[name], low, high) for name, low, high in ranges}


def _metric(name: str, method: str, ends: list[Ends], held_out: list[int]) -> list[Any]:
    """A row of `Comparison.metrics`."""
    last = [one.last for one in ends]
    best: list[float] = [math.nan, math.nan]
    better, way = "", direction(method, name)
    if way:
        best = [one.high if way > 0 else one.low for one in ends]
        ahead = (best[1] - best[0]) * way
        better = "" if abs(ahead) <= EQUAL or math.isnan(ahead) else "b" if ahead > 0 else "a"
    errors = [_error(name, p, n) for p, n in zip(last, held_out, strict=True)]
    steps = [one.step for one in ends]
    return [*last, last[1] - last[0], *steps, *best, better, *errors, math.hypot(*errors)]


def _error(name: str, p: float, n: int) -> float:
    """The standard error of a mean `p` over `n` prompts of numbers between 0 and 1: at most that of a coin."""
    return math.sqrt(p * (1 - p) / n) if name.startswith(HELD_OUT) and n and 0 <= p <= 1 else math.nan


def _facts(side: Side) -> dict[tuple[str, str], Any]:
    """All that may differ, by (of, name)."""
    meta = side.store.meta
    rewards, parent = side.rewards(), meta.get("parent") or {}
    groups = {
        "run": side.store.settings(side.upto + 1) | {"method": side.method},
        "model": meta.get("policy") or {},
        "start": {"from": meta.get("started_from"), **{f"parent {k}": parent[k] for k in ("name", "step") if parent}},
        "data": (data_of(side.store) if meta.get("data") else None) or {},
        "held out": (data_of(side.store, "eval") if meta.get("eval") else None) or {},
        "versions": meta.get("versions") or {},
    }  # fmt: skip
    groups["data"].pop("rewards", None)
    if rewards is not None:
        groups["rewards"] = {entry["name"]: f"weight {entry.get('weight', 1.0):g}" for entry in rewards}
    return {(of, name): value for of, values in groups.items() for name, value in _flat(values)}


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested dictionaries as dotted names."""
    made = []
    for name, value in values.items():
        if isinstance(value, dict):
            made += _flat(value, f"{before}{name}.")
        else:
            made.append((f"{before}{name}", value))
    return made


def _defaults(method: str) -> dict[str, Any]:
    if method not in methods.names():
        return {}
    return dict(_flat(asdict(settings_of.make(methods.get(method).name, {}))))


def _by_prompt(side: Side, by: str, since: int) -> pd.DataFrame:
    """prompt, reward (mean), step, n: at the last step after `since` that drew the prompt."""
    import pandas as pd

    path, values = side.path()
    where = f"{path} AND step > ?"
    if by == "reward":
        rows = side.store.query(
            f"SELECT prompt, AVG(reward), step, COUNT(reward) FROM rollouts WHERE {where} GROUP BY prompt, step"
            " HAVING COUNT(reward) > 0 ORDER BY step",
            [*values, since],
        )
        made = pd.DataFrame(rows, columns=["prompt", "reward", "step", "n"])
        return made.drop_duplicates("prompt", keep="last")
    found = side.store.query(f"SELECT prompt, rewards, step FROM rollouts WHERE {where}", [*values, since])
    part = by.removeprefix("rewards/")
    frame = pd.DataFrame(
        [(prompt, json.loads(rewards).get(part), step) for prompt, rewards, step in found],
        columns=["prompt", "reward", "step"],
    ).dropna(subset="reward")
    frame["reward"] = frame["reward"].astype(float)
    made = frame.groupby(["prompt", "step"], as_index=False).agg(reward=("reward", "mean"), n=("reward", "size"))
    return made.sort_values("step", kind="stable").drop_duplicates("prompt", keep="last")


def _completions(side: Side, prompt: str, step: int) -> list[dict[str, Any]]:
    path, values = side.path()
    found = side.store.query(
        "SELECT id, completion, reward, rewards, finish_reason, n_tokens FROM rollouts"
        f" WHERE {path} AND step = ? AND prompt = ? ORDER BY reward IS NULL, reward DESC, id",
        [*values, step, prompt],
    )
    names = ("id", "completion", "reward", "parts", "finish_reason", "n_tokens")
    return [dict(zip(names, row, strict=True)) | {"parts": json.loads(row[3])} for row in found]


def _stored_parts(a: Side, b: Side) -> list[str]:
    """Reward functions that left numbers in both stores."""
    parts = []
    for side in (a, b):
        path, values = side.path()
        found = side.store.query(f"SELECT rewards FROM rollouts WHERE {path} ORDER BY id DESC LIMIT 1", values)
        parts.append(list(json.loads(found[0][0])) if found else [])
    return [name for name in parts[0] if name in parts[1]]
