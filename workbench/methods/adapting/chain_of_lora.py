"""Chain of LoRA: train a LoRA, tie it to the weights, start a new one on what is left; the update's rank grows.

With W the weights, links k = 1 .. K and fresh A_k (random), B_k = 0 for each:

    train A_k, B_k on W + s (B_1 A_1 + ... + B_k A_k);   then A_k, B_k stay, the optimiser and the learning rate's
    course begin anew, and link k + 1 follows

The links share the run's steps evenly. What stays is what the paper folds into W, so the update after K links has rank
K r at the memory of moments of rank r.

Here nothing is folded: attach one LoRA of rank K r; link k trains rows k r .. (k + 1) r of A and the same columns of B
(`optimiser.Scope`). The slices of links to come have B = 0 and add nothing. So the numbers are those of folding and
starting again, up to rounding (a test folds and compares), while going back, resuming, saving, exporting and quantised
bases work as with any LoRA. The scaling must be that of rank r, so multiply alpha, too:

    policy.attach(wb.LoRA(r=3 * 8, alpha=3 * 16)); wb.method("chain_of_lora")(policy, rows, links=3)

Xia et al. 2024, arXiv 2401.04151: chains of 2 or 3 links of rank 8 on query and value (from memory, not
checked), as many steps in all as one LoRA would get. Left out: ranks that shrink along the chain. `steps` decides where
links begin, so it should stay as it is within a run. With `links=1` this is SFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench import adapters, optimiser
from workbench.errors import SettingError
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State

FACTORS = {".lora_A.": 0, ".lora_embedding_A": 0, ".lora_B.": 1, ".lora_embedding_B": 1}
"""what the factors' names have, and along which dimension the rank lies"""


@dataclass(frozen=True, kw_only=True)
class ChainSettings(SFTSettings):
    """SFT of a chain of LoRAs."""

    links: int = knob(2, at_least=1, fixed=True)
    """LoRAs in the chain; the rank of the attached one is theirs together"""

    def link(self, step: int) -> int:
        """The link that a step trains, from 0."""
        return min(self.links - 1, (step - 1) * self.links // self.steps)

    def course(self, step: int) -> tuple[int, int]:
        first, end = (-(-link * self.steps // self.links) for link in (self.link(step), self.link(step) + 1))
        return step - first, end - first

    def problem(self) -> str | None:
        if self.steps < self.links:
            return f"steps={self.steps} is less than a step for each of links={self.links}."
        return super().problem()


def _dimension(name: str) -> int | None:
    return next((dimension for part, dimension in FACTORS.items() if part in name), None)


def _slice(p: Tensor, dimension: int, link: int, links: int) -> Tensor:
    """A mask of the link's part of a factor."""
    mask = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    size = p.shape[dimension] // links
    mask.narrow(dimension, link * size, size).fill_(True)
    return mask


def chosen(ctx: Context, index: int) -> optimiser.Scope | None:
    links, link = ctx.settings.links, ctx.settings.link(index)
    if links == 1:
        return None
    found = {name: (p, _dimension(name)) for name, p in ctx.policy.trainable().items()}
    return {name: None if at is None else _slice(p, at, link, links) for name, (p, at) in found.items()}


def scope(state: State, ctx: Context, index: int) -> optimiser.Scope | None:
    link = ctx.settings.link(index)
    moved = state.json.get("link", link) != link  # also where `steps` was changed within the run
    if ctx.settings.links > 1 and (moved or ctx.settings.course(index)[0] == 1):
        optimiser.restart(state)
    state.json["link"] = link
    return chosen(ctx, index)


def after(state: State, ctx: Context, batch: Any, index: int) -> dict[str, float]:
    share = optimiser.share(state.params, chosen(ctx, index))
    return {"link": float(ctx.settings.link(index) + 1), "trained_share": share}


def check(policy: Any, settings: ChainSettings) -> None:
    links, config = settings.links, policy.adapter
    if links == 1:
        return
    said = f"chain_of_lora: links={links}"
    if config is None or config.peft_type.value != "LORA" or config.use_dora or adapters.edits_base(config):
        raise SettingError(f"{said} needs a plain LoRA: policy.attach(wb.LoRA(r={links} * 8, alpha={links} * 16)).")
    for name, p in policy.trainable().items():
        at = _dimension(name)
        if at is not None and p.shape[at] % links:
            raise SettingError(
                f"{said} cannot share the rank {p.shape[at]} of {name} evenly. Attach a LoRA of rank {links} * r (and"
                f" alpha {links} times that of rank r)."
            )


METHOD = sft.variant("chain_of_lora", ChainSettings, sft.Variant(scope=scope, after=after), check=check)
