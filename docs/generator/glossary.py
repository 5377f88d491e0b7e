"""docs/metrics.md: the table of metrics, by group."""

from __future__ import annotations

import workbench as wb
from docs.generator.markdown import code, line, link, table, with_anchors
from workbench import glossary

HEAD = """# Metrics

What a run records at every step: the columns of `run.metrics`, the curves of `run.show()`, the numbers that trackers
get. `wb.metric("kl")` says the same in a notebook. Names are TRL's where it has one.
"""


def page() -> str:
    contents = "\n".join(f"- {link(name, name)}" for name in glossary.GROUPS)
    parts = [f"{HEAD}\n{contents}"]
    for group, about in glossary.GROUPS.items():
        members = [metric for metric in glossary.METRICS if metric.group == group]
        usual = _usual([m.methods for m in members])
        unless = ", but where a row says otherwise" if any(_other(m, usual) for m in members) else ""
        head = "" if usual is None else f"Recorded by {_methods(usual)}{unless}."
        rows = [[f"{code(m.name)}<br>{line(m.unit)}", line(m.what) + _other(m, usual), line(m.read)] for m in members]
        table_of = table(["metric", "what it is", "how to read it"], rows)
        parts += [f"## {group}", f"{line(about)} {head}".strip(), table_of]
    return with_anchors("\n\n".join(parts))


def _usual(each: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The methods of most rows; None where the rows of a group have little in common."""
    usual = max(each, key=each.count)
    return usual if 3 * each.count(usual) >= len(each) else None


def _methods(names: tuple[str, ...]) -> str:
    """As they are called: those of the catalogue by name, `wb.method(name)`."""
    return ", ".join(code(f"wb.{name}" if hasattr(wb, name) else name) for name in names) or "every method"


def _other(metric: glossary.Metric, usual: tuple[str, ...] | None) -> str:
    """What a row says besides: its methods, where they are not the usual ones of its group, and TRL's name."""
    said = f" ({_methods(metric.methods)})" if metric.methods != usual else ""
    return said + (f" TRL: {code(metric.trl)}." if metric.trl else "")
