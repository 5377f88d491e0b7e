"""Held-out metrics from rewards: accuracy and pass@k. Pure functions of numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.errors import SettingError

RIGHT = 1.0
"""a sample is right when the reward function that judges it (a task's `verdict`) gives this or more"""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples is right, from n samples of which c are: 1 - C(n-c, k) / C(n,
    k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, section 2.1), as a product of n - c < n
    factors, so that no binomial overflows. SettingError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise SettingError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}.")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def right(verdict: Sequence[float], threshold: float = RIGHT) -> np.ndarray:
    """float64 (N,): 1.0 where the verdict is at least `threshold`, 0.0 below it, NaN where it is NaN (not
    judged).
    """
    verdict = np.asarray(verdict, dtype=np.float64)
    return np.where(np.isnan(verdict), np.nan, (verdict >= threshold).astype(np.float64))


def accuracy(verdict: Sequence[float], threshold: float = RIGHT) -> float:
    """The share of the judged samples (N,) that are right; NaN where none was judged."""
    return _mean(right(verdict, threshold))


def mean_pass_at_k(
    verdict: Sequence[float], groups: Sequence[int], k: int, threshold: float = RIGHT
) -> float:
    """pass@k of each group (the samples of one prompt), averaged over groups.

    `verdict`, `groups`: (N,). Samples that were not judged are left out, and with them a group of which fewer
    than k remain; NaN where no group remains. SettingError where a group has fewer than k samples to begin
    with.
    """
    correct, groups = right(verdict, threshold), np.asarray(groups)
    if correct.shape != groups.shape:
        raise SettingError(f"pass@{k}: {correct.size} verdicts for {groups.size} group numbers.")
    values = []
    for group in np.unique(groups):
        samples = correct[groups == group]  # (n,)
        if len(samples) < k:
            raise SettingError(f"pass@{k} needs {k} samples of a prompt; group {group} has {len(samples)}.")
        judged = samples[~np.isnan(samples)]
        if len(judged) >= k:
            values.append(pass_at_k(len(judged), int(judged.sum()), k))
    return _mean(np.asarray(values))


def metrics(
    verdict: Sequence[float],
    reward: Sequence[float],
    groups: Sequence[int],
    ks: Sequence[int] = (8,),
    threshold: float = RIGHT,
) -> dict[str, float]:
    """`eval/accuracy`, `eval/reward` and `eval/pass@<k>` for each k, of N held-out samples.

    `verdict`: (N,) the rewards of the function that says right or wrong; `reward`: (N,) the totals; `groups`:
    (N,) the prompt each sample belongs to. NaN stands for "no reward" and is left out of each mean.
    `eval/unjudged`, the share of samples without a verdict, is there when there are any.
    """
    verdict = np.asarray(verdict, dtype=np.float64)
    found = {
        "eval/accuracy": accuracy(verdict, threshold),
        "eval/reward": _mean(np.asarray(reward, dtype=np.float64)),
    }
    for k in ks:
        found[f"eval/pass@{k}"] = mean_pass_at_k(verdict, groups, k, threshold)
    if np.isnan(verdict).any():
        found["eval/unjudged"] = float(np.isnan(verdict).mean())
    return found


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
