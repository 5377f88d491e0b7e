"""Gradients of single rows, projected to a few numbers, to see which rows pull the same way (LESS)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import keys, update, worker
from workbench.data import Rows
from workbench.errors import SettingError
from workbench.methods import sft
from workbench.objectives import Objective
from workbench.objectives.supervised import weighted
from workbench.policy import Policy
from workbench.selection.parts import pool_of
from workbench.settings import make

SIZE = 8192
"""numbers of a projected gradient"""


@worker.on_worker
def projected(policy: Policy, pool: Rows, size: int = SIZE, seed: int = 0) -> Tensor:
    """(N, size) float32: the gradient of each row's loss in the trained parameters, by a random projection with entries
    +-1 / sqrt(size), the same for every row (Johnson and Lindenstrauss). Fewer parameters than `size` stay as they are.
    """
    settings = make("sft", {"max_length": None})
    examples = sft.prepare(policy.tokenizer, pool, settings).items
    made = []
    try:
        for example in examples:
            batch = sft.make_batch([example])
            update.gradients(
                policy, batch, Objective(weighted), sft.totals(batch), micro_batches=[[0]], train_mode=False
            )
            made.append(_project(policy, size, seed))
    finally:
        policy.model.zero_grad(set_to_none=True)
    return torch.stack(made)


def _project(policy: Policy, size: int, seed: int) -> Tensor:
    found = [(name, p.grad.detach().float().flatten().cpu()) for name, p in policy.trainable().items()]
    if sum(len(grad) for _, grad in found) <= size:
        return torch.cat([grad for _, grad in found])
    total = torch.zeros(size)
    for name, grad in found:
        generator = torch.Generator().manual_seed(keys.torch_seed(keys.key(seed, "projection", name)))
        for part in grad.split(1024):
            signs = torch.randint(0, 2, (len(part), size), generator=generator, dtype=torch.int8).float() * 2 - 1
            total += part @ signs
    return total / size**0.5


def agreement(policy: Policy, pool: Rows, validation: Any = None, size: int = SIZE) -> np.ndarray:
    """(N,) the cosine between each row's gradient and the mean one of the `validation` rows.

    At one checkpoint, the policy as it is; LESS adds several up, weighted by their learning rates, and takes Adam's
    directions for the training rows. Raises SettingError without validation rows.
    """
    if validation is None:
        raise SettingError("by='less' needs validation=..., rows of the task that the selection is for.")
    aim = torch.nn.functional.normalize(projected(policy, pool_of(validation), size), dim=-1).mean(0)
    rows = torch.nn.functional.normalize(projected(policy, pool, size), dim=-1)
    return (rows @ torch.nn.functional.normalize(aim, dim=0)).double().numpy()
