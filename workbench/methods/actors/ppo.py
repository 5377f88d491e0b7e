"""PPO with a value head: each token is compared with what was expected before it (Schulman et al. 2017, "Proximal
Policy Optimization Algorithms", arXiv 1707.06347; on language models: Ziegler et al. 2019, arXiv 1909.08593).

A value head, one linear layer on the last hidden state (zero at first), says V_t before each token t, from the hidden
state whose logits emit it. Before the first update of a step, with the policy and the values as they stand:

    r_t = -beta (old_logprob_t - ref_logprob_t), and on the last token the completion's reward on top
    d_t = r_t + gamma V_{t+1} - V_t,  A_t = d_t + gamma lam A_{t+1},  return_t = A_t + V_t      (0 past the end)

`normalize_advantages` then whitens A over all tokens of the step. Each update's loss is the clipped surrogate with A_t
(the settings of `wb.grpo`) plus `vf_coef` times the loss of the values,

    0.5 mean max((V - return)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - return)^2)

Both are reduced as `loss_type` says: "bnpo" (the default here) is the mean over tokens, "grpo" the mean over rows of
token means, as ReFT has it. One prompt, one completion is enough: nothing is compared within a group.

Defaults are those of TRL's former PPOTrainer: KL 0.05 in the reward (k1), gamma 1, lam 0.95, both clips 0.2, vf_coef
0.1, 4 passes, learning rate 3e-6. ReFT's (Luong et al. 2024, arXiv 2401.08967)
are loss_type="grpo", vf_coef=5, num_iterations=2, lr=3e-7, after an SFT warm-up.

The head shares the policy's layers, and its loss trains them too (`value_detached=True`: only the head). At the
learning rate of the policy a head that starts at zero moves slowly: `value_lr` gives it one of its own, and
`value_warmup_steps` trains it alone before the policy moves. It lives in the run's State (`rewind`, `fork` and `resume`
have it exactly) and is no part of a saved adapter or an exported model.

Look at `explained_variance` (of the returns, by the old values): below 0 the values are worse than none.

A completion that ran into `max_new_tokens` is treated as one that ended there, without a value for what would have
come; one without any reward has advantage 0 and teaches the values nothing. A stored rollout's `advantage` is the mean
over its tokens. Not here: an adaptive KL coefficient, a critic with layers of its own, whitened rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench import advantages, update
from workbench.methods import grpo, reference, rl_batch, value_head
from workbench.methods.context import Context
from workbench.objectives import values
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State


@dataclass(frozen=True, kw_only=True)
class PPOSettings(GRPOSettings):
    """PPO with a value head and generalised advantage estimation."""

    lr: float = knob(3e-6, at_least=0.0)
    prompts_per_step: int = knob(32, at_least=1)
    """prompts drawn a step"""
    group_size: int = knob(1, at_least=1)
    """completions per prompt; nothing is compared among them"""
    num_iterations: int = knob(4, at_least=1)
    """passes over each step's completions"""
    advantage_estimator: str = knob("none", choices=("none",))
    """completions are not compared with each other: advantages are those of the values (GAE)"""
    normalize_advantages: bool = True
    """whiten the advantages over all tokens of the step"""
    beta: float = knob(0.05, at_least=0.0)
    """weight of the KL to the reference; 0: no reference is needed"""
    kl_in_reward: bool = True
    """take beta * KL off each token's reward (k1) instead of adding it to the loss"""
    loss_type: str = knob("bnpo", choices=("dapo", "grpo", "bnpo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"))
    """the surrogate, and how the losses of tokens become one number, those of the values too"""
    gamma: float = knob(1.0, at_least=0.0, at_most=1.0)
    """how much the value of the next token counts"""
    lam: float = knob(0.95, at_least=0.0, at_most=1.0)
    """lambda of GAE: 1 compares the whole rest of the completion with V_t, 0 the next step only"""
    vf_coef: float = knob(0.1, at_least=0.0)
    """weight of the loss of the values"""
    cliprange_value: float | None = knob(0.2, above=0.0)
    """values that moved further than this from those before the first update gain nothing by it; None: no clip"""
    value_lr: float | None = knob(None, at_least=0.0)
    """learning rate of the value head; None: that of the policy"""
    value_warmup_steps: int = knob(0, at_least=0)
    """steps at the beginning in which only the value head trains"""
    value_detached: bool = False
    """the loss of the values trains the value head alone, not the policy's weights"""


def batch(
    state: State | None, ctx: Context, rollouts: Rollouts, updates: int = 1, advantages_by: Any = None
) -> tuple[update.Batch, dict[str, float]]:
    """The batch of a step, with old log-probs, old values, advantages and returns of each token."""
    settings, metrics = ctx.settings, {}
    whole = rl_batch.without_advantages(rollouts, settings)
    logprob, value = ctx.values(whole, "old", value_head.of(state, ctx.policy), settings.temperature)
    whole.columns.setdefault("old_logprob", logprob)
    whole.columns["old_value"] = value
    if settings.beta:
        whole.columns["ref_logprob"] = reference.logprobs(state, ctx, whole, temperature=settings.temperature)
        if settings.kl_in_reward:
            metrics["kl"] = rl_batch.kl_of_rows(whole)[1]
    if "sampler_logprob" in whole.columns:
        metrics |= rl_batch.correct(whole, settings)
    return whole, metrics | estimate(whole, rollouts, settings)


def estimate(whole: update.Batch, rollouts: Rollouts, settings: PPOSettings) -> dict[str, float]:
    """Give the batch its columns `advantage`, `return` and `valued`, and the rollouts their advantages; metrics."""
    columns = update.columns_of(whole, torch.zeros((), dtype=torch.float64))
    counts = torch.tensor(whole.scored())  # (N,)
    mask = (torch.arange(int(counts.max()))[None, :] < counts[:, None]).double()  # (N, T)
    total = advantages.shaped(torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64)), settings)
    valued = (~total.isnan()).double()  # (N,)
    reward = torch.zeros_like(mask)
    if settings.beta and settings.kl_in_reward:
        reward = -settings.beta * (columns["old_logprob"] - columns["ref_logprob"])
    reward[torch.arange(len(counts)), counts - 1] += total.nan_to_num(nan=0.0)
    value = columns["old_value"]
    advantage = values.gae(reward, value, mask, settings.gamma, settings.lam) * valued[:, None]  # (N, T)
    returns = advantage + value
    counted = mask * (valued * columns["keep"])[:, None]
    shown = {
        "explained_variance": values.explained_variance(returns, value, counted),
        "value": float((value * mask).sum() / mask.sum()),
    }
    if settings.normalize_advantages:
        advantage = values.whitened(advantage, counted)
    rollouts.advantage = ((advantage * mask).sum(-1) / counts.clamp(min=1)).numpy()
    for name, table in (("advantage", advantage), ("return", returns)):
        whole.columns[name] = [row[:count].tolist() for row, count in zip(table, counts, strict=True)]
    whole.columns["valued"] = valued.tolist()
    return shown


def how(state: State | None, ctx: Context, index: int) -> dict[str, Any]:
    """The value head trains along, and in the warm-up alone."""
    alone = index <= ctx.settings.value_warmup_steps
    head = value_head.of(state, ctx.policy, ctx.settings.value_detached)
    return {"value": head} | ({"scope": {}} if alone else {})


METHOD = grpo.variant(
    "ppo",
    PPOSettings,
    grpo.Variant(batch=batch, objective=lambda settings, coef, index: values.objective(settings, coef), how=how),
)
