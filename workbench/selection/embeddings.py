"""Vectors of texts: the mean of the policy's own last hidden states, which needs no second model."""

from __future__ import annotations

import numpy as np
import torch

from workbench import trunk, worker
from workbench.data import Rows
from workbench.errors import SettingError
from workbench.policy import Policy

TOKENS = 8192
"""of a batch, padding included"""


@worker.on_worker
def embed(policy: Policy, pool: Rows | list[str]) -> np.ndarray:
    """(N, D) float32: the mean over tokens of the last hidden state of each row's whole text (or of each text).

    Rows go through in batches of like length; neither their number nor their order changes a vector beyond rounding.
    Raises SettingError for a model that cannot be cut into trunk and head.
    """
    halves = trunk.of(policy.model)
    if halves is None:
        raise SettingError(f"{policy.origin.model} does not give its hidden states; embed the rows elsewhere.")
    ids = [policy.tokens_of(text, i).ids for i, text in enumerate(_texts(pool))]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    made = np.zeros((len(ids), policy.model.get_input_embeddings().weight.shape[1]), dtype=np.float32)
    with policy.at_rest():
        while order:
            width = len(ids[order[min(len(order), max(1, TOKENS // max(1, len(ids[order[0]])))) - 1]])
            part, order = order[: max(1, TOKENS // width)], order[max(1, TOKENS // width) :]
            width = max(len(ids[i]) for i in part)
            table = torch.tensor([ids[i] + [policy.filler] * (width - len(ids[i])) for i in part], device=policy.device)
            hidden = halves.run(table, use_cache=False).last_hidden_state.float().cpu()  # (B, L, D)
            for row, i in enumerate(part):
                made[i] = hidden[row, : len(ids[i])].mean(0).numpy()
    return made


def _texts(pool: Rows | list[str]) -> list[str]:
    if isinstance(pool, list):
        return pool
    return ["\n".join(_text(row[name]) for name in ("prompt", "completion", "text", "messages") if row.get(name))
            for row in pool.to_list()]  # fmt: skip


def _text(value) -> str:
    return value if isinstance(value, str) else "\n".join(str(message.get("content", "")) for message in value)
