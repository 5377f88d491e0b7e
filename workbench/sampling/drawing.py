"""Drawing: from next-token logits to one token a row, with its log-prob and the entropy it was drawn from.

The inverse CDF of a row's uniform number, in the order of token ids. One pass over the vocabulary takes the
exponentials in the logits' precision; what is added up over many tokens is added in float64, for a running sum in
float32 would let a batch's layout change a token now and then. A large vocabulary is summed in blocks, and the running
sum is taken over the blocks and then within one of them only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import RunError
from workbench.sampling.choices import Sampling

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""logits worked on at a time: on a CPU what its caches hold, for each is read several times"""
BLOCK = 512
"""tokens of a block"""
SMALL = 4096
"""tokens of a vocabulary that needs no blocks"""
NUCLEUS = 512
"""likeliest tokens among which top_p is looked for at first"""


def draw(
    logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row: `(tokens int64, logprob float64, entropy float64)`, each (B,) on the CPU.

    `logits` (B, V); `uniform` (B,) float64 in [0, 1), used with the inverse CDF in the order of token ids; `seen`
    (B, V) bool: the tokens of each row's text, where there is a repetition penalty.

    Log-prob and entropy are those of softmax(logits / temperature) (at temperature 0, those of softmax(logits)), before
    the penalty and before top_k, top_p and min_p cut it: what a trainer scores, and what importance ratios are taken
    against. Raises RunError if a row's logits are not numbers.
    """
    if logits.device.type == "mps":  # no float64 there
        logits, seen = logits.cpu(), None if seen is None else seen.cpu()
    size = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // logits.shape[-1])
    if logits.shape[0] <= size:
        found = _draw(logits, uniform.to(logits.device), sampling, seen)
    else:
        marks = [None] * len(logits) if seen is None else seen.split(size)
        parts = zip(logits.split(size), uniform.to(logits.device).split(size), marks, strict=False)
        found = torch.cat([_draw(z, u, sampling, marks) for z, u, marks in parts], dim=1)
    tokens, logprob, entropy = found.cpu()  # one transfer: from a GPU each costs as much as the drawing
    if logprob.isnan().any():
        raise RunError(
            "The model's logits are not numbers (NaN or infinite), so nothing can be drawn. Training went "
            "astray, or float16 overflowed: go back a step with a lower learning rate, or load with "
            "dtype='float32'."
        )
    return tokens.long(), logprob, entropy


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    """(3, B) float64: tokens, log-probs, entropies; log-probs of NaN where the logits are not numbers."""
    z = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()  # (B, V)
    if sampling.temperature not in (0, 1):
        z = z / sampling.temperature
    top = z.amax(-1, keepdim=True)  # (B, 1)
    below = (z - top).clamp_(min=-746.0)  # exp of it is 0 in float64 as well, and 0 * it is 0
    weight = below.exp()
    total = weight.sum(-1).double()
    entropy = total.log() - (weight * below).sum(-1).double() / total
    if seen is not None:
        z = penalised(z, seen, sampling.repetition_penalty)
        if sampling.temperature != 0:
            weight = (z - z.amax(-1, keepdim=True)).exp_()
    if sampling.temperature == 0:
        tokens = z.argmax(-1)
    else:
        tokens = _inverse_cdf(truncate(weight, sampling.top_k, sampling.top_p, sampling.min_p), uniform)
    drawn = below.gather(-1, tokens[:, None])[:, 0].double()
    return torch.stack([tokens.double(), drawn - total.log(), entropy])


def _inverse_cdf(weight: Tensor, uniform: Tensor) -> Tensor:
    """For each row of weights (B, V), not normalised, the first token whose running sum passes uniform * total."""
    width = weight.shape[-1]
    if width <= SMALL:
        return _search(weight.double(), uniform)
    whole = width // BLOCK * BLOCK
    sums = weight[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    sums = torch.cat([sums, weight[:, whole:].sum(-1, keepdim=True)], dim=-1).double()  # (B, blocks)
    block = _search(sums, uniform)[:, None]
    before = sums.cumsum(-1).gather(-1, block) - sums.gather(-1, block)
    left = (uniform[:, None] * sums.sum(-1, keepdim=True) - before) / sums.gather(-1, block)
    index = block * BLOCK + torch.arange(BLOCK, device=weight.device)  # (B, BLOCK)
    inside = weight.gather(-1, index.clamp(max=width - 1)).where(index < width, 0.0)
    return block[:, 0] * BLOCK + _search(inside.double(), left[:, 0].clamp(0, 1))


def _search(weight: Tensor, uniform: Tensor) -> Tensor:
    """The first column (B,) whose running sum passes uniform * total: never one of weight 0."""
    cdf = weight.cumsum(-1)
    total = cdf[:, -1:]
    aim = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, aim, right=True)[:, 0].clamp_(max=weight.shape[-1] - 1)


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of `seen` tokens moved down (for a penalty above 1), as transformers does it."""
    return logits.where(~seen, torch.where(logits < 0, logits * penalty, logits / penalty))


def truncate(p: Tensor, top_k: int, top_p: float, min_p: float = 0.0) -> Tensor:
    """Weights (B, V) with the tail set to 0, not normalised: top_k, then top_p of what is left, then min_p.

    As in transformers: tokens tied with the k-th stay; the token that crosses top_p stays.
    """
    if 0 < top_k < p.shape[-1]:
        p = p.where(p >= p.topk(top_k, dim=-1).values[:, -1:], 0.0)
    if top_p < 1:
        p = _nucleus(p, top_p)
    if min_p > 0:
        p = p.where(p >= min_p * p.amax(-1, keepdim=True), 0.0)
    return p


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens up to the one that crosses top_p of all; of those that tie with it, the first by id.

    A full sort is rarely needed: the nucleus is looked for among the likeliest few, then among more of them.
    """
    width = p.shape[-1]
    aim = top_p * p.sum(-1, keepdim=True).double()
    count = NUCLEUS
    while True:
        whole = 4 * count > width  # then sorting is faster
        ordered = (p.sort(dim=-1, descending=True) if whole else p.topk(count, dim=-1)).values.double()  # (B, count)
        kept = ordered.cumsum(-1) - ordered < aim  # what is likelier does not reach the aim yet
        if whole or not kept[:, -1].any():
            break
        count *= 8
    size = kept.sum(-1, keepdim=True)  # (B, 1), at least 1
    last = ordered.gather(-1, size - 1).to(p.dtype)
    inside = p >= last
    if (inside.sum(-1, keepdim=True) != size).any():
        tied, above = p == last, p > last
        inside = above | (tied & (tied.cumsum(-1) <= size - above.sum(-1, keepdim=True)))
    return p.where(inside, 0.0)
