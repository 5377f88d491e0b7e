"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from workbench.objectives import Metrics, mean_over


def nll(scores, columns: Mapping[str, Tensor], totals: Mapping[str, float]) -> tuple[Tensor, Metrics]:
    """loss = sum over tokens of weight * nll / number of trained tokens of the update.

    columns: `weight` (B, T), 0 where a token is context. totals: `tokens`.
    This is TRL's `loss_type="nll"` with gradient accumulation: every trained token of the update counts the
    same, however the rows are split.
    """
    weight = columns["weight"].to(scores.logprob.dtype)  # (B, T)
    trained = weight != 0  # (B, T)
    loss = -(weight * scores.logprob).sum() / totals["tokens"]
    metrics = {
        "mean_token_accuracy": mean_over(scores.top1.to(scores.logprob.dtype), trained),
        "entropy": mean_over(scores.entropy, trained),
    }
    return loss, metrics
