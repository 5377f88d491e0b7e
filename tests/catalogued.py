"""The catalogue as tests see it: every record, and the training call of its example with other settings.

`calls(names, entry)`      what the example hands to the method: policy, data, settings; nothing is run
`made(call, folder, ...)`  a run of it, with fewer rows and steps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import workbench as wb
from workbench import methods
from workbench.launch import launch
from workbench.published import entries, examples

ENTRIES = entries()
TRAINING = [name for name, entry in ENTRIES.items() if entry.trains]
STEPS = 3


class Captured(Exception):
    """The call of the example."""

    def __init__(self, policy: Any, data: Any, settings: dict[str, Any]):
        super().__init__("captured")
        self.policy, self.data, self.settings = policy, data, settings


class _Capturing:
    """`workbench`, whose `method(name)` keeps the call instead of making a run."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(wb, name)

    def method(self, name: str) -> Any:
        if ENTRIES.get(name) is None or name != self._name:
            return wb.method(name)

        def call(policy, data, *, out=None, eval_dataset=None, track=None, **settings):
            raise Captured(policy, data, settings)

        return call


@dataclass
class Call:
    """A training call."""

    name: str
    method: str
    policy: Any
    data: Any
    settings: dict[str, Any]

    def run(self, out, **changes) -> wb.Run:
        """A run of STEPS small steps, of the policy as it was."""
        given = dict(ENTRIES[self.name].sets) | self.settings
        settings = given | {"lr": 1e-3, "seed": 5, "snapshot_steps": 100, "steps": STEPS} | changes
        return launch(self.method, self.policy.reset(), self.data, out, None, settings, None)


def call_of(name: str, names: dict[str, Any]) -> Call:
    """The training call of the example of `name`, on the things in `names`."""
    entry = ENTRIES[name]
    names["policy"].reset()  # an example that samples gets the same data each time
    try:
        examples.run(entry, dict(names) | {"wb": _Capturing(name)})
    except Captured as call:
        return Call(name, entry.call, call.policy, call.data, call.settings)
    raise AssertionError(f"{name}: its example does not call wb.method({name!r})")


def takes(name: str) -> str:
    return methods.get(ENTRIES[name].call).takes
