"""A run in the background: a chain of one-step jobs for the worker."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import Any

from workbench import worker
from workbench.errors import Interrupted, WorkbenchError


class Background:
    """A run going on by itself: one job a step, so that other calls come in between. `most` steps, or to the end."""

    def __init__(self, run: Any, most: int | None = None):
        self.run = run
        self.most = most
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._asked = False
        self._job: worker.Job | None = None

    @property
    def running(self) -> bool:
        return not self.done.is_set()

    @property
    def pausing(self) -> bool:
        """Whether it was asked to stop and the step in flight is still being made."""
        return self._asked and self.running

    def submit(self) -> None:
        self._job = worker.submit(self._tick)

    def ask(self, cancel: bool = False) -> None:
        """Stop at the next step boundary; with `cancel` at the next check, undoing the step in flight."""
        self._asked = True
        if cancel and self._job is not None:
            self._job.cancelled.set()

    def settle(self) -> None:
        """End it here. On the worker, where nothing of it is in flight: the job of its next step finds it ended."""
        if self.running:
            self._asked = True
            self._end("paused")

    def _tick(self) -> None:
        """One step, on the worker; then queue the next."""
        run = self.run
        if not self.running:
            return None
        try:
            run._begin_now()
            if self._asked or self.most == 0:
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
        if self.most is not None:
            self.most -= 1
            if self.most == 0:
                return self._end("finished" if run.engine.finished() else "paused")
        self.submit()

    def _end(self, status: str) -> None:
        try:
            if self.run.engine.store is not None:
                self.run._set_status(status)
        except WorkbenchError as error:
            self.error = error
            self._show(error)
        finally:
            self.done.set()

    def _show(self, error: BaseException) -> None:
        """Under the cell that started the run: a message for our own errors, the traceback for others."""
        print(f"{self.run.name} stopped after step {self.run.step}:", file=sys.stderr)
        if isinstance(error, WorkbenchError):
            print(error, file=sys.stderr)
        else:
            traceback.print_exception(error, file=sys.stderr)
