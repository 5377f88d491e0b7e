"""Curves through points: lines, shifted power laws, and planes. Least squares, numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """y = intercept + slope x: `slope`, `intercept`, `r2` and `pearson`; NaN where there are not two different x."""
    x, y = _known(x, y)
    if len(x) < 2 or np.ptp(x) == 0:
        return dict.fromkeys(("slope", "intercept", "r2", "pearson"), float("nan"))
    slope, intercept = np.polyfit(x, y, 1)
    pearson = float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) > 0 else float("nan")
    r2 = _r2(y, intercept + slope * x)
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2, "pearson": pearson}


def power_law(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """y = c - A x^(-alpha) for x above 0: `c`, `A`, `alpha` and `r2`. For each alpha the best c and A follow by a
    line; alpha itself is searched between 0.01 and 8, and below 0, where y bends upwards (then A is, too). NaN for
    fewer than three different x."""
    x, y = _known(x, y)
    x, y = x[x > 0], y[x > 0]
    if len(np.unique(x)) < 3:
        return dict.fromkeys(("c", "A", "alpha", "r2"), float("nan"))

    def solved(alpha: float) -> tuple[float, np.ndarray]:
        columns = np.stack([np.ones_like(x), -((x / x.min()) ** -alpha)], 1)
        found = np.linalg.lstsq(columns, y, rcond=None)[0]
        return float(((columns @ found - y) ** 2).sum()), found

    alpha = min((_searched(solved, sign) for sign in (1, -1)), key=lambda found: solved(found)[0])
    loss, (c, scaled) = solved(alpha)
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - loss / total if total else float("nan")
    return {"c": float(c), "A": float(scaled * x.min() ** alpha), "alpha": alpha, "r2": r2}


def _searched(solved: Callable[[float], tuple[float, np.ndarray]], sign: int) -> float:
    """The best alpha with this sign: on a grid, then on finer ones around its best point."""
    low, high = np.log(0.01), np.log(8.0)
    for _ in range(12):
        grid = np.linspace(low, high, 25)
        best = int(np.argmin([solved(sign * float(np.exp(a)))[0] for a in grid]))
        low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    return sign * float(np.exp((low + high) / 2))


def plane(columns: dict[str, Sequence[float]], y: Sequence[float]) -> dict[str, float]:
    """y = intercept + sum of a coefficient times each column: the coefficients by name, `intercept` and `r2`."""
    table = np.stack([np.ones(len(y)), *(np.asarray(values, dtype=np.float64) for values in columns.values())], 1)
    y = np.asarray(y, dtype=np.float64)
    found = np.linalg.lstsq(table, y, rcond=None)[0]
    named = dict(zip(["intercept", *columns], map(float, found), strict=True))
    return named | {"r2": _r2(y, table @ found)}


def _known(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    there = np.isfinite(x) & np.isfinite(y)
    return x[there], y[there]


def _r2(y: np.ndarray, fitted: np.ndarray) -> float:
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - fitted) ** 2).sum()) / total if total else float("nan")
