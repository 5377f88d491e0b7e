"""What the examples of the records run on: small things that everyone has."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.published.entry import Entry

SIZE = 32
"""rows"""


def namespace(out: str | Path, policy: Any = None) -> dict[str, Any]:
    """The names of an example: `wb`, `policy` (the shipped model with a LoRA of rank 8), `rows`, `pairs`, `task`,
    `out`."""
    task = wb.task("sums", size=SIZE)
    sums = task.rows.to_list()
    rows = [{**row, "completion": _worked(row["sum"], row["answer"])} for row in sums]
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": _worked(row["sum"], row["answer"]),
            "rejected": _worked(row["sum"], row["answer"] + 1),
        }
        for row in sums
    ]
    if policy is None:
        policy = wb.load("tiny").attach(wb.LoRA(r=8))
    return {"wb": wb, "policy": policy, "rows": rows, "pairs": pairs, "task": task, "out": Path(out)}


def _worked(terms: str, answer: int) -> str:
    return f" {terms}={answer}\n#### {answer}"


def run(entry: Entry, names: dict[str, Any]) -> Any:
    """Runs the example of a record; the value of its last line."""
    tree = ast.parse(entry.example)
    *before, last = tree.body
    exec(compile(ast.Module(before, []), entry.name, "exec"), names)
    return eval(compile(ast.Expression(last.value), entry.name, "eval"), names)
