"""Model Breadcrumbs: each task vector without its outliers and its dust, added up (Davari and Belilovsky 2023, arXiv
2312.06795).

    theta = theta_0 + alpha sum_t m_t tau_t

In each row of a weight (its last axis) the `gamma` share of largest |tau| goes, then of what is left the largest
`keep` of the row's entries stay; all else is 0. That is the authors' code; mergekit ranks a whole tensor. Starting
point keep 0.15, gamma 0.006, alpha 0.2; they searched keep 0.05 to 0.20, gamma 0.001 to 0.01, alpha 0.01 to 1. A
pruned LoRA is no product of thin matrices any more, so the result is a policy without an adapter, its base's weights
changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench import worker
from workbench.errors import SettingError
from workbench.merging.vectors import Member, dense, tensor_of, vectors
from workbench.policy import Policy


@worker.on_worker
def breadcrumbs(
    policy: Policy, members: Sequence[Member], alpha: float = 0.2, keep: float = 0.15, gamma: float = 0.006
) -> Policy:
    """The members' pruned vectors on their base, as a new policy.

    `keep`: the share of each row's entries that stays. `gamma`: the share of largest ones that goes before. Raises
    SettingError for shares out of range, for two that leave nothing to prune, and for a quantised base.
    """
    if not (0 < keep <= 1 and 0 <= gamma < 1):
        raise SettingError(f"breadcrumbs: keep={keep!r} must be in (0, 1] and gamma={gamma!r} in [0, 1).")
    if keep + gamma > 1:
        raise SettingError(
            f"breadcrumbs: keep={keep:g} and gamma={gamma:g} are more than all entries. With keep=1 nothing is pruned:"
            " take wb.method('uniform_soup')."
        )
    taus = vectors(policy, members)
    added = {name: alpha * sum(pruned(tensor_of(tau[name]), keep, gamma) for tau in taus) for name in taus[0]}
    return dense(policy, added)


def pruned(tau: Tensor, keep: float, gamma: float) -> Tensor:
    """`tau` with 0 in place of each row's largest `gamma` share and of all but the next `keep` share by magnitude."""
    width = tau.shape[-1]
    largest = min(width, int(width * gamma))
    stays = min(width - largest, int(round(width * keep)))
    order = tau.abs().argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(tau, dtype=torch.bool)
    mask.scatter_(-1, order[..., largest : largest + stays], True)
    return tau * mask
