"""The update: micro-batches through the model, gradients added up, one optimiser step.

Normalisers are global to the update, so how its rows are split into micro-batches never changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import flat, lines, objectives, optimiser, precision, prefixes, recompute, worker
from workbench.adapters import fused, scaling
from workbench.errors import RunError, SettingError
from workbench.heads import ValueHead
from workbench.keys import key, torch_seed
from workbench.micro_batches import Batch
from workbench.schedule import learning_rate
from workbench.scoring import TokenScores, gather
from workbench.settings import Settings
from workbench.state import State
from workbench.trunk import has_dropout

DIFFERENTIABLE = ("logprob", "entropy", "mean_logprob", "value")
"""the scores through which a loss can reach the weights"""


@dataclass
class Outcome:
    """What an update did."""

    loss: float
    metrics: dict[str, float]


def columns_of(batch: Batch, like: Tensor) -> dict[str, Tensor]:
    """The batch's columns as tensors of `like`'s dtype and device: (B,), or (B, T) padded with 0."""
    width = max(batch.scored())
    made = {}
    for name, values in batch.columns.items():
        if len(values) and hasattr(values[0], "__len__"):
            table = torch.zeros(len(values), width, dtype=torch.float64)
            for i, row in enumerate(values):
                table[i, : len(row)] = torch.tensor(np.asarray(row, dtype=np.float64))
        else:
            table = torch.tensor([float(v) for v in values], dtype=torch.float64)
        made[name] = table.to(like.dtype).to(like.device)
    return made


def gradients(
    policy,
    batch: Batch,
    objective: objectives.Objective,
    totals: Mapping[str, float],
    *,
    micro_batches: list[list[int]],
    temperature: float = 1.0,
    train_mode: bool = True,
    dropout_key: int = 0,
    check: Callable[[], None] = lambda: None,
    grad: bool = True,
    padding_free: bool = False,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
    value: ValueHead | None = None,
) -> Outcome:
    """Loss and metrics of `batch`; with `grad`, its gradients are left in the `.grad` of the trained parameters.

    Dropout (only where the model has any) is drawn from `dropout_key` and the micro-batch's number, inside a
    fork of the generators. `check()` is called before each micro-batch and may raise Interrupted. `padding_free`
    (rows laid end to end) and `gradient_checkpointing` (activations computed twice) spend less memory and change
    nothing else. `value`: a head for objectives that need "value"; its gradients are left in it, too.
    """
    model = policy.model
    model.zero_grad(set_to_none=True)
    for p in (value.weight, value.bias) if value else ():
        p.grad = None
    dropout = train_mode and grad and has_dropout(model)

    def scored(number: int, grad: bool) -> tuple[Batch, TokenScores]:
        check()
        part = batch.take(micro_batches[number])
        if "strength" in part.columns:
            turn(part.columns["strength"][0])  # until the next one: its backward pass may compute layers again
        with (
            seeded(key(dropout_key, number), policy.device) if dropout else nullcontext(),
            torch.set_grad_enabled(grad),
        ):
            laid = laid_out(policy, part, padding_free)
            laid |= {"inputs": part.inputs, "share": part.share, "value": value}
            return part, policy.token_scores(
                part.sequences, part.starts, temperature=temperature, needs=objective.needs, **laid
            )

    with (
        _ready(policy, train_mode and grad, gradient_checkpointing and grad),
        computing(model, bf16),
        scaling.dialled(model) as turn,
    ):
        if objective.coupled and len(micro_batches) > 1:
            return _together(batch, objective, totals, micro_batches, scored, grad)
        return _one_by_one(objective, totals, len(micro_batches), scored, grad)


@contextmanager
def _ready(policy, train: bool, gradient_checkpointing: bool) -> Iterator[None]:
    """The model as an update needs it; afterwards it is as it was. Whatever surrounds an update is entered here."""
    model, was_training = policy.model, policy.model.training
    model.train(train)
    try:
        with ExitStack() as stack:
            if gradient_checkpointing:
                stack.enter_context(recompute.recomputing(model))
                if prefixes.takes_spans(policy):
                    stack.enter_context(flat.attending(model))
            yield
    finally:
        model.train(was_training)


@contextmanager
def computing(model: torch.nn.Module, bf16: bool) -> Iterator[None]:
    """How updates, and the scores that they are compared with, go through the model: its LoRA layers as one operation
    each, and with `bf16` in mixed precision."""
    with precision.mixed(model, bf16), fused.linears(model):
        yield


def laid_out(policy, part: Batch, padding_free: bool) -> dict[str, list[int] | None]:
    """How the rows of a micro-batch go through the model, for `policy.token_scores`: all in one line, prompts that rows
    share once; for models that do not take that several in a line, or padded."""
    groups = prefixes.of(policy, part.sequences, part.starts)
    return {"groups": groups, "lines": None if groups else lines.of(policy, part.lengths(), part.lines, padding_free)}


def _one_by_one(objective, totals, count: int, scored, grad: bool) -> Outcome:
    """The losses of the micro-batches add up to the loss of the update."""
    loss, parts = 0.0, []
    for number in range(count):
        part, scores = scored(number, grad)
        with torch.set_grad_enabled(grad):
            part_loss, metrics = objective(scores, columns_of(part, scores.logprob), totals)
            if grad:
                part_loss.backward()
        loss += float(part_loss.detach())
        parts.append(metrics)
    return Outcome(loss, {"loss": loss, **objectives.finish(*parts)})


def _together(batch: Batch, objective, totals, micro_batches, scored, grad: bool) -> Outcome:
    """The loss of all rows at once, on their scores as leaves; its gradients then go back micro-batch by micro-batch.

    Exact for any objective, at the price of a second pass through the model.
    """
    whole = gather(lambda number: scored(number, False)[1], micro_batches, len(batch), max(batch.scored()))
    leaves = [name for name in DIFFERENTIABLE if name == "logprob" or name in objective.needs]
    for name in leaves:
        getattr(whole, name).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        loss, metrics = objective(whole, columns_of(batch, whole.logprob), totals)
    if grad:
        flowing = dict(zip(leaves, torch.autograd.grad(loss, [getattr(whole, n) for n in leaves]), strict=True))
        for number, rows in enumerate(micro_batches):
            part, scores = scored(number, True)
            width = max(part.scored())
            torch.autograd.backward(
                [getattr(scores, name) for name in leaves], [flowing[name][rows, :width] for name in leaves]
            )
    return Outcome(float(loss.detach()), {"loss": float(loss.detach()), **objectives.finish(metrics)})


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block the global generators start at `seed`; afterwards they are where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(torch_seed(seed))
        yield


def apply(
    policy,
    state: State,
    settings: Settings,
    step: int,
    scope: optimiser.Scope | None = None,
    beside: Mapping[str, torch.nn.Parameter] | None = None,
) -> dict[str, float]:
    """One step of the optimiser on the gradients left by `gradients`; its slots live in `state.optim`.

    `scope`: what of the policy's parameters trains (None: all). `beside`: parameters of none of its modules (a value
    head's), by the names they have in `state.tensors`; they train too, with `value_lr` where that is set. Gradients are
    clipped at `max_grad_norm`, all together. Returns the metrics `grad_norm` (before clipping) and `learning_rate`.
    Raises RunError before touching a weight when a gradient is not finite.
    """
    trained = {name: p for name, p in policy.trainable().items() if p.grad is not None}
    if scope is not None:
        trained = {name: p for name, p in trained.items() if name in scope}
    more = {name: p for name, p in (beside or {}).items() if p.grad is not None}
    if not trained and not more:
        raise SettingError("Nothing received a gradient: no parameter is trainable. Attach an adapter first.")
    if scope is not None:
        optimiser.restrict(trained, scope)
    everything = trained | more
    grads = [p.grad for p in everything.values()]
    norm = torch.nn.utils.get_total_norm(grads)
    if not torch.isfinite(norm):
        bad = [name for name, p in everything.items() if not torch.isfinite(p.grad).all()]
        raise RunError(
            f"Step {step}: the gradient is not finite (first in {bad[0] if bad else 'the norm'}); the step was undone."
        )
    if settings.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(list(everything.values()), settings.max_grad_norm, norm)
    lr = learning_rate(settings, step)
    if trained:
        optimiser.step(policy.model, trained, state, settings, lr, scope)
    if more:
        optimiser.step(policy.model, more, state, settings, _beside_lr(settings, step, lr))
        state.tensors |= {name: p.data for name, p in more.items()}
    policy.model.zero_grad(set_to_none=True)  # of what is outside the scope, too
    return {"grad_norm": float(norm), "learning_rate": lr}


def _beside_lr(settings: Settings, step: int, lr: float) -> float:
    """`value_lr` as far along its schedule as the learning rate is on its own."""
    peak = getattr(settings, "value_lr", None)
    return lr if peak is None else learning_rate(replace(settings, lr=peak), step)


def check(policy, settings: Settings) -> None:
    """Raises SettingError, before any work, for what this model or this machine cannot do."""
    optimiser.check(policy.params(), settings)
    precision.check(policy, settings.bf16)
    if settings.bf16:
        prefixes.takes_spans(policy)  # tried now, in full precision: that is what its tolerance is for
    if settings.gradient_checkpointing and not recompute.layers(policy.model):
        raise SettingError(
            f"gradient_checkpointing=True: {policy.origin.model} has no layers that can be recomputed. Leave it out;"
            " micro_batch_size=1 spends less memory too."
        )
    if settings.padding_free and not lines.kept_apart(policy):
        raise SettingError(
            f"padding_free=True: {policy.origin.model} reads a line of text as one stream and would let rows see each"
            " other (so do state spaces and adapters with virtual tokens). Leave it out: rows are padded then."
        )
    if getattr(settings, "packing", False) and settings.packing_strategy != "wrapped" and not lines.kept_apart(policy):
        worker.warn(
            f"packing: {policy.origin.model} cannot keep rows of one pack apart, so each is padded instead: the same"
            " updates and numbers, no time saved."
        )


def totals_of(batch: Batch, **more: float) -> dict[str, float]:
    """The normalisers every objective may use: rows, pairs, scored tokens (and what else the caller knows)."""
    rows = len(batch)
    base: dict[str, Any] = {"rows": float(rows), "pairs": rows / 2, "tokens": float(sum(batch.scored()))}
    return base | {name: float(value) for name, value in more.items()}
