"""The run dashboard: live curves over a store, in a notebook; their static picture where nothing can run.

A light thread looks into the store and sends what is new, many steps in one binary message. A view that appears (or
comes back after the page was reloaded) says hello with its id and is sent the history.

Messages to the page, each with a JSON part and at most one buffer:

    curves   {to, reset, head, charts?, events, line, pieces: [{name, branch, n}]}; float64 steps, values of each piece
    plotly   {to, version}; plotly.js, gzipped: only when a view asks, and once a page

From the page: {kind: "hello"}, {kind: "plotly"}.
"""

from __future__ import annotations

import gzip
import sqlite3
import threading
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import traitlets

from workbench.errors import StoreError
from workbench.store import Store
from workbench.views import picture
from workbench.views.base import Ask, View, assets
from workbench.views.controls import Controls
from workbench.views.curves import ENDED, MOST_POINTS, Curves, arrange, headline, progress
from workbench.views.text import visible

KEEP = 20.0
"""seconds after which the picture of a run that goes on is made anew"""
UNHEARD = (1.5, 5.0, 15.0)
"""seconds after which everything is sent unasked: while a cell runs, a hello may wait in the kernel's queue"""


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

    _esm = assets("frame.js", "charts.js", "controls.js", "dashboard.js", main="WbDashboard")
    _css = assets("common.css", "dashboard.css", "controls.css")
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, store: Store, refresh: float = 0.5, control: Any = None):
        super().__init__(library=version("plotly"))
        self.control = control
        self.store = store
        self.refresh = refresh
        self.curves = Curves(store)
        self._names: list[str] = []
        self._pending: list = []
        self._sent_events = 0
        self._since_reset = 0
        self._sent_head: Any = None
        self._thread: threading.Thread | None = None
        self._heard = False

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self) -> str:
        with self._guard:
            self._read()
            return picture.dashboard_html(self.store, self.curves)

    def static_text(self) -> str:
        with self._guard:
            self._read()
            return picture.dashboard_text(self.store, self.curves)

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
        started = kept = time.monotonic()
        unheard = list(UNHEARD)
        before: Any = None
        failures = 0
        while not self._closed.is_set():
            try:
                status = self.store.status  # before reading: what was committed before it ended is then read
                self._send_new()
                failures = 0
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
            going = status not in ENDED and self._goes_on(status)
            if (status != before and before is not None) or not going or now - kept >= KEEP:
                kept = now
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

    def _send_all(self, view: str | None) -> None:
        """The history, to one view or to all."""
        with self._guard:
            self._send_new()
            everything = self.curves.everything()
            content = self._curves(everything) | {"charts": self._charts(), "events": self.curves.events}
            self.tell("curves", content | {"reset": True}, to=view, buffer=_pack(everything))

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
            if pieces or content["events"] or content["head"] != self._sent_head:
                self._sent_head = content["head"]
                self.tell("curves", content, buffer=_pack(pieces))
            self._since_reset += max((len(steps) for _, _, steps, _ in pieces), default=0)
            if self._since_reset > 2 * MOST_POINTS:  # what the page holds is thinned again
                self._since_reset = 0
                self._send_all(None)

    def _curves(self, pieces: list) -> dict[str, Any]:
        return {
            "reset": False,
            "head": headline(self.store),
            "line": [[branch, min(limit, 2**52)] for branch, limit in self.curves.line],
            "pieces": [{"name": name, "branch": branch, "n": len(steps)} for name, branch, steps, _ in pieces],
        }

    def _charts(self) -> list[dict[str, Any]]:
        return [chart.to_dict() for chart in arrange(self.store.get("method", ""), self.curves.names)]

    def _send_library(self, view: str | None) -> None:
        self.tell("plotly", {"version": self.library}, to=view, buffer=plotly_js())


def _pack(pieces: list[tuple[str, int, np.ndarray, np.ndarray]]) -> bytes:
    return b"".join(part.astype("<f8").tobytes() for _, _, steps, values in pieces for part in (steps, values))


def show_dashboard(store: Store, refresh: float = 0.5, control: Any = None) -> Dashboard:
    """Live curves in a notebook, a text summary elsewhere; returns the widget. `control`: see `views.controls`."""
    return Dashboard(store, refresh, control).show()
