"""What a tracker is: a place outside the run's folder that its numbers are copied to, as they are committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from workbench.errors import SettingError


@dataclass(frozen=True)
class Begin:
    """What a tracker learns of the line of steps it is to follow."""

    name: str
    """of the line: the run's name, and the branch after a rewind"""
    run: str
    """the run's name, common to its lines"""
    method: str
    folder: Path
    """a folder of the tracker's own inside the run's; made when it is first needed"""
    config: dict[str, Any]
    """the settings by name; `method`, `policy`, `data`, `eval`, `versions`, `parent`, `branch`, `came_from`"""
    branch: int
    remembered: dict[str, Any]
    """what `start` returned when this line was begun; {} for a line that is new"""
    say: Callable[[str], None]
    """prints a line under the cell that trains"""


@dataclass(frozen=True)
class Logged:
    """One committed step."""

    step: int
    branch: int
    seconds: float
    created: float
    """when it was committed, in seconds since 1970"""
    metrics: dict[str, float]


class Tracker:
    """The base of all trackers; one of your own overrides what it needs.

    All calls come from one thread of its own, which reads the run's store: a tracker never sees a step that is not
    committed, and it may raise, be slow or hang without any harm to the run (see `tracking.feed`). `start` comes
    first, then `log`, `event` and `rollouts` in the order of the steps, then `finish`. After `finish` the same object
    may be started again: to go on with the line (`remembered` is what `start` returned), or, after a rewind, with a
    new one, which begins at step 0 so that its curves are whole.
    """

    label: ClassVar[str] = ""
    """its name in messages and in the run's folder; the class's name by default"""
    package: ClassVar[str] = ""
    """the module it imports, if that may be missing"""
    install: ClassVar[str] = ""
    """what to give to pip for it"""
    table_steps: int = 10
    """a table of rollouts every so many steps, and at the end; 0: never"""
    table_rows: int = 32
    """most rows of a table"""
    table_chars: int = 2000
    """longest text in a table; the rest is cut"""

    def check(self) -> None:
        """Raise SettingError if it cannot be used here. Called before any work."""
        if self.package and find_spec(self.package) is None:
            raise SettingError(
                f"track={self.label!r} needs the package {self.package}, which is not installed: "
                f"pip install {self.install or self.package}"
            )

    def start(self, begin: Begin) -> dict[str, Any] | None:
        """Begin a line of steps, or go on with it. What is returned (JSON) is remembered for going on."""

    def log(self, step: Logged) -> None:
        """The metrics of one committed step."""

    def event(self, step: int, kind: str, text: str, payload: dict[str, Any]) -> None:
        """A change of settings ('set'), a rewind, an error, or another event of the run, in words too."""

    def rollouts(self, step: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        """Completions of a step. Texts are cut, and hidden characters in them are shown; nothing else is escaped."""

    def flush(self) -> None:
        """What was sent should be seen. Called when the run pauses and at the end of each batch of steps."""

    def finish(self, status: str) -> None:
        """The run has ended for now: 'finished', 'stopped', 'failed', 'paused', or 'rewound' for a line given up."""
