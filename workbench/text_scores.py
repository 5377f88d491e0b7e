"""`policy.score`: log-prob and entropy of completions that are given as text or as token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import DataError
from workbench.sampling.rollouts import is_ids
from workbench.scoring import Scores

if TYPE_CHECKING:
    from workbench.policy import Policy

SCORE_TOKENS = 16384
"""tokens of a batch, padding included"""


def score(policy: Policy, prompts: Sequence[Any], completions: Sequence[Any], temperature: float) -> Scores:
    """See `Policy.score`."""
    prompts, completions = list(prompts), list(completions)
    if len(prompts) != len(completions):
        raise DataError(f"score: {len(prompts)} prompts but {len(completions)} completions; give one a prompt.")
    before = [list(map(int, p)) if is_ids(p) else policy.tokens_of(p, i).ids for i, p in enumerate(prompts)]
    after = [_ids(policy, completion, i) for i, completion in enumerate(completions)]
    order = sorted(range(len(prompts)), key=lambda i: len(before[i]) + len(after[i]))
    out = Scores(ids=after, logprob=[None] * len(order), entropy=[None] * len(order))
    with policy.at_rest():
        for batch in _batches(order, [len(b) + len(a) for b, a in zip(before, after, strict=True)]):
            scores = policy.token_scores(
                [before[i] + after[i] for i in batch],
                [len(before[i]) for i in batch],
                temperature=temperature,
            )
            logprob, spread = scores.logprob.float().cpu().numpy(), scores.entropy.float().cpu().numpy()
            for row, i in enumerate(batch):
                out.logprob[i] = logprob[row, : len(after[i])].copy()
                out.entropy[i] = spread[row, : len(after[i])].copy()
    return out


def _ids(policy: Policy, completion: Any, index: int) -> list[int]:
    if isinstance(completion, str):
        return policy.tokenizer(completion, add_special_tokens=False)["input_ids"]
    if isinstance(completion, (list, tuple, np.ndarray)) and is_ids(completion):
        return list(map(int, completion))
    raise DataError(f"score: completion {index} is neither a string nor a list of token ids: {completion!r:.80}")


def _batches(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Consecutive parts of `order` (shortest first) whose padded size stays under SCORE_TOKENS."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[i] > SCORE_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
