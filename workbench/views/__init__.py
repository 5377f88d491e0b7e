"""Views over a run's store: a live dashboard, a table of rollouts, a report. They import no torch and no run.

Each view is a small widget with its own JavaScript beside it, and a static form (HTML without script, and text)
for saved notebooks and terminals. Everything a model or a user wrote reaches a page as text only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Dashboard": "dashboard",
    "show_dashboard": "dashboard",
    "RolloutTable": "rollouts",
    "write_report": "report",
    "MaskView": "mask",
    "RewardBench": "reward_bench",
    "RescoredView": "rescored",
    "CompareView": "compare",
    "TokenView": "tokens",
    "CatalogueView": "catalogue",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
