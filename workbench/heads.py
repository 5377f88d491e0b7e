"""From hidden states to the log-probs of given tokens, without ever holding the logits of all of them.

Logits are made a tile at a time: some tokens by some of the vocabulary. Three ways, one result:

- A plain linear head: tiles go over the vocabulary with a running maximum and sum, as in Milakov and Gimelshein 2018
  (arXiv 1805.02867). A token's log-prob depends on its own hidden state only, so its derivative, the embedding of the
  token less the expected embedding, is summed up in the same pass and kept, (N, D). The backward pass is then one
  multiplication, and logits are never made twice. Only if the head's weight trains are they, for its own gradient.
- Any other head that is frozen (soft-capped, scaled, quantised, with a bias): some tokens at a time by the model's own
  head, and the same derivative by autograd.
- Any other head that trains (an adapter on it, say): some tokens at a time, computed again in the backward pass.

Whether a head is a plain linear one is not looked up but tried on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from workbench.trunk import Trunk

TOKENS = {"cpu": 1024, "cuda": 4096}
"""tokens of a tile of a plain head"""
TILE = {"cpu": 1 << 21, "cuda": 1 << 26}
"""logits of a tile of a plain head (8 and 256 MiB in float32), of which there are two"""
CHUNK = 1 << 24
"""logits that other heads make at a time (64 MiB in float32), of which autograd keeps a few copies"""
DIFFERENTIABLE = ("logprob", "entropy", "mean_logprob")
"""statistics that have a derivative"""
_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class ValueHead:
    """A linear head of one output on the hidden states that predict tokens, beside the model's own. It is no part of
    the model: whoever trains it keeps its tensors."""

    weight: nn.Parameter
    """(D,)"""
    bias: nn.Parameter
    """()"""
    detached: bool = False
    """its gradient ends here and does not reach the model"""

    def of(self, hidden: Tensor) -> Tensor:
        """(N,) of hidden states (N, D), in the head's precision."""
        hidden = (hidden.detach() if self.detached else hidden).to(self.weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden @ self.weight + self.bias


def of(
    trunk: Trunk, hidden: Tensor, target: Tensor, temperature: float = 1.0, needs: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """What `statistics` makes of the logits of `hidden` (N, D), differentiable where gradients are on."""
    trains = torch.is_grad_enabled() and _trains(trunk.base)
    keep = torch.is_grad_enabled() and (hidden.requires_grad or trains)
    wanted = [name for name in DIFFERENTIABLE if keep and (name == "logprob" or name in needs)]
    weight = plain_weight(trunk)
    if weight is not None:
        head = _Plain(hidden, weight, target, 1 / (temperature or 1.0), needs, wanted)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            made, slopes = head.made()
        if not wanted:
            return made
        return _attach(hidden, weight if trains else None, made, slopes, head.weight_gradient)
    size = max(1, CHUNK // trunk.base.config.get_text_config().vocab_size)
    parts = list(zip(hidden.split(size), target.split(size), strict=True))
    if trains:

        def made_of(states: Tensor, ids: Tensor) -> dict[str, Tensor]:
            return statistics(trunk.logits(states), ids, temperature, needs)

        return joined([checkpoint(made_of, states, ids, use_reentrant=False) for states, ids in parts])
    done = [_frozen(trunk, states.detach(), ids, temperature, needs, wanted) for states, ids in parts]
    made, slopes = joined([made for made, _ in done]), joined([slope for _, slope in done])
    return _attach(hidden, None, made, slopes, None) if wanted else made


def statistics(
    logits: Tensor, target: Tensor, temperature: float = 1.0, needs: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """`logprob` of `target`, `entropy` of the distribution, whether the target is its `top1`: each (N,).

    `logits` (N, V) are divided by `temperature` (0 counts as 1: a greedy choice has no distribution of its
    own) and normalised in float32, or in float64 if they are float64. `needs`: "entropy" makes the entropy
    differentiable; "mean_logprob" and "log_sum_sq" add those (see `scoring.TokenScores`).
    """
    z = logits if logits.dtype == torch.float64 else logits.float()  # (N, V)
    if temperature not in (0, 1):
        z = z / temperature
    normaliser = torch.logsumexp(z, dim=-1)  # (N,)
    made = {"logprob": z.gather(-1, target[:, None])[:, 0] - normaliser, "top1": z.detach().argmax(-1) == target}
    with torch.set_grad_enabled("entropy" in needs and torch.is_grad_enabled()):
        logp = z - normaliser[:, None]  # (N, V)
        made["entropy"] = -torch.linalg.vecdot(logp.exp(), logp)
    if "mean_logprob" in needs:
        made["mean_logprob"] = z.mean(-1) - normaliser
    if "log_sum_sq" in needs:
        made["log_sum_sq"] = (torch.logsumexp(2 * z, dim=-1) - 2 * normaliser).detach()
    return made


def workspace(tokens: int, vocab: int, hidden: int, device: str = "cpu", plain: bool = True) -> int:
    """Bytes that scoring `tokens` tokens holds at once beside hidden states, in float32: tiles of logits, and the
    derivative that is kept for the backward pass."""
    kept = 4 * tokens * hidden
    if not plain:
        return kept + 4 * 4 * min(tokens * vocab, max(CHUNK, vocab))
    rows = min(tokens, _of(TOKENS, device))
    return kept + 2 * 4 * rows * min(vocab, _columns(rows, device)) + 2 * 4 * rows * hidden


def plain_weight(trunk: Trunk) -> Tensor | None:
    """The matrix (V, D) that is all there is to the model's head; None where there is more to it."""
    if trunk.base not in _plain:
        _plain[trunk.base] = _is_plain(trunk)
    head = trunk.base.get_output_embeddings() if _plain[trunk.base] else None
    # an adapter put on the head since has taken the linear layer's place
    return head.weight if type(head) is nn.Linear else None


def _is_plain(trunk: Trunk) -> bool:
    head = trunk.base.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or not head.weight.is_floating_point():
        return False
    weight = head.weight.detach()
    draw = torch.Generator().manual_seed(0)
    some = torch.randn(4, weight.shape[1], generator=draw).to(weight)
    # logits in the hundreds, which soft-capping changes beyond doubt
    some = some * (300 / F.linear(some, weight).abs().max().clamp(min=1e-6))
    with torch.no_grad():
        ours, theirs = F.linear(some, weight), trunk.logits(some)
    room = 8 * torch.finfo(weight.dtype).eps * ours.abs().max()
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= room)


def _trains(base: nn.Module) -> bool:
    """Whether anything outside of the trunk trains, or anything that the head shares with it."""
    outside = [p for child in base.children() if child is not base.base_model for p in child.parameters()]
    return any(p.requires_grad for p in [*outside, *base.parameters(recurse=False)])


@dataclass
class _Plain:
    """The statistics of a plain head, and the derivatives of `wanted` ones by the hidden states."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    target: Tensor
    """(N,)"""
    scale: float
    """1 / temperature"""
    needs: frozenset[str]
    wanted: list[str]

    def __post_init__(self):
        device = self.hidden.device.type
        self.hidden, self.weight = self.hidden.detach(), self.weight.detach()
        self.exact = torch.float64 if self.hidden.dtype == torch.float64 else torch.float32
        """what is summed and normalised in"""
        self.dtype = self.weight.dtype
        """what products are taken in"""
        if torch.is_autocast_enabled(device) and self.dtype != torch.float64:
            self.dtype = torch.get_autocast_dtype(device)
        rows = min(len(self.hidden), _of(TOKENS, device))
        self.size = rows, min(len(self.weight), _columns(rows, device))

    def made(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The statistics (N,) and the derivatives (N, D) by name."""
        self.mean = None
        if "mean_logprob" in self.needs:
            self.mean = self.weight.mean(0, dtype=self.exact)  # (D,)
        slopes = {name: torch.zeros_like(self.hidden, dtype=self.exact) for name in self.wanted}
        self.buffers = self._buffers()
        made = joined([self._block(part, {n: s[part] for n, s in slopes.items()}) for part in self._blocks()])
        del self.buffers
        self.normaliser, self.entropy = made.pop("normaliser"), made["entropy"]
        return made, slopes

    def _buffers(self) -> list[Tensor]:
        """Room for two tiles in `exact`, and one in `dtype` where that differs."""
        count = self.size[0] * self.size[1]
        kinds = [self.exact, self.exact, *[self.dtype] * (self.dtype != self.exact)]
        return [torch.empty(count, dtype=kind, device=self.hidden.device) for kind in kinds]

    def _blocks(self) -> Iterator[slice]:
        for first in range(0, len(self.hidden), self.size[0]):
            yield slice(first, first + self.size[0])

    def _tiles(self, part: slice) -> Iterator[tuple[slice, Tensor, Tensor, tuple[Tensor, Tensor]]]:
        """Of the tokens `part` n, tile by tile: its columns c, their weights (c, D), the scaled logits (n, c), and
        which of the n tokens (k,) are at which of the columns (k,)."""
        states, target = self.hidden[part].to(self.dtype), self.target[part]
        order = target.argsort(stable=True)
        edges = torch.arange(0, len(self.weight) + self.size[1], self.size[1], device=target.device)
        cuts = torch.searchsorted(target[order], edges).tolist()
        for number, first in enumerate(range(0, len(self.weight), self.size[1])):
            columns = slice(first, min(first + self.size[1], len(self.weight)))
            weight = self.weight[columns].to(self.dtype)
            shape = len(states), len(weight)
            z = _room(self.buffers[0], shape)
            if self.dtype == self.exact:
                torch.mm(states, weight.t(), out=z)
            else:
                z.copy_(torch.mm(states, weight.t(), out=_room(self.buffers[2], shape)))
            if self.scale != 1:
                z.mul_(self.scale)
            rows = order[cuts[number] : cuts[number + 1]]
            yield columns, weight, z, (rows, target[rows] - first)

    def _block(self, part: slice, slopes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Statistics of the tokens `part`, n of them; their derivatives (n, D) are written to `slopes`, zeros before.

        Sums over the vocabulary are of e = exp(z - peak), where `peak` is the largest logit so far: when it rises,
        what was summed is scaled down.
        """
        n = len(self.target[part])
        new = {"dtype": self.exact, "device": self.hidden.device}
        peak = torch.full((n,), torch.finfo(self.exact).min / 4, **new)
        chosen, first = torch.empty(n, **new), torch.zeros(n, dtype=torch.bool, device=self.hidden.device)
        total, spread, squares = torch.zeros(n, **new), torch.zeros(n, **new), torch.zeros(n, **new)
        mean, moment = slopes.get("logprob"), slopes.get("entropy")  # sums of e * weight, of e * (z - peak) * weight
        for _, weight, z, (rows, at) in self._tiles(part):
            chosen[rows] = z[rows, at]
            first[rows] = (z[rows].argmax(-1) == at) & (chosen[rows] > peak[rows])
            top = torch.maximum(peak, z.amax(-1))
            fall, peak = peak - top, top
            down = fall.exp()
            e = torch.exp(z.sub_(peak[:, None]), out=_room(self.buffers[1], z.shape))
            spread = down * (spread + fall * total) + torch.linalg.vecdot(e, z)
            total = down * total + e.sum(-1)
            if "log_sum_sq" in self.needs:
                squares = down * down * squares + torch.linalg.vecdot(e, e)
            if moment is not None:
                moment.add_(fall[:, None] * mean).mul_(down[:, None])
                _add_product(moment, z.mul_(e), weight)
            if mean is not None:
                mean.mul_(down[:, None])
                _add_product(mean, e, weight)
        log_total, spread = total.log(), spread / total
        made = {
            "logprob": chosen - peak - log_total, "top1": first & (chosen >= peak), "entropy": log_total - spread,
            "normaliser": peak + log_total,
        }  # fmt: skip
        if self.mean is not None:
            made["mean_logprob"] = (self.hidden[part].to(self.exact) @ self.mean) * self.scale - made["normaliser"]
        if "log_sum_sq" in self.needs:
            made["log_sum_sq"] = squares.log() - 2 * log_total
        if mean is not None:
            self._finish(part, slopes, total, spread)
        return made

    def _finish(self, part: slice, slopes: dict[str, Tensor], total: Tensor, spread: Tensor) -> None:
        """From sums over the vocabulary to the derivatives, in place."""
        mean = slopes["logprob"].div_(total[:, None])  # the expected embedding
        if "entropy" in slopes:
            slopes["entropy"].div_(total[:, None]).sub_(spread[:, None] * mean).mul_(-self.scale)
        if "mean_logprob" in slopes:
            slopes["mean_logprob"].add_(self.mean).sub_(mean).mul_(self.scale)
        mean.sub_(self.weight.index_select(0, self.target[part])).mul_(-self.scale)

    def weight_gradient(self, flowing: dict[str, Tensor]) -> Tensor:
        """The gradient (V, D) by the weight, given that by each statistic (N,). Makes the logits again."""
        made = torch.zeros(self.weight.shape, dtype=self.exact, device=self.weight.device)
        self.buffers = self._buffers()
        for part in self._blocks():
            to = {name: flow[part, None].to(self.exact) for name, flow in flowing.items()}
            states = self.hidden[part].to(self.dtype)
            for columns, _, z, (rows, at) in self._tiles(part):
                logp = z.sub_(self.normaliser[part, None])
                p = torch.exp(logp, out=_room(self.buffers[1], z.shape))
                slope = sum(to[name] for name in ("logprob", "mean_logprob") if name in to)
                if "entropy" in to:
                    slope = logp.add_(self.entropy[part, None]).mul_(to["entropy"]).add_(slope)
                d = p.mul_(slope).neg_()
                if "mean_logprob" in to:
                    d.add_(to["mean_logprob"] / len(self.weight))
                if "logprob" in to:
                    d[rows, at] += to["logprob"][rows, 0]
                _add_product(made[columns], d.mul_(self.scale).t(), states)
        del self.buffers
        return made


def _frozen(trunk: Trunk, hidden: Tensor, target: Tensor, temperature: float, needs, wanted):
    """Statistics by the model's own head, and the derivatives of `wanted` ones by autograd: as each depends on its
    own hidden state only, that of their sum has them all."""
    with torch.set_grad_enabled(bool(wanted)):
        if wanted:
            hidden.requires_grad_()
        made = statistics(trunk.logits(hidden), target, temperature, needs)
        slopes = {}
        with torch.autocast(hidden.device.type, enabled=False):
            for name in wanted:
                more = name != wanted[-1]
                slopes[name] = torch.autograd.grad(made[name].sum(), hidden, retain_graph=more)[0]
    return {name: value.detach() for name, value in made.items()}, slopes


class _Attached(torch.autograd.Function):
    """Values that are known, with derivatives that are known."""

    @staticmethod
    def forward(ctx, hidden, weight, values, slopes, weight_gradient):
        ctx.set_materialize_grads(False)
        ctx.names, ctx.weight_gradient = list(slopes), weight_gradient
        ctx.dtypes = hidden.dtype, None if weight is None else weight.dtype
        ctx.save_for_backward(*slopes.values())
        return tuple(values[name] for name in slopes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *flows):
        by_hidden = by_weight = None
        flowing = {name: flow for name, flow in zip(ctx.names, flows, strict=True) if flow is not None}
        if not flowing:
            return (None,) * 5
        with torch.autocast(next(iter(flowing.values())).device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                slopes = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
                by_hidden = sum(flow[:, None] * slopes[name] for name, flow in flowing.items()).to(ctx.dtypes[0])
            if ctx.needs_input_grad[1]:
                by_weight = ctx.weight_gradient(flowing).to(ctx.dtypes[1])
        return by_hidden, by_weight, None, None, None


def _attach(
    hidden: Tensor, weight: Tensor | None, values: dict[str, Tensor], slopes: dict[str, Tensor],
    weight_gradient: Callable[[dict[str, Tensor]], Tensor] | None,
) -> dict[str, Tensor]:  # fmt: skip
    known = _Attached.apply(hidden, weight, values, slopes, weight_gradient)
    return {**values, **dict(zip(slopes, known, strict=True))}


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without rounding the product to the dtype of `b` first: of many tiles, that would add up."""
    if b.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.device.type == "cuda" and b.dtype != torch.float64:
        total.add_(torch.mm(a.to(b.dtype), b, out_dtype=total.dtype))
    else:
        total.addmm_(a, b.to(total.dtype))


def _room(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)


def _columns(rows: int, device: str) -> int:
    """Columns of a tile of so many tokens, in whole cache lines."""
    return max(256, _of(TILE, device) // max(1, rows) // 256 * 256)


def _of(sizes: dict[str, int], device: str) -> int:
    return sizes["cuda" if device == "cuda" else "cpu"]


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Statistics of consecutive tokens as those of all."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
