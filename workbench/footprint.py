"""What a run keeps in memory, as formulas over the parameters that train and the settings. All in bytes.

The optimiser's slots and its workspace, the past states that the engine keeps, and what sampling holds: keys and
values, folded weights, the logits that are drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from workbench import engine, keys, ledger, optimiser
from workbench.adapters import folding
from workbench.sampling import decoder, fitting, slots
from workbench.tokenise import PromptTokens

FIRST_8BIT, BLOCK_8BIT, MAP_8BIT = 4096, 256, 1024
"""bitsandbytes: numbers a parameter must have for moments of 8 bits, numbers that share a scale, bytes of a map"""
WORKSPACE = {"adamw_torch": 2, "adamw_8bit": 5, "adamw_bnb_8bit": 5, "adafactor": 2, "rmsprop": 2}
"""buffers of the largest parameter's size, in float32, that a step of the optimiser holds on a CPU; others have none"""
SHORT = 8
"""tokens of the prompts with which drawing is tried"""


def slots_of(params: Mapping[str, Tensor], optim: str) -> int:
    """What the optimiser keeps between steps."""
    return sum(_slots(p, optimiser.OPTIMISERS[optim].slots) for p in params.values())


def _slots(p: Tensor, kind: str) -> int:
    count, size = p.numel(), p.element_size()
    if kind == "adamw":
        return 2 * count * size + 4
    if kind == "rmsprop":
        return count * size + 4
    if kind == "adamw_8bit" and count < FIRST_8BIT:
        return 2 * count * 4 + 8
    if kind == "adamw_8bit":
        return 2 * (count + 4 * math.ceil(count / BLOCK_8BIT) + MAP_8BIT) + 8
    if kind == "adafactor":
        factors = count if p.dim() < 2 else count // p.shape[-1] + count // p.shape[-2]
        return 4 * factors + 12
    return 0


def workspace(params: Mapping[str, Tensor], settings: Any) -> int:
    """The most that a step of the optimiser holds beside its slots and the gradients.

    torch's AdamW on a GPU works on all parameters at once, and holds a buffer for each.
    """
    largest = max((p.numel() for p in params.values()), default=0)
    device = next(iter(params.values())).device.type
    if device == "cuda":
        whole = sum(p.numel() * p.element_size() for p in params.values())
        return {"adamw_torch": whole, "rmsprop": whole, "adafactor": 2 * 4 * largest}.get(settings.optim, 0)
    if settings.optim == "sgd":
        return 4 * largest * (settings.weight_decay > 0)
    return 4 * largest * WORKSPACE.get(settings.optim, 0)


def past_states(first: int, each: int, count: int) -> int:
    """The states before the last that the engine keeps in memory, of `count`: the first has `first` bytes, later ones
    `each`."""
    if each > engine.MEMORY_BUDGET:
        return first if first <= engine.MEMORY_BUDGET else 0
    whole = first + (count - 1) * each
    return whole if whole <= engine.MEMORY_BUDGET else engine.MEMORY_BUDGET // each * each


def saved(first: int, each: int, steps: int, on_cpu: bool) -> dict[str, int]:
    """What is held when the last of `steps` is kept: the newest state is copied before older ones go, and copied again,
    on the CPU, to be written to disk."""
    after = past_states(first, each, steps + 1)
    writing = {"past states": after, "snapshot": each if on_cpu else 0}
    if each > engine.MEMORY_BUDGET:
        return writing
    copying = {"past states": past_states(first, each, steps) + each}
    return max(writing, copying, key=lambda parts: sum(parts.values()))


# -- sampling --------------------------------------------------------------------------------------------------


def places(prompts: Sequence[int], settings: Any) -> int:
    """Completions that are drawn at a time."""
    return min(decoder.ROWS, len(prompts) * settings.group_size)


def columns(prompt: int, new: int) -> int:
    """Tokens that the buffers of keys and values have room for in the end; they grow by steps."""
    longest = prompt + new
    made = longest - max(0, new - decoder.COLUMNS)
    while made < longest:
        made += _rounded_up(max(slots.BUCKET, made // 2))
    return made


def _rounded_up(count: int) -> int:
    return count + -count % slots.BUCKET


def cache(policy: Any, rows: int, prompts: Sequence[int], new: int) -> int:
    """Keys and values of so many rows; 0 for a model that is sampled without a cache."""
    if fitting.why_plain(policy.model, policy.filler) is not None:
        return 0
    return fitting.bytes_per_token(policy.model) * rows * columns(max(prompts), new)


def drawn(policy: Any, prompts: Sequence[int], settings: Any) -> tuple[int, int]:
    """What sampling holds beside keys and values: folded weights, and what a token takes. Two tokens are drawn."""
    rows, each = places(prompts, settings), min(settings.group_size, decoder.ROWS)
    short = [PromptTokens("", [policy.filler] * SHORT)] * max(1, rows // each)
    fold = folding.size(policy.model, settings.max_new_tokens, rows)
    with policy.at_rest():
        tried = cache(policy, len(short) * each, [SHORT], 2)
        record = ledger.recorded(lambda: _drawn(policy, short, each, settings))
    return fold, max(0, record.peak() - tried)  # for two tokens nothing is folded


def folds_kept(fold: float) -> float:
    """Bytes of folded weights that stay for the next sampling."""
    return fold if fold <= folding.KEPT else 0


def _drawn(policy: Any, prompts: Sequence[PromptTokens], each: int, settings: Any) -> Any:
    drawn = [keys.key("forecast", row) for row in range(len(prompts) * each)]
    return policy.sample_prompts(
        prompts, each, max_new_tokens=2, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k,
        min_p=settings.min_p or 0.0, repetition_penalty=settings.repetition_penalty, keys=drawn,
    )  # fmt: skip
