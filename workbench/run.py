"""A run: a method being executed, with its store. Iterate over it, pause, change settings, rewind, fork.

The object lives in the user's thread; all work is handed to the worker. Reading (metrics, rollouts, views) goes
through the store alone, and works the same on a run of another process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import edited, folders, worker
from workbench import settings as settings_of
from workbench.background import Background
from workbench.errors import RunError, StoreError
from workbench.looking import Gradients
from workbench.store import Store
from workbench.text import visible

if TYPE_CHECKING:
    import pandas as pd

    from workbench.asking import Asking
    from workbench.engine import Engine
    from workbench.forecasting import Forecast
    from workbench.methods.context import Step
    from workbench.policy import Policy
    from workbench.rescoring import Rescored


class Run:
    """See the module. Made by `wb.sft`, `wb.dpo`, `wb.grpo`, `wb.resume`, `run.fork`, and, to look at, by `wb.open`."""

    def __init__(self, folder: Path, engine: Engine | None = None, begin: tuple[dict, dict] | None = None):
        self.folder = folder
        self.engine = engine
        self._begin = begin
        self._reader: Store | None = None
        self._lock = folders.lock(folder, self) if engine is not None else None
        self._left: tuple | None = None
        self._released = (
            "" if engine is not None else f"This run was opened to look at; to go on: wb.resume({str(folder)!r})."
        )
        self._background: Background | None = None
        self._switch = threading.Lock()
        self._stepping = self._leave = False
        self.forks: list[Run] = []
        """runs forked from this one in its dashboard, the newest last"""
        self._rescored: Rescored | None = None
        if engine is not None:
            edited.watch(self)

    # -- the user owns the loop ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Step]:
        """The steps still to come. `break` pauses; iterating again goes on."""
        return worker.closed_at_exit(self._iterate())

    def _iterate(self, most: int | None = None) -> Iterator[Step]:
        self._writable()
        if self._background is not None and self._background.running:
            raise RunError("The run is going on in the background; run.pause() it first.")
        count = 0
        worker.call(self._started)
        self._stepping, self._leave = True, False
        try:
            while (most is None or count < most) and not self._leave:
                step = worker.call(self.engine.step)
                if step is None:
                    break
                count += 1
                yield step
        except GeneratorExit:
            self._stands("paused")
            raise
        except KeyboardInterrupt:
            self._stands("paused")
            self._say_interrupted()
            raise
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._stepping = False
        self._stands("finished" if worker.call(self.engine.finished) else "paused")

    def run(self, steps: int | None = None) -> Run:
        """To the end, or `steps` more steps, with a progress bar. Ctrl-C undoes the step in flight and returns."""
        from tqdm.auto import tqdm

        steps = settings_of.typed("steps", steps, "int | None")
        self._writable()
        try:
            self._ready()
        except KeyboardInterrupt:
            print(f"{self.name}: interrupted before its step 0 was whole; nothing was trained.")
            return self
        done, total = self.step, self.settings["steps"]
        left = max(0, total - done) if steps is None else min(steps, max(0, total - done))
        with tqdm(total=left, desc=self.name, unit="step") as bar:
            try:
                for step in self._iterate(None if steps is None else left):
                    if steps is None:  # a rewind or another `steps` on the way moves the end
                        bar.total = bar.n + 1 + max(0, self.engine.settings.steps - step.index)
                    bar.set_postfix_str(_headline(step.metrics), refresh=False)
                    bar.update()
            except KeyboardInterrupt:
                return self
        if worker.call(self.engine.finished) == "time_limit":
            print(f"{self.name} reached its time_limit of {self.settings['time_limit']:g} s after step {self.step}.")
        return self

    # -- in the background -----------------------------------------------------------------------------------

    def start(self, steps: int | None = None) -> Run:
        """Go on in the background, to the end or for `steps` steps; the kernel stays free. See pause, wait and stop."""
        steps = settings_of.typed("steps", steps, "int | None")
        self._writable()
        with self._switch:
            if not self.running:
                self._background = Background(self, steps)
                self._background.submit()
        return self

    resume = start

    def pause(self, wait: bool = True) -> Run:
        """Stop after the step in flight. With `wait` it returns once that step is committed."""
        if self._background is not None:
            self._background.ask()
            if wait:
                self.wait()
        return self

    def stop(self) -> Run:
        """Undo the step in flight, write a snapshot and let go of the run: another process may go on with it.

        So may this object, as long as no other has: the next call that trains takes the run up again.
        """
        if self._background is not None and self._background.running:
            self._background.ask(cancel=True)
            if worker.on_thread():  # nothing is in flight
                self._background.settle()
            self._background.done.wait()
        self._leave = True  # a loop over the run has no right to go on

        def let_go() -> None:  # one job: a cell and a button may stop it at once
            if not self._released and self._lock is not None:
                if self.engine.store is not None:
                    self.engine.save_snapshot()
                    self._set_status("stopped")
                self._left = self.engine.mark()
                self._lock.release()
                self._lock = None

        worker.call(let_go)
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the background run pauses or ends; whether it did within `timeout` seconds.

        An error of the run is raised here. Ctrl-C undoes the step in flight, pauses the run and returns.
        """
        if self._background is None:
            return True
        try:
            waited = 0.0
            while not self._background.done.wait(0.2 if timeout is None else max(0.0, min(0.2, timeout - waited))):
                waited += 0.2
                if timeout is not None and waited >= timeout:
                    return False
        except KeyboardInterrupt:
            self._background.ask(cancel=True)
            self._background.done.wait()
            self._say_interrupted()
        error, self._background.error = self._background.error, None
        if error is not None:
            raise error
        return True

    @property
    def running(self) -> bool:
        """Whether it is going on in the background."""
        return self._background is not None and self._background.running

    # -- changing things -------------------------------------------------------------------------------------

    def set(self, *, rewards: list | None = None, weights: list[float] | None = None, **settings: Any) -> Run:
        """Change settings or reward functions from the next step on; written to the store as an event of that step.

        Raises SettingError or DataError at once, and changes nothing, when a value cannot be used.
        """
        from workbench import inputs, launch

        self._writable()
        self._ready()
        live, _ = launch.check_change(self.engine, self.engine.live, settings, rewards, weights)

        def change() -> None:  # one job, so that it waits for one step at most
            inputs.check(self.engine.policy, live.settings)
            inputs.check_data(self.engine.policy, live.settings, live.data, live.eval_data)
            launch.apply_change(self.engine, settings, rewards, weights)

        worker.call(change)
        return self

    def rewind(self, step: int) -> Run:
        """Exactly the state after `step`. Later steps stay in the store as an abandoned branch."""
        self._writable()
        self._ready()
        step = settings_of.typed("step", step, "int")

        def back() -> None:
            self.engine.rewind(step)
            self._set_status("running" if self.running or self._stepping else "paused")

        worker.call(back)
        return self

    def fork(self, step: int | None = None, *, out: str | os.PathLike | None = None, **changes: Any) -> Run:
        """A new run that goes on from the state after `step` (default: the last), with `changes` to its settings,
        `rewards` or `weights`. Its store names its parent; its steps count on from there."""
        from workbench import resuming

        self._writable()
        self._ready()
        step = self.step if step is None else settings_of.typed("step", step, "int")
        return worker.call(resuming.fork, self, step, out, changes)

    def track(self, *trackers: Any) -> Run:
        """Follow the run with more trackers: "wandb", "tensorboard", "trackio", or a `wb.Tracker`.

        They get all steps there are, and go on when the run is resumed or forked. On a run opened to look at
        (`wb.open`) what it holds is sent now, and this returns when it is; then a tracker that fails raises RunError.
        Raises SettingError for a tracker that cannot be used here.
        """
        from workbench import tracking

        made = tracking.trackers(list(trackers))
        if self.engine is None:
            tracking.replay(self.folder, made)
            return self
        self._writable()
        self._ready()
        store = self.engine.store
        worker.call(store.set_meta, tracking=[*store.get("tracking", []), *tracking.record(made)])
        for tracker in made:
            self.engine.tracking.add(tracker).ring()
        return self

    @property
    def tracking(self) -> Any:
        """The trackers that follow the run: `run.tracking.wait()` returns when they have all there is."""
        return self.engine.tracking if self.engine is not None else None

    # -- looking without training ----------------------------------------------------------------------------

    def gradients(self, data: Any) -> Gradients:
        """What the next update on `data` (Rollouts for GRPO, rows else) would do, without doing it.

        Rollouts without rewards are scored by the run's reward functions. Old log-probs are those given with the
        rollouts, else the current policy's.
        """
        from workbench import looking

        self._writable()
        self._ready()
        outcome, grads = worker.call(looking.preview, self.engine, data)
        return Gradients(outcome.loss, outcome.metrics, grads)

    def rescore(self, rewards: list, weights: list[float] | None = None) -> Rescored:
        """Other rewards over the stored rollouts: what would have been taught. Trains and generates nothing.

        One row a rollout of this branch: id, step, group_id, prompt, completion, reward, new_reward, advantage,
        new_advantage, flips (the advantage changes sign), rank and new_rank within the group (1 is the best), and a
        column for each reward function, old and new. Advantages are by the run's own estimator and settings at each
        step. A KL in the reward (`kl_in_reward`) would need the model, and is left out of the new ones.

        The DataFrame shows itself as a view (`.show()`) and has `.summary`, `.groups` (one row a group: which die or
        come alive) and `.since`: what changed against the rescoring before this one.
        """
        from workbench import rescoring

        self._rescored = worker.call(rescoring.rescore, self.store, rewards, weights, self._rescored)
        return self._rescored

    def forecast(self) -> Forecast:
        """The peak memory of the steps to come, for the rows that the run has, and, once a step was made, its measured
        tokens and seconds and how long is left. See `wb.forecast`."""
        from workbench import forecasting

        self._writable()
        self._ready()
        return worker.call(forecasting.of_run, self.engine)

    # -- sharing ---------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the adapter as it is after the last step (see `policy.save`), with a model card that tells the run,
        its curves as a picture, and the run as a script (`train.py`, without the rows)."""
        from workbench import export
        from workbench.sharing import script

        def write() -> Path:
            engine = self.engine
            with engine.policy.holding(engine.state.params, self.name):
                return export.save(engine.policy, folder, self.store, text)

        self._writable()
        self._ready()
        text = script.write(self)
        return worker.call(write)

    def push(self, repo_id: str, **how: Any) -> str:
        """Upload what `save` writes to the Hub; see `policy.push`. Returns the URL."""
        from workbench.sharing import push

        return push.saved(self, repo_id, **how)

    def script(self, path: str | os.PathLike | None = None) -> str:
        """The run as a plain Python script for another machine: its policy, data, settings, rewards and changes.

        With `path` it is written there, and rows that were given in memory as JSON lines beside it. It makes the steps
        of the line that stands, without what a rewind gave up. Reward functions of a notebook are written down with
        what they use; where that cannot be, the script has a marked place for them, which stops with words.
        """
        from workbench.sharing import script

        return script.write(self, None if path is None else Path(path))

    # -- reading ---------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The run's record, to read."""
        if self._reader is None:
            self._ready()
            self._reader = Store(self.folder)
        return self._reader

    @cached_property
    def asking(self) -> Asking | None:
        """What views ask the model by; None for a run opened to look at."""
        if self.engine is None:
            return None
        from workbench.asking import Asking

        return Asking(self)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def policy(self) -> Policy:
        """The policy with this run's weights in it, until another run steps or `policy.reset()` is called."""
        self._writable()
        self._ready()
        worker.call(self.engine.hold)
        return self.engine.policy

    @property
    def step(self) -> int:
        """The last whole step."""
        return self.engine.state.step if self.engine is not None else self.store.last_step()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings the next step runs with."""
        return self.store.settings()

    @property
    def status(self) -> str:
        return "new" if self._begin is not None else self.store.status

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step of this branch (index `step`), one column a metric."""
        return self.store.metrics()

    def rollouts(self, step: int | None = None, where: str | None = None) -> pd.DataFrame:
        """Stored completions of this branch; `where` is an SQL condition, say "reward < 0.5 and n_tokens > 20"."""
        return self.store.rollouts(step, where)

    def show(self):
        """Live curves in a notebook, with buttons that start, pause, step, rewind, fork and set; a text summary in a
        terminal. A run opened to look at (`wb.open`) has no buttons."""
        from workbench.control import Control
        from workbench.views.dashboard import show_dashboard

        return show_dashboard(self.store, control=None if self.engine is None else Control(self))

    def browse(self, where: str = ""):
        """All stored completions: to sort, search, filter (`where`, as in "reward < 0.5 and n_tokens > 200"), read by
        group and over the steps, and save as rows. Returns the browser: `.filter`, `.selection`, `.to_jsonl`."""
        from workbench.views.rollouts import RolloutTable

        return RolloutTable(self.store, where=where, model=self.asking).show()

    def tokens(self, rollout: int):
        """The token microscope on a stored completion (its `id` in `run.rollouts()`) and the others of its group:
        tokens painted by log-prob, entropy, advantage, and by what the model says of them at any step."""
        from workbench.views.tokens import TokenView

        return TokenView(self.store, [rollout], model=self.asking).show()

    def report(self, path: str | os.PathLike, sample: int = 200) -> Path:
        """Write one HTML file that needs nothing else, with the curves and `sample` rollouts in whole groups: about
        5 MB, most of it the chart library."""
        from workbench.views.report import write_report

        return write_report(self.store, path, sample=sample)

    def __repr__(self) -> str:
        if self._begin is not None:
            return f"<Run {visible(self.name)}: new, in {visible(self.folder)}>"
        last = _headline(self.store.step_metrics(self.step))
        where = f"{self.status}, step {self.step} of {self.settings['steps']}"
        return f"<Run {visible(self.name)}: {where}{', ' + last if last else ''}; in {visible(self.folder)}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _writable(self) -> None:
        if self._released:
            raise RunError(self._released)
        if self._lock is None:  # after stop()
            self._lock = folders.lock(self.folder, self)
            if self.engine.mark() != self._left:
                self.release(f"Another process went on with this run; to go on: wb.resume({str(self.folder)!r}).")
                raise RunError(self._released)

    def _ready(self) -> None:
        """Step 0 is there: evaluated, snapshot, published."""
        if self._begin is not None:
            worker.call(self._begin_now)

    def _begin_now(self) -> None:
        if self._begin is not None:
            meta, rows = self._begin
            self.engine.begin(meta, rows)
            self._begin = None

    def _started(self) -> None:
        self._begin_now()
        self._set_status("running")

    def _set_status(self, status: str) -> None:
        worker.call(self.engine.store.set_meta, status=status)
        if status in ("finished", "stopped"):
            self.engine.tracking.finish(status)

    def _stands(self, status: str) -> None:
        """A loop over the run has ended; after `stop` the record is not this run's to write."""
        if self._lock is not None:
            self._set_status(status)

    def _failed(self, error: BaseException) -> None:
        """Note the error in the store; the run can go on from its last whole step."""
        if self.engine.store is None:
            return
        said = f"{type(error).__name__}: {error}"
        try:
            worker.call(self.engine.store.set_meta, status="failed")
            worker.call(self.engine.store.add_event, self.step, self.engine.branch, "error", message=said)
            self.engine.tracking.finish("failed")
        except StoreError as also:
            print(f"{self.name}: the error could not be noted in the store either: {also}", file=sys.stderr)

    def _say_interrupted(self) -> None:
        print(
            f"{self.name}: interrupted; the step in flight was undone. It stands after step {self.step} and can go on."
        )

    def release(self, why: str) -> None:
        """Give up the right to write. Raises StoreError while the run is going on in the background."""
        if self.running:
            raise StoreError(f"{self.folder} is running in this process; pause it first.")
        if self._lock is not None:
            self._lock.release()
        if self.engine is not None and self.engine.store is not None:
            worker.call(self.engine.store.close)
        self._released = why


def _headline(metrics: dict[str, float]) -> str:
    """The numbers to watch: in RL never the loss."""
    names = ("reward", "eval/accuracy") if "reward" in metrics else ("loss", "rewards/accuracies", "eval/loss")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
