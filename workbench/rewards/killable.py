"""A function in a process that can be killed: for verifiers that may hang or eat all memory.

One long-lived Python process imports the function once and answers calls, one JSON line each way. A call past
its time-out kills the process; the next call starts a new one. Plain subprocess, not multiprocessing: nothing
of the caller's main module is run again, and it works from any thread and from a notebook.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

START_SECONDS = 120.0
"""how long the process may take to import the function; separate from the time-out of a call"""
MEMORY_GB = 4
"""address space of the process where the system can limit it (not on Windows): past it a call fails"""


class Unanswered(Exception):
    """The call gave no value: it ran past its time-out, raised, or its process died. The text says which."""


class StartError(Exception):
    """The process cannot be started or cannot import the function, so no call can succeed."""


class Killable:
    """`Killable("module:function", timeout=10)(*args)`: the function's value; else Unanswered or StartError.

    Arguments and value must be what JSON can carry. `timeout`: wall-clock seconds a call may take. Calls from
    several threads wait for one another. The process starts with the first call and ends with this one.
    """

    def __init__(self, function: str, timeout: float = 10.0):
        self.function = function
        self.timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        atexit.register(self._kill)  # without the lock: a call that hangs in another thread may hold it

    def __call__(self, *args: Any) -> Any:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                answer = self._ask([self.timeout, *args], self.timeout, f"ran past {self.timeout:g} s")
            except BaseException:  # also Ctrl-C: a late answer must not be taken for the next call's
                self._kill()
                raise
        if "error" in answer:
            raise Unanswered(answer["error"])
        return answer["value"]

    @property
    def pid(self) -> int | None:
        """The process as it is now; None before the first call and after a kill."""
        return self._process.pid if self._process else None

    def close(self) -> None:
        """End the process; a later call starts a new one."""
        with self._lock:
            self._kill()

    def _start(self) -> None:
        self._kill()
        paths = [os.getcwd() if path == "" else path for path in sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from workbench.rewards.killable import serve; serve()", self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the caller
        )
        self._lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        try:
            ready = self._ask(None, START_SECONDS, f"did not start within {START_SECONDS:g} s")
        except Unanswered as reason:
            ready = {"error": str(reason)}
        except BaseException:
            self._kill()
            raise
        if "error" in ready:
            self._kill()
            raise StartError(f"{self.function} cannot run in a process of its own: {ready['error']}")

    def _ask(self, message: list | None, seconds: float, late: str) -> dict:
        try:
            if message is not None:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise Unanswered(late) from None
        except BrokenPipeError:
            raise Unanswered("its process died") from None
        if not line:
            raise Unanswered("its process died")
        return json.loads(line)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    pipe.close()
                except OSError:
                    pass
            self._process = None


def _read(pipe: Any, lines: queue.SimpleQueue) -> None:
    """Hand on the process's lines, and "" at its end. (A pipe has no time-out of its own on every system.)"""
    try:
        for line in pipe:
            lines.put(line)
    except ValueError:  # closed while reading
        pass
    lines.put("")


def serve() -> None:
    """The process's side: import `module:function` (the first argument), say so, answer until stdin ends."""
    import importlib
    import signal

    # What the function prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    _limit_memory()
    try:
        module, _, name = sys.argv[1].partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # for the caller to raise
        say(error=f"{type(error).__name__}: {error}")
        return
    say(ready=True)
    for line in sys.stdin:
        seconds, *args = json.loads(line)
        if hasattr(signal, "alarm"):  # should the caller be gone, nobody else would end a call that hangs
            signal.alarm(int(seconds) + 30)
        try:
            answer = {"value": function(*args)}
        except Exception as error:  # for the caller to raise
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        say(**answer)


def _limit_memory() -> None:
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY_GB << 30
        resource.setrlimit(
            resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most)
        )
    except (ImportError, OSError, ValueError):  # a system without such limits: the time-out still holds
        pass
