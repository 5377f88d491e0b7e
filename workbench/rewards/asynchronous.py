"""Async reward functions, run side by side on whatever thread asks.

The event loop of a thread is kept, so that a client that a reward keeps open (to a judge, say) finds its loop
again at the next call. Where the thread has no running loop - a worker thread, a script - the functions run
inline, so that one of them may call what belongs to that thread. Where it has one - a notebook's main thread
- they run on a helper thread with a loop of its own, while the caller waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_local = threading.local()
_helper: ThreadPoolExecutor | None = None
_helper_lock = threading.Lock()


def gather(calls: list[Callable[[], Awaitable]]) -> list[Any]:
    """What each call's awaitable gives, in order, an exception in place of a value where it raised.

    All are started together, as TRL does. Waits for all of them.
    """
    if not calls:
        return []
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(calls)
    global _helper
    with _helper_lock:
        _helper = _helper or ThreadPoolExecutor(max_workers=1, thread_name_prefix="workbench-async-rewards")
    return _helper.submit(_run, calls).result()


def _run(calls: list[Callable[[], Awaitable]]) -> list[Any]:
    runner = getattr(_local, "runner", None)
    if runner is None:
        runner = _local.runner = asyncio.Runner()
    return runner.run(_all(calls))


async def _all(calls: list[Callable[[], Awaitable]]) -> list[Any]:
    async def one(call):
        return await call()

    return await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)
