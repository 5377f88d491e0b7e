"""Optimisers by transformers' names. What they keep per parameter lives in `State.optim` as named tensors.

An optimiser object is made anew for each step from the slots of the last, so that a snapshot, a rewind, a fork and
a resume need nothing but the State.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import SettingError
from workbench.settings import Settings
from workbench.state import State

Groups = list[dict[str, Any]]
"""parameters to decay and others, as torch's optimisers take them"""
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""names of biases and norms, the parameters that transformers' Trainer does not decay"""


def _adamw(groups: Groups, settings: Settings, lr: float, fused: bool = False) -> torch.optim.Optimizer:
    betas = (settings.adam_beta1, settings.adam_beta2)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=settings.adam_epsilon, fused=fused or None)


def _adamw_8bit(groups: Groups, settings: Settings, lr: float) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW

    betas = (settings.adam_beta1, settings.adam_beta2)
    return AdamW(groups, lr=lr, betas=betas, eps=settings.adam_epsilon, optim_bits=8)


def _adafactor(groups: Groups, settings: Settings, lr: float) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=lr, scale_parameter=False, relative_step=False)


def _sgd(groups: Groups, settings: Settings, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


def _rmsprop(groups: Groups, settings: Settings, lr: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr)


@dataclass(frozen=True)
class Optimiser:
    """slots   the name its slots have in `State.optim`; forms of one optimiser share it and take over from each other
    make     the optimiser over parameter groups, from the settings and the learning rate
    counts   its step count is a Python number, not a tensor
    fused    its step count lies beside the parameter, not on the CPU
    paper    where it is from
    """

    slots: str
    make: Callable[[Groups, Settings, float], torch.optim.Optimizer]
    paper: str
    counts: bool = False
    fused: bool = False


ADAMW = "Loshchilov and Hutter 2019, arXiv 1711.05101"
EIGHT_BIT = Optimiser("adamw_8bit", _adamw_8bit, "Dettmers et al. 2022, arXiv 2110.02861", counts=True)
OPTIMISERS = {
    "adamw_torch": Optimiser("adamw", _adamw, ADAMW),
    "adamw_torch_fused": Optimiser("adamw", partial(_adamw, fused=True), ADAMW, fused=True),
    "adamw_8bit": EIGHT_BIT,
    "adamw_bnb_8bit": EIGHT_BIT,
    "adafactor": Optimiser("adafactor", _adafactor, "Shazeer and Stern 2018, arXiv 1804.04235", counts=True),
    "sgd": Optimiser("sgd", _sgd, "Robbins and Monro 1951"),
    "rmsprop": Optimiser("rmsprop", _rmsprop, "Tieleman and Hinton 2012, lecture 6.5"),
}


def check(trained: Mapping[str, Tensor], settings: Settings) -> None:
    """Raises SettingError when the optimiser does not run on these parameters: their device, their precision."""
    chosen = OPTIMISERS[settings.optim]
    for name, p in trained.items():
        far = p.device.type not in ("cpu", "cuda", "xpu")
        if chosen is EIGHT_BIT and (far or (p.dtype == torch.float64 and p.device.type != "cpu")):
            raise SettingError(
                f"optim={settings.optim!r} does not run on {name} ({p.dtype} on {p.device}): bitsandbytes has no kernel"
                " for it. Take optim='adamw_torch'."
            )


Scope = Mapping[str, Tensor | None]
"""What trains: by the parameter's name a bool mask of its shape, None for all of it; parameters without a name here
stay. Moments and decay are those of the masked entries alone."""


def restrict(trained: Mapping[str, nn.Parameter], scope: Scope) -> None:
    """Clears the gradients outside the masks, so that they count in no norm."""
    for name, p in trained.items():
        if (mask := scope[name]) is not None:
            p.grad.masked_fill_(~mask, 0.0)


def step(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    state: State,
    settings: Settings,
    lr: float,
    scope: Scope | None = None,
) -> None:
    """One step on the parameters' gradients, which are cleared; the slots in `state.optim` move on.

    With a mask the optimiser is given the masked entries alone, as a tensor of their own, and so are its slots: neither
    decay nor old moments can move another entry. Slots that do not fit the mask begin anew. Biases and norms are not
    decayed, as in transformers' Trainer. Where the run had another optimiser before, its slots are dropped and this one
    starts anew: moments of one kind say nothing to another.
    """
    chosen = OPTIMISERS[settings.optim]
    for other in {row.slots for row in OPTIMISERS.values()} - {chosen.slots}:
        state.optim.pop(other, None)
    slots = state.optim.setdefault(chosen.slots, {})
    spared = undecayed(model)
    masks = {name: mask for name, mask in (scope or {}).items() if mask is not None and name in trained}
    whole, trained = trained, {name: _masked(p, masks[name]) if name in masks else p for name, p in trained.items()}
    groups = [
        {"params": [p for name, p in trained.items() if name not in spared], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained.items() if name in spared], "weight_decay": 0.0},
    ]
    optimizer = chosen.make(groups, settings, lr)
    for name, p in trained.items():
        if name in slots and _fit(slots[name], p):
            optimizer.state[p] = _as_kept(slots[name], p, chosen)
    optimizer.step()
    for name, mask in masks.items():
        whole[name].data[mask] = trained[name].data
    for name, p in trained.items():
        kept = optimizer.state[p].items()
        slots[name] = {slot: torch.as_tensor(value) for slot, value in kept if value is not None}
        whole[name].grad = None


def _masked(p: nn.Parameter, mask: Tensor) -> nn.Parameter:
    made = nn.Parameter(p.data[mask])
    made.grad = p.grad[mask]
    return made


def _fit(slots: Mapping[str, Tensor], p: Tensor) -> bool:
    """Whether the slots of a parameter are of its size: those that an earlier scope left may not be."""
    moments = slots.get("exp_avg")
    return moments is None or moments.shape == p.shape


def undecayed(model: nn.Module) -> set[str]:
    """The parameters that weight decay leaves out: those of LayerNorms, and those named bias or norm."""
    spared = {name for name, _ in model.named_parameters() if UNDECAYED.search(name.lower())}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            spared |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    return spared


def _as_kept(slots: Mapping[str, Tensor], p: Tensor, chosen: Optimiser) -> dict[str, Any]:
    """The slots as the optimiser keeps them: its step count as a number, or where it looks for it."""
    kept: dict[str, Any] = dict(slots)
    if "step" in kept:
        kept["step"] = int(kept["step"]) if chosen.counts else kept["step"].to(p.device if chosen.fused else "cpu")
    return kept
