"""What every selection needs: scores, higher meaning picked first, and selectors, which turn them into rows.

A selection is judged against chance: `Selection` always holds a random one of the same size and seed, and compares the
lengths (and sources) of both. Draws are keyed by the seed alone. Numpy only, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import keys
from workbench.analyses.picture import Result, add, axes, sheet, tint
from workbench.data import Rows
from workbench.data import rows as read_rows
from workbench.errors import DataError, SettingError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass
class Selection:
    """Rows that were picked: `indices` into the pool, in order of picking, and the pool's `scores` where there are any.

    `rows()` gives the picked rows, `report()` compares them with as many random ones.
    """

    pool: Rows
    indices: list[int]
    scores: np.ndarray | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self) -> Rows:
        """The picked rows, as `wb.sft` takes them."""
        records = self.pool.to_list()
        return read_rows([records[i] for i in self.indices])

    def chance(self) -> list[int]:
        """As many rows picked at random, by the same seed."""
        return random(len(self.pool), len(self.indices), self.seed)

    def report(self) -> Result:
        """Lengths (characters of all texts of a row) and `source` (where rows have such a column) of the picked rows,
        of as many random ones, and of the pool."""
        import pandas as pd

        records = self.pool.to_list()
        sides = {"picked": self.indices, "random": self.chance(), "pool": range(len(records))}
        rows = [
            {"rows": name, "length": length_of(records[i]), "source": str(records[i].get("source", ""))}
            | ({} if self.scores is None else {"score": float(self.scores[i])})
            for name, picked in sides.items()
            for i in picked
        ]
        frame = pd.DataFrame(rows)
        means = {
            f"mean length, {name}": float(part["length"].mean()) for name, part in frame.groupby("rows", sort=False)
        }
        summary = {"picked": len(self.indices), "of": len(records)} | means
        return Result("Selection", frame, _histogram, summary, notes=list(self.notes))

    def __repr__(self) -> str:
        notes = "".join(f" {note}" for note in self.notes)
        return f"<Selection: {len(self.indices)} of {len(self.pool)} rows.{notes}>"


def _histogram(result: Result) -> Figure:
    from plotly.graph_objects import Histogram

    figure = sheet(result.title)
    for i, (name, part) in enumerate(result.frame.groupby("rows", sort=False)):
        add(figure, Histogram(x=part["length"], name=name, histnorm="probability", marker={"color": tint(i, 0.55)}))
    axes(figure, "characters of a row", "share of rows")
    figure.update_layout(barmode="overlay")
    return figure


def pool_of(rows: Any, least: int = 1) -> Rows:
    """Any rows that `wb.rows` reads. Raises DataError for fewer than `least`."""
    pool = read_rows(rows)
    if len(pool) < least:
        raise DataError(f"There are {len(pool)} rows to choose from; at least {least} are needed.")
    return pool


def check_count(k: int, pool: int) -> int:
    """`k` rows of a pool of this size. Raises SettingError where it is none, or more than there are."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= pool:
        raise SettingError(f"k={k!r} must be a whole number from 1 to {pool}, the rows there are.")
    return int(k)


def length_of(row: Mapping[str, Any]) -> int:
    """Characters of a row's texts: prompt, completion, messages, text."""
    return sum(len(_text(row[name])) for name in ("text", "prompt", "completion", "messages") if row.get(name))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(str(message.get("content", "")) for message in value)


# -- selectors: indices of a pool ------------------------------------------------------------------------------


def random(n: int, k: int, seed: int) -> list[int]:
    """`k` of `n` rows, by the seed."""
    return [int(i) for i in keys.permutation(keys.key(seed, "select", "random"), n)[:k]]


def top_k(scores: Sequence[float], k: int) -> list[int]:
    """The `k` highest scores, highest first; NaN is never picked, ties go to the first. Raises DataError where fewer
    have a score."""
    values = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    order = [int(i) for i in order if not np.isnan(values[i])]
    if len(order) < k:
        raise DataError(f"Only {len(order)} of {len(values)} rows have a score, and k={k} are wanted.")
    return order[:k]


def threshold(scores: Sequence[float], least: float) -> list[int]:
    """All rows that score at least this much, in the pool's order."""
    return [i for i, score in enumerate(scores) if score >= least]


def quota_by_bin(bins: Sequence[Any], quotas: Mapping[Any, int], seed: int) -> tuple[list[int], list[str]]:
    """So many rows of each bin, drawn by the seed. A bin that runs short is filled up from the nearest ones in the
    order of `quotas`; what was done is said."""
    order = list(quotas)
    ready = {name: [i for i, found in enumerate(bins) if found == name] for name in order}
    for name, members in ready.items():
        drawn = keys.permutation(keys.key(seed, "select", "bin", str(name)), len(members))
        ready[name] = [members[i] for i in drawn]
    picked, notes = [], []
    missing = {}
    for name, quota in quotas.items():
        picked += ready[name][:quota]
        missing[name] = quota - len(ready[name][:quota])
        ready[name] = ready[name][quota:]
    for name, short in missing.items():
        near = sorted(
            (other for other in order if other != name), key=lambda o: abs(order.index(o) - order.index(name))
        )
        for other in near:
            taken, ready[other] = ready[other][:short], ready[other][short:]
            if taken:
                notes.append(f"{len(taken)} rows of {other!r} stand in for {name!r}, which ran short.")
            picked, short = picked + taken, short - len(taken)
    return picked, notes


def cluster_quota(
    labels: Sequence[int], budget: Mapping[int, int], weights: Sequence[float], seed: int, taken: Sequence[int] = ()
) -> list[int]:
    """So many rows of each cluster, drawn without replacement with probability in proportion to `weights`, none of
    `taken`."""
    picked: list[int] = []
    for label, quota in budget.items():
        members = [i for i, found in enumerate(labels) if found == label and i not in set(taken)]
        picked += [members[j] for j in _draw([weights[i] for i in members], quota, keys.key(seed, "cluster", label))]
    return picked


def _draw(weights: Sequence[float], count: int, key: int) -> list[int]:
    """`count` places without replacement, with probability in proportion to their weights (Efraimidis and Spirakis
    2006): those with the largest u^(1 / w)."""
    if not len(weights):
        return []
    uniform = np.clip(keys.uniforms(key, len(weights)), 1e-300, None)
    with np.errstate(divide="ignore"):
        race = np.log(uniform) / np.asarray(weights, dtype=np.float64)
    return [int(i) for i in np.argsort(-race, kind="stable")[:count]]


def k_center(vectors: np.ndarray, k: int, start: Sequence[int]) -> list[int]:
    """From `start` on, always the row that is farthest (Euclid) from those picked (Sener and Savarese 2017, arXiv
    1708.00489); vectors (N, D). Returns the k new ones."""
    nearest = np.full(len(vectors), np.inf)
    for i in start:
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[i], axis=1))
    picked: list[int] = []
    for _ in range(k):
        nearest[[*start, *picked]] = -np.inf
        picked.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[picked[-1]], axis=1))
    return picked


def k_means(vectors: np.ndarray, k: int, seed: int, rounds: int = 300, starts: int = 5) -> np.ndarray:
    """Labels (N,) of Lloyd's algorithm with k-means++ starts (Arthur and Vassilvitskii 2007); the best of `starts`."""
    best, least = np.zeros(len(vectors), dtype=np.int64), np.inf
    for start in range(starts):
        centres = _plus_plus(vectors, k, keys.key(seed, "k-means", start))
        for _ in range(rounds):
            distance = _squared(vectors, centres)
            labels = distance.argmin(1)
            moved = np.stack([vectors[labels == j].mean(0) if (labels == j).any() else centres[j] for j in range(k)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        cost = float(_squared(vectors, centres).min(1).sum())
        if cost < least - 1e-12:
            best, least = labels, cost
    return best


def _plus_plus(vectors: np.ndarray, k: int, key: int) -> np.ndarray:
    uniform = keys.uniforms(key, k)
    chosen = [int(uniform[0] * len(vectors))]
    for u in uniform[1:]:
        distance = _squared(vectors, vectors[chosen]).min(1)
        total = distance.cumsum()
        chosen.append(int(np.searchsorted(total, u * total[-1], side="right")) if total[-1] > 0 else chosen[-1])
    return vectors[np.minimum(chosen, len(vectors) - 1)]


def _squared(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, K)"""
    return np.maximum((vectors**2).sum(1)[:, None] - 2 * vectors @ centres.T + (centres**2).sum(1)[None], 0.0)
