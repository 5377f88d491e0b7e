"""Where a view is displayed: as a live widget, as its static picture, or as text in a terminal."""

from __future__ import annotations

import sys
import threading
from typing import Any


def shell() -> Any:
    """IPython's shell, or None in plain Python."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def in_kernel() -> bool:
    """Whether the code runs in a Jupyter kernel (with or without a browser that looks at it)."""
    return hasattr(shell(), "kernel")


class Shown:
    """Mixed into a widget class: its display, which can change between live and static.

    The class gives `static_html()` and `static_text()`, and may override `watch()`, called when it goes live.
    """

    _handle: Any = None
    _is_live = False
    _shown_by: Any = None
    _display_guard = threading.RLock()

    def static_html(self) -> str:
        raise NotImplementedError

    def static_text(self) -> str:
        raise NotImplementedError

    def watch(self) -> None:
        """Called when the widget is about to be seen."""

    def show(self, live: bool = True):
        """Display it here; in a terminal print its text. Returns the view itself."""
        self._show(live)
        return self.said()

    def live(self):
        """The live widget, for good: in place of what this cell has just shown of it, or as a new output."""
        if self._handle is not None and self._shown_by is not None and self._shown_by == _cell():
            self.thaw()
            self.watch()
        else:
            self._show(True)
        self._handle = None  # nothing to freeze
        return self.said()

    def freeze(self) -> None:
        """Put the static picture, as things are now, in place of the live widget where it was shown."""
        with self._display_guard:
            if self._handle is not None and self._is_live:
                self._is_live = False
                self._handle.update(self._static(), raw=True)

    def thaw(self) -> None:
        """Put the live widget back in place of the picture that `freeze` left."""
        with self._display_guard:
            if self._handle is not None and not self._is_live:
                self._is_live = True
                data, metadata = self._bundle()
                self._handle.update(data, metadata=metadata, raw=True)

    def said(self):
        """Note that this cell has shown the view, so that its value at the end of the cell is not shown again."""
        self._shown_by = _cell()
        return self

    def _show(self, live: bool) -> None:
        if not in_kernel():
            print(self.static_text())
            return
        from IPython.display import display

        with self._display_guard:
            data, metadata = self._bundle() if live else (self._static(), {})
            self._handle = display(data, metadata=metadata, raw=True, display_id=True)
            self._is_live = live
        if live:
            self.watch()

    def _static(self) -> dict[str, str]:
        return {"text/html": self.static_html(), "text/plain": self.static_text()}

    def _bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and its static forms for whoever cannot run it."""
        bundle = super()._repr_mimebundle_() or {}  # type: ignore[misc]
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, **self._static()}, metadata

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.watch()
        return self._bundle()

    def _ipython_display_(self) -> None:
        if self._shown_by is not None and self._shown_by == _cell():
            self._shown_by = None
            return
        self._show(True)


def _cell() -> Any:
    """What tells one execution of a cell from another; None in plain Python."""
    ip = shell()
    return None if ip is None else (id(ip), ip.execution_count)
