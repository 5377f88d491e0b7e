"""Sequences laid end to end in one line: which models keep them apart, and which sequences share a line.

A transformer is told by its position ids: where they start anew a new document begins, and transformers masks
attention across (only without an attention mask and without a cache, as scores are taken here). Models that read a
line as one stream (state spaces, recurrent and hybrid ones, prompt-learning adapters) cannot keep documents apart;
there every sequence gets a line of its own, padded, with the same numbers.

Whether a model does is not looked up in a list but tried on the model itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn

from workbench import packing
from workbench.trials import Once
from workbench.trunk import base_of

LEAK = 0.2
"""of the change that reading two documents as one makes: less than that is rounding"""
_apart: Once[bool] = Once()


def kept_apart(policy) -> bool:
    """Whether the policy's model keeps documents of one line apart; tried once for each model and adapter."""
    return _apart(policy.model, lambda: _tried(policy) if _takes_positions(policy.model) else (False, True))


def of(policy, lengths: Sequence[int], given: Sequence[int] | None, padding_free: bool) -> list[int] | None:
    """The line of each sequence: `given` ones, or with `padding_free` as few as do; None: a line for each."""
    if given is None and not padding_free:
        return None
    if not kept_apart(policy):
        return None
    return list(given) if given is not None else packing.side_by_side(lengths)


def _takes_positions(model: nn.Module) -> bool:
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None) is not None:
            return False
    return "position_ids" in inspect.signature(base_of(model).forward).parameters


def _tried(policy) -> tuple[bool, bool]:
    """Scores three documents in two lines and alone; the difference must be rounding. And whether that is certain.

    What would not be rounding is measured too: the first two documents read as one.
    """
    documents = [[(7 * i + 3 * d + 1) % policy.vocab_size for i in range(n)] for d, n in enumerate((7, 5, 9))]
    with policy.at_rest():
        alone = policy.token_scores(documents, [1, 1, 1]).logprob.double()  # (3, 8)
        laid = policy.token_scores(documents, [1, 1, 1], lines=[0, 0, 1]).logprob.double()
        merged = policy.token_scores([documents[0] + documents[1]], [len(documents[0]) + 1]).logprob.double()
    effect = (merged[0] - alone[1, : merged.shape[1]]).norm()
    return bool((laid - alone).norm() <= LEAK * effect), bool(alone.isfinite().all())
