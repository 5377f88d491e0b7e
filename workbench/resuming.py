"""Going on: `wb.resume`, forks, `wb.open` and `wb.runs`. A run is rebuilt from its folder alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import folders, inputs, methods, tracking, worker
from workbench import settings as settings_of
from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.engine import Change, Engine, Live
from workbench.errors import RunError, StoreError
from workbench.launch import check_change
from workbench.methods.grpo import Prompts
from workbench.policy import Policy, from_description
from workbench.run import Run
from workbench.state import State, clone
from workbench.store import Store
from workbench.tasks import Task, rebuild
from workbench.tracking.record import rewards_at

if TYPE_CHECKING:
    import pandas as pd


def fork(run: Run, step: int, out: str | os.PathLike | None, changes: dict[str, Any]) -> Run:
    """A run that goes on from `step` of `run`. The parent's own state is untouched."""
    parent = run.engine
    state = parent.restore(step)
    home = parent.store.home(step, parent.branch)
    live = parent.live_at(step + 1)
    settings = {k: v for k, v in changes.items() if k not in ("rewards", "weights")}
    if changes:
        live, _ = check_change(parent, live, settings, changes.get("rewards"), changes.get("weights"))
        inputs.check(parent.policy, live.settings)
        inputs.check_data(parent.policy, live.settings, live.data, live.eval_data)
    folder = folders.claim(out or run.folder.with_name(f"{run.name}-fork"), named=out is not None)
    shutil.copyfile(parent.snapshots.reference, folder / "snapshots" / parent.snapshots.reference.name)
    engine = Engine(parent.method, parent.policy, live, folder, state)
    engine.first = parent.store.step_metrics(step, parent.branch)
    engine.evaluates_anew = bool(settings) and any(name.startswith("eval/") for name in engine.first)
    meta = parent.store.meta
    meta |= {"name": folder.name, "settings": asdict(live.settings)} | inputs.circumstances()
    meta["parent"] = {"folder": str(run.folder.resolve()), "name": run.name, "step": step, "branch": home}
    if isinstance(live.data, Prompts):
        meta["data"] = inputs.spec_of(live.data.task)
    rows = {name: parent.store.rows(name) for name in ("train", "eval")}
    for tracker in tracking.rebuild(meta.get("tracking", ()), folder.name):
        engine.tracking.add(tracker)
    made = Run(folder, engine, begin=(meta, {name: items for name, items in rows.items() if items}))
    made._begin_now()
    return made


def open_run(path: str | os.PathLike) -> Run:
    """A run to look at: metrics, rollouts, views. Works while another process writes it."""
    Store(path).close()
    return Run(Path(path))


def resume(path: str | os.PathLike, rewards: Any = None, policy: Policy | None = None) -> Run:
    """A run that goes on from its last whole step, in a new process too.

    `rewards`: the reward functions that cannot be imported (those of a notebook), as a list or by name. `policy`:
    the model, when it should not be loaded again. Raises StoreError when there is nothing to resume or another
    process is writing, RunError when functions are missing or the policy does not fit.
    """
    return worker.call(_resume, Path(path), rewards, policy)


def _resume(folder: Path, rewards: Any, policy: Policy | None) -> Run:
    reader = Store(folder)
    meta = reader.meta
    method = methods.get(meta["method"])
    policy = policy or from_description(meta["policy"])
    settings = settings_of.make(method.name, settings_of.known(method.name, meta["settings"]))
    tasks = _Tasks(meta["data"], reader, rewards)
    source = tasks.now()
    held_out = None
    if meta["eval"] is not None:
        given = None if rewards is None else _for(meta["eval"], rewards)
        held_out = inputs.unspec(meta["eval"], reader.rows("eval"), given)
    reader.close()
    live = Live(settings, *inputs.prepared(method, policy, source, held_out, settings), source=source)
    engine = Engine(method, policy, live, folder, State(clone(policy.params())))
    run = Run(folder, engine)
    engine.store = Store(folder, write=True)
    engine.branch = engine.store.branch
    engine.store.set_meta(writer=inputs.writer(), status="paused")
    engine.changes = tasks.changes(engine, live)
    _check_fits(engine)
    engine.spent = float(engine.store.steps().query("step > 0")["seconds"].sum())
    last = engine.store.last_step(engine.branch)
    engine.state = engine.restore(last)
    engine.hold()
    engine.remember()
    engine.store.add_event(last, engine.branch, "resume")
    for tracker in tracking.rebuild(meta.get("tracking", ()), folder.name):
        engine.tracking.add(tracker)
    return run


def _for(spec: dict[str, Any], rewards: Any) -> Any:
    """Those of the given functions that the held-out task uses."""
    if spec["kind"] != "task":
        return None
    names = [entry["name"] for entry in spec["task"]["rewards"]]
    given = rewards if isinstance(rewards, dict) else {getattr(fn, "__name__", ""): fn for fn in rewards}
    return {name: fn for name, fn in given.items() if name in names}


class _Tasks:
    """The tasks a run had over time: its reward functions may have been changed by `set`."""

    def __init__(self, spec: dict[str, Any], store: Store, given: Any):
        self.spec, self.given = spec, given
        self.rows = store.rows("train")
        self.first = spec["task"]["rewards"] if spec["kind"] == "task" else None
        self.current = rewards_at(store, store.last_step() + 1)

    def now(self) -> Rows | Task:
        """What the next step runs on. Raises RunError naming reward functions that are not to be had."""
        return self._rebuild(self.current, self.given)

    def _rebuild(self, entries: list[dict] | None, given: Any) -> Rows | Task:
        if entries is None:
            return read_rows(self.rows)
        names = [entry["name"] for entry in entries]
        task = self.spec["task"] | {"rewards": entries}
        task["verdict"] = task["verdict"] if task["verdict"] in names else names[0]
        return rebuild(task, self.rows, given)

    def _live(self, live: Live, entries: list[dict] | None) -> Live:
        """`live` with the task of `entries`; where its functions are not to be had they are named as missing."""
        if entries is None or entries == self.current:
            return live
        try:
            return replace(live, data=replace(live.data, task=self._rebuild(entries, None)))
        except RunError:
            return replace(live, missing=tuple(entry["name"] for entry in entries))

    def changes(self, engine: Engine, live: Live) -> list[Change]:
        """The run's changes as they stand in the store, oldest first; `live` is what runs now."""
        name = engine.method.name
        made = [Change(0, 0, self._live(live, self.first))]
        events = engine.store.events("all")
        for event in events[events["kind"] == "set"].itertuples():
            stored = engine.store.settings(event.step, event.branch)
            settings = settings_of.make(name, settings_of.known(name, stored), base=live.settings)
            entries = rewards_at(engine.store, event.step, event.branch)
            changed = inputs.anew(engine.method, engine.policy, replace(live, settings=settings), live.settings)
            made.append(Change(event.branch, event.step, self._live(changed, entries)))
        return made


def _check_fits(engine: Engine) -> None:
    """The snapshots must be of this policy's parameters."""
    ours = {name: tuple(p.shape) for name, p in engine.policy.params().items()}
    stored = engine.snapshots.nearest(engine.store.path_to(engine.branch), 2**62, "cpu").params
    theirs = {name: tuple(p.shape) for name, p in stored.items()}
    if ours != theirs:
        differ = sorted(set(ours.items()) ^ set(theirs.items()))
        raise RunError(
            f"The policy does not fit the run {engine.folder}: {differ[0][0]} differs ({len(differ)} differences)."
        )


def runs(folder: str | os.PathLike = "runs") -> pd.DataFrame:
    """The runs in a folder: name, method, status, step, steps, reward or loss, held-out accuracy, parent, created."""
    import pandas as pd

    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"There is no folder {folder}.")
    records = []
    for path in sorted(folder.glob("*/run.db")):
        store = Store(path.parent)
        meta, last = store.meta, store.last_step()
        metrics = store.step_metrics(last)
        accuracy = store.metrics_long(["eval/accuracy"])["value"]
        records.append({
            "name": meta["name"],
            "method": meta["method"],
            "status": store.status,
            "step": last,
            "steps": store.settings()["steps"],
            "reward": metrics.get("reward"),
            "loss": metrics.get("loss"),
            "eval/accuracy": accuracy.iloc[-1] if len(accuracy) else None,
            "seconds": float(store.steps()["seconds"].sum()),
            "parent": (meta.get("parent") or {}).get("name"),
            "created": pd.Timestamp(meta["created"], unit="s"),
            "folder": str(path.parent),
        })  # fmt: skip
        store.close()
    return pd.DataFrame(records)
