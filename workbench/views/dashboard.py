"""The run dashboard: live curves over a store, in a notebook; their static picture where nothing can run.

A light thread looks into the store and sends what is new, many steps in one binary message. A view that appears (or
comes back after the page was reloaded) says hello with its id and is sent the history.

Messages to the page, each with a JSON part and at most one buffer:

    curves   {to, reset, head, charts?, events, line, pieces: [{name, branch, n}]}; float64 steps, values of each piece
    plotly   {to, version}; plotly.js, gzipped: only when a view asks, and once a page

From the page: {kind: "hello"}, {kind: "plotly"}, and questions with one answer: {kind: "runs"}, the runs in the same
folder; {kind: "overlay", run}, the curves of one of them; {kind: "between", first, last}, these steps unthinned.
"""

from __future__ import annotations

import gzip
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import traitlets

from workbench.errors import StoreError
from workbench.store import Store
from workbench.store.metrics import version as version_of
from workbench.views import picture
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.controls import Controls
from workbench.views.curves import ENDED, MOST_POINTS, Curves, Piece, headline, progress
from workbench.views.text import one_line, visible

KEEP = 20.0
"""seconds after which the picture of a run that goes on is made anew"""
UNHEARD = (1.5, 5.0, 15.0)
"""seconds after which everything is sent unasked: while a cell runs, a hello may wait in the kernel's queue"""
MOST_RUNS = 200
"""other runs that are offered to lay over this one, the newest first"""


@cache
def plotly_js() -> bytes:
    """plotly.js as it lies in the installed plotly package, gzipped."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 5, mtime=0)


class Dashboard(Controls, View):
    """Live curves of the run in `store`, looked at every `refresh` seconds.

    It stops looking when the run has ended and its last step was sent, and when the widget is closed. The picture that
    a saved notebook shows is made anew now and then, and when the run pauses or ends.
    """

    _esm = assets(
        "frame.js", "charts.js", "plotly.js", "toolbar.js", "alarms.js", "handles.js", "controls.js",
        "dashboard.js", main="WbDashboard",
    )  # fmt: skip
    _css = assets("common.css", "dashboard.css", "controls.css")
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, store: Store, refresh: float = 0.5, control: Any = None):
        super().__init__(library=version("plotly"))
        self.control = control
        self.store = store
        self.refresh = refresh
        self.curves = Curves(store)
        self._names: list[str] = []
        self._pending: list[Piece] = []
        self._sent_events = 0
        self._since_reset = 0
        self._sent_head: Any = None
        self._thread: threading.Thread | None = None
        self._heard = False

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self) -> str:
        with self._guard:
            self._read()
            return picture.dashboard_html(self.store, self.curves, self.alarms())

    def static_text(self) -> str:
        with self._guard:
            self._read()
            return picture.dashboard_text(self.store, self.curves, self.alarms())

    def __repr__(self) -> str:
        head = headline(self.store)
        return f"<Dashboard: {head['name']}, {head['method']}, {progress(head)}, {head['status']}>"

    # -- looking into the store ------------------------------------------------------------------------------

    def watch(self) -> None:
        """Start the thread that follows the run, unless it is going already or the run has ended."""
        with self._guard:
            if self._closed.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._follow, name="workbench-dashboard", daemon=True)
            self._thread.start()

    @property
    def watching(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _follow(self) -> None:
        """Look for what is new, send it, and keep the picture up to date. Where nothing is new this costs next to
        nothing: the training must not feel it."""
        started = kept = time.monotonic()
        unheard = list(UNHEARD)
        before = status = seen = drawn = None
        failures = 0
        while not self._closed.is_set():
            try:
                version = version_of(self.store)
                if version != seen or status is None:
                    status = self.store.status  # before reading: what was committed before it ended is then read
                elif status == "running" and not self.store.alive:
                    status = "killed"
                if self.stirred() or version != seen or status != before or self._pending:
                    self._send_new()
                seen, failures = version, 0
            except (StoreError, sqlite3.Error) as error:
                failures += 1
                if failures == 10:
                    return self.tell("trouble", {"text": visible(f"The run cannot be read any more: {error}")})
                self._closed.wait(self.refresh)
                continue
            now = time.monotonic()
            if unheard and not self._heard and now - started >= unheard[0]:
                unheard.pop(0)
                self._send_all(None)
                self._send_library(None)
            # a run with buttons may be taken up again, whatever its status
            going = self.control is not None or (status not in ENDED and self._goes_on(status))
            turned = status != before and before is not None
            if turned or not going or (now - kept >= KEEP and drawn != version):
                kept, drawn = now, version
                self.keep()
            if not going:
                return
            before = status
            self._closed.wait(self.refresh if status == "running" else max(self.refresh, 0.3))

    def _goes_on(self, status: str) -> bool:
        """A run that stands still can only go on in the process that holds it."""
        return status == "running" or self.store.alive or self.store.get("writer") is None

    def _read(self) -> None:
        """Whoever reads first keeps what is new for the page."""
        self._pending += self.curves.refresh()

    # -- talking to the page ---------------------------------------------------------------------------------

    def on_hello(self, ask: Ask) -> None:
        self._heard = True
        self._send_all(ask.view)
        self.watch()

    def on_plotly(self, ask: Ask) -> None:
        self._send_library(ask.view)

    def on_runs(self, ask: Ask) -> dict[str, Any]:
        return {"runs": list(self._siblings())}

    def on_overlay(self, ask: Ask, run: str = "") -> None:
        self._aside(ask, lambda: self._overlay(run))

    def on_between(self, ask: Ask, first: float = 0, last: float = 0) -> None:
        self._aside(ask, lambda: _reply(self.curves.between(int(first), int(last)), self.curves))

    @staticmethod
    def _aside(ask: Ask, make: Callable[[], Reply]) -> None:
        """Answer from a thread of its own: a long run takes a moment, and the kernel's main thread is not to wait."""

        def answer() -> None:
            try:
                ask.done(make)
            except sqlite3.Error as error:
                ask.trouble(f"The run cannot be read: {error}")

        threading.Thread(target=answer, daemon=True).start()

    def _siblings(self) -> dict[str, Path]:
        """The other runs of the folder that this one lies in, by the name that the page shows; the newest first."""
        folder = self.store.folder.absolute()
        try:
            found = [(path.stat().st_mtime, path.parent) for path in folder.parent.glob("*/run.db")]
        except OSError:
            return {}
        found = sorted((one for one in found if one[1] != folder), key=lambda one: one[0], reverse=True)
        return {one_line(path.name, 80): path for _, path in found[:MOST_RUNS]}

    def _overlay(self, run: str) -> Reply:
        path = self._siblings().get(run)
        if path is None:
            raise StoreError(f"There is no run {run!r} beside this one any more.")
        store = Store(path)
        try:
            curves = Curves(store)
            curves.refresh()
            return _reply(curves.everything(), curves)
        finally:
            store.close()

    def _send_all(self, view: str | None) -> None:
        """The history, to one view or to all."""
        with self._guard:
            self._send_new()
            everything = self.curves.everything()
            content = self._curves(everything) | {"charts": self._charts(), "events": self.curves.events}
            self.tell("curves", Reply(content | {"reset": True}, _numbers(everything)), to=view)

    def _send_new(self) -> None:
        """To every view what was not sent yet; nothing when there is nothing."""
        with self._guard:
            self._read()
            pieces, self._pending = self._pending, []
            content = self._curves(pieces) | {"events": self.curves.events[self._sent_events :]}
            self._sent_events = len(self.curves.events)
            if self.curves.names != self._names:
                self._names = self.curves.names
                content["charts"] = self._charts()
            said = {name: content[name] for name in ("head", "control", "notices", "alarms")}
            if pieces or content["events"] or said != self._sent_head:
                self._sent_head = said
                self.tell("curves", Reply(content, _numbers(pieces)))
            self._since_reset += max((len(steps) for _, _, steps, _ in pieces), default=0)
            if self._since_reset > 2 * MOST_POINTS:  # what the page holds is thinned again
                self._since_reset = 0
                self._send_all(None)

    def _curves(self, pieces: list[Piece]) -> dict[str, Any]:
        return {
            "reset": False,
            "head": headline(self.store),
            "line": _line(self.curves),
            "pieces": _spec(pieces),
        } | self.beside()

    def _charts(self) -> list[dict[str, Any]]:
        return [chart.to_dict() for chart in self.curves.charts()]

    def _send_library(self, view: str | None) -> None:
        self.tell("plotly", {"version": self.library}, to=view, buffer=plotly_js())


def _reply(pieces: list[Piece], curves: Curves) -> Reply:
    return Reply({"line": _line(curves), "pieces": _spec(pieces)}, _numbers(pieces))


def _line(curves: Curves) -> list[list[int]]:
    return [[branch, min(limit, 2**52)] for branch, limit in curves.line]


def _spec(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [{"name": name, "branch": branch, "n": len(steps)} for name, branch, steps, _ in pieces]


def _numbers(pieces: list[Piece]) -> dict[str, np.ndarray]:
    """The steps and then the values of each piece, end to end, as the column `numbers`."""
    return {"numbers": np.concatenate([np.empty(0), *(part for *_, x, y in pieces for part in (x, y))])}


def show_dashboard(store: Store, refresh: float = 0.5, control: Any = None) -> Dashboard:
    """Live curves in a notebook, a text summary elsewhere; returns the widget. `control`: see `views.controls`."""
    return Dashboard(store, refresh, control).show()
