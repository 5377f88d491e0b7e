"""Adaptive deep reasoning: the model learns by its first token whether to think long (Wang et al. 2025, "Adaptive Deep
Reasoning: Triggering Deep Thinking When Needed", arXiv 2505.20101).

Start from a model that knows both modes, with and without being told (`wb.sft` on long and short answers, half of them
with an instruction). Then each step, of every prompt:

  - one half of the group is sampled with the long instruction, the other with the short one, and all of it is one
    group of GRPO, on the task's rewards plus a reward "mode". Short is enough where its accuracy (the task's verdict)
    is at least `threshold`, or at most `shortfall` below that of long (so also where both fail): then the short rows
    get `mode_bonus`, otherwise the long ones.
  - on the prompt without an instruction, at the first place of the answer, with z_short and z_long the logits of the
    first tokens of `short_opening` and `long_opening`, and s = 1 where short was enough, else -1:

        loss += mode_loss_coef * mean over prompts of -log sigmoid(s (z_short - z_long))

A prompt none of whose completions has a verdict gets neither. The instruction stands before a plain prompt, and after
the last message of a conversation. Evaluation uses the prompts as they are: the model chooses.

Look at `mode/short_share` (the model's choice, of the two), `mode/short_enough` (the share of prompts), accuracy and
length of either mode.

Abstract and public summaries were read: equal split, a reward by group accuracy and a loss on the logits of the first
token are the paper's; its exact formulas were not found, so threshold 0.75, shortfall 0.1, bonus 0.5 and weight 0.1
are ours, and so is the form of the loss. Left out: its judge model and its soft length penalty (`overlong_cache` is
one). With empty instructions, bonus 0 and weight 0 it is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from workbench import tokenise, update
from workbench.errors import DataError, SettingError
from workbench.evaluation import mean
from workbench.methods import grpo, rl_batch
from workbench.methods.context import Context
from workbench.objectives import companions, policy_gradient
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob
from workbench.state import State

MODES = ("long", "short")
REWARD = "mode"


@dataclass(frozen=True, kw_only=True)
class AdaptiveSettings(GRPOSettings):
    """GRPO over two modes of thinking, and a loss on the choice between them."""

    long_instruction: str = knob("Think step by step at length before you answer.", fixed=True)
    """what is said to one half of the group; empty: nothing"""
    short_instruction: str = knob("Answer at once.", fixed=True)
    """what is said to the other half"""
    long_opening: str = knob("<think>", fixed=True)
    """how a long answer begins; its first token stands for the mode"""
    short_opening: str = knob("The", fixed=True)
    """how a short answer begins"""
    threshold: float = knob(0.75, at_least=0.0)
    """short is enough where it is this accurate"""
    shortfall: float = knob(0.1, at_least=0.0)
    """or where it is no further below long"""
    mode_bonus: float = knob(0.5, at_least=0.0)
    """reward of the mode that is called for"""
    mode_loss_coef: float = knob(0.1, at_least=0.0)
    """weight of the loss on the first token; 0: none"""

    def problem(self) -> str | None:
        if self.group_size % 2:
            return f"group_size={self.group_size} must be even: half of a group thinks long, half short."
        return super().problem()


@dataclass
class Prompts(grpo.Prompts):
    """The prompts as they are, with either instruction, and the tokens that the modes begin with."""

    instructed: list[list[tokenise.PromptTokens]]
    """per row those of MODES"""
    openings: tuple[int, int]
    """of MODES"""


def prepare(tokenizer: Any, task: Any, settings: AdaptiveSettings, changes: grpo.Variant) -> Prompts:
    plain = grpo.prepare(tokenizer, task, settings, changes)
    told = (settings.long_instruction, settings.short_instruction)
    made = [[tokenise.prompt(instructed(row["prompt"], words), tokenizer) for words in told] for row in task.rows]
    first = [
        tokenizer.encode(text, add_special_tokens=False)[:1] for text in (settings.long_opening, settings.short_opening)
    ]
    if settings.mode_loss_coef and (not all(first) or first[0] == first[1]):
        raise SettingError(
            f"long_opening={settings.long_opening!r} and short_opening={settings.short_opening!r} must begin with two"
            " different tokens, which the model chooses between; with this tokenizer they do not. Give others, or"
            " mode_loss_coef=0."
        )
    return Prompts(plain.task, plain.prompts, made, tuple(ids[0] if ids else 0 for ids in first))


def instructed(prompt: Any, words: str) -> Any:
    """The prompt with an instruction."""
    if not words:
        return prompt
    if isinstance(prompt, str):
        return f"{words}\n{prompt}"
    if not isinstance(prompt[-1].get("content"), str):
        raise DataError("adaptive_thinking: the last message of a prompt must be text, for the instruction to follow.")
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n{words}"}]


def check(task: Any, settings: AdaptiveSettings) -> None:
    rl_batch.check_free([REWARD], task.reward_names, "adaptive_thinking")
    if REWARD in task.rows.columns:
        raise SettingError(
            f"The task's rows have a column named {REWARD!r}, where adaptive_thinking notes each completion's mode."
            " Rename it."
        )


def prompts(state: State, ctx: Context, index: int, rows: list[int]) -> tuple[list, dict[str, list]]:
    return [prompt for row in rows for prompt in ctx.data.instructed[row]], {REWARD: [*MODES] * len(rows)}


def signs(rollouts: Rollouts, task: Any, settings: AdaptiveSettings) -> dict[int, float]:
    """By group 1 where short is enough, -1 where it is not, 0 where one of the modes has no verdict."""
    right, made = np.asarray(rollouts.rewards[task.verdict], dtype=np.float64), {}
    for group in dict.fromkeys(rollouts.group):
        rows = {mode: [i for i, g in enumerate(rollouts.group) if g == group and rollouts.columns[REWARD][i] == mode]
                for mode in MODES}  # fmt: skip
        long, short = (mean(right[rows[mode]]) for mode in MODES)
        enough = short >= settings.threshold or short >= long - settings.shortfall
        made[group] = 0.0 if np.isnan(long) or np.isnan(short) else 1.0 if enough else -1.0
    return made


def rewarded(state: State, ctx: Context, index: int, rollouts: Rollouts) -> None:
    sign = signs(rollouts, ctx.data.task, ctx.settings)
    wanted = {1.0: "short", -1.0: "long"}
    pays = [wanted.get(sign[g]) == mode for g, mode in zip(rollouts.group, rollouts.columns[REWARD], strict=True)]
    rl_batch.add_reward(rollouts, REWARD, ctx.settings.mode_bonus * np.array(pays, dtype=np.float64))


def batch(
    state: State | None, ctx: Context, rollouts: Rollouts, updates: int = 1, advantages_by: Any = None
) -> tuple[update.Batch, dict[str, float]]:
    """The completions, and for each prompt as it is two rows: short's first token after it, and long's."""
    whole, metrics = rl_batch.make(state, ctx, rollouts, updates)
    if not ctx.settings.mode_loss_coef or REWARD not in rollouts.columns:
        return whole, metrics
    sign = {group: s for group, s in signs(rollouts, ctx.data.task, ctx.settings).items() if s}
    first = [i for i in rl_batch.first_of_groups(rollouts) if rollouts.group[i] in sign]
    plain = [ctx.data.prompts[rollouts.row[i]].ids for i in first]
    long, short = ctx.data.openings
    sequences = [[*ids, token] for ids in plain for token in (short, long)]
    both = [s for s in sign.values() for _ in range(2)]
    if not sequences:
        return whole, metrics
    whole = rl_batch.accompanied(whole, sequences, [len(ids) - 1 for ids in sequences], {"sign": both})
    whole.unit = 2
    return whole, metrics


def objective(settings: AdaptiveSettings, coef: float | None, index: int):
    term = partial(companions.switching, coef=settings.mode_loss_coef, temperature=settings.temperature)
    return companions.beside(policy_gradient.objective(settings, coef), term)


def after(state: State, ctx: Context, index: int, rollouts: Rollouts) -> dict[str, float]:
    sign = [s for s in signs(rollouts, ctx.data.task, ctx.settings).values() if s]
    made = {"mode/short_enough": float(np.mean([s > 0 for s in sign])) if sign else float("nan")}
    for mode in MODES:
        rows = [i for i, m in enumerate(rollouts.columns[REWARD]) if m == mode]
        made[f"mode/{mode}_accuracy"] = mean(np.asarray(rollouts.rewards[ctx.data.task.verdict])[rows])
        made[f"mode/{mode}_length"] = float(np.mean([len(rollouts.ids[i]) for i in rows]))
    return made


CHANGES = grpo.Variant(check=check, prompts=prompts, rewarded=rewarded, batch=batch, objective=objective, after=after)
METHOD = grpo.variant("adaptive_thinking", AdaptiveSettings, CHANGES, prepare=partial(prepare, changes=CHANGES))
