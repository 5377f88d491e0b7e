"""One token through a model of decoder layers in few operations.

At small batches a CPU spends more time between the operations of a token than in them. transformers writes a layer of
the Llama kind (pre-norm, rotary positions, grouped queries, gated MLP) as about sixty; here the same layer takes
twenty: queries, keys and values are one product, gate and up another, a norm three operations, and the query heads that
share keys are rows of one attention, so that no key is read twice.

Which layers are of this build is seen from their parts, and then tried on each of them: its own forward must give the
same numbers. Where all layers are, what is around them (the embedding, the turn of the positions, the last norm) is
called without the bookkeeping of transformers, if that, tried too, gives the same. Only for single tokens on a CPU;
prompts take the model's own forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from workbench import attention
from workbench.adapters.products import BLOCK, Weight
from workbench.adapters.sums import Sum, is_free
from workbench.trials import Once
from workbench.trunk import base_of

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
TRUNK = {"embed_tokens", "layers", "norm", "rotary_emb"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""of the largest number that a layer adds to its input: more is not rounding"""
SCALE = 8.0
"""queries and keys of a trial are so much larger, for a soft cap or a window to show"""
_same: Once[bool] = Once()
"""by decoder layer: whether its own forward gives the same"""


@dataclass
class Block:
    """A decoder layer of the usual build, and its products by what holds them together."""

    layer: nn.Module
    groups: dict[nn.Module, list[Sum]]


def found(model: nn.Module, layers: Mapping[nn.Module, Sum]) -> list[Block]:
    """The decoder layers of `model` that look like the usual ones and whose products are all among `layers`."""
    if not layers or next(model.parameters()).device.type != "cpu":
        return []
    return [block for module in model.modules() if (block := _block(module, layers))]


def forwards(
    model: nn.Module, built: list[Block], weights: Mapping[nn.Module, Weight]
) -> dict[nn.Module, Any]:
    """By decoder layer another `forward` for it, of those that do what the layer's own does.

    `weights`: what `sums.made` gave for each group. While this runs, the layers' products must have these weights.
    """
    light = {block.layer: _OneToken(block, weights) for block in built}
    light = {layer: forward for layer, forward in light.items() if _same(layer, partial(_is_same, forward))}
    if (trunk := _trunk(model, light)) is not None and _same(trunk.module, partial(_is_same_trunk, trunk)):
        light[trunk.module] = trunk
    return light


class _Norm:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) as three operations: x * w sqrt(D) / sqrt(|x|^2 + D eps)."""

    def __init__(self, norms: list[tuple[nn.Module, int]]):
        """`norms`: each with the number of rows in a table that it is for."""
        width = norms[0][0].weight.numel()
        weights = [norm.weight.detach().expand(rows, width) for norm, rows in norms]
        self.weight = torch.cat(weights) * sqrt(width)
        self.least = torch.tensor(sqrt(width * _epsilon(norms[0][0])), dtype=self.weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Of `x` (..., D)."""
        return (x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least)).mul_(self.weight)


class _Product:
    """A product with a weight (out, in), and its bias."""

    def __init__(self, weight: Weight, group: list[Sum]):
        self.weight, self.bias = weight, _bias(group)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, out) for `x` (B, in)."""
        return self.weight(x, self.bias)

    def added(self, x: Tensor, base: Tensor) -> Tensor:
        """`base` (parts, B, out / parts) and the product, laid out as `base`, which is lost."""
        if self.weight.blocks:
            made = base.baddbmm_(x.expand(len(base), -1, -1), self.weight.data)
        else:
            made = torch.addmm(base[0], x, self.weight.data.t())[None]
        return made if self.bias is None else made.add_(self.bias.view(len(base), 1, -1))

    def gated(self, x: Tensor) -> Tensor:
        """silu of the first half of the outputs, times the second: (B, out / 2)."""
        if not self.weight.blocks:
            gate, up = self(x).chunk(2, dim=-1)
            return silu(gate).mul_(up)
        made = self.weight.apart(x)
        if self.bias is not None:
            made += _cut(self.bias)[:, None]
        gate, up = made.chunk(2)
        found = x.new_empty(len(x), len(gate) * BLOCK)
        torch.mul(silu(gate), up, out=_cut(found).transpose(0, 1))
        return found


class _OneToken:
    """The `forward` of a decoder layer: one token a row here, anything else as the layer does it."""

    def __init__(self, block: Block, weights: Mapping[nn.Module, Weight]):
        layer = block.layer
        attention, mlp = layer.self_attn, layer.mlp
        self.own = type(layer).forward.__get__(layer)
        self.index, self.scaling, self.width = attention.layer_idx, attention.scaling, attention.head_dim
        self.keys = block.groups[attention][1].weight.shape[0] // self.width
        queries = block.groups[attention][0].weight.shape[0] // self.width
        self.group, self.turned = queries // self.keys, queries + self.keys
        self.heads = queries + 2 * self.keys
        self.before, self.between = (
            _Norm([(norm, 1)]) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        self.inside = None
        if hasattr(attention, "q_norm"):
            self.inside = _Norm([(attention.q_norm, queries), (attention.k_norm, self.keys)])
        self.qkv, self.out, self.gate_up, self.down = (
            _Product(weights[owner], block.groups[owner])
            for owner in (attention, attention.o_proj, mlp, mlp.down_proj)
        )
        self.parts = len(self.down.weight.data) if self.down.weight.blocks else 1
        """what layers hand on is cut into parts as the products that add to it are, so that these add in place"""

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Any = None,
        **inputs: Any,
    ) -> Tensor:
        if hidden_states.shape[1] != 1 or past_key_values is None:
            return self.own(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **inputs,
            )
        x = _parted(hidden_states[:, 0], self.parts)
        return _whole(self.through(x, attention_mask, position_embeddings, past_key_values))[:, None]

    def through(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], past: Any) -> Tensor:
        """What the layer makes of `x` (parts, B, D / parts), which is lost."""
        x = self.out.added(self._attended(self.before(_whole(x)), mask, turn, past), x)
        return self.down.added(self.gate_up.gated(self.between(_whole(x))), x)

    def _attended(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], past: Any) -> Tensor:
        """(B, queries * width): what the queries found."""
        batch, keys = len(x), self.keys
        heads = self.qkv(x).view(batch, self.heads, self.width)
        both = heads[:, : self.turned]  # queries and keys
        if self.inside is not None:
            both.copy_(self.inside(both))
        cos, sin = turn
        half = self.width // 2
        turned = torch.cat((-both[..., half:], both[..., :half]), dim=-1)
        both.mul_(cos).addcmul_(turned, sin)
        new = heads[:, -2 * keys :, None]
        key, value = past.update(new[:, :keys], new[:, keys:], self.index)
        query = heads[:, : -2 * keys].view(batch, keys, self.group, self.width)
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling)
        return found.reshape(batch, -1)


class _OneTokenTrunk:
    """The `forward` of a whole trunk: one token a row with ready masks here, anything else as the trunk does it."""

    def __init__(self, module: nn.Module, layers: list[tuple[_OneToken, str]]):
        self.module, self.layers = module, layers
        self.own = type(module).forward.__get__(module)
        self.last = _Norm([(module.norm, 1)])

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **inputs: Any,
    ) -> Any:
        ready = attention_mask if isinstance(attention_mask, dict) else {"": attention_mask}
        masked = all(torch.is_tensor(mask) and mask.dim() == 4 for mask in ready.values())
        if not masked or input_ids is None or input_ids.shape[1] != 1 or past_key_values is None:
            inputs |= {"position_ids": position_ids, "past_key_values": past_key_values}
            return self.own(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        x = self.module.embed_tokens(input_ids)
        turn = self.module.rotary_emb(x, position_ids)
        with torch.inference_mode():  # no bookkeeping for gradients; nothing that is made in here is kept
            x = _parted(x[:, 0], self.layers[0][0].parts)
            for layer, kind in self.layers:
                x = layer.through(x, ready[kind] if kind in ready else ready[""], turn, past_key_values)
            x = self.last(_whole(x))[:, None]
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


def _trunk(model: nn.Module, light: Mapping[nn.Module, _OneToken]) -> _OneTokenTrunk | None:
    """That of `model`, where all its layers are among `light` and nothing else is in it that computes."""
    base = base_of(model)
    module = getattr(base, "base_model", base)
    if _names(module) != TRUNK or not all(layer in light for layer in module.layers):
        return None
    if not is_free(module) or not _is_norm(module.norm) or not is_free(module.norm):
        return None
    kinds = [kind for kind, _ in attention.layers(model)]
    if len(kinds) != len(module.layers):
        return None
    return _OneTokenTrunk(module, [(light[layer], kind) for layer, kind in zip(module.layers, kinds, strict=True)])


def _parted(x: Tensor, parts: int) -> Tensor:
    """(B, D) as (parts, B, D / parts), a copy."""
    return x.unflatten(-1, (parts, -1)).transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _whole(x: Tensor) -> Tensor:
    """(parts, B, D / parts) as (B, D)."""
    return x.transpose(0, 1).flatten(1)


def _cut(x: Tensor) -> Tensor:
    """(..., n) as (..., n / BLOCK, BLOCK), a view."""
    return x.unflatten(-1, (-1, BLOCK))


def _bias(group: list[Sum]) -> Tensor | None:
    if all(part.bias is None for part in group):
        return None
    return torch.cat([part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in group])


def _block(layer: nn.Module, layers: Mapping[nn.Module, Sum]) -> Block | None:
    if _names(layer) != LAYER or _names(layer.mlp) != MLP or _names(layer.self_attn) - HEAD_NORMS != ATTENTION:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if HEAD_NORMS <= _names(attention):
        norms += [attention.q_norm, attention.k_norm]
    elif HEAD_NORMS & _names(attention):
        return None
    if not all(map(is_free, (layer, attention, mlp, mlp.act_fn, *norms))) or not all(map(_is_norm, norms)):
        return None
    if not all(hasattr(attention, name) for name in ("head_dim", "scaling", "layer_idx")):
        return None
    groups = {
        attention: [attention.q_proj, attention.k_proj, attention.v_proj],
        attention.o_proj: [attention.o_proj],
        mlp: [mlp.gate_proj, mlp.up_proj],
        mlp.down_proj: [mlp.down_proj],
    }
    if not all(module in layers for group in groups.values() for module in group):
        return None
    return Block(layer, {owner: [layers[module] for module in group] for owner, group in groups.items()})


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_norm(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and not _names(module) and _epsilon(module) is not None


def _epsilon(norm: nn.Module) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


class _Past:
    """Keys and values of a trial."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def _is_same(forward: _OneToken) -> tuple[bool, bool]:
    """Whether this and the layer's own forward add the same to random numbers, and whether that is certain."""
    weight = forward.qkv.weight
    dtype = weight.data.dtype
    random = torch.Generator().manual_seed(0)
    x, angle, *past = (
        torch.randn(shape, generator=random, dtype=dtype)
        for shape in ((3, 1, weight.inputs), (3, 1, forward.width // 2), *[(3, forward.keys, 6, forward.width)] * 2)
    )
    turn = tuple(SCALE * f(torch.cat((angle, angle), dim=-1)) for f in (torch.cos, torch.sin))
    mask = torch.zeros(3, 1, 1, 7, dtype=dtype)
    mask[1, ..., :2] = torch.finfo(dtype).min
    own, mine = (
        f(x, attention_mask=mask, position_embeddings=turn, past_key_values=_Past(*past)) - x
        for f in (forward.own, forward)
    )
    return _close(own, mine)


def _is_same_trunk(forward: _OneTokenTrunk) -> tuple[bool, bool]:
    """Whether this and the trunk's own forward give the same after four tokens, and whether that is certain."""
    module, kinds = forward.module, {kind for _, kind in forward.layers}
    ids = torch.arange(10).view(2, 5) % module.config.get_text_config().vocab_size
    mask = torch.zeros(2, 1, 1, 5, dtype=forward.last.weight.dtype)
    masks = {kind: mask for kind in kinds} if len(kinds) > 1 else mask
    made = []
    for f in (forward.own, forward):
        past = Cache(layers=[DynamicLayer() for _ in forward.layers])
        forward.own(input_ids=ids[:, :4], past_key_values=past, use_cache=True)
        position = torch.full((2, 1), 4)
        inputs = {"attention_mask": masks, "position_ids": position, "past_key_values": past, "use_cache": True}
        last = f(input_ids=ids[:, 4:], **inputs)
        made.append(last.last_hidden_state)
    return _close(*made)


def _close(own: Tensor, mine: Tensor) -> tuple[bool, bool]:
    return bool((own - mine).abs().max() <= CLOSE[own.dtype] * own.abs().max()), bool(own.isfinite().all())
