"""Rows that begin with the same prompt: it goes through the trunk once for all of them (see `workbench.prompt_once`).

Pairs of a preference and groups of completions share their prompts. Whether a model gives the same numbers this way is
not looked up in a list but tried on the model itself; where it does not, where a dropout mask would be shared among
rows, and where too little is saved to pay for running the layers twice, every row has its prompt for itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from workbench import attention, trunk

PROMPT = 4
"""tokens: shorter prompts are not worth sharing"""
SAVED_TOKENS = 128
"""tokens that must be saved, padding included: what a second run of the layers costs, on a CPU in calls, on a GPU in
launches (where batches are so large that SAVED_SHARE asks for more)"""
SAVED_SHARE = 0.1
"""and the share of all tokens"""
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""of what the beginning of a prompt does to the log-probs: more is not rounding"""
CLOSE_IN_HALF = 0.2
"""the same in 16 bits"""
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def of(policy, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int] | None:
    """For each row the number of the prompt it shares with others; None where nothing is gained by sharing."""
    if len(sequences) < 2:
        return None
    numbers: dict[tuple[int, ...], int] = {}
    groups = [
        numbers.setdefault(tuple(sequence[:start]), len(numbers))
        for sequence, start in zip(sequences, starts, strict=True)
    ]
    if not worth_it(sequences, starts, groups):
        return None
    if policy.model.training and trunk.has_dropout(policy.model):
        return None
    return groups if takes_prompts_once(policy) else None


def worth_it(sequences: Sequence[Sequence[int]], starts: Sequence[int], groups: Sequence[int]) -> bool:
    """Whether sharing saves SAVED_TOKENS and SAVED_SHARE of the tokens that a padded batch has."""
    longest, prompts = max(starts), len(set(groups))
    if prompts == len(groups) or longest < PROMPT:
        return False
    plain = len(sequences) * max(map(len, sequences))
    after = max(len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)) - 1
    saved = plain - prompts * longest - len(sequences) * max(after, 0)
    return after > 0 and saved >= max(SAVED_TOKENS, SAVED_SHARE * plain)


def takes_prompts_once(policy) -> bool:
    """Whether the policy's model gives the same numbers so; tried once for each model and adapter."""
    if policy.model not in _known:
        _known[policy.model] = _can_be_tried(policy.model) and _tried(policy)
    return _known[policy.model]


def _can_be_tried(model: nn.Module) -> bool:
    halves = trunk.of(model)
    if halves is None or not attention.takes_masks(model):
        return False
    taken = inspect.signature(halves.base.base_model.forward).parameters
    config = halves.base.config.get_text_config(decoder=True)
    # layers that read the keys of other layers, or keep a state besides keys and values
    alone = not getattr(config, "num_kv_shared_layers", 0) and getattr(config, "is_causal", True)
    return alone and {"past_key_values", "position_ids", "attention_mask"} <= set(taken)


def _tried(policy) -> bool:
    """Scores rows of two prompts with each prompt once and with one a row; the difference must be rounding.

    What would not be rounding is measured too: the rows without the beginning of their prompts.
    """
    prompts = [[(7 * i + 3 * g + 1) % policy.vocab_size for i in range(n)] for g, n in enumerate((9, 6))]
    groups = [0, 1, 0, 0, 1]
    rows = [prompts[g] + [(5 * i + 11 * b + 2) % policy.vocab_size for i in range(4 + b)] for b, g in enumerate(groups)]
    starts = [len(prompts[g]) for g in groups]
    with policy.at_rest():
        alone = policy.token_scores(rows, starts).logprob.double()
        once = policy.token_scores(rows, starts, groups=groups).logprob.double()
        cut = policy.token_scores([row[3:] for row in rows], [start - 3 for start in starts]).logprob.double()
    close = CLOSE.get(trunk.base_of(policy.model).dtype, CLOSE_IN_HALF)
    return bool((once - alone).norm() <= close * (cut - alone).norm())
