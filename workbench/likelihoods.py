"""How likely rows are under a policy: the mean negative log-likelihood per completion token, L(y | x), in nats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench import adapters, worker
from workbench.data import Rows
from workbench.errors import DataError, SettingError
from workbench.policy import Policy


def texts_of(pool: Rows) -> tuple[list[Any], list[str]]:
    """Prompts and completions of rows. Raises DataError for rows of another form and for an empty completion."""
    pool = pool.require("prompt", "completion", what="Scoring rows by their likelihood")
    prompts, completions = [], []
    for i, row in enumerate(pool.to_list()):
        answer = row["completion"]
        answer = answer if isinstance(answer, str) else "".join(m.get("content") or "" for m in answer)
        if not answer.strip():
            raise DataError(f"{pool.where(i)}: the completion is empty, so it has no likelihood.")
        prompts.append(row["prompt"])
        completions.append(answer)
    return prompts, completions


def text_of(policy: Policy, prompt: Any, index: int) -> str:
    """A prompt as the model reads it: text as it stands, messages by the chat template. `index`: for errors."""
    return prompt if isinstance(prompt, str) else policy.tokens_of(prompt, index).text


def nll(policy: Policy, pool: Rows) -> np.ndarray:
    """(N,) L(y | x) of each row."""
    prompts, completions = texts_of(pool)
    return _means(policy.score(prompts, completions).logprob)


def nll_alone(policy: Policy, pool: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: L(y | x) and L(y) without the prompt, over the same tokens.

    Alone, a completion follows the tokenizer's start token; where there is none its own first token has nothing before
    it, and is left out of both.
    """
    prompts, completions = texts_of(pool)
    ids = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
    start = policy.tokenizer.bos_token_id
    skipped = 0 if start is not None else 1
    if short := [i for i, own in enumerate(ids) if len(own) <= skipped]:
        raise DataError(f"{pool.where(short[0])}: the completion is too short to be scored without its prompt.")
    before = [[start] if start is not None else own[:1] for own in ids]
    given = policy.score(prompts, ids).logprob
    alone = policy.score(before, [own[skipped:] for own in ids]).logprob
    return _means([values[skipped:] for values in given]), _means(alone)


def _means(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([-float(np.asarray(values, dtype=np.float64).mean()) for values in logprobs])


@worker.on_worker
def choices(policy: Policy, texts: Sequence[str], options: Sequence[str]) -> np.ndarray:
    """(N, options) the probabilities of each option's first token after each text, of these options alone.

    Raises SettingError where two of them begin with the same token.
    """
    ids = [policy.tokenizer(option, add_special_tokens=False)["input_ids"][0] for option in options]
    if len(set(ids)) < len(ids):
        raise SettingError(f"The tokenizer begins {', '.join(options)} with the same token; choose other words.")
    made = []
    with policy.at_rest():
        for i, text in enumerate(texts):
            tokens = torch.tensor([policy.tokens_of(text, i).ids], device=policy.device)
            made.append(policy.logits(tokens, 1)[0, -1, ids].double().softmax(-1).cpu().numpy())
    return np.stack(made)


@worker.on_worker
def nll_of_base(policy: Policy, pool: Rows) -> np.ndarray:
    """(N,) L(y | x) under the model without its adapter. Raises SettingError where there is none to take off."""
    if not policy.has_adapter:
        raise SettingError("The base is the model without its adapter, and this policy has none.")
    with adapters.without(policy.model):
        return nll(policy, pool)
