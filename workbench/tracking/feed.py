"""How a run's steps reach a tracker: a thread for each, which reads the store and can do the run no harm.

The worker only rings a bell after each commit. The thread then reads from the store what it has not sent yet, so there
is no queue that could grow: if the tracker is slow, the store is the queue. How far it got is kept in the run's folder
(`tracking/<tracker>.json`), so a run that is resumed, in another process too, goes on where it was.

A line of steps that a rewind gave up stays as it was sent, and the new line is a tracker run of its own, in the same
group, with the steps before the rewind repeated: so every curve is one line from step 0 on, in any tracker. It is begun
with the first step after the rewind.

A failure is tried again, after a second, and then after longer. What failed is never skipped, so a curve has no holes:
after five in a row the tracker is switched off for this process, and what is missing can be sent later, by
`wb.open(folder).track(...)` or `wb.resume`. At exit all trackers together get `EXIT_SECONDS`.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench import worker
from workbench.errors import StoreError
from workbench.store import Store
from workbench.tracking.record import config_of, rollout_table
from workbench.tracking.tracker import Begin, Logged, Tracker
from workbench.views.curves import describe

DELAYS = (1.0, 4.0, 15.0, 60.0)
"""seconds between a failure and the next try; the failure after the last of them is the last"""
GATHER_SECONDS = 0.5
"""steps are sent in batches at least so far apart: what is done once a batch does not grow with short steps"""
EXIT_SECONDS = 5.0
SLOW_SECONDS = 60.0
"""a call that takes longer is spoken of, once"""

_live: set[Feed] = set()
"""feeds that have something to send or to finish: they get their time at exit"""
_exiting = threading.Event()


class Feed:
    """One tracker of one run."""

    def __init__(self, tracker: Tracker, key: str, folder: Path, writer: Callable[[], Store | None] = lambda: None):
        self.tracker = tracker
        self.key = key
        """its name in messages and in the folder"""
        self.folder = folder
        self.off = ""
        """why it was switched off"""
        self.failures = 0
        """in all; those in a row decide"""
        self._writer = writer
        self._in_a_row = 0
        self._bell = threading.Condition()
        self._rung = False
        self._hurry = False
        """somebody waits, so steps are not gathered first"""
        self._ending: str | None = None
        self._line: int | None = None
        """the line that is begun in the tracker now"""
        self._state = self._load()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._slow_said = False
        self._parent: Any = None

    # -- called from any thread; never waits -------------------------------------------------------------------

    def ring(self, ending: str | None = None) -> None:
        """There is something new; with `ending` also finish, with that status, once all is sent."""
        if self.off:
            return
        self._complain_if_slow()
        with self._bell:
            self._rung, self._ending = True, ending
            self._parent = worker.cell_parent() or self._parent
            if self._thread is None:
                _live.add(self)
                self._thread = threading.Thread(target=self._loop, name=f"workbench-{self.key}", daemon=True)
                self._thread.start()
            self._bell.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all that was rung for is sent, or the tracker is off; False when `timeout` seconds did not do."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._bell:
            self._hurry = True
            self._bell.notify_all()
            while self._pending and not self.off:
                left = 0.2 if until is None else min(0.2, until - time.monotonic())
                if left <= 0:
                    return False
                self._bell.wait(left)
        return not self.off

    @property
    def _pending(self) -> bool:
        return self._rung or self._ending is not None or self._busy_since is not None or self._in_a_row > 0

    def _complain_if_slow(self) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > SLOW_SECONDS and not self._slow_said:
            self._slow_said = True
            self._note(f"{self.key} has not answered for {SLOW_SECONDS:.0f} s; the run goes on without waiting for it.")

    # -- the thread --------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._bell:
                self._bell.wait_for(lambda: self._rung)
                self._bell.wait_for(lambda: self._hurry or self._ending is not None, GATHER_SECONDS)
                self._rung, self._hurry, ending = False, False, self._ending
                self._busy_since = time.monotonic()
            worker.set_cell_parent(self._parent)
            sent = self._try_to_send(ending)
            with self._bell:
                self._busy_since = None
                if sent and self._ending == ending:
                    self._ending = None
                elif not sent and not self.off:
                    # new steps do not hurry it, the end of the run does
                    self._bell.wait_for(lambda asked=ending: self._ending != asked, DELAYS[self._in_a_row - 1])
                    self._rung = True
                done = bool(self.off) or (sent and ending is not None and not self._rung)
                if done:
                    self._thread = None
                    _live.discard(self)
                self._bell.notify_all()
            if done:
                return

    def _try_to_send(self, ending: str | None) -> bool:
        try:
            store = Store(self.folder)
            try:
                self._send(store, ending)
            finally:
                store.close()
                self._save()
        # Whatever a tracker's library raises, network errors and bugs alike, must not reach the run.
        except Exception as error:
            self._failed(error)
            return False
        self._in_a_row = 0
        return True

    def _send(self, store: Store, ending: str | None) -> None:
        """All that is committed and not sent; then finish, if asked."""
        last = store.last_step()
        line = store.home(last)
        if self._line is not None and self._line != line:
            self._finish("rewound")
        progress = self._progress(line)
        new = _steps(store, _on_line(store, line, last), progress["step"])
        if self._line is None and new:
            self._start(store, line)
        if self._line is None:
            return
        for logged in new:
            self.tracker.log(logged)
            progress["step"] = logged.step
            self._table(store, line, logged.step, last if ending is not None else None)
        # a change of settings after step k is an event of step k + 1
        for number, step, kind, payload in _events(store, _on_line(store, line, last + 1), progress["event"]):
            self.tracker.event(step, kind, describe(kind, payload), payload)
            progress["event"] = number
        self.tracker.flush()
        if ending is not None:
            self._table(store, line, last, last)
            self._finish(ending)

    def _table(self, store: Store, line: int, step: int, final: int | None) -> None:
        """The rollouts of a step where a table is due: every `table_steps`, and at the end."""
        tracker, progress = self.tracker, self._progress(line)
        if not tracker.table_steps or step <= progress["table"]:
            return
        if step % tracker.table_steps and step != final:
            return
        columns, rows = rollout_table(store, line, step, tracker.table_rows, tracker.table_chars)
        if rows:
            tracker.rollouts(step, columns, rows)
            progress["table"] = step

    def _start(self, store: Store, line: int) -> None:
        name = store.get("name") or self.folder.name
        begin = Begin(
            name=name if line == 0 else f"{name} (branch {line})",
            run=name,
            method=store.get("method", ""),
            folder=(self.folder / "tracking" / self.key).absolute(),
            config=config_of(store, line),
            branch=line,
            remembered=dict(self._progress(line)["remembered"]),
            say=print,
        )
        remembered = self.tracker.start(begin)
        self._line = line
        if remembered:
            self._progress(line)["remembered"] = remembered
        if not _exiting.is_set():
            # what is registered last runs first: before what the tracker's library registered, which may not come back
            atexit.unregister(finish_all)
            atexit.register(finish_all)

    def _finish(self, status: str) -> None:
        self.tracker.finish(status)
        self._line = None

    # -- failures ----------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        if not (self.folder / "run.db").exists():
            self.off = "the run's folder is gone"
            return
        self.failures += 1
        self._in_a_row += 1
        said = f"{type(error).__name__}: {error}".strip().rstrip(".")[:500]
        if self._in_a_row > len(DELAYS):
            self._note(
                f"{self.key} failed {self._in_a_row} times in a row and is switched off: {said}. The run goes on, and "
                f"its record is whole; wb.open({str(self.folder)!r}).track(...) sends it later."
            )
            self.off = said  # last, for whoever waits goes on now, and finds the note
        elif self.failures == 1:
            self._note(f"{self.key} failed, and is tried again: {said}. The run goes on.")

    def _note(self, message: str) -> None:
        """Say it, and write it into the record as an event."""
        print(f"{self.folder.name}: {message}", file=sys.stderr)
        store = self._writer()
        if store is None:
            return
        try:
            store.add_event(store.last_step(), store.branch, "tracking", message=message)
        except StoreError as error:
            print(f"{self.folder.name}: this could not be noted in the store: {error}", file=sys.stderr)

    # -- how far it got ----------------------------------------------------------------------------------------

    def _progress(self, line: int) -> dict[str, Any]:
        return self._state.setdefault(str(line), {"step": -1, "event": 0, "table": 0, "remembered": {}})

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # none yet, or cut off by a full disk: it is sent from the start
            return {}

    def _save(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._state), encoding="utf-8")
        os.replace(new, self._file)

    @property
    def _file(self) -> Path:
        return self.folder / "tracking" / f"{self.key}.json"


def _on_line(store: Store, line: int, last: int) -> str:
    """SQL that keeps what lies on a line, up to step `last`."""
    return " OR ".join(f"(branch = {b} AND step <= {min(limit, last)})" for b, limit in store.path_to(line))


def _steps(store: Store, on_line: str, since: int) -> list[Logged]:
    """The steps of a line after `since`. (Plain SQL, not pandas: this runs beside every step.)"""
    metrics: dict[int, dict[str, float]] = {}
    for step, name, value in store.query(
        f"SELECT step, name, value FROM metrics WHERE ({on_line}) AND step > ? ORDER BY step, name", (since,)
    ):
        metrics.setdefault(step, {})[name] = math.nan if value is None else value
    found = store.query(
        f"SELECT step, branch, seconds, created FROM steps WHERE ({on_line}) AND step > ? ORDER BY step", (since,)
    )
    return [Logged(step, branch, seconds, at, metrics.get(step, {})) for step, branch, seconds, at in found]


def _events(store: Store, on_line: str, since: int) -> list[tuple[int, int, str, dict[str, Any]]]:
    """Events of a line that were not sent. The trackers' own troubles are no news to them."""
    found = store.query(
        f"SELECT id, step, kind, payload FROM events WHERE ({on_line}) AND id > ? AND kind != 'tracking' ORDER BY id",
        (since,),
    )
    return [(number, step, kind, json.loads(payload)) for number, step, kind, payload in found]


def finish_all() -> None:
    """At exit: end what is begun, within `EXIT_SECONDS` for all trackers together, and say what was left."""
    _exiting.set()
    feeds = list(_live)
    for feed in feeds:
        feed.ring(ending="stopped")
    until = time.monotonic() + EXIT_SECONDS
    for feed in feeds:
        if not feed.wait(max(0.01, until - time.monotonic())) and not feed.off:
            print(
                f"{feed.folder.name}: {feed.key} did not take everything within {EXIT_SECONDS:.0f} s of the end. "
                f"wb.open({str(feed.folder)!r}).track(...) sends the rest.",
                file=sys.stderr,
            )


atexit.register(finish_all)
