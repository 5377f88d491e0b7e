"""Preference losses on pairs: row 2i of a batch is the chosen answer of pair i, row 2i + 1 the rejected one."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from workbench.objectives import Metrics, mean_of, mean_over


def sigmoid(
    scores, columns: Mapping[str, Tensor], totals: Mapping[str, float], *, beta: float
) -> tuple[Tensor, Metrics]:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): the mean over pairs of -log sigmoid(beta * D).

    D = (Lc - Lc_ref) - (Lr - Lr_ref), with L the summed log-probs of an answer's tokens, stop token included.
    columns: `ref_logprob` (B, T). totals: `pairs`. The implicit reward shown is beta * (L - L_ref).
    """
    mask = scores.mask.to(scores.logprob.dtype)  # (B, T)
    logp = (scores.logprob * mask).sum(-1)  # (B,)
    ref = (columns["ref_logprob"].to(logp.dtype) * mask).sum(-1)  # (B,)
    ratio = logp - ref  # (B,)
    chosen, rejected = ratio[0::2], ratio[1::2]  # (P,)
    loss = -F.logsigmoid(beta * (chosen - rejected)).sum() / totals["pairs"]
    metrics = {
        "rewards/chosen": mean_of(beta * chosen),
        "rewards/rejected": mean_of(beta * rejected),
        "rewards/margins": mean_of(beta * (chosen - rejected)),
        "rewards/accuracies": mean_of((chosen > rejected).to(logp.dtype)),
        "logps/chosen": mean_of(logp[0::2]),
        "logps/rejected": mean_of(logp[1::2]),
        "entropy": mean_over(scores.entropy, scores.mask),
        "mean_token_accuracy": mean_over(scores.top1[0::2].to(logp.dtype), scores.mask[0::2]),
    }
    return loss, metrics
