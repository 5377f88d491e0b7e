"""Tracking: a run's numbers copied, step by step, to W&B, TensorBoard, trackio, or a tracker of your own.

`wb.grpo(..., track="wandb")` begins with the run, `run.track("tensorboard")` adds one to a run that has begun, and
`wb.open(folder).track("wandb")` uploads a run that has ended: all of them read the run's store, which has everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench.errors import RunError, SettingError, did_you_mean
from workbench.rewards.reference import refer, resolve
from workbench.store import Store
from workbench.tracking.feed import Feed
from workbench.tracking.tracker import Begin, Logged, Tracker

__all__ = ["Begin", "Logged", "Tracker", "Tracking", "trackers"]

NAMES = {
    "wandb": "workbench.tracking.wandb:Wandb",
    "tensorboard": "workbench.tracking.tensorboard:TensorBoard",
    "trackio": "workbench.tracking.trackio:Trackio",
}


def trackers(track: Any) -> list[Tracker]:
    """What `track` names: None, a name, a Tracker, or a list of these.

    Raises SettingError, before any work, for an unknown name, a package that is not installed, or a tracker that says
    it cannot be used.
    """
    wanted = [] if track is None else [track] if isinstance(track, (str, Tracker)) else track
    if not isinstance(wanted, Iterable):
        raise SettingError(f"track={track!r}: give a name ({', '.join(NAMES)}), a wb.Tracker, or a list of them.")
    made = [_tracker(item) for item in wanted]
    for tracker in made:
        tracker.check()
    return made


def _tracker(item: Any) -> Tracker:
    if isinstance(item, Tracker):
        return item
    if not isinstance(item, str):
        raise SettingError(
            f"track: {item!r} is neither a name ({', '.join(NAMES)}) nor a wb.Tracker"
            f"{' (a class: pass an instance)' if isinstance(item, type) else ''}."
        )
    if item not in NAMES:
        raise SettingError(f"track={item!r} is not known.{did_you_mean(item, NAMES)} Trackers: {', '.join(NAMES)}.")
    module, _, name = NAMES[item].partition(":")
    return getattr(import_module(module), name)()


def record(made: Sequence[Tracker]) -> list[dict[str, Any]]:
    """The trackers as JSON, for the run's meta: what to import and its arguments; None where that is not enough."""
    return [{"name": _label(tracker), "reference": refer(tracker)} for tracker in made]


def rebuild(entries: Sequence[dict[str, Any]], name: str) -> list[Tracker]:
    """The trackers that gave `record`. Those that cannot be had are named, and left out: a run goes on without them."""
    made = []
    for entry in entries:
        try:
            if entry["reference"] is None:
                raise SettingError("it was an object of this process")
            tracker = resolve(entry["reference"])
            tracker.check()
            made.append(tracker)
        except (SettingError, ImportError, AttributeError, TypeError) as error:
            print(f"{name}: goes on without its tracker {entry['name']} ({error}). To add it: run.track(...)")
    return made


def replay(folder: Path, made: Sequence[Tracker]) -> None:
    """Send what the run in `folder` holds and the trackers have not had, then finish them with the run's status.

    Raises RunError naming the trackers that failed.
    """
    following = Tracking(folder, made)
    store = Store(folder)
    status = store.status
    store.close()
    following.finish(status)
    following.wait()
    if failed := [f"{feed.key} ({feed.off})" for feed in following.feeds if feed.off]:
        raise RunError(f"{folder.name} could not be sent to {', '.join(failed)}. Calling again sends what is missing.")


def _label(tracker: Tracker) -> str:
    return tracker.label or type(tracker).__name__.lower()


class Tracking:
    """The trackers of one run. Nothing here waits or raises, but `wait` and `send`."""

    def __init__(self, folder: Path, made: Sequence[Tracker] = (), writer: Callable[[], Store | None] = lambda: None):
        self.folder = folder
        self.feeds: list[Feed] = []
        self._writer = writer
        for tracker in made:
            self.add(tracker)

    def add(self, tracker: Tracker) -> Feed:
        """Follow the run with one more tracker; it gets the steps there are, too, once there is something new."""
        # a tracker object holds what it has open, so each run has its own copy
        taken = {feed.key for feed in self.feeds}
        key = label = _label(tracker)
        number = 1
        while key in taken:
            number += 1
            key = f"{label}-{number}"
        feed = Feed(copy.copy(tracker) if refer(tracker) else tracker, key, self.folder, self._writer)
        self.feeds.append(feed)
        return feed

    def ring(self) -> None:
        """There is a new step."""
        for feed in self.feeds:
            feed.ring()

    def finish(self, status: str) -> None:
        """The run ended for now; what is left is sent, and the trackers are told."""
        for feed in self.feeds:
            feed.ring(ending=status)

    def wait(self, timeout: float | None = None) -> bool:
        """Until everything committed is sent; whether it was, within `timeout` seconds for each tracker."""
        return all([feed.wait(timeout) for feed in self.feeds])

    def __repr__(self) -> str:
        said = [f"{feed.key} ({'off: ' + feed.off if feed.off else 'following'})" for feed in self.feeds]
        return f"<Tracking {self.folder.name}: {', '.join(said) or 'none'}>"
