"""What a run is made of: its rows or its task as given, as recorded and as prepared, and where it is written."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from typing import Any

from workbench import methods, update, worker
from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.errors import DataError
from workbench.methods import reference
from workbench.policy import Policy
from workbench.tasks import Task, rebuild


def source_of(method: methods.Method, data: Any) -> Rows | Task:
    if method.takes == "task":
        if not isinstance(data, Task):
            raise DataError(
                f"wb.{method.name} needs a Task: wb.Task(rows, rewards=[...]) or wb.task('gsm8k')."
                f" Got {type(data).__name__}."
            )
        return data
    if isinstance(data, Task):
        raise DataError(f"wb.{method.name} trains on rows, not on a Task; give rows with the columns it reads.")
    return read_rows(data)


def held_out_of(method: methods.Method, data: Any, source: Rows | Task) -> Rows | Task | None:
    if data is None or isinstance(data, Task):
        return data
    held_out = read_rows(data)
    if isinstance(source, Task):
        return Task(
            held_out,
            by_name(source),
            source.weights,
            verdict=source.verdict,
        )
    return held_out


def rows_of(source: Rows | Task) -> Rows:
    return source.rows if isinstance(source, Task) else source


def spec_of(source: Rows | Task) -> dict[str, Any]:
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


def prepared(
    method: methods.Method, policy: Policy, source: Rows | Task, held_out: Rows | Task | None, settings
) -> tuple[Any, Any]:
    """What the method reads, of the data to train on and of those held out. Raises DataError and SettingError."""
    return prepare(method, policy, source, settings, "rows"), prepare_eval(method, policy, held_out, settings)


def prepare(method: methods.Method, policy: Policy, source: Rows | Task, settings, what: str) -> Any:
    check(policy, settings)
    prepared = method.prepare(policy.tokenizer, source, settings)
    report = getattr(prepared, "report", None)
    if report is not None and not report.ok:
        worker.warn(f"wb.{method.name}, {what}: " + "\n  ".join(report.lines()))
    return prepared


def prepare_eval(method: methods.Method, policy: Policy, held_out: Rows | Task | None, settings) -> Any:
    if held_out is None:
        return None
    if isinstance(held_out, Task):
        return methods.get("grpo").prepare(policy.tokenizer, held_out, settings)
    return prepare(method, policy, held_out, settings.for_evaluation(), "eval_dataset")


def by_name(task: Task) -> dict[str, Any]:
    return dict(zip(task.reward_names, task.rewards, strict=True))


def circumstances() -> dict[str, Any]:
    """When, where and with what a run is written."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "status": "new",
        "branch": 0,
        "created": time.time(),
        "versions": versions | {"python": platform.python_version()},
        "writer": writer(),
    }


def writer() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node()}
