"""Markovian training: reasoning is worth what it tells of the answer to a reader without the question (Viteri et al.
2024, "Markovian Transformers for Informative Language Modeling", arXiv 2404.18988).

For each prompt `group_size` chains of thought c_i are sampled, at most `max_new_tokens` tokens. The answer is then
scored after a text in which the chain stands and the question does not:

    stand-in prompt ("<Redacted>"), c_i, `answer_header`, the answer from the row's column `answer_column`

    r_i = mean log p(answer tokens | c_i), under the policy
    b   = the same after one greedy chain c', both the reference's
    R_i = r_i - b,   A_i = (R_i - mean of the group) / (std + 1e-4), mean and std being constants
    loss = mean_i [ - sg(A_i) mean_t log p(c_it | q)  -  answer_coef A_i  +  beta KL(policy || reference on c_i) ]

A_i also has a gradient of its own, through r_i: the second term teaches to answer from such chains. It goes through the
answer tokens and, as attention does, not into the choice of c_i. `answer_coef=0` leaves them without gradient.
`markovian=False` is the control: the question stays where it is. Reward functions of the task are recorded and do not
count: what trains is R, recorded as `rewards/informativeness`. Needs reference answers, no verifier.

Defaults are the authors': lr 1e-4, 8 chains of one question a step, beta 0.1, at most 100 tokens, temperature 1; with
them goes wb.LoRA(r=8, alpha=16).

What differs. The KL is estimated on the sampled tokens (k3 with the ratio, whose expected gradient is that of the KL);
the authors sum over the vocabulary. The chain's surrogate is GRPO's ratio: the same gradient with one update a step.
The authors force every chain to its full length; here it may end. Their code lets gradients into mean and std of the
group too, under which the second term, a sum that is always 0, has no gradient at all; here they are constants, which
is how the formula teaches something. `wb.method("chain_reliance")` is their perturbation analysis.
A group whose rewards are equal teaches nothing. Left out: expert iteration, the moving-average baseline, and their PPO
switch, which in the code overwrites the other terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from workbench import advantages, tokenise, update
from workbench.errors import DataError
from workbench.methods import grpo, reference, rl_batch
from workbench.methods.context import Context
from workbench.methods.rounds import DEAD
from workbench.objectives import companions, policy_gradient
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State

REWARD = "informativeness"


@dataclass(frozen=True, kw_only=True)
class MarkovianSettings(GRPOSettings):
    """Reasoning that is rewarded by how likely it makes the answer, without the question."""

    lr: float = knob(1e-4, at_least=0.0)
    prompts_per_step: int = knob(1, at_least=1)
    """prompts drawn a step"""
    max_new_tokens: int = knob(100, at_least=1)
    """longest chain of thought"""
    advantage_estimator: str = knob("group", choices=("group",))
    """a chain is compared with its group"""
    scale_rewards: str = knob("group", choices=("group",))
    """advantages are divided by the standard deviation of their group"""
    beta: float = knob(0.1, at_least=0.0)
    """weight of the KL to the reference, on the tokens of the chain; 0: none"""
    loss_type: str = knob("grpo", choices=("grpo", "dapo", "bnpo", "dr_grpo"))
    """the surrogate, and how token losses become one number: 'grpo' is the mean over chains of token means"""
    answer_coef: float = knob(1.0, at_least=0.0)
    """weight of the term that reaches the policy through the answer's log-prob; 0: the chain alone is trained"""
    markovian: bool = True
    """the answer is scored without the question; False: after question and chain"""
    answer_column: str = knob("answer", fixed=True)
    """the column of the rows that holds the reference answer"""
    answer_header: str = "\nAnswer:"
    """what stands between the chain and the answer"""
    stand_in: str = "<Redacted>"
    """what stands in the question's place"""


def check(task: Any, settings: MarkovianSettings) -> None:
    for i, row in enumerate(task.rows):
        if row.get(settings.answer_column) in (None, ""):
            raise DataError(
                f"Row {i} has no answer in the column {settings.answer_column!r}, which Markovian training scores"
                " after the reasoning. answer_column names another one."
            )


def answers(ctx: Context, rollouts: Rollouts, completions: list[list[int]]) -> update.Batch:
    """For each completion the sequence in which the row's answer is scored after it."""
    policy, settings = ctx.policy, ctx.settings
    if settings.answer_column not in rollouts.columns:
        raise DataError(f"These rollouts have no column {settings.answer_column!r} with the reference answers.")
    encode = partial(policy.tokenizer.encode, add_special_tokens=False)
    header, sequences, starts = encode(settings.answer_header), [], []
    for i, ids in enumerate(completions):
        prompt = rollouts.prompt[i]
        if settings.markovian:
            words = settings.stand_in
            shown = words if isinstance(prompt, str) else [{"role": "user", "content": words}]
            before = tokenise.prompt(shown, policy.tokenizer).ids
        else:
            before = rollouts.prompt_ids[i]
        told = ids[:-1] if ids and ids[-1] in policy.stop_ids else ids
        context = [*before, *told, *header]
        sequences.append([*context, *encode(f" {rollouts.columns[settings.answer_column][i]}")])
        starts.append(len(context))
    return update.Batch(sequences, starts)


def rewarded(state: State, ctx: Context, index: int, rollouts: Rollouts) -> None:
    """R of each completion, in the place of the task's rewards."""
    settings = ctx.settings
    first = rl_batch.first_of_groups(rollouts)
    prompts = [tokenise.PromptTokens(rollouts.prompt_text[i], rollouts.prompt_ids[i]) for i in first]
    with reference.in_place(ctx, reference.params(state, ctx)):
        how = {"max_new_tokens": settings.max_new_tokens, "temperature": 0.0, "check": ctx.check}
        how["stop_strings"] = settings.stop_strings or ()
        frozen = ctx.policy.sample_prompts(prompts, 1, keys=[0] * len(prompts), **how)
        batch = answers(ctx, rollouts.take(first), frozen.ids)
        baseline = _means(ctx.logprobs(batch, "baseline", settings.temperature))
    told = _means(ctx.logprobs(answers(ctx, rollouts, rollouts.ids), "answers", settings.temperature))
    of_group = dict(zip(dict.fromkeys(rollouts.group), baseline, strict=True))
    rollouts.reward = np.array([r - of_group[group] for r, group in zip(told, rollouts.group, strict=True)])
    rollouts.rewards = {**rollouts.rewards, REWARD: rollouts.reward}


def _means(logprobs: list[list[float]]) -> list[float]:
    return [float(np.mean(row)) for row in logprobs]


def batch(
    state: State | None, ctx: Context, rollouts: Rollouts, updates: int = 1, advantages_by: Any = None
) -> tuple[update.Batch, dict[str, float]]:
    """Each completion, and after it the row in which its answer is scored."""
    whole, metrics = rl_batch.make(state, ctx, rollouts, updates)
    if not ctx.settings.answer_coef:
        return whole, metrics
    reward = torch.from_numpy(np.asarray(rollouts.reward, dtype=np.float64))
    spread = dict(zip(dict.fromkeys(rollouts.group), advantages.spread(reward, rollouts.group).tolist(), strict=True))
    slope = [0.0 if spread[g] <= DEAD else 1 / (spread[g] + advantages.STD_FLOOR) for g in rollouts.group]
    told = answers(ctx, rollouts, rollouts.ids)
    columns = {"slope": slope, "told": list(whole.columns["advantage"])}
    both = rl_batch.accompanied(whole, told.sequences, told.starts, columns)
    both = both.take([row for i in range(len(rollouts)) for row in (i, len(rollouts) + i)])
    both.unit = 2
    return both, metrics


def objective(settings: MarkovianSettings, coef: float | None, index: int):
    made = policy_gradient.objective(settings, coef)
    return companions.beside(made, partial(companions.informativeness, coef=settings.answer_coef))


METHOD = grpo.variant(
    "markovian", MarkovianSettings, grpo.Variant(check=check, rewarded=rewarded, batch=batch, objective=objective)
)
