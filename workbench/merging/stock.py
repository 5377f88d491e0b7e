"""Model Stock: fine-tunes of one base, pulled towards the centre of all of them (Jang et al. 2024, arXiv 2403.19522).

Weight by weight, with d_i = theta_i - theta_0 and c the mean of cos(d_i, d_j) over pairs:

    t = N c / (1 + (N - 1) c),   theta = t mean_i theta_i + (1 - t) theta_0

Fine-tunes of the same rows that differ by seed lie on a shell around a centre that is better than any of them; how far
their mean is from it follows from the angle between them. Where they agree (c = 1) the mean stays, where they are
orthogonal the base does. c below 0 counts as 0: then there is no centre between them (our reading; the paper does not
say). Left out: merging at every epoch of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from workbench import worker
from workbench.merging.vectors import Member, Vector, combined, tensor_of, vectors
from workbench.policy import Policy


@dataclass(frozen=True)
class Stock:
    """The merged `policy`, and by weight the share `t` of the mean and the cosine between members."""

    policy: Policy
    t: dict[str, float]
    cosine: dict[str, float]


@worker.on_worker
def model_stock(policy: Policy, members: Sequence[Member]) -> Stock:
    """Two or more fine-tunes of one base as one policy."""
    taus = vectors(policy, members, 2)
    cosine = {name: _cosine(taus, name) for name in taus[0]}
    t = {name: ratio(c, len(taus)) for name, c in cosine.items()}
    return Stock(combined(policy, taus, lambda name, i: t[name] / len(taus)), t, cosine)


def ratio(cosine: float, count: int) -> float:
    """t for `count` members with this mean cosine."""
    c = max(0.0, cosine)
    return count * c / (1 + (count - 1) * c)


def _cosine(taus: Sequence[Vector], name: str) -> float:
    flat = [tensor_of(tau[name]).flatten().double() for tau in taus]
    pairs = [torch.cosine_similarity(x, y, dim=0) for x, y in combinations(flat, 2)]
    return float(torch.stack(pairs).mean())
