"""Which rows of a micro-batch share a prompt, and which models take rows in one line without padding.

Pairs of a preference and groups of completions share their prompts, which then go through the trunk once (see
`workbench.flat`). Whether a model gives the same numbers that way is not looked up in a list but tried on the model
itself; where it does not, rows are padded.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from workbench import attention, out_of_memory, trunk
from workbench.trials import Once

PROMPT = 4
"""tokens: shorter prompts are not worth sharing"""
CLOSE = 1e-3
"""of what the beginning of a prompt does to the log-probs: more is not rounding"""
CLOSE_IN_HALF = 0.2
"""the same in 16 bits"""
_takes: Once[bool] = Once()


def of(policy, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[int] | None:
    """For each row a number, the same for rows that share a prompt; None where the model does not take rows in one
    line.

    Under dropout no prompt is shared: a dropout mask would be, too.
    """
    if not takes_spans(policy):
        return None
    if policy.model.training and trunk.has_dropout(policy.model):
        return list(range(len(sequences)))
    prompts = [tuple(sequence[:start]) for sequence, start in zip(sequences, starts, strict=True)]
    rows = Counter(prompts)
    numbers: dict[object, int] = {}
    return [
        numbers.setdefault(prompt if rows[prompt] > 1 and len(prompt) >= PROMPT else (row, prompt), len(numbers))
        for row, prompt in enumerate(prompts)
    ]


def takes_spans(policy) -> bool:
    """Whether the policy's model gives the same numbers with rows in one line; tried once for each model and
    adapter."""
    return _takes(policy.model, lambda: _tried(policy) if _can_be_tried(policy.model) else (False, True))


def _can_be_tried(model: nn.Module) -> bool:
    halves = trunk.of(model)
    if halves is None or not attention.takes_masks(model):
        return False
    taken = inspect.signature(halves.base.base_model.forward).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return passes_on and {"position_ids", "attention_mask"} <= set(taken)


def _tried(policy) -> tuple[bool, bool]:
    """Scores rows of two prompts in one line and padded; the difference must be rounding. And whether that is certain.

    What would not be rounding is measured too: the rows without the beginning of their prompts.
    """
    prompts = [[(7 * i + 3 * g + 1) % policy.vocab_size for i in range(n)] for g, n in enumerate((9, 6, 3))]
    groups = [0, 1, 0, 0, 1, 2]
    rows = [prompts[g] + [(5 * i + 11 * b + 2) % policy.vocab_size for i in range(4 + b)] for b, g in enumerate(groups)]
    starts = [len(prompts[g]) for g in groups]
    with policy.at_rest():
        alone = policy.token_scores(rows, starts).logprob.double()
        try:
            flat = policy.token_scores(rows, starts, groups=groups).logprob.double()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory.recognised(error):
                raise
            return False, True  # a model whose attention is called in another way stumbles in ways nobody can list
        cut = policy.token_scores([row[2:] for row in rows], [start - 2 for start in starts]).logprob.double()
    close = CLOSE if trunk.base_of(policy.model).dtype in (torch.float32, torch.float64) else CLOSE_IN_HALF
    return bool((flat - alone).norm() <= close * (cut - alone).norm()), bool(alone.isfinite().all())
