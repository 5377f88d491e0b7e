"""Looking at a run while it trains: its states every few steps, those it has made and those it has still to make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.analyses.paired import Side, side
from workbench.errors import SettingError
from workbench.run import Run
from workbench.sampling.decoder import check_whole


def checked(run: Any) -> Run:
    """The run. Raises SettingError for what is none, or was opened to look at."""
    if not isinstance(run, Run):
        raise SettingError(f"Give a run (wb.sft, wb.dpo, wb.grpo, wb.resume), not {type(run).__name__}.")
    side(run)
    return run


def visits(run: Run, every: int) -> Iterator[tuple[int, Side]]:
    """Every `every`-th step of the run, its first and its last one: the step's number, and the policy as it was after
    it. Steps that are made are restored; a run that has steps left is stepped to its end, as a loop over it does."""
    check_whole("every", every, 1)
    total, first = int(run.settings["steps"]), int(run.metrics.index.min())
    steps = iter(run)
    try:
        for index in sorted({first, total, *range(first - first % every, total, every)}):
            if index < first:
                continue
            while run.step < index and next(steps, None) is not None:
                pass
            if run.step < index:  # its time is over
                return
            yield index, side((run, index))
        if run.step >= run.settings["steps"]:
            next(steps, None)  # so that the run knows that it is finished
    finally:
        steps.close()
