"""LiNeS: the update of a fine-tune, scaled by depth after training (Wang et al. 2024, arXiv 2410.17146).

    theta = theta_0 + lambda_l tau,   lambda_l = a + b l / (L - 1)   in block l = 0 .. L - 1

Shallow layers carry what the base could do, so shrinking the update there gives old skills back at little cost. With
one member b = 1 - a, so that the last block keeps its update whole; a = 1 changes nothing. Outside of blocks
(embeddings, last norm, head) the scale is a. Default a = 0.1, the authors' example.

With several members it is their sum that is scaled (task arithmetic). Then b is to be chosen (0.1 to 1), and a is,
unless given, the paper's (1 / T) ||sum_t tau_t||_1 / ||tau_m||_1, which for a sum tau_m is 1 / T. The result is a new
policy; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench import worker
from workbench.errors import SettingError
from workbench.merging.vectors import Member, combined, layer_of, vectors
from workbench.policy import Policy
from workbench.trunk import base_of


@worker.on_worker
def lines(policy: Policy, members: Sequence[Member], a: float | None = None, b: float | None = None) -> Policy:
    """The policy with its update scaled by depth.

    Raises SettingError for a model without numbered layers, and for several members without `b`.
    """
    taus = vectors(policy, members)
    if all(layer_of(name) is None for name in taus[0]):
        raise SettingError("No parameter's name has the number of a layer, so nothing can be scaled by depth.")
    if len(taus) > 1 and b is None:
        raise SettingError("With several members give b, how much the scale grows over the depth (try 0.1 to 1).")
    if a is None:
        a = 0.1 if len(taus) == 1 else 1 / len(taus)
    growth = 1 - a if b is None else b
    last = max(1, base_of(policy.model).config.get_text_config().num_hidden_layers - 1)

    def share(name: str, member: int) -> float:
        layer = layer_of(name)
        return a if layer is None else a + growth * layer / last

    return combined(policy, taus, share)
