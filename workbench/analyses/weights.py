"""How far training moved each weight, ||W - W_0|| / ||W_0||, by layer and module; and how likely rows were before it.

Two papers read tuning off these numbers. Across many controlled runs the base model's perplexity on the training rows
foretells how much tuning on them gives, and the change of the middle layers goes with it best (Harada et al. 2025,
"Massive Supervised Fine-tuning Experiments Reveal How Data, Layer, and Training Factors Shape LLM Alignment Quality",
arXiv 2506.14681). At like settings GRPO moves weights less than SFT does, queries and keys most, and SFT also the MLPs
of the middle layers (Rajani et al. 2025, "Scalpel vs. Hammer: GRPO Amplifies Existing Capabilities, SFT Replaces Them",
arXiv 2507.10616).

For a LoRA ||s B A||_F = s sqrt(trace((B' B) (A A'))), so no large matrix is made. All norms are Frobenius norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench import worker
from workbench.analyses.picture import Result, add, axes, sheet
from workbench.data import rows as read_rows
from workbench.errors import SettingError
from workbench.likelihoods import nll, nll_of_base, texts_of
from workbench.merging.vectors import Factors, Member, layer_of, vectors
from workbench.policy import Policy
from workbench.trunk import base_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@worker.on_worker
def weight_map(policy: Policy, members: Mapping[str, Member] | Sequence[Member] | None = None) -> Result:
    """The relative change of each weight, for the policy as it is, or for several runs (or params) side by side.

    `members`: by the name they get in the picture, as in {"SFT": run_a, "GRPO": run_b}. The frame has a row a weight:
    member, layer (None outside of decoder layers), module, weight, change, norm. Raises SettingError where a member is
    not of this policy.
    """
    import pandas as pd

    named = _named(policy, members)
    before = _weights(policy)
    rows = []
    for name, tau in zip(named, vectors(policy, list(named.values())), strict=True):
        for weight, part in tau.items():
            change, start = norm_of(part), float(before[weight].float().norm())
            rows.append(
                {"member": name, "layer": layer_of(weight), "module": module_of(weight), "weight": weight,
                 "change": change / start if start else float("nan"), "norm": change}
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    squared = {weight: float(start.float().norm()) ** 2 for weight, start in before.items()}
    total = {
        name: float((part["norm"] ** 2).sum() / sum(squared[weight] for weight in part["weight"])) ** 0.5
        for name, part in frame.groupby("member", sort=False)
    }
    return Result("Relative change of weights", frame, _heat, total)


def _named(policy: Policy, members: Mapping[str, Member] | Sequence[Member] | None) -> dict[str, Member]:
    if members is None:
        return {policy.holder: policy.params()}
    if isinstance(members, Mapping) and not any(isinstance(value, Tensor) for value in members.values()):
        return dict(members)
    if isinstance(members, Mapping) or not isinstance(members, Sequence):
        raise SettingError('weight_map: give members by name, as in {"SFT": run_a, "GRPO": run_b}.')
    return {getattr(member, "name", f"member {i}"): member for i, member in enumerate(members)}


def _weights(policy: Policy) -> dict[str, Tensor]:
    """The base's weights by name, those of the start for a model without an adapter."""
    if not policy.has_adapter:
        return dict(policy._start)
    found = {}
    for name, module in base_of(policy.model).named_modules():
        if hasattr(module, "lora_A"):
            layer = module.get_base_layer()
            weight = layer.weight
            if policy.origin.quantize:
                from bitsandbytes.functional import dequantize_4bit

                weight = dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight
            found[f"{name}.weight"] = weight
    return found


def norm_of(part: Factors | Tensor) -> float:
    """The Frobenius norm of a vector's part; of b a without making it."""
    if not isinstance(part, Factors):
        return float(part.float().norm())
    b, a = part.b.double(), part.a.double()
    return float(torch.clamp(((b.T @ b) * (a @ a.T)).sum(), min=0).sqrt())  # trace of a product, both symmetric


def module_of(weight: str) -> str:
    """The module's name without its layer: "q_proj"."""
    return re.sub(r"\.(weight|bias)$", "", weight).rsplit(".", 1)[-1]


def _heat(result: Result) -> Figure:
    from plotly.graph_objects import Heatmap

    members = list(dict.fromkeys(result.frame["member"]))
    figure = sheet("Relative change of weights", members)
    top = float(result.frame["change"].max()) or 1.0
    for i, member in enumerate(members):
        part = result.frame[(result.frame["member"] == member) & result.frame["layer"].notna()]
        table = part.pivot_table(index="module", columns="layer", values="change", sort=False)
        heat = Heatmap(
            z=table.to_numpy(), x=[int(x) for x in table.columns], y=list(table.index), zmin=0, zmax=top,
            colorscale="Viridis", showscale=i == 0, colorbar={"title": "||dW|| / ||W||", "thickness": 10},
        )  # fmt: skip
        add(figure, heat, panel=i)
        axes(figure, "layer", "" if i else "module", panel=i)
    return figure


def base_likelihood(policy: Policy, data: Mapping[str, Any]) -> Result:
    """The mean loss of the base model on data sets, by which the first paper foretells what tuning on them gives.

    `data`: rows by name, as in {"gsm8k": rows, "chat": rows}. The frame has a row a data set, the likeliest first:
    data, rows, nll (nats a token, the mean over rows), perplexity. Raises DataError for rows without prompt and
    completion.
    """
    import numpy as np
    import pandas as pd

    if not isinstance(data, Mapping) or not data:
        raise SettingError('base_likelihood: give rows by name, as in {"gsm8k": rows, "chat": rows}.')
    pools = {name: read_rows(rows) for name, rows in data.items()}
    for pool in pools.values():
        texts_of(pool)  # all are checked before any is scored
    means = {name: float(np.mean(_nll(policy, pool))) for name, pool in pools.items()}
    frame = pd.DataFrame(
        [{"data": n, "rows": len(pools[n]), "nll": m, "perplexity": float(np.exp(m))} for n, m in means.items()]
    ).sort_values("nll", ignore_index=True)
    return Result("Loss of the base model, before any training", frame, _bars, {"likeliest": frame["data"][0]})


def _nll(policy: Policy, pool: Any) -> Any:
    return nll_of_base(policy, pool) if policy.has_adapter else nll(policy, pool)


def _bars(result: Result) -> Figure:
    from plotly.graph_objects import Bar

    figure = sheet(result.title)
    add(figure, Bar(x=[str(name) for name in result.frame["data"]], y=result.frame["nll"]))
    axes(figure, "data", "nats a token")
    return figure
