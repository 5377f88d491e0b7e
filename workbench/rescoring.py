"""Other rewards over stored rollouts: what they would have taught. Nothing is trained or generated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench import ranks
from workbench.errors import RunError
from workbench.store import Store
from workbench.tasks import Task

COLUMNS = [
    "id", "step", "group_id", "prompt", "completion", "reward", "new_reward", "advantage", "new_advantage", "flips",
    "rank", "new_rank",
]  # fmt: skip


class Rescored(pd.DataFrame):
    """What `run.rescore` returns: a DataFrame that shows itself as a view in a notebook. A part of it is a plain
    DataFrame."""

    _metadata = ["_folder", "_before", "_view"]

    def __init__(self, data: Any, *, folder: Any = None, before: pd.DataFrame | None = None):
        super().__init__(data)
        self._folder = folder
        self._before = before
        self._view = None

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def groups(self) -> pd.DataFrame:
        """One row a group: alive before and after, flips, pairs of rollouts that changed places, Kendall's tau-b,
        whether the best changed, mean rewards. See `ranks.groups_of`."""
        return ranks.groups_of(self)

    @property
    def summary(self) -> dict[str, Any]:
        """rollouts, unscored, flips, groups, alive_before, alive_after, died, came_alive, best_changed, reward_before,
        reward_after, rank_correlation (mean of Kendall's tau-b over the groups that have one)."""
        return ranks.summary_of(self, self.groups)

    @property
    def since(self) -> Rescored | None:
        """The same with the rescoring before this one as the old side: what editing a reward function changed. None
        where there was none."""
        if self._before is None:
            return None
        old = ("rank", "new_rank", "reward", "advantage")
        kept = [name for name in self if name not in old and not name.startswith("rewards/")]
        made = pd.DataFrame(self)[kept].merge(self._before, on="id")
        renamed = made[[n for n in made if n not in COLUMNS]]
        made = ranks.with_changes(made)
        return Rescored(pd.concat([made[COLUMNS], renamed], axis=1), folder=self._folder)

    def as_before(self) -> pd.DataFrame:
        """What the next rescoring is held against: its new rewards are the old ones there."""
        parts = {n: n.removeprefix("new_") for n in self if n.startswith("new_rewards/")}
        kept = pd.DataFrame(self)[["id", "new_reward", "new_advantage", *parts]]
        return kept.rename(columns={"new_reward": "reward", "new_advantage": "advantage", **parts})

    def show(self):
        """The view: in a terminal its text."""
        return self._widget().show()

    def _widget(self):
        if self._view is None:
            from workbench.views.rescored import RescoredView

            self._view = RescoredView(self, self._folder)
        return self._view

    def _ipython_display_(self) -> None:
        self._widget()._ipython_display_()


def rescore(store: Store, functions: Any, weights: Any, before: Rescored | None = None) -> Rescored:
    """See `Run.rescore`. The advantages are those of the run's own estimator and settings at each step, the punishment
    of overlong completions included; of a KL in the reward nothing is known without the model, so it is left out."""
    method, rows = store.get("method"), store.rows("train")
    if (store.get("data") or {}).get("kind") != "task":
        raise RunError(f"{store.folder.name} was made by wb.{method}: it has no rollouts to score again.")
    task = Task(rows, functions, weights)
    stored = store.rollouts()
    frames = [_step(store, task, rows, method, part) for _, part in stored.groupby("step", sort=True)]
    if not frames:
        return Rescored(pd.DataFrame(columns=COLUMNS), folder=store.folder)
    made = ranks.with_changes(pd.concat(frames, ignore_index=True))
    old = [name for name in made if str(name).startswith("rewards/")]
    rest = [name for name in made if name not in COLUMNS and name not in old]
    return Rescored(
        made[COLUMNS + old + rest], folder=store.folder, before=None if before is None else before.as_before()
    )


def _step(store: Store, task: Task, rows: list[dict], method: str, stored: pd.DataFrame) -> pd.DataFrame:
    """The rollouts of one step, scored again."""
    from workbench.methods.rl_batch import add_overlong, advantages_of
    from workbench.sampling.rollouts import Rollouts
    from workbench.settings import known, make

    step = int(stored["step"].iloc[0])
    ids = _ids(store, stored)
    each = [rows[i] for i in stored["row"]]
    columns = {name: [row.get(name) for row in each] for name in task.rows.columns if name != "prompt"}
    table = task.score([row["prompt"] for row in each], list(stored["completion"]), ids, columns)
    settings = make(method, known(method, store.settings(step)))
    scored = Rollouts([""] * len(ids), [""] * len(ids), ids=ids, group=list(stored["group_id"]))
    scored.rewards, scored.reward = table.parts, table.total
    graded = hasattr(settings, "advantage_estimator")  # methods that filter completions have no advantages
    if graded:
        add_overlong(scored, settings)
    parts = [name for name in stored if str(name).startswith("rewards/") and stored[name].notna().any()]
    kept = stored[["id", "step", "group_id", "prompt", "completion", "reward", "advantage", *parts]]
    advantage = advantages_of(scored, settings, task.weight_of) if graded else np.full(len(ids), np.nan)
    made = {"new_reward": scored.reward, "new_advantage": advantage}
    made |= {f"new_rewards/{name}": values for name, values in scored.rewards.items()}
    return pd.concat([kept, pd.DataFrame(made, index=kept.index)], axis=1)


def _ids(store: Store, stored: pd.DataFrame) -> list[list[int]]:
    """The token ids of each completion of a step."""
    step, branch = int(stored["step"].iloc[0]), int(stored["branch"].iloc[0])
    found = store.query(
        "SELECT id, ids FROM rollouts JOIN tokens ON rollout_id = id WHERE branch = ? AND step = ?", (branch, step)
    )
    blobs = dict(found)
    return [np.frombuffer(blobs[i], "<i4").tolist() for i in stored["id"]]
