"""The engine of a run: takes steps, commits them, and goes back to any of them. All of it runs on the worker.

A step is made by the method's generator on the run's own State, evaluated where due, and committed to the store in
one transaction. Whatever goes wrong in between (an error, Ctrl-C, a full disk) is undone to the last whole step.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench import methods, worker
from workbench import settings as settings_of
from workbench.errors import RunError
from workbench.methods import reference
from workbench.methods.context import Context, Replay, Step
from workbench.methods.evaluate import evaluate_task
from workbench.micro_batches import Budget
from workbench.sampling.rollouts import Rollouts
from workbench.settings import Settings
from workbench.snapshots import Snapshots
from workbench.state import State
from workbench.store import Store
from workbench.tracking import Tracking

MEMORY_BUDGET = 2**30
"""bytes of past states kept in memory: going back to one of them costs no replay"""


@dataclass(frozen=True)
class Live:
    """What a step runs with: the settings and the prepared data. `run.set` makes a new one."""

    settings: Settings
    data: Any
    eval_data: Any = None
    missing: tuple[str, ...] = ()
    """reward functions of the record that this process does not have"""
    source: Any = None
    """the rows or the task as given"""


@dataclass(frozen=True)
class Change:
    """From step `step` of branch `branch` on, the run runs with `live`."""

    branch: int
    step: int
    live: Live


class Engine:
    """One run's state and record. `begin` writes step 0; `step` makes the next one."""

    def __init__(self, method: methods.Method, policy, live: Live, folder: Path, state: State):
        self.method = method
        self.policy = policy
        self.folder = folder
        self.state = state
        self.store: Store | None = None
        self.snapshots = Snapshots(folder)
        self.changes = [Change(0, 0, live)]
        self.budget = Budget()
        self.memory: OrderedDict[tuple[int, int], tuple[State, int]] = OrderedDict()
        """past states and their bytes, by (branch, step)"""
        self.reference: dict[str, Tensor] | None = None
        self.branch = 0
        self.first: dict[str, Any] | None = None
        """metrics of the first step, for a fork, whose first step is its parent's"""
        self.evaluates_anew = False
        """whether a fork evaluates that step itself: its settings may say other numbers than its parent's"""
        self.spent = 0.0
        """seconds of the steps made so far, for the time limit"""
        self._warned: set[str] = set()
        self._loop: Iterator[Step] | None = None
        self._context: Context | None = None
        self.tracking = Tracking(folder, writer=lambda: self.store)

    # -- beginning -------------------------------------------------------------------------------------------

    def begin(self, meta: dict[str, Any], rows: dict[str, list[dict]]) -> None:
        """Write step 0 (for a fork: the step it starts from), and only then give the store its name."""
        self.hold()
        if not self.snapshots.reference.exists():
            State(self.state.params).save(self.snapshots.reference)
        started = time.perf_counter()
        metrics = dict(self.first or {})
        if self.first is None or self.evaluates_anew:
            metrics |= self._evaluate(self.live)
        store = Store.create(self.folder, meta)
        for name, items in rows.items():
            store.add_rows(name, items)
        store.commit_step(
            self.state.step,
            0,
            seconds=time.perf_counter() - started,
            metrics=metrics,
            state=self.state.json,
            plan={},
            threads=torch.get_num_threads(),
        )
        self.snapshots.save(self.state, 0)
        store.publish()
        self.store = store
        self.remember()
        self.tracking.ring()

    # -- stepping --------------------------------------------------------------------------------------------

    @property
    def live(self) -> Live:
        """What the next step runs with."""
        return self.live_at(self.state.step + 1)

    @property
    def settings(self) -> Settings:
        return self.live.settings

    def finished(self) -> str | None:
        """Why there is no next step ('steps', 'time_limit'), or None."""
        if self.state.step >= self.settings.steps:
            return "steps"
        limit = self.settings.time_limit
        return "time_limit" if limit is not None and self.spent >= limit else None

    def step(self) -> Step | None:
        """Make and commit the next step; None when the run is finished.

        On any error the state is that of the last whole step again, and the error goes on.
        """
        if self.finished():
            return None
        live = self.live
        if live.missing:
            raise RunError(
                f"This step is rewarded by {', '.join(live.missing)}, which this process does not have."
                " Give the functions: run.set(rewards=[...])."
            )
        self.hold()
        started, before = time.perf_counter(), len(worker.said())
        try:
            worker.check()
            step = next(self._steps(live))
            if live.eval_data is not None and settings_of.evaluation_due(live.settings, step.index):
                step.metrics |= self._evaluate(live)
            step.seconds = time.perf_counter() - started
            worker.check()
            self._commit(step)
        except BaseException as error:
            worker.let_go(error)  # going back may need the memory that the step held
            self.policy.model.zero_grad(set_to_none=True)
            self.undo()
            raise
        self._note(step.index, worker.said()[before:])
        self._after(step)
        return step

    def _note(self, index: int, warnings: list[str]) -> None:
        """Warnings of a step are its events; one that only its numbers tell from an earlier one is left out."""
        for message in warnings:
            words = re.sub(r"\d+", "", message)
            if words not in self._warned:
                self._warned.add(words)
                self.store.add_event(index, self.branch, "warning", message=message)

    def _steps(self, live: Live) -> Iterator[Step]:
        if self._loop is None:
            self._context = self._context_for(live)
            self._loop = self.method.loop(self.state, self._context)
        self._context.plans.clear()
        return self._loop

    def _context_for(self, live: Live, stored: Replay | None = None) -> Context:
        return Context(
            self.policy,
            live.settings,
            live.data,
            live.eval_data,
            self.reference_params,
            self.state,
            stored,
            stored=None if self.store is None else self._stored,
            check=worker.check,
            budget=self.budget,
        )

    def _stored(self, step: int) -> Rollouts:
        return stored_rollouts(self.store, step, self.branch)

    def _commit(self, step: Step) -> None:
        self.store.commit_step(
            step.index,
            self.branch,
            seconds=step.seconds,
            metrics=step.metrics,
            state=self.state.json,
            plan=self._context.plans,
            threads=torch.get_num_threads(),
            rollouts=step.rollouts,
        )
        self.state.step = step.index

    def _after(self, step: Step) -> None:
        """What follows a commit: the step stands, whatever happens here."""
        self.spent += step.seconds
        self.remember()
        self.tracking.ring()
        if step.index % self.settings.snapshot_steps == 0 or step.index >= self.settings.steps:
            self.save_snapshot()

    def save_snapshot(self) -> None:
        self.snapshots.save(self.state, self.store.home(self.state.step, self.branch))
        self.snapshots.prune(self.settings.snapshot_gb)

    def undo(self) -> None:
        """Back to the last whole step."""
        self._loop = self._context = None  # they hold the state of the step that failed
        if self.store is not None:
            self._install(self.restore(self.state.step))

    def _evaluate(self, live: Live) -> dict[str, float]:
        if live.eval_data is None:
            return {}
        context = self._context_for(live)
        if hasattr(live.eval_data, "prompts"):
            return evaluate_task(context, live.eval_data)
        return self.method.evaluate(context)

    # -- state in and out of the model -----------------------------------------------------------------------

    def hold(self) -> None:
        """Make the model use this run's weights."""
        self.policy.hold(self.state.params, self.folder.name)

    def _install(self, state: State) -> None:
        self.state = state
        self._loop = None
        self.hold()

    def reference_params(self) -> dict[str, Tensor]:
        """The parameters that the run began with; loaded once."""
        if self.reference is None:
            self.reference = State.load(self.snapshots.reference, self.policy.device).params
        return self.reference

    def reference_at(self, state: State) -> dict[str, Tensor]:
        """The parameters of the reference as it stood in `state`."""
        return reference.params(state, self._context_for(self.live))

    def remember(self) -> None:
        """Keep a copy of the state as it is after this step, as far as memory allows."""
        size = self.state.nbytes()
        if size > MEMORY_BUDGET:
            return
        where = self.store.home(self.state.step, self.branch), self.state.step
        self.memory.pop(where, None)
        self.memory[where] = self.state.clone(), size
        while sum(nbytes for _, nbytes in self.memory.values()) > MEMORY_BUDGET:
            self.memory.popitem(last=False)

    # -- time ------------------------------------------------------------------------------------------------

    def restore(self, step: int) -> State:
        """The state after step `step` of the current branch: from memory, or the nearest snapshot and a replay.

        Raises StoreError when there is no such step, RunError when a replay does not give the stored metrics.
        """
        home = self.store.home(step, self.branch)
        if (home, step) in self.memory:
            return self.memory[home, step][0].clone()
        state = self.snapshots.nearest(self.store.path_to(self.branch), step, self.policy.device)
        threads = torch.get_num_threads()
        try:
            for index in range(state.step + 1, step + 1):
                self._replay(state, index)
        finally:
            torch.set_num_threads(threads)
        return state

    def _replay(self, state: State, index: int) -> None:
        """Do step `index` again on `state` from the stored record, without sampling or scoring."""
        record = self.store.step_row(index, self.branch)
        torch.set_num_threads(record["threads"])
        loop = self.method.loop(state, self.context_at(state, index))
        with self.policy.holding(state.params):
            made = next(loop)
        loop.close()
        # What followed from sampling (a cursor over prompts) is not made again by a replay: the record has it.
        state.step, state.json = index, record["state"]
        self._compare(made, self.store.step_metrics(index, self.branch))

    def context_at(self, state: State, index: int) -> Context:
        """What step `index`, which is on record, ran with: its settings, rollouts and micro-batches."""
        plan = self.store.step_row(index, self.branch)["plan"]
        rollouts = self.store.load_rollouts(index, self.branch) if self.method.takes == "task" else None
        context = self._context_for(self.live_at(index), Replay(rollouts, plan))
        context.state = state
        return context

    def _compare(self, made: Step, stored: dict[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            before, now = stored.get(name, math.nan), made.metrics.get(name, math.nan)
            if before == now or (math.isnan(before) and math.isnan(now)):
                continue
            said = f"Replaying step {made.index} of {self.folder.name} gave {name} {now!r}; the record says {before!r}."
            if not math.isclose(before, now, rel_tol=1e-2, abs_tol=1e-4):
                raise RunError(f"{said} The weights, the data or the libraries are not those of the run.")
            worker.warn(f"{said} Another machine or library version? The run goes on from here.")

    def rewind(self, step: int) -> None:
        """Go back to the state after `step`; what came later stays in the store as an abandoned branch."""
        state = self.restore(step)
        came_from = {"from_step": self.state.step, "from_branch": self.branch}
        self.branch = self.store.add_branch(self.branch, step)
        self._install(state)
        self.store.add_event(step, self.branch, "rewind", **came_from)
        self.remember()

    def live_at(self, step: int) -> Live:
        """What step `step` of the current branch runs, or ran, with."""
        if len(self.changes) == 1 or self.store is None:
            return self.changes[-1].live
        limits = dict(self.store.path_to(self.branch))
        valid = [c for c in self.changes if c.step <= min(limits.get(c.branch, -1), step) or c.step == 0]
        return max(valid, key=lambda c: c.step).live

    def change(self, live: Live, payload: dict[str, Any]) -> None:
        """From the next step on run with `live`; the change is an event of that step."""
        index = self.state.step + 1
        self.store.add_event(index, self.branch, "set", **payload)
        self.changes = [c for c in self.changes if not (c.branch == self.branch and c.step == index)]
        self.changes.append(Change(self.branch, index, live))
        self._loop = None

    def mark(self) -> tuple | None:
        """Differs after another process went on with the run, or changed what its next step runs with."""
        if self.store is None:
            return None
        sets = self.store.query("SELECT MAX(id) FROM events WHERE kind = 'set'")
        return self.store.branch, self.store.last_step(), sets

    # -- looking ---------------------------------------------------------------------------------------------

    def preview(self, data: Any) -> tuple[Any, dict[str, Tensor]]:
        """The Outcome of an update on prepared `data`, and its gradients by parameter name. Nothing is kept."""
        self.hold()
        context = self._context_for(self.live)
        try:
            outcome = self.method.preview(context, data)
            grads = {n: p.grad.detach().clone() for n, p in self.policy.trainable().items() if p.grad is not None}
        finally:
            self.policy.model.zero_grad(set_to_none=True)
        return outcome, grads


def stored_rollouts(store: Store, step: int, branch: int) -> Rollouts:
    """The rollouts of a step of the line to `branch`; those from before a fork stand in the store of its parent."""
    parent = store.get("parent")
    if not parent or step > parent["step"]:
        return store.load_rollouts(step, branch)
    if not Path(parent["folder"]).exists():
        raise RunError(
            f"{store.folder.name} needs the rollouts of step {step}. They stand in the run it was forked from, and"
            f" {parent['folder']} is gone."
        )
    before = Store(parent["folder"])
    try:
        return stored_rollouts(before, step, parent["branch"])
    finally:
        before.close()


def changed(live: Live, method: str, given: dict[str, Any]) -> tuple[Live, dict[str, Any]]:
    """`live` with some settings changed, and what changed as {name: [old, new]}."""
    settings = settings_of.make(method, given, base=live.settings)
    before, after = asdict(live.settings), asdict(settings)
    return replace(live, settings=settings), {n: [before[n], after[n]] for n in after if before[n] != after[n]}
