"""LoBaSS, later DavIR: rows whose loss falls most, in relation to where it was, once this model is tuned (Zhou et al.
2023, "LoBaSS", arXiv 2310.13008).

    score = (L_base - L_ref) / L_base = 1 - L_ref / L_base

L the mean negative log-likelihood per completion token, "ref" the model after a short tuning on the whole pool, "base"
the one before. With an adapter both are one model: the adapter on and off. The k highest rows are kept, and the base is
trained anew on them. Without the division (`normalised=False`) the score nearly ranks by length: a contrast, no advice.
6 % of Alpaca did better than all of it in the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.likelihoods import nll, nll_of_base
from workbench.policy import Policy
from workbench.selection import parts
from workbench.selection.parts import Selection


def learnability(policy: Policy, rows: Any, k: int, normalised: bool = True, seed: int = 0) -> Selection:
    """The `k` rows that a short tuning made likelier most: `policy` holds the adapter of that tuning.

    Raises SettingError for a policy without an adapter, DataError for rows without prompt and completion.
    """
    pool = parts.pool_of(rows)
    k = parts.check_count(k, len(pool))
    base, ref = nll_of_base(policy, pool), nll(policy, pool)
    scores = scores_of(base, ref, normalised)
    notes = ["The adapter adds nothing yet: tune it on the pool first."] if np.array_equal(base, ref) else []
    return Selection(pool, parts.top_k(scores, k), scores, seed, notes)


def scores_of(base: np.ndarray, ref: np.ndarray, normalised: bool = True) -> np.ndarray:
    """(N,) from the losses before and after."""
    base, ref = np.asarray(base, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    return 1 - ref / base if normalised else base - ref
