"""Metrics for drawing: thinned by SQL, so that a run of 50,000 steps never becomes 600,000 rows in Python.

A stretch of steps is cut into buckets; of each bucket and metric the lowest and the highest value come back, at the
steps they belong to, so that no spike is lost. The table is kept in the order of branch and step, so each bucket is one
short read. NaN, which the table keeps as NULL, comes back where a bucket has nothing else.
"""

from __future__ import annotations

import math

from workbench.store.file import Store

Piece = tuple[str, list[float], list[float]]
"""name, steps, values"""

RATE = "tokens per second"
"""no metric of the store: see `rates`"""

_RANGE = "FROM metrics WHERE branch = ? AND step > ? AND step <= ?"


def version(store: Store) -> tuple[int, int]:
    """What changes whenever something was committed to the store, by this connection or another: one cheap question."""
    return store.query("PRAGMA data_version")[0][0], store.query("SELECT total_changes()")[0][0]


def pieces(store: Store, branch: int, after: int, upto: int, most: int) -> list[Piece]:
    """Every metric of the steps after `after` and up to `upto` that were written on `branch`.

    At most `most` points each, two a bucket, and the first and the last; all of them where there are no more. In the
    order in which the metrics first came.
    """
    if upto - after <= most:
        return _gathered(store.query(f"SELECT name, step, value {_RANGE} ORDER BY step, name", (branch, after, upto)))
    width = math.ceil((upto - after) / max(1, most // 2 - 2))
    rows = []
    for low in range(after, upto, width):
        where = (branch, low, min(low + width, upto))
        # with MIN or MAX, the other columns are those of the row that has it
        found = {*store.query(f"SELECT name, step, MIN(value) {_RANGE} GROUP BY name", where)}
        found |= {*store.query(f"SELECT name, step, MAX(value) {_RANGE} GROUP BY name", where)}
        if low == after:
            found |= {*store.query(f"SELECT name, MIN(step), value {_RANGE} GROUP BY name", where)}
        if low + width >= upto:
            found |= {*store.query(f"SELECT name, MAX(step), value {_RANGE} GROUP BY name", where)}
        rows += sorted(found, key=lambda row: (row[1], row[0]))
    return _gathered(rows)


def _gathered(rows: list[tuple[str, int, float | None]]) -> list[Piece]:
    """By name; a step that comes twice in a row counts once."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name, step, value in rows:
        steps, values = found.setdefault(name, ([], []))
        if not steps or step > steps[-1]:
            steps.append(float(step))
            values.append(math.nan if value is None else value)
    return [(name, *points) for name, points in found.items()]


def rates(store: Store, branch: int, after: int, upto: int, before: float | None) -> tuple[Piece, float | None]:
    """Tokens per second of the steps after `after` up to `upto` of `branch`: what num_tokens grew by, over the step's
    seconds. And num_tokens at the last of them.

    It is worked out here and not stored, for no metric of a run depends on the clock. `before`: num_tokens at `after`;
    None where it is not known: then the first of the steps has no rate, unless it is step 1, at which counting began.
    """
    found = store.query(
        "SELECT s.step, s.seconds, m.value FROM steps s JOIN metrics m ON m.branch = s.branch AND m.step = s.step"
        " AND m.name = 'num_tokens' WHERE s.branch = ? AND s.step > ? AND s.step <= ? ORDER BY s.step",
        (branch, after, upto),
    )
    steps, values = [], []
    for step, seconds, tokens in found:
        if tokens is None:
            continue
        before = 0.0 if before is None and step == 1 else before
        if before is not None and seconds > 0:
            steps.append(float(step))
            values.append((tokens - before) / seconds)
        before = tokens
    return (RATE, steps, values), before


def tokens_at(store: Store, step: int, branch: int) -> float | None:
    """num_tokens after `step` of the line to `branch`."""
    where, values = store._on_path(branch)
    found = store.query(
        f"SELECT value FROM metrics WHERE {where} AND step = ? AND name = 'num_tokens'", [*values, step]
    )
    return found[0][0] if found else None
