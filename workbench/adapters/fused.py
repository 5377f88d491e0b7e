"""LoRA layers for the length of an update: each is one operation with a derivative of its own.

PEFT's layer runs W x, then A x, B A x, the scaling and the sum, and autograd the same five backwards: per layer four
passes over tensors of the output's size that multiply nothing. Here the update B A is added to the weight first, so
that y = (W + s B A) x is one matrix product forwards and one backwards; A and B get their exact gradients from x and
the output's gradient. The sum is made once for all micro-batches of an update, as long as the sums of all layers take
no more than `SUMS` bytes; in larger models it lives only while it is multiplied with, and is made again for the
backward pass, which for N tokens costs r / N of the product. In 16 bits, where a sum of weights would round a small
update away, the parts are multiplied apart and added in place.

Under autocast (see `workbench.precision`) the frozen weights are rounded to 16 bits once an update, not once a layer
and pass, and layers that read the same activations share their rounded copy.

Only a plain `peft` LoRA layer over a frozen `nn.Linear` is replaced, with one adapter, no bias and no variant (DoRA,
aLoRA, ...). Whatever else there is, and a layer while it is switched off, merged or under dropout, runs as PEFT has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workbench.forwards import replaced

EXACT = (torch.float32, torch.float64)
"""precisions in which the adapter is added to the weight"""
SUMS = 256 << 20
"""bytes of weights with their adapters that are kept for the length of the block"""


@contextmanager
def linears(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Within the block the model's plain LoRA layers run as one operation each; yields those layers. Afterwards, also
    after an error, all are as they were."""
    adapted = hasattr(model, "peft_config")
    chosen = [module for module in model.modules() if _plain(module)] if adapted else []
    copies = _Copies()
    with replaced(
        {layer: partial(_forward, layer, layer.forward, layer.active_adapters[0], copies) for layer in chosen}
    ):
        yield chosen


def _plain(module: nn.Module) -> bool:
    """Whether `_Product` computes what this module does."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or len(module.active_adapters) != 1:
        return False
    name, base = module.active_adapters[0], module.base_layer
    if name not in module.lora_A or name in module.lora_variant or module.fan_in_fan_out or type(base) is not nn.Linear:
        return False
    parts = (base, module.lora_A[name], module.lora_B[name])
    if any(type(part) is not nn.Linear or "forward" in part.__dict__ or _hooked(part) for part in parts):
        return False
    frozen = not any(p.requires_grad for p in base.parameters())
    return frozen and base.weight.is_floating_point() and parts[1].bias is None and parts[2].bias is None


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _forward(layer: Any, plain: Any, name: str, copies: _Copies, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What `layer` returns for `x` (..., in): (..., out). `plain`: its own forward."""
    dropout = layer.lora_dropout[name]
    dropped = dropout.training and getattr(dropout, "p", 0.0) > 0
    if args or kwargs or layer.disable_adapters or layer.merged or dropped or layer.active_adapters != [name]:
        return plain(x, *args, **kwargs)
    base, a, b = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        if dtype.itemsize != 2 or x.dtype == torch.float64 or base.weight.dtype == torch.float64:
            return plain(x)
        weight, bias = copies.weights(base, dtype)
        x, a, b = copies.input(x, dtype), a.to(dtype), b.to(dtype)
    elif x.dtype == base.weight.dtype == a.dtype == b.dtype:
        weight, bias = base.weight, base.bias
    else:
        return plain(x)
    scaling = float(layer.scaling[name])
    whole = copies.whole(layer, weight, a, b, scaling) if _folds(weight) else None
    with torch.autocast(kind, enabled=False):
        return _Product.apply(x, weight, bias, a, b, scaling, whole)


class _Copies:
    """What lasts as long as the block: weights with their adapters, and copies in 16 bits of frozen weights and of the
    activations read last."""

    def __init__(self) -> None:
        self._sums: dict[nn.Module, tuple[tuple, Tensor]] = {}
        self._room = SUMS
        self._weights: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        self._last: tuple[Tensor, int, torch.dtype, Tensor] | None = None

    def whole(self, layer: nn.Module, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor | None:
        """W + s B A (out, in); None where there is no room to keep it. Made anew where other tensors, or other numbers,
        stand in the layer (a reference is scored with its own)."""
        now = scaling, *((part.data_ptr(), part._version) for part in (weight, a, b))
        if layer in self._sums and self._sums[layer][0] == now:
            return self._sums[layer][1]
        if layer not in self._sums:
            if weight.nbytes > self._room:
                return None
            self._room -= weight.nbytes
        with torch.no_grad():
            made = torch.addmm(weight, b, a, alpha=scaling)
        self._sums[layer] = now, made
        return made

    def weights(self, base: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) of a layer."""
        if base not in self._weights:
            bias = None if base.bias is None else base.bias.detach().to(dtype)
            self._weights[base] = base.weight.detach().to(dtype), bias
        return self._weights[base]

    def input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in `dtype`: one copy, and one node of the graph, for all layers that read the same tensor in turn."""
        if x.dtype == dtype:
            return x
        if self._last is not None:
            read, version, kind, made = self._last
            flows = x.requires_grad and torch.is_grad_enabled()
            if read is x and version == x._version and kind == dtype and made.requires_grad == flows:
                return made
        self._last = x, x._version, dtype, x.to(dtype)
        return self._last[-1]


class _Product(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T with W and bias frozen: x (..., in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        whole: Tensor | None = None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        ctx.scaling, ctx.shape = scaling, x.shape
        ctx.folded, ctx.whole = _folds(weight), whole
        whole = _whole(ctx, weight, a, b)  # (out, in)
        out = rows @ whole.t() if bias is None else torch.addmm(bias, rows, whole.t())  # (N, out)
        down = None if ctx.folded else rows @ a.t()  # (N, r)
        if not ctx.folded:
            out.addmm_(down, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, down)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, down = ctx.saved_tensors
        x_wanted, _, _, a_wanted, b_wanted, *_ = ctx.needs_input_grad
        out = gradients[0].reshape(-1, weight.shape[0])  # (N, out)
        up = (out @ b).mul_(ctx.scaling) if a_wanted or not ctx.folded else None  # (N, r)
        dx = da = db = None
        if x_wanted:
            dx = out @ _whole(ctx, weight, a, b)  # (N, in)
            dx = (dx if ctx.folded else dx.addmm_(up, a)).view(ctx.shape)
        if a_wanted:
            da = up.t() @ rows
        if b_wanted:
            down = rows @ a.t() if ctx.folded else down
            db = (down.t() @ out).mul_(ctx.scaling).t()  # this way round takes half the time on a CPU
        return dx, None, None, da, db, None, None


def _whole(ctx: Any, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """What x is multiplied with: W + s B A, or W where that is not done."""
    if ctx.whole is not None or not ctx.folded:
        return weight if ctx.whole is None else ctx.whole
    return torch.addmm(weight, b, a, alpha=ctx.scaling)


def _folds(weight: Tensor) -> bool:
    """Whether the adapter can be added to the weight. Never a matter of how many tokens there are: micro-batches of
    any size round alike."""
    return weight.dtype in EXACT and not _rounds(weight.device)


def _rounds(device: torch.device) -> bool:
    """Whether products of float32 matrices are taken of rounded ones (TF32, bfloat16)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("tf32", "bf16")
