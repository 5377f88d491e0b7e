"""TensorBoard: event files in the run's folder, written by torch's own writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from workbench import markdown
from workbench.tracking.tracker import Begin, Logged, Tracker


@dataclass(kw_only=True, eq=False)
class TensorBoard(Tracker):
    """`track="tensorboard"`, or `track=wb.TensorBoard(folder=...)`; look with `tensorboard --logdir <runs>`.

    Metrics are scalars over the run's own step; settings, events and rollouts are texts (Markdown, in which nothing
    that a model wrote can act). A resumed run writes on in the same folder. After a rewind the new line goes into a
    folder of its own, `branch-1`, with the steps before it repeated, so TensorBoard shows both lines whole.
    """

    folder: str | None = None
    """None: `tracking/tensorboard` in the run's folder; else a folder in which the run gets one by its name"""
    table_steps: int = 10
    table_rows: int = 32
    table_chars: int = 2000

    label: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    def start(self, begin: Begin) -> dict[str, Any]:
        from torch.utils.tensorboard import SummaryWriter

        folder = begin.folder if self.folder is None else Path(self.folder).expanduser() / begin.run
        self._writer = SummaryWriter(str(folder / f"branch-{begin.branch}" if begin.branch else folder))
        if not begin.remembered:
            rows = [[name, json.dumps(value, ensure_ascii=False)] for name, value in begin.config.items()]
            self._writer.add_text("settings", markdown.table(["name", "value"], rows), 0)
        return {"folder": str(self._writer.log_dir)}

    def log(self, step: Logged) -> None:
        for name, value in {**step.metrics, "train/seconds": step.seconds}.items():
            self._writer.add_scalar(name, value, step.step, walltime=step.created)

    def event(self, step: int, kind: str, text: str, payload: dict[str, Any]) -> None:
        self._writer.add_text(f"events/{kind}", markdown.escape(text), step)

    def rollouts(self, step: int, columns: Sequence[str], rows: list[list[Any]]) -> None:
        self._writer.add_text("rollouts", markdown.table(columns, rows), step)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, status: str) -> None:
        self._writer.close()
