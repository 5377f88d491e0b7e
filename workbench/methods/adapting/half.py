"""Half fine-tuning: each round trains a random half of the weight matrices and leaves the other half as it is.

What stays keeps what the model knew; which half it is changes from round to round. The choice is made by category, so
that every layer takes part:

    per layer    half of the attention's matrices (2 of query, key, value, output)
                 half of the feed-forward's: where their number is odd, one more in a random half of the layers
                 half of the norms (1 of 2)
    always       what is outside the layers: embeddings, the last norm, the head

`fraction` other than 0.5 goes the same way; at 1 everything trains, and this is SFT. A bias goes with its matrix.
With LoRA a target layer's A and B are what a matrix is here: they train or stay together, and nothing need be merged
between rounds. The optimiser holds moments only of what trains, and begins anew with each round, or where a changed
setting (`batch_size` makes an epoch longer or shorter, `fraction` another choice) leaves out what trained before.

Hui et al. 2024, arXiv 2404.18466: fraction 0.5 (0.4 to 0.6 do as well); the choice by category does better than one of
whole layers or over the whole model. No code of the authors was found; the choice per category is that of a later
re-implementation's description. The paper's rounds are tasks or stages of training, redrawn at each; one summary says
epochs, which is the default here: `round_steps` sets another length. Layers with another number of matrices (fused
queries, experts) are halved likewise, and since their sizes differ the trained share of the numbers (`trained_share`)
may differ from the fraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workbench import keys, optimiser
from workbench.adapters import hooks
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State


@dataclass(frozen=True, kw_only=True)
class HalfSettings(SFTSettings):
    """SFT of a part of the matrices."""

    fraction: float = knob(0.5, above=0.0, at_most=1.0)
    """share of the matrices of each category that trains in a round"""
    round_steps: int | None = knob(None, at_least=1, fixed=True)
    """steps of a round; None: an epoch"""


Units = dict[int, dict[str, list[str]]]
"""layer -> matrix (its module) -> the parameters that train it"""


def categories(policy: Any) -> dict[str, Units]:
    """What is trained within decoder layers: "norms", and the rest by the part of the layer it is in."""
    layers = {f"{name}.": number for number, name in enumerate(hooks.decoder_layers(policy.model))}
    units: dict[tuple[int, str], list[str]] = {}
    for name in policy.trainable():
        prefix = next((prefix for prefix in layers if name.startswith(prefix)), None)
        if prefix is not None:
            inside = name[len(prefix) :]
            module = inside.split(".lora_")[0] if ".lora_" in inside else inside.rpartition(".")[0] or inside
            units.setdefault((layers[prefix], module), []).append(name)
    found: dict[str, Units] = {}
    shapes = {name: p.dim() for name, p in policy.trainable().items()}
    for (layer, module), names in units.items():
        category = module.partition(".")[0] if max(shapes[name] for name in names) > 1 else "norms"
        found.setdefault(category, {}).setdefault(layer, {})[module] = names
    return found


def drawn(category: str, units: Units, fraction: float, key: int) -> set[str]:
    """The parameters of a category that train: `fraction` of its matrices, as evenly over the layers as can be."""
    counts = {layer: math.floor(fraction * len(modules)) for layer, modules in units.items()}
    extra = math.floor(fraction * sum(map(len, units.values())) + 0.5) - sum(counts.values())
    order = [list(units)[i] for i in keys.permutation(keys.key(key, category, "layers"), len(units))]
    for layer in [layer for layer in order if counts[layer] < len(units[layer])][:extra]:
        counts[layer] += 1
    chosen: set[str] = set()
    for layer, modules in units.items():
        places = keys.permutation(keys.key(key, category, layer), len(modules))[: counts[layer]]
        chosen.update(name for place in places for name in list(modules.values())[place])
    return chosen


def round_of(ctx: Context, index: int) -> tuple[int, int]:
    """The round of a step, from 0, and the step's number in it, from 0."""
    settings = ctx.settings
    return divmod(index - 1, settings.round_steps or math.ceil(len(ctx.data.items) / settings.batch_size))


def chosen(ctx: Context, index: int) -> optimiser.Scope | None:
    if ctx.settings.fraction == 1:
        return None
    key = keys.key(ctx.settings.seed, "half", round_of(ctx, index)[0])
    found = categories(ctx.policy)
    within = {name for units in found.values() for modules in units.values() for p in modules.values() for name in p}
    trained = set().union(*(drawn(name, units, ctx.settings.fraction, key) for name, units in found.items()))
    return {name: None for name in ctx.policy.trainable() if name not in within or name in trained}


def scope(state: State, ctx: Context, index: int) -> optimiser.Scope | None:
    trained = chosen(ctx, index)
    if trained is None:
        return None
    left = any(name not in trained for slots in state.optim.values() for name in slots)
    if left or round_of(ctx, index)[1] == 0:
        optimiser.restart(state)
    return trained


def after(state: State, ctx: Context, batch: Any, index: int) -> dict[str, float]:
    return {"trained_share": optimiser.share(state.params, chosen(ctx, index))}


def check(policy: Any, settings: HalfSettings) -> None:
    if settings.fraction < 1:
        hooks.decoder_layers(policy.model)


METHOD = sft.variant("half", HalfSettings, sft.Variant(scope=scope, after=after), check=check)
