"""One long-lived thread owns all torch work of a process.

A second thread that uses torch costs about a quarter of the speed on a CPU, and Ctrl-C reaches the main thread
only: so the worker never sees it in the middle of an update. Jobs run one after another; a run in the
background is a chain of one-step jobs, so that other calls come in between its steps.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Generator
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
        self.said: list[str] = []
        """every warning of the job so far, whoever tells the user"""
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
        self.closing = False
        self.thread = threading.Thread(target=self._loop, name="workbench-worker", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None or not self.jobs.empty():
            if job is None:  # what a job of before has queued behind the end comes first
                self.jobs.put(None)
                continue
            self.current = job
            if self.closing:
                job.cancelled.set()
            set_cell_parent(job.parent)
            try:
                job.result = job.call()
            except BaseException as error:  # raised again in the thread that waits
                let_go(error)
                job.error = error
            finally:
                self.current = None
                job.done.set()
            del job


_worker: Worker | None = None
_guard = threading.Lock()
_open: weakref.WeakSet[Generator] = weakref.WeakSet()


def _get() -> Worker:
    global _worker
    with _guard:
        if _worker is None or not _worker.thread.is_alive():
            _worker = Worker()
            atexit.register(_shut_down, _worker)
        return _worker


def _shut_down(worker: Worker) -> None:
    """At exit: undo the step in flight, have what waits find itself cancelled, so that runs in the background end as
    paused ones, then let the thread end, so that torch is not torn down under it."""
    worker.closing = True
    current = worker.current
    if current is not None:
        current.cancelled.set()
    answers = current is None or current.done.wait(10)  # a reward that hangs must not hang the exit, too
    try:
        for generator in list(_open) if answers else ():
            with contextlib.suppress(ValueError):  # another thread is in it
                generator.close()
    finally:
        worker.jobs.put(None)
        worker.thread.join(timeout=10)


def closed_at_exit(generator: Generator) -> Generator:
    """`generator`, closed at exit if it is still open, while the worker answers: left to Python, that comes when there
    are no threads and half the modules are gone."""
    _open.add(generator)
    return generator


os.register_at_fork(
    after_in_child=lambda: globals().update(_worker=None, _guard=threading.Lock(), _open=weakref.WeakSet())
)


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
    if job is not None:
        job.said.append(message)
        if job.awaited:
            return job.warnings.append(message)
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def let_go(error: BaseException) -> None:
    """Have the frames that `error` came through forget their locals, tensors among them; it still says where it was.

    Whoever keeps an error (a notebook keeps the last one) would keep them alive. Frames that still run are spared.
    """
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def noted() -> list[str]:
    """The warnings that the job in hand kept for the caller who waits; on the worker."""
    return [] if _worker is None or _worker.current is None else list(_worker.current.warnings)


def said() -> list[str]:
    """All warnings of the job in hand so far; on the worker."""
    return list(_worker.current.said) if on_thread() and _worker.current is not None else []


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
