"""What a person does to a run from its dashboard: start, pause, one step, stop, rewind, fork, settings.

A handler of the page must not wait: `Control.act` checks what it can without the model, leaves the rest to the worker,
and returns. A job of the worker runs between two steps, so that is when an action is in effect; then it is said.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Mapping
from typing import Any

from workbench import edited, launch, worker
from workbench import settings as settings_of
from workbench.background import Background
from workbench.errors import RunError, SettingError

Said = Callable[[str, str], None]
"""said(words, "") when an action is in effect, said("", words) when it failed; called once, on the worker"""

CELL = "A cell is stepping this run (for step in run)."
LONGEST = 5000
"""characters of a setting's value"""


class Control:
    """The actions of a dashboard on `run`, and which of them can be taken now."""

    def __init__(self, run: Any):
        self.run = run

    # -- what can be done ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """`can`: action -> why it cannot be taken now ("" where it can); `why`: why none can; `going`: "background",
        "cell" (a loop of the user's) or ""; `pausing`; `first` and `last` step; `variable`: the notebook's name of
        the run."""
        run, store = self.run, self.run.store
        last = store.last_step()
        first = store.query("SELECT COALESCE(MIN(step), 0) FROM steps")[0][0]
        going = "background" if run.running else "cell" if self._in_cell() else ""
        made = {"going": going, "pausing": run.running and run._background.pausing, "first": first, "last": last}
        made |= {"why": self._lost(), "variable": self.variable}
        return made | {"can": {} if made["why"] else self._can(going, made["pausing"], first, last)}

    def _can(self, going: str, pausing: bool, first: int, last: int) -> dict[str, str]:
        stands = {"background": "It is going on already.", "cell": CELL, "": self._finished(last)}[going]
        pause = "" if going else "It stands still."
        stop = f"{CELL} Pause it first, or interrupt the cell (■)." if going == "cell" else ""
        return {
            "start": stands,
            "step": stands,
            "pause": "It pauses after the step in flight." if pausing else pause,
            "stop": stop
            or ("" if self.run._lock is not None else "It was let go of already. Start takes it up again."),
            "rewind": "" if last > first else "There is no earlier step.",
            "fork": "",
            "set": "",
            "use": "",
        }

    @property
    def variable(self) -> str:
        """What the notebook calls the run."""
        return edited.variable_of(self.run)

    def pulse(self) -> tuple:
        """Differs when something changed that the store does not show."""
        run = self.run
        pausing = run.running and run._background.pausing
        edits = [(notice["variable"], notice["call"]) for notice in self.notices()]
        return run.running, pausing, run._stepping, run._lock is None, self._lost(), edits

    def _lost(self) -> str:
        """Why nothing can be done any more, or an empty string."""
        if self.run._released:
            return self.run._released
        if self.run._begin is None and not (self.run.folder / "run.db").exists():
            return f"The run's folder is gone: {self.run.folder}. Nothing more can be written to it."
        return ""

    def _finished(self, last: int) -> str:
        settings = self.run.settings
        steps, limit = settings["steps"], settings.get("time_limit")
        if last >= steps:
            return f"All {steps} steps are made. For more: Settings, steps."
        if limit is not None and self.run.engine.spent >= limit:
            return f"Its time_limit of {limit:g} s is used up. For more: Settings, time_limit."
        return ""

    def _in_cell(self) -> bool:
        """Whether a loop of the user's is going. A handler on the main thread proves that none is: it is held."""
        return self.run._stepping and threading.current_thread() is not threading.main_thread()

    def notices(self) -> list[dict[str, str]]:
        """Reward functions that were edited in the notebook and are not used yet."""
        return [
            {"name": edit.name, "variable": edit.variable, "call": edit.call}
            for edit in (() if self._lost() else edited.edits(self.run))
        ]

    # -- doing it --------------------------------------------------------------------------------------------

    def act(self, action: str, values: Mapping[str, Any], said: Said) -> str:
        """Take up an action; returns at once what was asked, in words. Raises a WorkbenchError for what cannot be."""
        state = self.state()
        if state["why"]:
            raise RunError(state["why"])
        if action not in state["can"]:
            raise RunError(f"There is no action {action!r}.")
        if why := state["can"][action]:
            raise RunError(why)
        return getattr(self, f"_{action}")(said, **values)

    def _submit(self, said: Said, do: Callable[[], str]) -> None:
        """`do` on the worker, between two steps; what it returns is said, or its error, with the warnings it gave."""

        def job() -> None:
            try:
                words = do()
            except Exception as error:  # whatever it is, the person who pressed the button is told
                said("", str(error) or type(error).__name__)
            else:
                said(" ".join([words, *worker.noted()]), "")

        worker.submit(job, awaited=True)

    def _start(self, said: Said) -> str:
        def do() -> str:
            self.run.start()
            return f"going on from step {self.run.step}"

        self._submit(said, do)
        return "start asked"

    def _step(self, said: Said) -> str:
        def do() -> None:
            if self.run.running and self.run._background.most == 1:  # the step of an earlier press comes first
                worker.submit(do)
                return None
            try:
                self.run.start(1)
            except Exception as error:  # as in `_submit`
                return said("", str(error) or type(error).__name__)
            self._submit(said, made)  # behind the step in the worker's queue

        def made() -> str:
            background = self.run._background
            if background.error is not None:
                raise background.error
            return f"made step {self.run.step}"

        worker.submit(do)
        return "one step asked"

    def _pause(self, said: Said) -> str:
        run = self.run
        if not run.running:
            run._leave = True
            if threading.current_thread() is threading.main_thread():  # its iterator is held, and no loop goes on
                run._stepping = False
            self._submit(said, self._paused)
            return "pause asked: the loop of the cell ends after the step in flight, as with break"
        background = run._background
        background.ask()
        self._submit(said, lambda: self._paused(background))
        return "pause asked"

    def _paused(self, background: Background | None = None) -> str:
        """`background` is the one that was going when the button was pressed: one started since goes on."""
        run = self.run
        if background is not None:
            background.settle()
        if run.running:
            return f"paused, and started again since; it is at step {run.step}"
        if run.status == "running" and not run._stepping:
            run._set_status("paused")
        return f"paused after step {run.step}"

    def _stop(self, said: Said) -> str:
        def do() -> str:
            self.run.stop()
            return f"stopped after step {self.run.step}, with a snapshot; Start takes it up again"

        if self.run.running:
            self.run._background.ask(cancel=True)
        self._submit(said, do)
        return "stop asked: the step in flight is undone"

    def _rewind(self, said: Said, step: Any = None) -> str:
        step = settings_of.typed("step", step, "int")
        self.run.store.home(step)  # StoreError where there is no such step

        def do() -> str:
            self.run.rewind(step)
            return f"back at step {step}" + (", going on from there" if self.run.running else "")

        self._submit(said, do)
        return f"rewind to step {step} asked"

    def _fork(
        self, said: Said, step: Any = None, settings: Mapping[str, str] | None = None, start: bool = False
    ) -> str:
        run = self.run
        step = run.store.last_step() if step is None else settings_of.typed("step", step, "int")
        run.store.home(step)
        changes = self._parsed(settings or {})
        if changes:
            self._check(run.engine.live_at(step + 1), changes)

        def do() -> str:
            made = run.fork(step, **changes)
            run.forks.append(made)
            if start:
                made.start()
            where = f"{self.variable}.forks[-1]"
            return f"forked at step {step}: {where} is {made.name}, in {made.folder}" + (", going on" if start else "")

        self._submit(said, do)
        return f"fork at step {step} asked"

    def _set(self, said: Said, settings: Mapping[str, str] | None = None) -> str:
        changes = self._parsed(settings or {})
        before = self._check(self.run.engine.live, changes)

        def do() -> str:
            self.run.set(**changes)
            return f"{words} from step {self.run.step + 1} on"

        words = ", ".join(f"{name} {_short(old)} → {_short(new)}" for name, (old, new) in before.items())
        if not words:
            raise SettingError("Nothing changes: these are the values it has.")
        self._submit(said, do)
        return f"{words} asked"

    def _use(self, said: Said) -> str:
        rewards, weights = edited.with_edits(self.run)

        def do() -> str:
            self.run.set(rewards=rewards, weights=weights)
            return f"rewarding with {', '.join(rewards)} from step {self.run.step + 1} on"

        self._submit(said, do)
        return "the edited rewards asked"

    # -- settings --------------------------------------------------------------------------------------------

    def _parsed(self, written: Mapping[str, str]) -> dict[str, Any]:
        """Settings from what was typed."""
        kinds = settings_of.of(self.run.engine.method.name).__dataclass_fields__
        return {
            name: parse(name, text, str(kinds[name].type) if name in kinds else "") for name, text in written.items()
        }

    def _check(self, live: Any, changes: dict[str, Any]) -> dict[str, list]:
        """What of the settings would change; raises SettingError as `run.set` does. Warnings come with the change."""
        _, payload = launch.check_change(self.run.engine, live, changes, None, None, say=lambda _: None)
        return payload.get("settings", {})


def parse(name: str, text: Any, kind: str) -> Any:
    """What was typed for a setting of type `kind`: a Python literal, or text where the setting takes text."""
    text, kinds = str(text).strip(), kind.split(" | ")
    if len(text) > LONGEST:
        raise SettingError(f"{name}: {len(text)} characters are too many for a setting.")
    if text.lower() in ("", "none", "null") and "None" in kinds:
        return None
    if text.lower() in ("true", "false") and ("bool" in kinds or "str" not in kinds):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if "str" in kinds and not isinstance(value, (str, list, tuple)):
        return text
    if value is None and kind:
        raise SettingError(f"{name}={text!r}: expected {kind}.")
    return text if value is None else value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
