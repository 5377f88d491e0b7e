"""Errors are for people: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from workbench.text import visible


class WorkbenchError(Exception):
    """The base of every error workbench raises on purpose."""

    def __str__(self) -> str:
        """What it quotes, names and texts of rows and models, is shown by a terminal and not obeyed."""
        return visible(super().__str__())


class SettingError(WorkbenchError, ValueError):
    """A setting is unknown, out of range, or does not go with another."""


class DataError(WorkbenchError, ValueError):
    """Rows, a column, a chat template or a file is not what the work needs."""


class RewardError(WorkbenchError):
    """A reward function raised, or answered with something that is not a reward."""


class StoreError(WorkbenchError):
    """A run folder cannot be read or written."""


class RunError(WorkbenchError):
    """A run cannot do what was asked of it in the state it is in."""


class Interrupted(WorkbenchError):
    """Work was asked to stop in mid-step; whoever started the step undoes it."""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The shortest option that begins with `name`, else the one most like it, or None when nothing comes close."""
    name, lowered = name.lower(), {option.lower(): option for option in options}
    begun = sorted((option for option in lowered if option.startswith(name)), key=len) if len(name) > 2 else []
    hits = begun or difflib.get_close_matches(name, lowered, n=1, cutoff=0.6)
    return lowered[hits[0]] if hits else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest option, or an empty string."""
    hit = nearest(name, options)
    return f" Did you mean {hit!r}?" if hit else ""
