"""One long-lived thread owns all torch work of a process.

A second thread that uses torch costs about a quarter of the speed on a CPU, and Ctrl-C reaches the main thread
only: so the worker never sees it in the middle of an update. Jobs run one after another; a run in the
background is a chain of one-step jobs, so that other calls come in between its steps.
"""

from __future__ import annotations

import atexit
import functools
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import Interrupted

PACKAGE = str(Path(__file__).parent)


class Job:
    """A call waiting for the worker, and its result; `awaited` by a caller, who passes its warnings on."""

    def __init__(self, call: Callable[[], Any], awaited: bool = False):
        self.call = call
        self.awaited = awaited
        self.warnings: list[str] = []
        self.cancelled = threading.Event()
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self.parent = cell_parent()

    def outcome(self) -> Any:
        if self.error is not None:
            # without the reference the frames (and the tensors in them) are let go as soon as the caller is done
            error, self.error = self.error, None
            raise error
        return self.result


class Worker:
    """The thread and its queue. Use the module's `call`, `submit` and `check`."""

    def __init__(self):
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.current: Job | None = None
        self.thread = threading.Thread(target=self._loop, name="workbench-worker", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.current = job
            set_cell_parent(job.parent)
            try:
                job.result = job.call()
            except BaseException as error:  # raised again in the thread that waits
                job.error = error
            finally:
                self.current = None
                job.done.set()
            del job


_worker: Worker | None = None
_guard = threading.Lock()


def _get() -> Worker:
    global _worker
    with _guard:
        if _worker is None or not _worker.thread.is_alive():
            _worker = Worker()
            atexit.register(_shut_down, _worker)
        return _worker


def _shut_down(worker: Worker) -> None:
    """At exit: undo the step in flight, then let the thread end, so that torch is not torn down under it."""
    current = worker.current
    if current is not None:
        current.cancelled.set()
    worker.jobs.put(None)
    worker.thread.join(timeout=10)


os.register_at_fork(after_in_child=lambda: globals().update(_worker=None, _guard=threading.Lock()))


def on_thread() -> bool:
    """Whether the calling code runs on the worker."""
    return _worker is not None and threading.current_thread() is _worker.thread


def submit(call: Callable[[], Any], awaited: bool = False) -> Job:
    """Queue `call` and return its job at once."""
    job = Job(call, awaited)
    _get().jobs.put(job)
    return job


def wait(job: Job) -> Any:
    """The job's result. On Ctrl-C the job is asked to stop at its next check, and waited for; then KeyboardInterrupt
    goes on to the caller. A second Ctrl-C does not wait."""
    try:
        while not job.done.wait(0.5):
            pass
    except KeyboardInterrupt:
        job.cancelled.set()
        while not job.done.wait(0.5):
            pass
        raise
    finally:
        for message in job.warnings:
            warn(message)
    return job.outcome()


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `function` on the worker and return its result; code already on the worker runs inline."""
    if on_thread():
        return function(*args, **kwargs)
    return wait(submit(lambda: function(*args, **kwargs), awaited=True))


def warn(message: str) -> None:
    """A UserWarning at the user's own line, also from the worker: there it is left to the caller who waits."""
    job = _worker.current if on_thread() else None
    if job is not None and job.awaited:
        job.warnings.append(message)
        return
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def on_worker(function):
    """Decorator: calls of `function` run on the worker."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return call(function, *args, **kwargs)

    return wrapper


def check() -> None:
    """Raise Interrupted if the current job was asked to stop. Cheap; called between tokens and micro-batches."""
    job = _worker.current if _worker is not None else None
    if job is not None and job.cancelled.is_set() and on_thread():
        raise Interrupted("The step was interrupted and undone.")


def _shell():
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def cell_parent() -> Any:
    """The message of the cell that is running, so that the worker's prints can appear under it."""
    shell = _shell() if "IPython" in sys.modules else None
    return shell.get_parent() if shell is not None and hasattr(shell, "get_parent") else None


def set_cell_parent(parent: Any) -> None:
    """Send this thread's prints to the cell of `parent` (ipykernel 7.4 has a call for it; older ones a wider one)."""
    shell = _shell() if parent else None
    if shell is None:
        return
    setter = getattr(shell, "set_thread_parent", None) or getattr(shell, "set_parent", None)
    if setter is not None:
        setter(parent)
