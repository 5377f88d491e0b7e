"""How runs come to be: `wb.sft`, `wb.dpo`, `wb.grpo`, `wb.open`, `wb.resume`, `wb.runs`, and forks.

Settings and data are checked here, before a folder is made or a weight is touched.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import folders, methods, worker
from workbench import settings as settings_of
from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.engine import Change, Engine, Live
from workbench.errors import DataError, RunError, SettingError, StoreError
from workbench.methods.grpo import Prompts
from workbench.policy import Policy, from_description
from workbench.run import Run
from workbench.state import State, clone
from workbench.store import Store
from workbench.tasks import Task, rebuild

if TYPE_CHECKING:
    import pandas as pd


def sft(
    policy: Policy, rows: Any, *, out: str | os.PathLike = "runs/sft", eval_dataset: Any = None, **settings: Any
) -> Run:
    """Supervised fine-tuning of `policy` on `rows` (anything `wb.rows` reads).

    `eval_dataset`: held-out rows (loss) or a Task (accuracy, pass@k). Settings: see `SFTSettings`; they carry
    TRL's names. Nothing trains yet: iterate over the Run, or call its `run()` or `start()`. Raises SettingError or
    DataError before any work.
    """
    return launch("sft", policy, rows, out, eval_dataset, settings)


def dpo(
    policy: Policy, rows: Any, *, out: str | os.PathLike = "runs/dpo", eval_dataset: Any = None, **settings: Any
) -> Run:
    """Direct preference optimisation of `policy` on rows with `chosen` and `rejected`.

    The reference is the policy as it is now. `eval_dataset`: held-out pairs (loss and accuracy of the implicit
    reward) or a Task. Settings: see `DPOSettings`. Raises SettingError or DataError before any work.
    """
    return launch("dpo", policy, rows, out, eval_dataset, settings)


def grpo(
    policy: Policy, task: Task, *, out: str | os.PathLike = "runs/grpo", eval_dataset: Any = None, **settings: Any
) -> Run:
    """Group-relative policy optimisation of `policy` on a Task.

    `eval_dataset`: a held-out Task, or rows that are scored by the task's own rewards. Settings: see
    `GRPOSettings`. Raises SettingError or DataError before any work.
    """
    return launch("grpo", policy, task, out, eval_dataset, settings)


def launch(
    name: str, policy: Policy, data: Any, out: str | os.PathLike, eval_dataset: Any, given: dict[str, Any]
) -> Run:
    if not isinstance(policy, Policy):
        raise SettingError(f"wb.{name} trains a policy: wb.{name}(wb.load(...), ...). Got {type(policy).__name__}.")
    method = methods.get(name)
    settings = settings_of.make(name, given)
    if settings.eval_steps is not None and eval_dataset is None:
        raise SettingError(
            f"wb.{name}: eval_steps={settings.eval_steps} needs eval_dataset=..., the held-out rows or task."
        )
    source = _source(method, data)
    held_out = _held_out(method, eval_dataset, source)
    return worker.call(_launch, method, policy, source, held_out, settings, out)


def _launch(
    method: methods.Method, policy: Policy, source: Rows | Task, held_out: Rows | Task | None, settings, out
) -> Run:
    if not policy.trainable():
        raise SettingError("Nothing in the policy can be trained. Attach an adapter: policy.attach(wb.LoRA()).")
    live = Live(
        settings, _prepare(method, policy, source, settings, "rows"), _prepare_eval(method, policy, held_out, settings)
    )
    if others := folders.running():
        print(f"Still going on in the background, and sharing the machine with this run: {', '.join(others)}.")
    folder = folders.claim(out)
    meta = {
        "name": folder.name,
        "method": method.name,
        "settings": asdict(settings),
        "policy": policy.describe(),
        "started_from": policy.holder,
        "data": _spec(source),
        "eval": None if held_out is None else _spec(held_out),
    }
    rows = {"train": _rows_of(source).to_list()}
    if held_out is not None:
        rows["eval"] = _rows_of(held_out).to_list()
    engine = Engine(method, policy, live, folder, State(clone(policy.params())))
    engine._hold()
    return Run(folder, engine, begin=(meta | _circumstances(), rows))


def _circumstances() -> dict[str, Any]:
    """When, where and with what a run is written."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "status": "new",
        "branch": 0,
        "created": time.time(),
        "versions": versions | {"python": platform.python_version()},
        "writer": _writer(),
    }


def _writer() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node()}


# -- data ------------------------------------------------------------------------------------------------------


def _source(method: methods.Method, data: Any) -> Rows | Task:
    if method.takes == "task":
        if not isinstance(data, Task):
            raise DataError(
                f"wb.{method.name} needs a Task: wb.Task(rows, rewards=[...]) or wb.task('gsm8k')."
                f" Got {type(data).__name__}."
            )
        return data
    if isinstance(data, Task):
        raise DataError(f"wb.{method.name} trains on rows, not on a Task; give rows with the columns it reads.")
    return read_rows(data)


def _held_out(method: methods.Method, data: Any, source: Rows | Task) -> Rows | Task | None:
    if data is None or isinstance(data, Task):
        return data
    held_out = read_rows(data)
    if isinstance(source, Task):
        return Task(
            held_out,
            _by_name(source),
            source.weights,
            verdict=source.verdict,
        )
    return held_out


def _rows_of(source: Rows | Task) -> Rows:
    return source.rows if isinstance(source, Task) else source


def _spec(source: Rows | Task) -> dict[str, Any]:
    if isinstance(source, Task):
        return {"kind": "task", "task": source.spec()}
    return {"kind": "rows", "source": str(source.source), "digest": source.digest()}


def _unspec(spec: dict[str, Any], rows: list[dict], rewards: Any) -> Rows | Task:
    """The rows or the task that gave `spec`. Raises RunError naming reward functions that are not to be had."""
    return rebuild(spec["task"], rows, rewards) if spec["kind"] == "task" else read_rows(rows)


def _prepare(method: methods.Method, policy: Policy, source: Rows | Task, settings, what: str) -> Any:
    prepared = method.prepare(policy.tokenizer, source, settings)
    report = getattr(prepared, "report", None)
    if report is not None and not report.ok:
        warnings.warn(f"wb.{method.name}, {what}: " + "\n  ".join(report.lines()), stacklevel=2)
    return prepared


def _prepare_eval(method: methods.Method, policy: Policy, held_out: Rows | Task | None, settings) -> Any:
    if held_out is None:
        return None
    if isinstance(held_out, Task):
        return methods.get("grpo").prepare(policy.tokenizer, held_out, settings)
    return _prepare(method, policy, held_out, settings, "eval_dataset")


# -- changes ---------------------------------------------------------------------------------------------------


def check_change(
    method: str, live: Live, settings: dict[str, Any], rewards: Any, weights: Any
) -> tuple[Live, dict[str, Any]]:
    """The Live that `run.set` or `run.fork` asks for, and the event that records it. Raises before anything changes."""
    payload: dict[str, Any] = {}
    if settings:
        made = settings_of.make(method, settings, base=live.settings)
        before, after = asdict(live.settings), asdict(made)
        payload["settings"] = {name: [before[name], after[name]] for name in after if before[name] != after[name]}
        if changed := sorted(settings_of.fixed(method) & payload["settings"].keys()):
            raise SettingError(
                f"{', '.join(changed)} cannot change within a run: rows and draws follow from it. Start a new run."
            )
        live = replace(live, settings=made)
    if rewards is not None or weights is not None:
        if not isinstance(live.data, Prompts):
            raise SettingError(f"wb.{method} has no rewards to set.")
        task = live.data.task
        old = task.spec()["rewards"]
        task = task.with_rewards(rewards if rewards is not None else _by_name(task), weights)
        live = replace(live, data=replace(live.data, task=task), missing=())
        payload["rewards"] = [old, task.spec()["rewards"]]
    if not payload:
        raise SettingError("Nothing to set: give settings, rewards or weights.")
    return live, payload


def _by_name(task: Task) -> dict[str, Any]:
    return dict(zip(task.reward_names, task.rewards, strict=True))


def apply_change(engine: Engine, settings: dict[str, Any], rewards: Any, weights: Any) -> None:
    engine.change(*check_change(engine.method.name, engine.live, settings, rewards, weights))


# -- time ------------------------------------------------------------------------------------------------------


def fork(run: Run, step: int, out: str | os.PathLike | None, changes: dict[str, Any]) -> Run:
    """A run that goes on from `step` of `run`. The parent's own state is untouched."""
    parent = run.engine
    state = parent.restore(step)
    home = parent.store.home(step, parent.branch)
    live = parent._live_at(step + 1)
    if changes:
        settings = {k: v for k, v in changes.items() if k not in ("rewards", "weights")}
        live, _ = check_change(parent.method.name, live, settings, changes.get("rewards"), changes.get("weights"))
    folder = folders.claim(out or run.folder.with_name(f"{run.name}-fork"))
    shutil.copyfile(parent.snapshots.reference, folder / "snapshots" / parent.snapshots.reference.name)
    engine = Engine(parent.method, parent.policy, live, folder, state)
    engine.first = parent.store.step_metrics(step, parent.branch)
    meta = parent.store.meta
    meta |= {"name": folder.name, "settings": asdict(live.settings)} | _circumstances()
    meta["parent"] = {"folder": str(run.folder.resolve()), "name": run.name, "step": step, "branch": home}
    if isinstance(live.data, Prompts):
        meta["data"] = _spec(live.data.task)
    rows = {name: parent.store.rows(name) for name in ("train", "eval")}
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
        held_out = _unspec(meta["eval"], reader.rows("eval"), None if rewards is None else _for(meta["eval"], rewards))
    reader.close()
    live = Live(
        settings, _prepare(method, policy, source, settings, "rows"), _prepare_eval(method, policy, held_out, settings)
    )
    engine = Engine(method, policy, live, folder, State(clone(policy.params())))
    run = Run(folder, engine)
    engine.store = Store(folder, write=True)
    engine.branch = engine.store.branch
    engine.store.set_meta(writer=_writer(), status="paused")
    engine.changes = tasks.changes(engine, live)
    _check_fits(engine)
    engine.spent = float(engine.store.steps().query("step > 0")["seconds"].sum())
    last = engine.store.last_step(engine.branch)
    engine.state = engine.restore(last)
    engine._hold()
    engine._remember()
    engine.store.add_event(last, engine.branch, "resume")
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
        self.current = _rewards_at(store, store.last_step() + 1, None, self.first)

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
            entries = _rewards_at(engine.store, event.step, event.branch, self.first)
            made.append(Change(event.branch, event.step, self._live(replace(live, settings=settings), entries)))
        return made


def _rewards_at(store: Store, step: int, branch: int | None, first: list[dict] | None) -> list[dict] | None:
    """The reward functions (as stored) of step `step` on the line to `branch`."""
    events = store.events(branch)
    for event in events[(events["kind"] == "set") & (events["step"] <= step)]["payload"]:
        first = event["rewards"][1] if "rewards" in event else first
    return first


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
