"""Weights & Biases: one W&B run for each line of steps, all of a run in one group."""

from __future__ import annotations

import netrc
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

from workbench.errors import SettingError, did_you_mean
from workbench.tracking.tracker import Begin, Logged, Tracker

STEP = "train/step"
MODES = ("online", "offline", "disabled")
INIT_SECONDS = 10.0
FINISH_SECONDS = 5.0
"""what W&B may take to upload what is left at the end; the rest stays on disk for `wandb sync`"""
MOST_EVENTS = 100


@dataclass(kw_only=True, eq=False)
class Wandb(Tracker):
    """`track="wandb"`, or `track=wb.Wandb(project=...)`.

    Every metric is drawn over `train/step`, the run's own step, because W&B's steps only ever grow; `train/branch`
    and `train/seconds` stand beside it. A rewind begins another W&B run in the same group, with the steps before it
    repeated, and the first stays as it was; a resumed run goes on with the W&B run it had (`resume="allow"`), and a
    fork has its own, whose configuration names the parent. Rollouts are a `wandb.Table`, events lines of the
    configuration (`events`).

    Without a login or an API key, or without a network, the run is written offline, into the run's folder, and
    `wandb sync` uploads it.
    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_DIR are respected where the arguments leave them open.
    """

    project: str | None = None
    """None: WANDB_PROJECT, or "workbench" """
    entity: str | None = None
    group: str | None = None
    """None: the run's name"""
    tags: list[str] | None = None
    mode: str | None = None
    """"online", "offline" or "disabled"; None: WANDB_MODE, or as there is a login"""
    table_steps: int = 10
    table_rows: int = 32
    table_chars: int = 2000

    label: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    def check(self) -> None:
        super().check()
        if self.mode is not None and self.mode not in MODES:
            raise SettingError(
                f"Wandb(mode={self.mode!r}) is not known.{did_you_mean(str(self.mode), MODES)} "
                f"Modes: {', '.join(MODES)}."
            )

    def start(self, begin: Begin) -> dict[str, Any]:
        import wandb

        mode, why = self._mode()
        folder = os.environ.get("WANDB_DIR") or begin.folder
        Path(folder).mkdir(parents=True, exist_ok=True)
        known = begin.remembered.get("id")
        self._run = wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT") or "workbench",
            entity=self.entity,
            group=self.group or begin.run,
            tags=self.tags,
            name=begin.name,
            id=known or uuid.uuid4().hex[:12],
            resume="allow",
            job_type=begin.method,
            config=begin.config,
            dir=str(folder),
            mode=mode,
            reinit="create_new",  # a W&B run of the user's own goes on undisturbed
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True, console="off", save_code=False, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._events = list(begin.remembered.get("events", []))
        if why and not known:
            begin.say(
                f"{begin.name}: {why}, so its W&B run is kept on this disk. To upload it: "
                f"wandb sync {Path(self._run.dir).parent}"
            )
        return {"id": self._run.id, "url": self._run.url if mode == "online" else None}

    def _mode(self) -> tuple[str, str]:
        """The mode, and why, where it is offline without having been asked for."""
        asked = self.mode or os.environ.get("WANDB_MODE")
        if asked not in (None, "online"):
            return asked, ""
        if asked is None and not logged_in():
            return "offline", "there is no W&B login here (`wandb login` makes one)"
        return ("online", "") if answers() else ("offline", "W&B cannot be reached")

    def log(self, step: Logged) -> None:
        more = {STEP: step.step, "train/branch": step.branch, "train/seconds": step.seconds}
        self._run.log({**step.metrics, **more})

    def event(self, step: int, kind: str, text: str, payload: dict[str, Any]) -> None:
        self._events = [*self._events, f"step {step}: {kind}: {text}"[:1000]][-MOST_EVENTS:]
        changed = {name: new for name, (_, new) in payload.get("settings", {}).items()} if kind == "set" else {}
        self._run.config.update({"events": self._events, **changed}, allow_val_change=True)

    def rollouts(self, step: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        import wandb

        table = wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
        self._run.log({"rollouts": table, STEP: step})

    def finish(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=1 if status == "failed" else 0)


def answers() -> bool:
    """Whether the W&B server answers at all. Asked first, because W&B's own start waits long for one that does not,
    and so does the end of the process."""
    import wandb

    try:
        urllib.request.urlopen(wandb.setup().settings.base_url, timeout=3).close()
    except urllib.error.HTTPError:  # it answered
        return True
    except OSError:
        return False
    return True


def logged_in() -> bool:
    """Whether W&B has a key to use: in the environment, in this process, or in the netrc file."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    if settings.api_key:
        return True
    path = os.environ.get("NETRC") or next((p for p in ("~/.netrc", "~/_netrc") if Path(p).expanduser().is_file()), "")
    try:
        return netrc.netrc(Path(path).expanduser()).authenticators(urlparse(settings.base_url).hostname) is not None
    except (OSError, netrc.NetrcParseError):
        return False
