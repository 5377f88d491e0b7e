"""Task vectors: what a fine-tune added to each weight, and a policy with a combination of several.

    theta = theta_0 + sum_i c[i, name] * prune(tau_i)[name]

(Ilharco et al. 2022, arXiv 2212.04089.) A member of a merge is a Run (its weights now) or what `policy.params()` gave
at some time. The vector of a LoRA is scaling * B A; vectors of several LoRAs add up exactly only as products, never as
averages of A and of B, so their combination is a LoRA of all their ranks side by side. What is no combination (a
pruned vector) goes into the weights of a model without an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench import adapters
from workbench.errors import SettingError
from workbench.policy import Policy, from_description
from workbench.run import Run
from workbench.trunk import base_of

Params = Mapping[str, Tensor]
"""by name, as `policy.params()` gives them"""
Member = Run | Params
LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""the number of a decoder layer in a parameter's name"""


@dataclass(frozen=True)
class Factors:
    """A layer's part of a LoRA: the vector is b @ a, with b (out, r) scaled already and a (r, in)."""

    b: Tensor
    a: Tensor

    def dense(self) -> Tensor:
        return self.b.float() @ self.a.float()


Vector = dict[str, "Factors | Tensor"]
"""by the name of the weight in the base model"""


def vectors(policy: Policy, members: Sequence[Member], least: int = 1) -> list[Vector]:
    """What each member added to the policy's base.

    Raises SettingError for fewer than `least` members, and for one that is not of this policy.
    """
    if isinstance(members, (Run, Mapping)) or len(members) < least:
        raise SettingError(f"Give a list of at least {least} runs or params of this policy (policy.params()).")
    found = [_params(member, number) for number, member in enumerate(members)]
    mine = policy.trainable().keys()
    for number, params in enumerate(found):
        if odd := sorted(params.keys() ^ mine):
            raise SettingError(
                f"members[{number}] is not of this policy: {len(odd)} names differ ({odd[0]}, ...). All members share"
                " one base model and one shape of adapter."
            )
    return [_vector(policy, params) for params in found]


def _params(member: Member, number: int) -> Params:
    if isinstance(member, Run):
        if member.engine is None:
            raise SettingError(f"members[{number}] was opened to look at; wb.resume(...) brings its weights back.")
        return member.engine.state.params
    if isinstance(member, Mapping):
        return member
    raise SettingError(f"members[{number}] is {type(member).__name__}; give a Run or policy.params().")


def _vector(policy: Policy, params: Params) -> Vector:
    if not policy.has_adapter:
        return {name: params[name] - start for name, start in policy._start.items()}
    _check_lora(policy)
    made: Vector = {}
    for name, layer in lora_layers(policy):
        a, b = (params[_inside(name, part, policy)] for part in ("lora_A", "lora_B"))
        made[f"{name}.weight"] = Factors(layer.scaling[policy.model.active_adapter] * b, a)
    return made


def lora_layers(policy: Policy) -> list[tuple[str, Any]]:
    """The LoRA layers by their name in the base model."""
    base = base_of(policy.model)
    return [(name, module) for name, module in base.named_modules() if hasattr(module, "lora_A")]


def _inside(name: str, part: str, policy: Policy) -> str:
    return f"base_model.model.{name}.{part}.{policy.model.active_adapter}.weight"


def _check_lora(policy: Policy) -> None:
    config = policy.adapter
    plain = config.peft_type == "LORA" and not config.use_dora and not getattr(config, "modules_to_save", None)
    if not plain or config.bias != "none" or adapters.edits_base(config):
        raise SettingError(
            "Merging reads a plain LoRA (no DoRA, no biases, no modules_to_save, no initialisation that changes the"
            " base) or a model without an adapter. Others: policy.export(...) each, and merge the exported models."
        )


def combined(policy: Policy, taus: Sequence[Vector], share: Callable[[str, int], float]) -> Policy:
    """A new policy: its base with `share(name, i)` times vector i for each weight, added up, exactly.

    LoRAs become one LoRA with all their ranks; without an adapter the weights themselves change.
    """
    if not policy.has_adapter:
        added = {name: sum(share(name, i) * tau[name] for i, tau in enumerate(taus)) for name in taus[0]}
        return dense(policy, added)
    ranks = {name: [tau[name].a.shape[0] for tau in taus] for name in taus[0]}
    pattern = {re.escape(name.removesuffix(".weight")): sum(ranks[name]) for name in taus[0]}
    made = from_description(policy.describe() | {"adapter": None})
    from peft import LoraConfig

    config = LoraConfig(
        r=max(pattern.values()),
        lora_alpha=max(pattern.values()),
        target_modules=[name.removesuffix(".weight") for name in taus[0]],
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),  # scaling 1: the shares and scalings are in B
        task_type="CAUSAL_LM",
    )
    made.attach(config)
    params = dict(made.params())
    for name in taus[0]:
        layer = name.removesuffix(".weight")
        parts = [(share(name, i) * tau[name].b, tau[name].a) for i, tau in enumerate(taus)]
        joined = {"lora_B": torch.cat([b for b, _ in parts], 1), "lora_A": torch.cat([a for _, a in parts])}
        for part, values in joined.items():
            key = _inside(layer, part, made)
            params[key] = values.to(params[key]).contiguous()
    made.hold(params, "start")
    made._start = made.params()
    return made


def dense(policy: Policy, added: Mapping[str, Tensor]) -> Policy:
    """A new policy without an adapter: the base's weights, and `added` on top. Raises SettingError where the base is
    quantised."""
    if policy.origin.quantize:
        raise SettingError("A vector cannot be added to quantised weights without rounding it. Load without quantize.")
    made = from_description(policy.describe() | {"adapter": None})
    params = {name: p.clone() for name, p in made.params().items()}
    for name, delta in added.items():
        params[name] += delta.to(params[name])
    made.hold(params, "start")
    made._start = made.params()
    return made


def tensor_of(part: Factors | Tensor) -> Tensor:
    """A vector's part as a matrix, float32."""
    return part.dense() if isinstance(part, Factors) else part.float()


def layer_of(name: str) -> int | None:
    """The decoder layer a parameter belongs to; None outside of them."""
    found = LAYER.search(f".{name}")
    return None if found is None else int(found[1])
