"""Diversify and Conquer: diverse rows first, and clusters that teach little lose their budget round by round (Yu et al.
2024, "Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement", arXiv 2409.11378).

Rows are embedded and clustered by k-means. In one shot (kMQ) a cluster j gets b_j = b |X_j| / |X| of the budget b, and
within it rows are drawn with probability in proportion to exp(quality). With feedback, w_j = 1 / k at first, and in
each of N rounds

    pick b / N unseen rows by w;  tune the base on all picked so far;  let it answer their prompts
    S(row) = R(x, y_gold) - R(x, y_own);   s_j = softmax over clusters of the mean of S in cluster j
    w_j <- s_j w_j, normalised

so a cluster whose gold answers the model already matches, or whose gold answers are bad, is picked less. Defaults: N 3,
k well below b. `tune(rows)` gives the tuned policy, `reward(prompts, answers)` scores answers. (The authors' script
divides once too often by k and picks fewer rows than its budget; here all of it is picked.) The embedder is the policy
itself: the mean of its last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.errors import SettingError
from workbench.likelihoods import texts_of
from workbench.policy import Policy
from workbench.selection import parts
from workbench.selection.cache import Cache
from workbench.selection.embeddings import embed
from workbench.selection.parts import Selection

Reward = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


def by_quality(
    policy: Policy, rows: Any, k: int, clusters: int = 8, quality: Sequence[float] | None = None, seed: int = 0
) -> Selection:
    """kMQ: `k` rows, from each cluster as many as its share, the better ones likelier. `quality`: a number a row."""
    pool, labels = _clustered(policy, rows, k, clusters, seed)
    scores = np.zeros(len(pool)) if quality is None else _quality(quality, len(pool))
    counts = np.bincount(labels, minlength=clusters)
    budget = _budget(counts / counts.sum(), counts, k)
    picked = parts.cluster_quota(labels, budget, np.exp(scores - scores.max()), seed)
    return Selection(pool, picked, scores, seed)


def refined(
    policy: Policy,
    rows: Any,
    k: int,
    tune: Callable[[list[dict[str, Any]]], Policy],
    reward: Reward,
    clusters: int = 8,
    rounds: int = 3,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> tuple[Selection, list[np.ndarray]]:
    """`k` rows in `rounds` parts, and the clusters' weights before each round and after the last.

    `tune(rows)`: the base tuned on these rows for an epoch, anew each time. Raises SettingError for fewer than one row
    a round, more clusters than rows, and where the reward does not give a number for each answer.
    """
    pool, labels = _clustered(policy, rows, k, clusters, seed)
    if not 1 <= rounds <= k:
        raise SettingError(f"rounds={rounds!r} must be from 1 to k={k}: each picks at least one row.")
    prompts, gold = texts_of(pool)
    records = pool.to_list()
    weights, history, picked = np.full(clusters, 1 / clusters), [], []
    for number in range(rounds):
        history.append(weights)
        count = k * (number + 1) // rounds - len(picked)
        left = np.bincount([label for i, label in enumerate(labels) if i not in set(picked)], minlength=clusters)
        new = parts.cluster_quota(labels, _budget(weights, left, count), np.ones(len(pool)), seed + number, picked)
        picked += new
        tuned = tune([records[i] for i in picked])
        own = Cache(tuned).rollouts([prompts[i] for i in new], 1, seed, max_new_tokens=max_new_tokens).text
        gap = _reward(reward, [prompts[i] for i in new], [gold[i] for i in new])
        gap = gap - _reward(reward, [prompts[i] for i in new], own)
        weights = reweighted(weights, gap, [labels[i] for i in new])
    return Selection(pool, picked, seed=seed), [*history, weights]


def reweighted(weights: np.ndarray, gaps: Sequence[float], labels: Sequence[int]) -> np.ndarray:
    """w_j s_j, normalised; s = softmax over clusters of the mean gap. One that was not drawn counts as average."""
    gaps, labels = np.asarray(gaps, dtype=np.float64), np.asarray(labels)
    means = [gaps[labels == j].mean() if (labels == j).any() else gaps.mean() for j in range(len(weights))]
    s = np.exp(np.array(means) - np.max(means))
    return scaled(weights, s / s.sum())


def scaled(weights: np.ndarray, s: np.ndarray) -> np.ndarray:
    """w_j s_j, normalised."""
    made = np.asarray(weights) * np.asarray(s)
    return made / made.sum()


def _budget(weights: np.ndarray, sizes: np.ndarray, count: int) -> dict[int, int]:
    """`count` rows over the clusters in proportion to their weights, none over what it has; what is left over goes to
    those with room, by weight."""
    left, made = sizes.astype(int).copy(), np.zeros(len(sizes), dtype=int)
    while count > 0 and left.sum():
        share = np.where(left > 0, weights, 0.0)
        exact = count * share / share.sum() if share.sum() > 0 else count * (left > 0) / (left > 0).sum()
        part = np.minimum(exact.astype(int), left)
        if not part.sum():
            part[int(np.argmax(np.where(left > 0, exact, -1.0)))] = 1
        made, left, count = made + part, left - part, count - int(part.sum())
    return {j: int(n) for j, n in enumerate(made)}


def _clustered(policy: Policy, rows: Any, k: int, clusters: int, seed: int) -> tuple[Any, np.ndarray]:
    pool = parts.pool_of(rows)
    parts.check_count(k, len(pool))
    if isinstance(clusters, bool) or not 1 <= clusters <= len(pool):
        raise SettingError(f"clusters={clusters!r} must be from 1 to {len(pool)}, the rows there are.")
    return pool, parts.k_means(embed(policy, pool).astype(np.float64), clusters, seed)


def _quality(quality: Sequence[float], rows: int) -> np.ndarray:
    values = np.asarray(quality, dtype=np.float64)
    if values.shape != (rows,) or np.isnan(values).any():
        raise SettingError(f"quality must be {rows} numbers, one a row.")
    return values


def _reward(reward: Reward, prompts: Sequence[Any], answers: Sequence[str]) -> np.ndarray:
    values = np.array([np.nan if v is None else float(v) for v in reward(prompts, answers)], dtype=np.float64)
    if values.shape != (len(answers),) or np.isnan(values).any():
        raise SettingError("reward(prompts, answers) must give one number for each answer.")
    return values
