"""Adaptive entropy control (Skywork-OR1, He et al. 2025, arXiv 2505.22312): the coefficient of the entropy bonus.

After each update the coefficient rises by `entropy_coef_delta` where the mean entropy of the tokens that trained was
at or below `entropy_target`, and falls by as much where it was above; it stays within [min, max]. An update has the
bonus only where the entropy of the one before was at or below the target, so the first has none. The timing is TRL's.
It lives in `state.json["entropy_control"]`: `coef`, and `last`, the entropy of the last update (None before it).
"""

from __future__ import annotations

import math
from typing import Any

from workbench.state import State

KEY = "entropy_control"


def coefficient(state: State, settings: Any) -> float:
    """The coefficient that the next update applies."""
    if not settings.use_adaptive_entropy:
        return settings.entropy_coef
    now = state.json.get(KEY, {"coef": settings.entropy_coef, "last": None})
    gate = now["last"] is not None and now["last"] <= settings.entropy_target
    return now["coef"] if gate else 0.0


def updated(state: State, settings: Any, metrics: dict[str, float]) -> float:
    """Move the coefficient after an update with these `metrics`; returns it, the metric `entropy_coef`."""
    if not settings.use_adaptive_entropy:
        return settings.entropy_coef
    coef = state.json.get(KEY, {"coef": settings.entropy_coef})["coef"]
    entropy = metrics["entropy/trained_tokens" if settings.top_entropy_quantile < 1 else "entropy"]
    entropy = 0.0 if math.isnan(entropy) else entropy  # no token trained; TRL's mean of none is 0
    if entropy <= settings.entropy_target:
        coef = min(coef + settings.entropy_coef_delta, settings.entropy_coef_max)
    else:
        coef = max(coef - settings.entropy_coef_delta, settings.entropy_coef_min)
    state.json[KEY] = {"coef": coef, "last": entropy}
    return coef
