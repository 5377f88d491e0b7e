"""Learning-rate schedules: transformers' own, as functions of the step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache

from workbench.settings import Settings


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of step `step` (1 .. steps), as transformers' schedules give it for update `step - 1`.

    So a warm-up starts at zero: with warmup_steps=2 the first step has lr 0 and the third the peak. 'constant' keeps
    a warm-up too, which transformers' own leaves out without a word.
    """
    if settings.lr == 0:
        return 0.0
    kind = "constant_with_warmup" if settings.lr_scheduler_type == "constant" else settings.lr_scheduler_type
    given = json.dumps(settings.lr_scheduler_kwargs or {}, sort_keys=True)
    at, steps = settings.course(step)
    return settings.lr * _factor(kind, settings.lr, warmup(settings, steps), steps, given)(at - 1)


def warmup(settings: Settings, steps: int | None = None) -> int:
    """The steps of the warm-up: `warmup_steps`, or that share of all `steps` (rounded up) where it is below 1."""
    given = settings.warmup_steps
    return int(given) if given >= 1 else math.ceil((steps or settings.steps) * given)


@lru_cache(maxsize=64)
def _factor(kind: str, lr: float, warmup: int, steps: int, given: str) -> Callable[[int], float]:
    """transformers' factor of the peak by update, counted from 0."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return get_scheduler(kind, optimizer, warmup, steps, json.loads(given)).lr_lambdas[0]
