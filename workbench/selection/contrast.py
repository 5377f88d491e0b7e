"""Contrastive generation: texts that show what is new in tuning data, from the tuned model and its base alone (Isonuma
and Titov 2024, "What's New in My Data?", arXiv 2410.14765).

Token by token, of those with p_tuned(v) >= alpha max p_tuned, drawn from softmax of

    s(v) = log p_tuned(v) - log p_base(v)

With an adapter both are one model. `generate` draws such texts; `novelty` scores rows that are at hand by log
p_tuned(x) - log p_base(x), per token. alpha 0.1 is contrastive decoding's (our choice; the paper's was not found). Left
out: the iterative form, which tunes a copy on what was generated and contrasts with that.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import adapters, keys, worker
from workbench.errors import SettingError
from workbench.likelihoods import nll, nll_of_base
from workbench.merging.fusion import Fusion
from workbench.policy import Policy
from workbench.sampling import decoder
from workbench.sampling.choices import Sampling
from workbench.selection import parts

START = "start"


class Contrast(Fusion):
    """Logits s(v), -inf where the tuned model would hardly go."""

    def __init__(self, policy: Policy, alpha: float, places: int, columns: int):
        super().__init__(
            [(policy, nullcontext), (policy, lambda: adapters.without(policy.model))], None, places, columns
        )
        self.alpha = alpha

    def _fused(self, logits: list[Tensor]) -> Tensor:
        return contrasted(*(z.double() for z in logits), self.alpha)


def contrasted(tuned: Tensor, base: Tensor, alpha: float) -> Tensor:
    """s(v) (B, V) of logits (B, V)."""
    p, q = tuned.log_softmax(-1), base.log_softmax(-1)
    allowed = p >= p.amax(-1, keepdim=True) + np.log(alpha)
    least = torch.finfo(p.dtype).min / 2  # a number, so that sums of it stay numbers
    return (p - q).where(allowed, torch.tensor(least, dtype=p.dtype, device=p.device))


@worker.on_worker
def generate(
    policy: Policy, n: int = 16, prompt: Any = None, alpha: float = 0.1, max_new_tokens: int = 64, seed: int = 0
) -> list[str]:
    """`n` texts that the tuned model makes likelier than its base. `prompt`: what they begin with; None: the start
    token. Raises SettingError without an adapter, for alpha out of range, and without anything to begin with."""
    if not policy.has_adapter:
        raise SettingError("Contrastive generation compares a model with its base: this policy has no adapter.")
    if not 0 < alpha <= 1:
        raise SettingError(f"alpha={alpha!r} must be above 0 and at most 1.")
    decoder.check_whole("n", n, 1)
    start = policy.tokenizer.bos_token_id
    if prompt is None and start is None:
        raise SettingError("The tokenizer has no start token; give a prompt for the texts to begin with.")
    ids = [start] if prompt is None else policy.tokens_of(prompt, 0).ids
    settings = Sampling(max_new_tokens, 1.0, 1.0, 0, 0.0, 1.0, ()).checked()
    source = Contrast(policy, alpha, min(decoder.ROWS, n), len(ids) + max_new_tokens)
    with policy.at_rest():
        drawn = decoder.decode(
            policy.model, [ids], n, [keys.key(seed, "contrast", i) for i in range(n)], settings,
            stop_ids=policy.stop_ids, filler=policy.filler, source=source,
        )  # fmt: skip
    return [policy.text_of(done.ids) for done in drawn]


def novelty(policy: Policy, rows: Any) -> np.ndarray:
    """(N,) nats a token by which tuning made each row's completion likelier: high where a row is like what was new."""
    pool = parts.pool_of(rows)
    return nll_of_base(policy, pool) - nll(policy, pool)
