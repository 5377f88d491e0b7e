"""What a run is made of: its rows or its task as given, as recorded and as prepared, and where it is written."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from typing import Any

from workbench import methods, update, worker
from workbench import settings as settings_of
from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.errors import DataError
from workbench.methods import reference
from workbench.policy import Policy
from workbench.sharing.card import versions
from workbench.tasks import Task, rebuild

EVAL = "eval_dataset"
"""what warnings call held-out data"""


def source_of(method: methods.Method, data: Any) -> Rows | Task:
    """What the method takes, from `data` as given. Raises DataError where it is of the other kind."""
    if method.takes == "task":
        if not isinstance(data, Task):
            raise DataError(
                f"{settings_of.called(method.name)} needs a Task: wb.Task(rows, rewards=[...]) or"
                f" wb.task('gsm8k'). Got {type(data).__name__}."
            )
        return data
    if isinstance(data, Task):
        raise DataError(
            f"{settings_of.called(method.name)} trains on rows, not on a Task; give rows with the columns it reads."
        )
    return read_rows(data)


def held_out_of(data: Any, source: Rows | Task) -> Rows | Task | None:
    """The held-out data; rows beside a task are scored by the task's own rewards."""
    if data is None or isinstance(data, Task):
        return data
    held_out = read_rows(data)
    if isinstance(source, Task):
        return Task(held_out, source.functions, source.weights, verdict=source.verdict)
    return held_out


def rows_of(source: Rows | Task) -> Rows:
    return source.rows if isinstance(source, Task) else source


def spec_of(source: Rows | Task) -> dict[str, Any]:
    """The data as the run's record names it; `unspec` makes it again from that and the stored rows."""
    if isinstance(source, Task):
        return {"kind": "task", "task": source.spec()}
    return {"kind": "rows", "source": str(source.source), "digest": source.digest()}


def unspec(spec: dict[str, Any], rows: list[dict], rewards: Any) -> Rows | Task:
    """The rows or the task that gave `spec`. Raises RunError naming reward functions that are not to be had."""
    return rebuild(spec["task"], rows, rewards) if spec["kind"] == "task" else read_rows(rows)


def check(policy: Policy, settings: Any) -> None:
    """Raises SettingError, before any work, for settings that this model, adapter or machine cannot do."""
    update.check(policy, settings)
    reference.check(policy, settings)


def check_data(policy: Policy, settings: Any, *data: Any) -> None:
    """Raises DataError where a prompt and `max_new_tokens` do not fit into the model's context, or rows are too few."""
    for one in data:
        if hasattr(one, "prompts"):
            policy.check_lengths(one.prompts, settings.max_new_tokens)
        if hasattr(one, "longest"):  # what prompts may grow to
            policy.check_lengths(one.longest, settings.max_new_tokens)
        if hasattr(one, "check"):
            one.check(settings)


def prepared(
    method: methods.Method, policy: Policy, source: Rows | Task, held_out: Rows | Task | None, settings
) -> tuple[Any, Any]:
    """What the method reads, of the data to train on and of those held out. Raises DataError and SettingError."""
    made = prepare(method, policy, source, settings, "rows"), prepare_eval(method, policy, held_out, settings)
    check_data(policy, settings, *made)
    return made


def anew(method: methods.Method, policy: Policy, live: Any, before: Any) -> Any:
    """`live` with its data prepared again where a setting of the method's own is another one than in `before`: what a
    method reads may follow from those, and checks do. Raises as `prepared` does."""
    if all(getattr(before, name) == getattr(live.settings, name) for name in settings_of.own(method.name)):
        return live
    source = getattr(live.data, "task", live.source)
    return replace(live, data=prepare(method, policy, source, live.settings, "rows"))


def prepare(method: methods.Method, policy: Policy, source: Rows | Task, settings, what: str) -> Any:
    """What the method reads of the data; what tokenising found odd is said, under the name `what`."""
    check(policy, settings)
    method.check(policy, settings)
    read = (method.prepare_eval or method.prepare) if what == EVAL else method.prepare
    prepared = read(policy.tokenizer, source, settings)
    report = getattr(prepared, "report", None)
    if report is not None and not report.ok:
        worker.warn(f"{settings_of.called(method.name)}, {what}: " + "\n  ".join(report.lines()))
    return prepared


def prepare_eval(method: methods.Method, policy: Policy, held_out: Rows | Task | None, settings) -> Any:
    """The same of held-out data: a task is sampled whatever the method, rows are read as the method's own."""
    if held_out is None:
        return None
    if isinstance(held_out, Task):
        return methods.get("grpo").prepare(policy.tokenizer, held_out, settings)
    return prepare(method, policy, held_out, settings.for_evaluation(), EVAL)


def circumstances() -> dict[str, Any]:
    """When, where and with what a run is written."""
    return {
        "status": "new",
        "branch": 0,
        "created": time.time(),
        "versions": versions() | {"python": platform.python_version()},
        "writer": writer(),
    }


def writer() -> dict[str, Any]:
    """The process that writes a run."""
    return {"pid": os.getpid(), "host": platform.node()}
