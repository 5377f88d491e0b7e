"""Learning-rate schedules."""

from __future__ import annotations

import math

from workbench.settings import Settings


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of step `step` (1 .. steps), as transformers' schedules give it for update `step - 1`.

    So a warm-up starts at zero: with warmup_steps=2 the first step has lr 0 and the third the peak.
    """
    if step <= settings.warmup_steps:
        return settings.lr * (step - 1) / settings.warmup_steps
    span = max(settings.steps - settings.warmup_steps, 1)
    progress = min((step - 1 - settings.warmup_steps) / span, 1.0)
    if settings.lr_scheduler_type == "linear":
        return settings.lr * (1 - progress)
    if settings.lr_scheduler_type == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr
