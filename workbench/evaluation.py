"""Held-out metrics from rewards: accuracy, pass@k and maj@k. Pure functions of numpy arrays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb

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
    return mean(right(verdict, threshold))


def mean_pass_at_k(
    verdict: Sequence[float], groups: Sequence[int], k: int, threshold: float = RIGHT
) -> float:
    """pass@k of each group (the samples of one prompt), averaged over groups.

    `verdict`, `groups`: (N,). Samples that were not judged are left out, and with them a group of which fewer
    than k remain; NaN where no group remains. SettingError where a group has fewer than k samples to begin
    with.
    """
    values = []
    for _, judged in _groups(verdict, groups, k, "pass", threshold):
        if len(judged) >= k:
            values.append(pass_at_k(len(judged), int(judged.sum()), k))
    return mean(values)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[float], k: int) -> float:
    """The chance that the answer which most of k samples give is right, for k drawn from these n samples of a prompt.

    `answers`: (n,) what each sample answers, equal where they agree; a sample without one (None) does not vote.
    `correct`: (n,) 1.0 where the sample is right, else 0.0. Where answers tie for most votes, one of them is taken
    at random, so a tie counts by the share of its answers that are right; where nobody votes nothing is right.

    Self-consistency (Wang et al. 2022, arXiv 2203.11171). The value is the mean over all C(n, k) subsets (at k = n
    the vote of all), so its expectation does not depend on n, as for `pass_at_k`: the unbiased estimate. It is summed
    answer by answer: an answer with c of the n votes takes m of k in C(c, m) ways, and the other samples fill up the
    k - m without one of their answers passing m. SettingError unless 1 <= k <= n and there is a verdict a sample.
    """
    n = len(answers)
    if len(correct) != n or not 1 <= k <= n:
        raise SettingError(f"maj@k: {n} answers, {len(correct)} verdicts, k={k}; it needs n of each and 1 <= k <= n.")
    counts: dict[Hashable, int] = {}
    rights: dict[Hashable, float] = {}
    for answer, right_one in zip(answers, correct, strict=True):
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            rights[answer] = rights.get(answer, 0.0) + float(right_one)
    silent = n - sum(counts.values())
    value = 0.0
    for count in set(counts.values()):  # answers with as many votes have the same chance
        # samples of one answer may be judged differently: the share of them that is right
        share = sum(rights[answer] / count for answer, c in counts.items() if c == count)
        if share:
            others = sorted(counts.values())
            others.remove(count)
            value += share * _wins(count, others, silent, k)
    return value


def _wins(count: int, others: Sequence[int], silent: int, k: int) -> float:
    """The chance that an answer with `count` votes has most of k drawn ones, ties shared evenly."""
    won = 0.0
    for m in range(1, min(count, k) + 1):
        # ways[s, t]: to draw s of the other samples with t answers that also have m votes
        ways = np.zeros((k - m + 1, (k - m) // m + 1))
        ways[: silent + 1, 0] = [comb(silent, s) for s in range(min(silent, k - m) + 1)]
        for c in others:
            grown = np.zeros_like(ways)
            for drawn in range(min(c, m, k - m) + 1):
                tie = int(drawn == m)
                grown[drawn:, tie:] += comb(c, drawn) * ways[: ways.shape[0] - drawn, : ways.shape[1] - tie]
            ways = grown
        won += comb(count, m) * float((ways[k - m] / np.arange(1, ways.shape[1] + 1)).sum())
    return won / comb(count + silent + sum(others), k)


def mean_maj_at_k(
    answers: Sequence[Hashable | None],
    verdict: Sequence[float],
    groups: Sequence[int],
    k: int,
    threshold: float = RIGHT,
) -> float:
    """maj@k of each group (the samples of one prompt), averaged over groups: see `maj_at_k`.

    `answers`, `verdict`, `groups`: (N,). Samples that were not judged are left out, and with them a group of which
    fewer than k remain; NaN where no group remains. SettingError where a group has fewer than k samples.
    """
    values = []
    for index, correct in _groups(verdict, groups, k, "maj", threshold):
        if len(index) >= k:
            values.append(maj_at_k([answers[i] for i in index], correct, k))
    return mean(values)


def _groups(
    verdict: Sequence[float], groups: Sequence[int], k: int, what: str, threshold: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per group the positions of its judged samples and whether each is right, (n,) both."""
    correct, groups = right(verdict, threshold), np.asarray(groups)
    if correct.shape != groups.shape:
        raise SettingError(f"{what}@{k}: {correct.size} verdicts for {groups.size} group numbers.")
    found = []
    for group in np.unique(groups):
        index = np.flatnonzero(groups == group)
        if len(index) < k:
            raise SettingError(f"{what}@{k} needs {k} samples of a prompt; group {group} has {len(index)}.")
        index = index[~np.isnan(correct[index])]
        found.append((index, correct[index]))
    return found


def metrics(
    verdict: Sequence[float],
    reward: Sequence[float],
    groups: Sequence[int],
    ks: Sequence[int] = (8,),
    threshold: float = RIGHT,
    answers: Sequence[Hashable | None] | None = None,
) -> dict[str, float]:
    """`eval/accuracy`, `eval/reward` and `eval/pass@<k>` for each k, of N held-out samples.

    `verdict`: (N,) the rewards of the function that says right or wrong; `reward`: (N,) the totals; `groups`:
    (N,) the prompt each sample belongs to. NaN stands for "no reward" and is left out of each mean. `answers`: (N,)
    what each sample answers, None where nothing; given, there is `eval/maj@<k>` too.
    `eval/unjudged`, the share of samples without a verdict, is there when there are any.
    """
    verdict = np.asarray(verdict, dtype=np.float64)
    found = {
        "eval/accuracy": accuracy(verdict, threshold),
        "eval/reward": mean(reward),
    }
    for k in ks:
        found[f"eval/pass@{k}"] = mean_pass_at_k(verdict, groups, k, threshold)
        if answers is not None:
            found[f"eval/maj@{k}"] = mean_maj_at_k(answers, verdict, groups, k, threshold)
    if np.isnan(verdict).any():
        found["eval/unjudged"] = float(np.isnan(verdict).mean())
    return found


def mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the numbers that are there (not NaN); NaN where none is."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
