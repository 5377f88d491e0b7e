"""LIFT: train only the principal weights, those that are largest once a matrix is reduced to a low rank.

For each matrix W (m, n) of the decoder's linear layers, every `refresh_steps` steps:

    W_f = U_f S_f V_f^T                    the `filter_rank` largest singular values
    mask = the k largest of |W_f|          k = rank * (m + n), as many numbers as a LoRA of that rank has

and Adam runs on the masked entries alone, with moments of those alone. Entries that stay in the mask keep their
moments, new ones begin with none, and the count of steps in Adam's correction goes on. Embeddings, head, norms and
biases stay still (`others=True` trains them).

Liu et al. 2025, arXiv 2506.00772, and the authors' code: rank 128, filter rank 64 (32 for a 1B model, 128 for 8B), a
new mask every 400 steps on 10k rows of arithmetic; lr 2e-4 (1e-4 for 8B), adam_beta2 0.95, adam_epsilon 1e-6, no
decay, linear schedule with warm-up 0.03, batch 16, 3 epochs. Here the defaults of lr and Adam are those of SFT. In
small models rank 128 may be more than a matrix has: take about 5 % of its numbers.

The code's first refresh comes one step earlier than ours; its SVD is exact or random, here exact; its Adam adds epsilon
before the correction of the second moment, ours (torch's) after. It needs the whole model in float: no adapter, no
quantised weights. `rank=None` trains all entries; with `others=True` that is SFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench import optimiser
from workbench.adapters import hooks
from workbench.errors import SettingError
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State

PREFIX = "lift/"
"""of the masks' names in `state.tensors`: flat places, ascending"""


@dataclass(frozen=True, kw_only=True)
class LiftSettings(SFTSettings):
    """SFT of the principal weights."""

    rank: int | None = knob(128, at_least=1)
    """how many: as many numbers of each matrix as a LoRA of this rank would have; None: all"""
    filter_rank: int = knob(64, at_least=1)
    """singular values that are kept to see which weights are principal"""
    refresh_steps: int = knob(400, at_least=1)
    """steps after which they are chosen anew"""
    others: bool = False
    """train everything else (embeddings, head, norms, biases) as well, in full"""


def matrices(policy: Any) -> dict[str, Tensor]:
    """The trained weights of linear layers within decoder layers."""
    from transformers.pytorch_utils import Conv1D

    trained, found = policy.trainable(), {}
    for prefix, layer in hooks.decoder_layers(policy.model).items():
        for inside, module in layer.named_modules():
            name = f"{prefix}.{inside}.weight"
            if isinstance(module, (nn.Linear, Conv1D)) and name in trained:
                found[name] = trained[name]
    return found


def principal(weight: Tensor, filter_rank: int, count: int) -> Tensor:
    """(count,) flat places, ascending, of the largest entries of the low-rank approximation of `weight` (m, n)."""
    weight = weight.detach()
    exact = weight if weight.dtype == torch.float64 else weight.float()
    if filter_rank < min(weight.shape):
        u, s, vh = torch.linalg.svd(exact, full_matrices=False)
        exact = (u[:, :filter_rank] * s[:filter_rank]) @ vh[:filter_rank]
    places = exact.abs().flatten().topk(count).indices.sort().values
    return places.to(torch.int32 if weight.numel() < 2**31 else torch.int64)


def scope(state: State, ctx: Context, index: int) -> optimiser.Scope | None:
    settings, weights = ctx.settings, matrices(ctx.policy)
    others = {name: None for name in ctx.policy.trainable() if name not in weights} if settings.others else {}
    if settings.rank is None:
        return dict.fromkeys(weights) | others
    if (index - 1) % settings.refresh_steps == 0 or not any(name.startswith(PREFIX) for name in state.tensors):
        state.json["mask_overlap"] = _refresh(state, settings, weights)
    return {name: _mask(p, state.tensors[PREFIX + name]) for name, p in weights.items()} | others


def _refresh(state: State, settings: LiftSettings, weights: dict[str, Tensor]) -> float:
    """New masks into the state; the share of them that was in the old ones."""
    kept = total = 0
    for name, p in weights.items():
        count = min(settings.rank * sum(p.shape), p.numel())
        before, now = state.tensors.get(PREFIX + name), principal(p, settings.filter_rank, count)
        kept += 0 if before is None else int(torch.isin(now, before).sum())
        total += count
        state.tensors[PREFIX + name] = now
    return kept / total


def _mask(p: Tensor, places: Tensor) -> Tensor | None:
    if len(places) == p.numel():
        return None
    mask = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
    mask[places.long()] = True
    return mask.view(p.shape)


def after(state: State, ctx: Context, batch: Any, index: int) -> dict[str, float]:
    weights, settings = matrices(ctx.policy), ctx.settings
    trained = sum(len(state.tensors[PREFIX + name]) if settings.rank else p.numel() for name, p in weights.items())
    if settings.others:
        trained += sum(p.numel() for name, p in state.params.items() if name not in weights)
    made = {"trained_share": trained / sum(p.numel() for p in state.params.values())}
    if settings.rank and index > 1 and (index - 1) % settings.refresh_steps == 0:
        made["mask_overlap"] = state.json["mask_overlap"]
    return made


def check(policy: Any, settings: LiftSettings) -> None:
    if policy.has_adapter and not (settings.rank is None and settings.others):
        raise SettingError(
            "lift chooses among the model's own weights, and this policy trains an adapter. Load the model without one;"
            " chain_of_lora and half train parts of adapters."
        )
    if settings.rank is not None or not settings.others:
        hooks.decoder_layers(policy.model)


METHOD = sft.variant("lift", LiftSettings, sft.Variant(scope=scope, after=after), check=check)
