"""What every view is: a widget that lives in a place of its own, and leaves a picture there when nothing lives.

A displayed view is one output of static HTML: its picture, inside an element with the view's own class. Where a front
end runs the widget's JavaScript (`frame.js`), the live view takes that place over; a saved notebook, nbconvert, GitHub
and a page without a kernel have the picture, which `keep` brings up to date. Where widgets are only loaded by a widget
in the output (VS Code, Colab), the output is the widget, with the picture as its fallback.

Messages. The page asks {kind, view, ask, ...}; the method `on_<kind>(ask, ...)` answers with a dict, with a `Reply`
that has columns, or with None and a later `ask.answer(...)` from any thread. Errors for people become {trouble: text}.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from workbench.errors import WorkbenchError
from workbench.views.text import visible

HERE = Path(__file__).parent
NO_MATHS = "mathjax_ignore tex2jax_ignore"
"""classes at which MathJax 3 and 2 leave text alone: a model that writes of $5 and $7 writes no formula"""

Columns = dict[str, "np.ndarray | Sequence[str]"]


def assets(*names: str, main: str = "") -> str:
    """Files beside this one, end to end; `main` is the JavaScript class that is the view."""
    made = "".join((HERE / name).read_text("utf-8") for name in names)
    return made + (f"\nexport default wbMount({main});\n" if main else "")


def shell() -> Any:
    """IPython's shell, or None in plain Python."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def in_kernel() -> bool:
    """Whether the code runs in a Jupyter kernel (with or without a browser that looks at it)."""
    return hasattr(shell(), "kernel")


def loads_by_output() -> bool:
    """Whether the front end runs a widget's JavaScript only for a widget that is an output."""
    return "google.colab" in sys.modules or "VSCODE_PID" in os.environ or "VSCODE_CWD" in os.environ


@dataclass(frozen=True)
class Reply:
    """An answer with columns of numbers or of text, which travel as bytes."""

    content: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)


class Ask:
    """A question of one view in the page; answered once."""

    def __init__(self, owner: View, kind: str, view: str | None, number: Any):
        self.owner, self.kind, self.view, self.number = owner, kind, view, number

    def answer(self, reply: dict[str, Any] | Reply) -> None:
        self.owner.tell(self.kind, reply, to=self.view, ask=self.number)

    def trouble(self, error: object) -> None:
        """Say what went wrong, in the page."""
        self.owner.tell(self.kind, {"trouble": visible(error)}, to=self.view, ask=self.number)

    def done(self, make: Callable[[], dict[str, Any] | Reply | None]) -> None:
        """Answer with what `make` returns, or with its error if that is one for people."""
        try:
            reply = make()
        except WorkbenchError as error:
            return self.trouble(error)
        if reply is not None:
            self.answer(reply)


class View(anywidget.AnyWidget):
    """A widget with a static form. A class gives `_esm`, `_css` (see `assets`), `static_html()`, `static_text()` and
    `on_<kind>` for what its page asks; it may override `watch()`, called when the view is about to be seen."""

    place = traitlets.Unicode().tag(sync=True)

    def __new__(cls, *args: Any, **kwargs: Any):
        made = super().__new__(cls, *args, **kwargs)
        made._closed = threading.Event()  # before anything can fail: a widget closes itself when it is collected
        return made

    def __init__(self, **traits: Any):
        super().__init__(place=secrets.token_hex(6), **traits)
        self._guard = threading.RLock()
        self._handle: Any = None
        self._kept: Any = None
        self._shown_by: Any = None
        self.on_msg(self._receive)

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self) -> str:
        """A picture without script; text is escaped."""
        return f"<pre>{self.static_text()}</pre>"

    def static_text(self) -> str:
        """The same for a terminal."""
        return repr(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    # -- display ---------------------------------------------------------------------------------------------

    def show(self):
        """Display it here; in a terminal print its text. Returns the view itself."""
        if not in_kernel():
            print(self.static_text())
            return self._said()
        from IPython.display import display

        data, metadata = self._bundle()
        handle = display(data, metadata=metadata, raw=True, display_id=True)
        with self._guard:
            self._handle, self._kept = handle, data
        self.watch()
        return self._said()

    def keep(self) -> None:
        """Bring the picture where the view was displayed up to date: a saved notebook shows the last one."""
        data, metadata = self._bundle()
        with self._guard:
            if self._handle is not None and data != self._kept:
                self._kept = data
                self._handle.update(data, metadata=metadata, raw=True)
                self.tell("kept", {"data": data}, to="places")

    def watch(self) -> None:
        """Called when the view is about to be seen."""

    def open(self) -> None:
        """Open the way to the page; called by the widget itself.

        ipykernel 7.4 hands what the page sends to the subshell that last sent something this way. From a background
        thread that is whichever subshell worked last: often one that a page opened for a moment when it was reloaded,
        and what is sent there is lost. The page's own choice is always one that lives.
        """
        super().open()
        if self.comm is not None:
            self.comm._reply_subshell_for = lambda data, chosen: chosen

    def close(self) -> None:
        self._closed.set()
        super().close()

    def _bundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        picture = {"text/html": self.static_html(), "text/plain": self.static_text()}
        if loads_by_output():
            made = super()._repr_mimebundle_() or {}
            data, metadata = made if isinstance(made, tuple) else (made, {})
            picture["text/html"] = f'<div class="{NO_MATHS}">{picture["text/html"]}</div>'
            return {**data, **picture}, metadata
        # by class: a sanitiser leaves classes alone, and drops other marks
        place = f'<div class="wb-place {NO_MATHS} wb-place-{self.place}">{picture["text/html"]}</div>'
        return {"text/html": place, "text/plain": picture["text/plain"]}, {}

    def _said(self):
        """Note that this cell has shown the view, so that its value at the end of the cell is not shown again."""
        self._shown_by = _cell()
        return self

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.watch()
        return self._bundle()

    def _ipython_display_(self) -> None:
        if self._shown_by is not None and self._shown_by == _cell():
            self._shown_by = None
            return
        self.show()

    # -- messages --------------------------------------------------------------------------------------------

    def _receive(self, _widget: Any, content: dict, _buffers: list) -> None:
        given = dict(content)
        kind, view, number = str(given.pop("kind", "")), given.pop("view", None), given.pop("ask", None)
        handler = getattr(self, f"on_{kind}", None)
        if handler is not None and kind.isidentifier() and kind != "msg":
            ask = Ask(self, kind, view, number)
            ask.done(lambda: handler(ask, **given))

    def tell(
        self, kind: str, reply: dict[str, Any] | Reply, *, to: str | None = None, ask: Any = None, buffer: bytes = b""
    ) -> None:
        """Send to one view of the page, or to all of them (`to` None). `buffer` comes after the columns."""
        if self._closed.is_set():
            return
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        spec, buffers = pack(reply.columns)
        content = {"kind": kind, "to": to, **reply.content}
        if ask is not None:
            content["ask"] = ask
        if spec:
            content["packed"] = spec
        self.send(content, [*buffers, *([buffer] if buffer else [])] or None)


def pack(columns: Columns) -> tuple[list[list[str]], list[bytes]]:
    """Columns as bytes for `wbColumns` of frame.js: a list of [name, kind], and their buffers in that order.

    Numbers keep their dtype if it is float64, float32, int32 or uint8; other integers become int32, booleans uint8.
    A column of text takes two buffers: n + 1 offsets (uint32), and UTF-8.
    """
    spec: list[list[str]] = []
    buffers: list[bytes] = []
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            kind = {"f": "f8" if values.dtype.itemsize == 8 else "f4", "b": "u1"}.get(values.dtype.kind)
            kind = kind or ("u1" if values.dtype == np.uint8 else "i4")
            buffers.append(np.ascontiguousarray(values, "|u1" if kind == "u1" else f"<{kind}").tobytes())
        else:
            kind = "text"
            parts = [str(value).encode("utf-8", "replace") for value in values]
            ends = np.cumsum([0, *map(len, parts)], dtype="<u4")
            buffers += [ends.tobytes(), b"".join(parts)]
        spec.append([name, kind])
    return spec, buffers


def _cell() -> Any:
    """What tells one execution of a cell from another; None in plain Python."""
    ip = shell()
    return None if ip is None else (id(ip), ip.execution_count)
