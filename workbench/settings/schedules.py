"""What each learning-rate schedule takes: transformers' names, and what is wrong with given values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import did_you_mean

SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
"""schedule -> the names `lr_scheduler_kwargs` may hold"""
WORDS = {"warmup_type": ("linear", "cosine", "1-sqrt"), "decay_type": ("linear", "cosine", "1-sqrt")}


def problem(kind: str, given: Mapping[str, Any] | None, lr: float, warmup_steps: float) -> str | None:
    """What is wrong with a schedule's settings, in a sentence; None when all is well."""
    if warmup_steps > 1 and not float(warmup_steps).is_integer():
        return f"warmup_steps={warmup_steps!r}: give whole steps, or a share of all steps below 1."
    given = given or {}
    for name, value in given.items():
        if name not in SCHEDULES[kind]:
            takes = ", ".join(SCHEDULES[kind]) or "nothing"
            hint = did_you_mean(str(name), SCHEDULES[kind])
            return f"lr_scheduler_kwargs: {kind!r} takes no {name!r}.{hint} It takes: {takes}."
        if wrong := _wrong_value(name, value):
            return wrong
    if "min_lr" in SCHEDULES[kind] and ("min_lr" in given) == ("min_lr_rate" in given):
        return f"lr_scheduler_type={kind!r} needs either min_lr or min_lr_rate in lr_scheduler_kwargs."
    if kind == "warmup_stable_decay" and "num_decay_steps" not in given:
        return "lr_scheduler_type='warmup_stable_decay' needs num_decay_steps in lr_scheduler_kwargs."
    if kind == "polynomial" and lr and given.get("lr_end", 1e-7) >= lr:
        return f"lr_scheduler_type='polynomial' falls from lr to lr_end; {given.get('lr_end', 1e-7)} is not below {lr}."
    return None


def _wrong_value(name: str, value: Any) -> str | None:
    if name in WORDS:
        return None if value in WORDS[name] else f"lr_scheduler_kwargs: {name}={value!r}; options: {WORDS[name]}."
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        return f"lr_scheduler_kwargs: {name}={value!r} must be a number of at least 0."
    return "lr_scheduler_kwargs: timescale=0 must be above 0." if name == "timescale" and not value else None
