"""What a person does to a run from its dashboard, and what the dashboard says of it beside the curves.

The view only passes actions on to a control, which the run hands in (see `workbench.control`): an object with

    state() -> dict                what can be done now, and why not
    act(action, values, said)      takes an action up and returns words at once; `said` is called when it is in effect
    notices() -> list[dict]        edited reward functions that the run does not use yet
    pulse() -> Any                 differs when one of these may have changed without the store; cheap

Messages to the page: "curves" carry `control`, `notices` and `alarms`; "acted" {by, number, words, failed} says, in all
views of the run, that an action is in effect, or why it is not. From the page: "act" {action, values}, "settings".
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError, StoreError
from workbench.settings import METHODS
from workbench.settings.meanings import meanings
from workbench.views.alarms import Alarm, alarms
from workbench.views.base import Ask
from workbench.views.text import visible

if TYPE_CHECKING:
    from workbench.store import Store
    from workbench.views.curves import Curves

FIXED = "It cannot change within a run: rows and draws follow from it. Start a new run."
FIRST = ("lr", "steps")
"""the settings that stand at the head of the list"""


class Controls:
    """Mixed into a view: `on_act` hands an action to `control`, which answers at once and again when it is done."""

    control: Any = None
    """None: a run to look at, say of another process"""
    store: Store
    curves: Curves
    _alarms: tuple[Any, list[Alarm], float] = (None, [], 0.0)
    """of which state of the curves, the alarms, and when to look again"""
    _pulse: Any = None

    # -- from the page ---------------------------------------------------------------------------------------

    def on_act(self, ask: Ask, action: str = "", values: Any = None) -> dict[str, Any]:
        if self.control is None:
            raise RunError(self._only_looks())
        values = values if isinstance(values, dict) else {}
        return {"words": visible(self.control.act(str(action), values, partial(self._acted, ask.view, ask.number)))}

    def _acted(self, by: str | None, number: Any, words: str, failed: str) -> None:
        """On the worker: an action is in effect, or it failed. What can be done now is sent before that is said."""
        self.watch()
        with contextlib.suppress(StoreError, sqlite3.Error):  # the thread that follows the run says so
            self._send_new()
        self.tell("acted", {"by": by, "number": number, "words": visible(words), "failed": visible(failed)})

    def on_settings(self, ask: Ask) -> dict[str, Any]:
        return {"settings": described(self.store)}

    # -- to the page -----------------------------------------------------------------------------------------

    def beside(self) -> dict[str, Any]:
        """What goes with the curves: what can be done, what is wrong, what was edited."""
        if self.control is None:
            made = {"control": {"why": self._only_looks(), "can": {}}, "notices": []}
        else:
            made = {"control": self.control.state(), "notices": self.control.notices()}
        return seen(made) | {"alarms": [seen(alarm.to_dict()) for alarm in self.alarms()]}

    def stirred(self) -> bool:
        """Whether something changed that the store does not show; cheap."""
        if self.control is None:
            return False
        before, self._pulse = self._pulse, self.control.pulse()
        return before != self._pulse

    def _only_looks(self) -> str:
        how = f"wb.resume({str(self.store.folder)!r})"
        if self.store.status == "running":
            return f"This view only looks: the run is going on elsewhere. To go on here, once it has stopped: {how}"
        return f"This view only looks. To go on with the run: {how}"

    def alarms(self) -> list[Alarm]:
        """The alarms of the curves as they are, looked for again when steps came, and not all the time."""
        known = sum(len(steps) for branches in self.curves.points.values() for steps, _ in branches.values())
        which = (tuple(self.curves.line), known)
        before, found, due = self._alarms
        began = time.monotonic()
        if which != before and began >= due:
            variable = "run" if self.control is None else self.control.variable
            found = alarms(self.curves, self.store.get("method", ""), self.store.settings(), variable)
            now = time.monotonic()
            self._alarms = (which, found, now + 20 * (now - began))
        return found


def seen(value: Any) -> Any:
    """`value` with every text in it made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {name: seen(item) for name, item in value.items()}
    return [seen(item) for item in value] if isinstance(value, (list, tuple)) else value


def described(store: Store) -> list[dict[str, Any]]:
    """The run's settings for a list that a person edits: name, value as text, kind, choices, what it does, and why it
    cannot be changed."""
    values, method = store.settings(), store.get("method", "")
    kinds = METHODS[method].__dataclass_fields__ if method in METHODS else {}
    about = meanings(method) if method in METHODS else {}
    names = [name for name in (*FIRST, *(name for name in kinds if name not in FIRST)) if name in values]
    made = []
    for name in names:
        field = kinds.get(name)
        kind, rule = ("", {}) if field is None else (str(field.type), field.metadata)
        choices = [str(choice) for choice in rule.get("choices", ())] if "tuple" not in kind else []
        choices = ["True", "False"] if kind == "bool" else choices
        if choices and "None" in kind.split(" | "):
            choices = ["None", *choices]
        if choices and written(values[name]) not in choices:  # of another version, say
            choices.append(written(values[name]))
        made.append(
            {
                "name": name, "value": written(values[name]), "kind": kind, "choices": choices,
                "about": about.get(name, ""), "fixed": FIXED if rule.get("fixed") else "",
            }
        )  # fmt: skip
    return seen(made)


def written(value: Any) -> str:
    """A setting's value as a person would type it: text without quotes, 1e-05 as 1e-5."""
    if isinstance(value, float):
        head, e, power = f"{value!r}".partition("e")
        return head + (f"e{int(power)}" if e else "")
    if isinstance(value, str):
        return value
    return repr(value)
