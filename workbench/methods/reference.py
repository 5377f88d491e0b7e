"""The reference: the policy as it was when the run began, and, where `sync_ref_model` is on, what became of it.

A reference that moves (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656) lives in `state.tensors`, so that rewind,
fork, resume and replay give it back exactly; it is there from its first move on. `params` is what stands for the
reference now, `sync` moves it when it is due, `Memory` keeps the log-probs of one that stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from workbench import adapters, micro_batches, update
from workbench.errors import SettingError
from workbench.methods.context import Context
from workbench.micro_batches import FASTEST
from workbench.state import State

PREFIX = "reference/"
"""of its tensors' names in `state.tensors`"""


def check(policy: Any, settings: Any) -> None:
    """Raise SettingError where the reference cannot be mixed: matrices of an adapter's factors are no weights.

    With B A the adapter's part of a weight, (a B + b B') (a A + b A') is not a B A + b B' A'. TRL refuses adapters
    altogether; here alpha = 1, which replaces the reference by the policy and mixes nothing, is allowed.
    """
    alpha = getattr(settings, "ref_model_mixup_alpha", 1.0)
    if getattr(settings, "sync_ref_model", False) and policy.has_adapter and alpha != 1:
        raise SettingError(
            f"sync_ref_model with ref_model_mixup_alpha={alpha:g} mixes weights, and mixing the factor matrices of an"
            " adapter does not. Set ref_model_mixup_alpha=1.0 (the reference becomes the policy every"
            " ref_model_sync_steps updates), or train without an adapter."
        )


def params(state: State | None, ctx: Context) -> dict[str, Tensor]:
    """The reference's parameters now, by name."""
    moved = {} if state is None else state.tensors
    found = {name[len(PREFIX) :]: tensor for name, tensor in moved.items() if name.startswith(PREFIX)}
    return found or ctx.reference()


def moved(state: State | None) -> bool:
    """Whether the reference has left its beginning."""
    return state is not None and any(name.startswith(PREFIX) for name in state.tensors)


def sync(state: State, ctx: Context, updates_done: int) -> bool:
    """Move the reference if it is due after `updates_done` updates of the run; whether it was.

    As in TRL: after every `ref_model_sync_steps`-th update the reference becomes alpha times the policy plus
    (1 - alpha) times itself.
    """
    settings = ctx.settings
    if not settings.sync_ref_model or updates_done % settings.ref_model_sync_steps:
        return False
    alpha = settings.ref_model_mixup_alpha
    before = params(state, ctx)
    for name, now in state.params.items():
        mixed = now.clone() if alpha == 1 else before[name].mul(1 - alpha).add_(now, alpha=alpha)
        state.tensors[PREFIX + name] = mixed
    return True


def logprobs(
    state: State | None, ctx: Context, batch: update.Batch, purpose: str = "reference", temperature: float = 1.0
) -> list[list[float]]:
    """Per row of `batch` the log-probs (nats) of its scored tokens under the reference."""
    with in_place(ctx, params(state, ctx)):
        return ctx.logprobs(batch, purpose, temperature)


def in_place(ctx: Context, params: dict[str, Tensor]) -> AbstractContextManager:
    """The policy is the reference for the length of the block: it holds its parameters or, where those are an adapter
    that adds nothing yet, has its adapter switched off, which gives the same numbers in less time."""
    if adds_nothing(ctx.policy, params):
        return adapters.without(ctx.policy.model)
    return ctx.policy.holding(params)


def adds_nothing(policy: Any, params: dict[str, Tensor]) -> bool:
    """Whether `params` are those of a LoRA whose every B is zero, so that B A x is."""
    config = policy.adapter
    if config is None or config.peft_type != "LORA" or config.use_dora:
        return False
    factors = all(".lora_A." in name or ".lora_B." in name for name in params)
    return factors and not any(tensor.any() for name, tensor in params.items() if ".lora_B." in name)


class Memory:
    """Log-probs under a reference that stands still, by row, for `precompute_ref_log_probs`.

    A row is scored in a micro-batch that follows from the data alone, whichever update asks for it first: in another
    one its last digits could differ, and a run that is resumed would not be the run that was never stopped.
    """

    def __init__(self) -> None:
        self.known: dict[int, list[list[float]]] = {}
        self.whole: update.Batch | None = None
        self.plan: list[list[int]] = []

    def of(self, ctx: Context, rows: Sequence[int], everything: Callable[[], update.Batch]) -> list[list[float]]:
        """For each of `rows` (units of the batch that `everything` makes) the log-probs of its sequences, in a row."""
        if self.whole is None:
            self.whole = everything()
            most = FASTEST.get(ctx.policy.device.type, FASTEST["cpu"])
            self.plan = micro_batches.plan(self.whole, None, most, rate=micro_batches.rate_of(ctx.policy))
        unit = self.whole.unit
        missing = {row for row in rows if row not in self.known}
        for part in self.plan:
            if missing & {i // unit for i in part}:
                batch = self.whole.take(part)
                with in_place(ctx, ctx.reference()):
                    made = ctx.fitting(batch, None, partial(ctx.scored, batch), False, [list(range(len(part)))])
                for first in range(0, len(part), unit):
                    self.known[part[first] // unit] = made[first : first + unit]
        return [values for row in rows for values in self.known[row]]


def column(
    state: State | None,
    ctx: Context,
    batch: update.Batch,
    data: Any,
    rows: Sequence[int],
    everything: Callable[[], update.Batch],
) -> list[list[float]]:
    """The reference's log-probs for `batch`, which is made of `rows` of `data`; from `data.memory` where that is on."""
    if ctx.settings.precompute_ref_log_probs and not moved(state):
        return data.memory.of(ctx, rows, everything)
    return logprobs(state, ctx, batch)
