"""Concept ablation fine-tuning: SFT during which chosen directions are missing from the residual stream.

Unwanted concepts (a persona, a shortcut) are directions of the stream after some layers. While the model trains, hooks
take them out, so that it cannot use them to fit the data; afterwards the hooks are off and the directions are there
again, but nothing has been learnt along them:

    h_l <- h_l - Q_l (Q_l^T h_l)        at all positions, after layer l; Q_l (D, k) orthonormal

and gradients flow through the projection. Evaluations and samples run without hooks.

Directions come from `wb.method("concept_directions")` (tune once without ablation, principal directions of what that
changed on generic text, a look at the texts, a choice), or from elsewhere, the decoder of a sparse autoencoder, say;
they need not be orthonormal. The paper's main study ablates a handful of components in 3 layers of a 32B model (12, 32
and 50 of 64) with LoRA r 32, alpha 64, lr 1e-5, one epoch, batch 16; the control is a random choice of components.

Casademunt et al. 2025, arXiv 2507.16795. The projection, and that it stands on the output of a decoder layer, follow
the authors' code, which rounds the basis to bfloat16; here it is float32. Left out: training autoencoders. With
`basis={}` this is SFT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.adapters import directions, hooks
from workbench.errors import SettingError
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State
from workbench.trunk import base_of

PREFIX = "ablation/"
"""of the bases' names in `state.tensors`"""


@dataclass(frozen=True, kw_only=True)
class AblationSettings(SFTSettings):
    """SFT without some directions."""

    basis: str | dict | None = knob(None, fixed=True)
    """what to take out: {layer: (k, D) rows}, layers counted from 0, or a safetensors file with tensors named so
    ("layer.5"). A dict is written into the run's record; take a file for more than a few"""
    basis_digest: str | None = knob(None, fixed=True)
    """SHA-256 of that file as the run began; filled in, so that a step that is replayed finds the same"""

    @classmethod
    def resolve(cls, given: Mapping[str, Any], base: Any = None) -> dict[str, Any]:
        made = dict(given)
        basis = getattr(made.get("basis"), "vectors", made.get("basis"))
        if isinstance(basis, Mapping):
            made["basis"] = {str(layer): rows.tolist() for layer, rows in directions.by_layer(basis).items()}
        elif isinstance(basis, (str, Path)) and made.get("basis_digest") is None:
            if not Path(basis).is_file():
                raise SettingError(f"basis={str(basis)!r}: there is no such file.")
            made |= {"basis": str(Path(basis).resolve()), "basis_digest": _digest(basis)}
        return made

    def problem(self) -> str | None:
        if self.basis is None:
            return "basis is missing: {layer: directions} or a file of them; {} ablates nothing and is SFT."
        return super().problem()


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def bases(policy: Any, settings: AblationSettings) -> dict[int, Tensor]:
    """layer -> (D, k) from what the settings name, for this model."""
    given = settings.basis
    if isinstance(given, str):
        if not Path(given).is_file() or _digest(given) != settings.basis_digest:
            raise SettingError(f"basis: {given} is gone, or is not the file with which the run began.")
        given = directions.read_file(given)
    config = base_of(policy.model).config.get_text_config(decoder=True)
    found = directions.orthonormal(given, config.hidden_size, len(hooks.decoder_layers(policy.model)))
    dtype = torch.float64 if policy.model.dtype == torch.float64 else torch.float32
    return {layer: q.to(policy.device, dtype).contiguous() for layer, q in found.items()}


def check(policy: Any, settings: AblationSettings) -> None:
    # a run that goes on has its bases in its snapshots; the file may be gone by then
    if not isinstance(settings.basis, str) or Path(settings.basis).is_file():
        bases(policy, settings)


def _now(state: State | None, ctx: Context) -> dict[int, Tensor]:
    kept = {} if state is None else state.tensors
    found = {int(name[len(PREFIX) :]): q for name, q in kept.items() if name.startswith(PREFIX)}
    return found or bases(ctx.policy, ctx.settings)


def within(state: State | None, ctx: Context, index: int):
    return hooks.ablating(ctx.policy.model, _now(state, ctx))


def after(state: State, ctx: Context, batch: Any, index: int) -> dict[str, float]:
    found = _now(state, ctx)
    state.tensors |= {f"{PREFIX}{layer}": q for layer, q in found.items()}
    return {"ablated_directions": float(sum(q.shape[1] for q in found.values()))}


METHOD = sft.variant("concept_ablation", AblationSettings, sft.Variant(within=within, after=after), check=check)
