"""The run dashboard: live curves over a store, in a notebook; their static picture where nothing can run.

A light thread looks into the store and sends what is new, many steps in one binary message. A view that appears (or
comes back after the page was reloaded) says hello with its id and is sent the history.

Messages to the page, each with a JSON part and at most one buffer:

    curves   {to, reset, head, charts?, events, line, pieces: [{name, branch, n}]}; float64 steps, values of each piece
    plotly   {to, version}; plotly.js, gzipped: only when a view asks, and once a page

From the page: {kind: "hello", view}, {kind: "plotly", view}.
"""

from __future__ import annotations

import gzip
import sqlite3
import threading
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from workbench.errors import StoreError
from workbench.store import Store
from workbench.views import picture
from workbench.views.curves import ENDED, MOST_POINTS, Curves, arrange, headline, progress
from workbench.views.shown import Shown, in_kernel
from workbench.views.text import visible

HERE = Path(__file__).parent
SETTLE = 2.0
"""seconds a run has to stand still before its live curves give way to the picture"""
UNHEARD = (1.5, 5.0, 15.0)
"""seconds after which everything is sent unasked: while a cell runs, a hello may wait in the kernel's queue"""


@cache
def plotly_js() -> bytes:
    """plotly.js as it lies in the installed plotly package, gzipped."""
    from plotly.offline import get_plotlyjs

    return gzip.compress(get_plotlyjs().encode(), 5, mtime=0)


class Dashboard(Shown, anywidget.AnyWidget):
    """Live curves of the run in `store`, looked at every `refresh` seconds.

    It stops looking when the run has ended and its last step was sent, and when the widget is closed. Where it was
    displayed, a run that pauses or ends leaves a static picture, and one that goes on has its live curves again.
    """

    _esm = (HERE / "charts.js").read_text("utf-8") + (HERE / "dashboard.js").read_text("utf-8")
    _css = (HERE / "common.css").read_text("utf-8") + (HERE / "dashboard.css").read_text("utf-8")
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, store: Store, refresh: float = 0.5):
        self._closed = threading.Event()
        super().__init__(library=version("plotly"))
        self.store = store
        self.refresh = refresh
        self.curves = Curves(store)
        self._guard = threading.RLock()  # reading and sending go together, or a view misses a step between them
        self._names: list[str] = []
        self._pending: list = []
        self._sent_events = 0
        self._since_reset = 0
        self._sent_head: Any = None
        self._thread: threading.Thread | None = None
        self._heard = False
        self.on_msg(self._receive)

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

    def close(self) -> None:
        self._closed.set()
        super().close()

    def _follow(self) -> None:
        started = still = time.monotonic()
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
                    return self._post({"kind": "trouble", "text": visible(f"The run cannot be read any more: {error}")})
                self._closed.wait(self.refresh)
                continue
            now = time.monotonic()
            if unheard and not self._heard and now - started >= unheard[0]:
                unheard.pop(0)
                self._send_all(None)
                self._send_library(None)
            if status in ENDED or not self._goes_on(status):
                return self.freeze()
            if status != before:
                before, still = status, now
            if status == "running":
                self.thaw()
            elif status == "paused" and now - still >= SETTLE:
                self.freeze()
            self._closed.wait(self.refresh if status == "running" else max(self.refresh, 0.3))

    def _goes_on(self, status: str) -> bool:
        """A run that stands still can only go on in the process that holds it."""
        return status == "running" or self.store.alive or self.store.get("writer") is None

    def _read(self) -> None:
        """Whoever reads first keeps what is new for the page."""
        self._pending += self.curves.refresh()

    # -- talking to the page ---------------------------------------------------------------------------------

    def _receive(self, _widget: Any, content: dict, _buffers: list) -> None:
        if content.get("kind") == "hello":
            self._heard = True
            self._send_all(content.get("view"))
            self.watch()
        elif content.get("kind") == "plotly":
            self._send_library(content.get("view"))

    def _send_all(self, view: str | None) -> None:
        """The history, to one view or to all."""
        with self._guard:
            self._send_new()
            everything = self.curves.everything()
            content = self._curves(everything, view) | {"charts": self._charts(), "events": self.curves.events}
            self._post(content | {"reset": True}, _pack(everything))

    def _send_new(self) -> None:
        """To every view what was not sent yet; nothing when there is nothing."""
        with self._guard:
            self._read()
            pieces, self._pending = self._pending, []
            content = self._curves(pieces, None) | {"events": self.curves.events[self._sent_events :]}
            self._sent_events = len(self.curves.events)
            if self.curves.names != self._names:
                self._names = self.curves.names
                content["charts"] = self._charts()
            if pieces or content["events"] or content["head"] != self._sent_head:
                self._sent_head = content["head"]
                self._post(content, _pack(pieces))
            self._since_reset += max((len(steps) for _, _, steps, _ in pieces), default=0)
            if self._since_reset > 2 * MOST_POINTS:  # what the page holds is thinned again
                self._since_reset = 0
                self._send_all(None)

    def _curves(self, pieces: list, view: str | None) -> dict[str, Any]:
        return {
            "kind": "curves",
            "to": view,
            "reset": False,
            "head": headline(self.store),
            "line": [[branch, min(limit, 2**52)] for branch, limit in self.curves.line],
            "pieces": [{"name": name, "branch": branch, "n": len(steps)} for name, branch, steps, _ in pieces],
        }

    def _charts(self) -> list[dict[str, Any]]:
        return [chart.to_dict() for chart in arrange(self.store.get("method", ""), self.curves.names)]

    def _send_library(self, view: str | None) -> None:
        self._post({"kind": "plotly", "to": view, "version": self.library}, plotly_js())

    def _post(self, content: dict, buffer: bytes = b"") -> None:
        if not self._closed.is_set():
            self.send(content, [buffer] if buffer else None)


def _pack(pieces: list[tuple[str, int, np.ndarray, np.ndarray]]) -> bytes:
    return b"".join(part.astype("<f8").tobytes() for _, _, steps, values in pieces for part in (steps, values))


def show_dashboard(store: Store, refresh: float = 0.5) -> Dashboard:
    """Live curves in a notebook, a text summary elsewhere; returns the widget.

    A run that has ended is shown as its static picture, which a saved notebook keeps; `.live()` of the result
    gives the curves to hover over and zoom into.
    """
    view = Dashboard(store, refresh)
    if not in_kernel():
        print(view.static_text())
        return view.said()
    if store.status in ENDED:
        return view.show(live=False)
    return view.show()
