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
    entrywise   its slots, but for the step count, have a number for each entry of the parameter
    paper    where it is from
    """

    slots: str
    make: Callable[[Groups, Settings, float], torch.optim.Optimizer]
    paper: str
    counts: bool = False
    fused: bool = False
    entrywise: bool = False


ADAMW = "Loshchilov and Hutter 2019, arXiv 1711.05101"
EIGHT_BIT = Optimiser("adamw_8bit", _adamw_8bit, "Dettmers et al. 2022, arXiv 2110.02861", counts=True)
OPTIMISERS = {
    "adamw_torch": Optimiser("adamw", _adamw, ADAMW, entrywise=True),
    "adamw_torch_fused": Optimiser("adamw", partial(_adamw, fused=True), ADAMW, fused=True, entrywise=True),
    "adamw_8bit": EIGHT_BIT,
    "adamw_bnb_8bit": EIGHT_BIT,
    "adafactor": Optimiser("adafactor", _adafactor, "Shazeer and Stern 2018, arXiv 1804.04235", counts=True),
    "sgd": Optimiser("sgd", _sgd, "Robbins and Monro 1951"),
    "rmsprop": Optimiser("rmsprop", _rmsprop, "Tieleman and Hinton 2012, lecture 6.5", entrywise=True),
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
PLACES = "places"
"""the slot of a masked parameter that says whose moments the others are: flat places, ascending"""


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
    decay nor old moments can move another entry. Where the mask is another one than before, entries in both keep their
    moments and new ones begin with none, and the count of steps is the parameter's; but 8-bit moments and adafactor's
    begin anew. Biases and norms are not decayed, as in transformers' Trainer. Where the run had another optimiser
    before, its slots are dropped and this one starts anew: moments of one kind say nothing to another.
    """
    chosen = OPTIMISERS[settings.optim]
    for other in {row.slots for row in OPTIMISERS.values()} - {chosen.slots}:
        state.optim.pop(other, None)
    slots = state.optim.setdefault(chosen.slots, {})
    spared = undecayed(model)
    masks = {name: mask for name, mask in (scope or {}).items() if mask is not None and name in trained}
    places = {name: _places(mask) for name, mask in masks.items()}
    whole, trained = trained, {name: _masked(p, masks[name]) if name in masks else p for name, p in trained.items()}
    groups = [
        {"params": [p for name, p in trained.items() if name not in spared], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained.items() if name in spared], "weight_decay": 0.0},
    ]
    optimizer = chosen.make(groups, settings, lr)
    for name, p in trained.items():
        if kept := _moved(slots.get(name, {}), places.get(name), whole[name], chosen):
            optimizer.state[p] = _as_kept(kept, p, chosen)
    optimizer.step()
    for name, mask in masks.items():
        whole[name].data[mask] = trained[name].data
    for name, p in trained.items():
        kept = optimizer.state[p].items()
        slots[name] = {slot: torch.as_tensor(value) for slot, value in kept if value is not None}
        if name in places:
            slots[name][PLACES] = places[name]
        whole[name].grad = None


def _masked(p: nn.Parameter, mask: Tensor) -> nn.Parameter:
    made = nn.Parameter(p.data[mask])
    made.grad = p.grad[mask]
    return made


def _places(mask: Tensor) -> Tensor:
    """(k,) the masked entries of a flattened parameter, ascending."""
    return mask.flatten().nonzero()[:, 0].to(torch.int32 if mask.numel() < 2**31 else torch.int64)


def _moved(
    slots: Mapping[str, Tensor], places: Tensor | None, p: Tensor, chosen: Optimiser
) -> dict[str, Tensor]:
    """The slots of parameter `p` for the entries at `places` (None: all), from those of the entries at its PLACES."""
    kept = dict(slots)
    before = kept.pop(PLACES, None)
    if before is places or (before is not None and places is not None and torch.equal(before, places)):
        return kept
    if not chosen.entrywise:
        return {}
    for name, slot in kept.items():
        if name != "step":
            spread = slot.reshape(-1)
            if before is not None:
                spread = slot.new_zeros(p.numel())
                spread[before.long()] = slot
            kept[name] = spread.view(p.shape) if places is None else spread[places.long()]
    return kept


def restart(state: State) -> None:
    """The next step begins without moments, whatever the optimiser: a new stage of the run."""
    state.optim.clear()


def share(trained: Mapping[str, Tensor], scope: Scope | None) -> float:
    """The share of the trainable numbers that `scope` lets train."""
    if scope is None:
        return 1.0
    chosen = {name: p for name, p in trained.items() if name in scope}
    counts = [p.numel() if (mask := scope[name]) is None else int(mask.sum()) for name, p in chosen.items()]
    return sum(counts) / sum(p.numel() for p in trained.values())


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
