"""What other rewards change within the groups of rollouts: ranks, flips, groups that die or come alive.

Pure functions of a table with columns step, group_id, reward, new_reward, advantage, new_advantage, one row a rollout.
A group is alive where some advantage in it is not zero: only then does it teach anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

NOISE = 1e-9
"""an advantage this near zero is zero: what is left of a mean that floating point did not hit"""
GROUP = ["step", "group_id"]


def sign(advantage: Any) -> np.ndarray:
    """(N,) -1, 0 or 1; NaN counts as 0."""
    values = np.nan_to_num(np.asarray(advantage, dtype=np.float64))
    return np.where(np.abs(values) <= NOISE, 0.0, np.sign(values))


def with_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with `flips` (the advantage changes sign), `rank` and `new_rank` (of the reward within the group: 1 is
    the best, equal rewards share the better rank, NaN where there is no reward)."""
    groups = [frame[name] for name in GROUP]
    made = frame.copy()
    made["flips"] = sign(frame["advantage"]) * sign(frame["new_advantage"]) < 0
    for name, of in (("rank", "reward"), ("new_rank", "new_reward")):
        made[name] = frame[of].groupby(groups, sort=False).rank(method="min", ascending=False)
    return made


def groups_of(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a group of a table that `with_changes` made, in the order of the steps.

    step, group_id, prompt, size; alive, new_alive; change ('died', 'came alive' or ''); flips; reordered: pairs of
    rollouts that stand the other way round now, of `pairs`, those with both rewards that either tells apart; tau:
    Kendall's tau-b of old and new rewards (1 the same order, -1 the opposite, NaN where one of them tells nobody
    apart); best_changed: none of the best now was among the best before; reward, new_reward: means.
    """
    import pandas as pd

    codes = frame.groupby(GROUP, sort=True).ngroup().to_numpy()
    n = int(codes.max()) + 1 if len(codes) else 0
    order = np.argsort(codes, kind="stable")
    first = order[np.searchsorted(codes[order], np.arange(n))] if n else order

    def count(of: np.ndarray) -> np.ndarray:
        return np.bincount(codes, weights=of, minlength=n).astype(np.int64)

    alive, new_alive = (count(sign(frame[name]) != 0) > 0 for name in ("advantage", "new_advantage"))
    old_best, new_best = (frame[name].to_numpy() == 1 for name in ("rank", "new_rank"))
    reordered, pairs, tau = _pairs(codes, frame["reward"].to_numpy(float), frame["new_reward"].to_numpy(float), n)
    return pd.DataFrame({
        "step": frame["step"].to_numpy()[first], "group_id": frame["group_id"].to_numpy()[first],
        "prompt": frame["prompt"].to_numpy()[first], "size": np.bincount(codes, minlength=n),
        "alive": alive, "new_alive": new_alive,
        "change": np.where(alive & ~new_alive, "died", np.where(new_alive & ~alive, "came alive", "")),
        "flips": count(frame["flips"].to_numpy()), "reordered": reordered, "pairs": pairs, "tau": tau,
        "best_changed": (count(old_best) > 0) & (count(new_best) > 0) & (count(old_best & new_best) == 0),
        "reward": _means(codes, frame["reward"].to_numpy(float), n),
        "new_reward": _means(codes, frame["new_reward"].to_numpy(float), n),
    })  # fmt: skip


def _means(codes: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(n,) of the values that are known."""
    known = ~np.isnan(values)
    counts = np.bincount(codes[known], minlength=n)
    sums = np.bincount(codes[known], weights=values[known], minlength=n)
    return np.divide(sums, counts, out=np.full(n, np.nan), where=counts > 0)


def _pairs(codes: np.ndarray, old: np.ndarray, new: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `n` groups: pairs that change places, pairs that either side orders, and Kendall's tau-b:
    (concordant - discordant) / sqrt(pairs ordered before * pairs ordered after) (Kendall 1945). Of rollouts with a
    reward on both sides: of the others no order is known."""
    known = ~(np.isnan(old) | np.isnan(new))
    codes, old, new = codes[known], old[known], new[known]
    order = np.argsort(codes, kind="stable")
    code, a, b = codes[order], old[order], new[order]
    reordered, either, before, after, agree = (np.zeros(n) for _ in range(5))
    at = np.arange(len(code))
    for gap in range(1, int(np.bincount(codes).max()) if len(codes) else 0):
        at = at[at + gap < len(code)]
        at = at[code[at] == code[at + gap]]  # two of one group, `gap` apart
        x, y = (np.sign(v[at] - v[at + gap]) for v in (a, b))
        for total, of in ((reordered, x * y < 0), (either, (x != 0) | (y != 0)), (before, x != 0), (after, y != 0)):
            total += np.bincount(code[at], weights=of, minlength=n)
        agree += np.bincount(code[at], weights=x * y, minlength=n)
    scale = np.sqrt(before * after)
    tau = np.divide(agree, scale, out=np.full(n, np.nan), where=scale > 0)
    return reordered.astype(np.int64), either.astype(np.int64), tau


def summary_of(frame: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Any]:
    """The numbers to read first, of a table and its `groups_of`. `rank_correlation`: the mean of tau over the groups
    that have one; NaN where none has."""
    taus = groups["tau"].to_numpy(float)
    taus = taus[~np.isnan(taus)]
    return {
        "rollouts": len(frame),
        "unscored": int(frame["new_reward"].isna().sum()),
        "flips": int(frame["flips"].sum()),
        "groups": len(groups),
        "alive_before": int(groups["alive"].sum()),
        "alive_after": int(groups["new_alive"].sum()),
        "died": int((groups["change"] == "died").sum()),
        "came_alive": int((groups["change"] == "came alive").sum()),
        "best_changed": int(groups["best_changed"].sum()),
        "reward_before": _mean(frame["reward"]),
        "reward_after": _mean(frame["new_reward"]),
        "rank_correlation": float(taus.mean()) if len(taus) else float("nan"),
    }


def _mean(column: pd.Series) -> float:
    values = column.to_numpy(float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
