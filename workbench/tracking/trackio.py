"""trackio: a local SQLite store with the API of W&B, from Hugging Face."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from workbench import markdown
from workbench.tracking.tracker import Begin, Logged, Tracker


@dataclass(kw_only=True, eq=False)
class Trackio(Tracker):
    """`track="trackio"`, or `track=wb.Trackio(project=...)`; look with `trackio show`.

    Each line of steps is a trackio run, in a group by the run's name; after a rewind the new line repeats the steps
    before it. A resumed run goes on with the trackio run it had. Everything stays on this machine (TRACKIO_DIR),
    unless TRACKIO_SPACE_ID or `space_id` names a Space.
    """

    project: str = "workbench"
    space_id: str | None = None
    table_steps: int = 10
    table_rows: int = 32
    table_chars: int = 2000

    label: ClassVar[str] = "trackio"
    package: ClassVar[str] = "trackio"

    def start(self, begin: Begin) -> dict[str, Any]:
        import trackio

        name = begin.remembered.get("name") or f"{begin.name}-{uuid.uuid4().hex[:4]}"
        self._run = trackio.init(
            project=self.project,
            name=name,
            group=begin.run,
            space_id=self.space_id,
            config=begin.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return {"name": name}

    def log(self, step: Logged) -> None:
        more = {"train/branch": step.branch, "train/seconds": step.seconds}
        self._run.log({**step.metrics, **more}, step=step.step)

    def event(self, step: int, kind: str, text: str, payload: dict[str, Any]) -> None:
        self._run.log({f"events/{kind}": markdown.escape(text)}, step=step)

    def rollouts(self, step: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        import pandas as pd
        import trackio

        # trackio draws the text of a table as Markdown
        shown = [[markdown.escape(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        self._run.log({"rollouts": trackio.Table(dataframe=pd.DataFrame(shown, columns=list(columns)))}, step=step)

    def finish(self, status: str) -> None:
        self._run.finish()
