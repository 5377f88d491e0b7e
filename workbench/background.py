"""A run in the background: a chain of one-step jobs for the worker."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from workbench import worker
from workbench.errors import Interrupted, WorkbenchError


class Background:
    """A run going on by itself: one job a step, so that other calls come in between."""

    def __init__(self, run: Any):
        self.run = run
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.changes: list[Callable[[], None]] = []
        """to be made before the next step"""
        self._asked = False
        self._job: worker.Job | None = None

    @property
    def running(self) -> bool:
        return not self.done.is_set()

    def submit(self) -> None:
        self._job = worker.submit(self._tick)

    def ask(self, cancel: bool = False) -> None:
        """Stop at the next step boundary; with `cancel` at the next check, undoing the step in flight."""
        self._asked = True
        if cancel and self._job is not None:
            self._job.cancelled.set()

    def _tick(self) -> None:
        """One step, on the worker; then queue the next."""
        run = self.run
        try:
            run._begin_now()
            self._apply_changes()
            if self._asked:
                return self._end("paused")
            if run.status != "running":
                run._set_status("running")
            step = run.engine.step()
        except Interrupted:
            return self._end("paused")
        except BaseException as error:
            self.error = error
            run._failed(error)
            self._show(error)
            self.done.set()
            return None
        if step is None:
            return self._end("finished")
        self.submit()

    def _apply_changes(self) -> None:
        while self.changes:
            self.changes.pop(0)()

    def _end(self, status: str) -> None:
        if self.run.engine.store is not None:
            self._apply_changes()
            self.run._set_status(status)
        self.done.set()

    def _show(self, error: BaseException) -> None:
        """Under the cell that started the run: a message for our own errors, the traceback for others."""
        print(f"{self.run.name} stopped after step {self.run.step}:", file=sys.stderr)
        if isinstance(error, WorkbenchError):
            print(error, file=sys.stderr)
        else:
            traceback.print_exception(error, file=sys.stderr)
