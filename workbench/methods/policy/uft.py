"""UFT: completions begin with a part of a known solution, ever less of it, and a little likelihood teaches that part.

A solution (column `solution`: a list of its pieces, or text, which is cut at its lines or else its sentences) is
gathered into n <= 5 pieces. At step t (0 at the first) a prompt gets its first l pieces appended,

    l ~ Binomial(n, p),   p = 0.05 + 0.45 (1 + cos(pi t / T_hint)),   l = 0 once t > T_hint

one draw for a prompt, keyed by its row and the step. The completions go on from there, and the rewards read hint and
completion as one. The loss is GRPO's on the completions alone, with 0.001 KL (`beta`), plus 0.001 times the mean over
all hint tokens of -log p; this p, too, is at the sampling `temperature`. `hint_schedule`: "binomial"; "uniform" (l even
over 0 .. n: the baseline R3, with `hint_coef=0` and no end); "stage" (l falls by one every T_hint / (n + 1) steps);
`hint_steps=0`: no hints, which is GRPO with its KL.

Liu et al. 2025, "UFT: Unifying Supervised and Reinforcement Fine-Tuning", arXiv 2505.16984; numbers and schedules are
those of the authors' code: 500 steps, T_hint 300, 4 completions of 256 prompts, lr 1e-6. A prompt's hint is the same
for its group, so its tokens go through the loss once for the group, which is the mean over its copies. Evaluation has
no hints: `eval/accuracy` is the curve to trust, as `reward` rises and falls with what is given away.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from workbench import keys, tokenise, update
from workbench.errors import DataError
from workbench.methods import grpo, rl_batch
from workbench.methods.grpo import Variant, variant
from workbench.methods.policy.demonstrations import check_no_column
from workbench.objectives import Objective
from workbench.objectives.demonstrations import with_hints
from workbench.objectives.policy_gradient import rewards_entropy
from workbench.sampling.rollouts import Rollouts
from workbench.settings import GRPOSettings
from workbench.settings.base import knob

COLUMN = "solution"
HINT, TOKENS, SHARE = "hint", "hint_tokens", "hint_share"
"""columns of rollouts: the text that was given, its tokens (the last ones of the prompt), its share of the pieces"""


@dataclass(frozen=True, kw_only=True)
class UFTSettings(GRPOSettings):
    """Unified fine-tuning."""

    hint_steps: int = knob(300, at_least=0)
    """T_hint: steps with hints; 0: none"""
    hint_schedule: str = knob("binomial", choices=("binomial", "uniform", "stage"))
    """how the number of pieces is drawn"""
    hint_pieces: int = knob(5, at_least=1, fixed=True)
    """the most pieces a solution is gathered into"""
    hint_low: float = knob(0.05, at_least=0.0, at_most=1.0)
    """p at the end of the hints"""
    hint_high: float = knob(0.95, at_least=0.0, at_most=1.0)
    """p at the first step"""
    hint_coef: float = knob(0.001, at_least=0.0)
    """weight of the hints' cross-entropy"""
    beta: float = knob(0.001, at_least=0.0)
    """weight of the KL to the reference; 0: no reference is needed"""


@dataclass
class Hinted(grpo.Prompts):
    """A task with its prompts tokenised, and by row the beginnings of its solution, the empty one first."""

    beginnings: list[list[tokenise.PromptTokens]] = field(default_factory=list)

    @property
    def longest(self) -> list[tokenise.PromptTokens]:
        """Each prompt with all of its solution."""
        return [_joined(p, b[-1]) for p, b in zip(self.prompts, self.beginnings, strict=True)]


def prepare(tokenizer, task, settings) -> Hinted:
    """DataError where a row's solution is missing, or neither text nor a list of texts."""
    made = grpo.prepare(tokenizer, task, settings, CHANGES)
    if settings.hint_steps:
        task.rows.require(COLUMN, what="UFT, which gives away parts of a known solution,")
    beginnings = []
    for i, row in enumerate(task.rows):
        whole = pieces(row.get(COLUMN), settings.hint_pieces, i) if settings.hint_steps or row.get(COLUMN) else []
        texts = ["".join(whole[:count]) for count in range(len(whole) + 1)]
        beginnings.append([tokenise.PromptTokens(t, _ids(tokenizer, t)) for t in texts])
    return Hinted(task, made.prompts, beginnings)


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def pieces(solution, most: int, row: int = 0) -> list[str]:
    """A solution as at most `most` texts in a row, cut as evenly as its steps allow."""
    parts = solution
    if isinstance(solution, str):
        parts = [line for line in re.split(r"(?<=\n)", solution) if line]
        parts = parts if len(parts) > 1 else [part for part in re.split(r"(?<=[.!?] )", solution) if part]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise DataError(f"Row {row}: {COLUMN} must be text or a list of texts, not empty; it is {solution!r:.60}.")
    count = min(most, len(parts))
    cuts = [round(i / count * len(parts)) for i in range(count + 1)]
    return ["".join(parts[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def chance(done: int, settings) -> float:
    """p after `done` steps."""
    wave = 1 + math.cos(math.pi * done / settings.hint_steps)
    return settings.hint_low + 0.5 * (settings.hint_high - settings.hint_low) * wave


def drawn(settings, index: int, row: int, count: int, place: int = 0) -> int:
    """How many of `count` pieces a prompt gets at step `index`; `place` tells apart draws of one row in one step."""
    done = index - 1
    uniform = settings.hint_schedule == "uniform"
    if not settings.hint_steps or not count or (done > settings.hint_steps and not uniform):
        return 0
    draws = keys.uniforms(keys.key(settings.seed, "hint", index, row, place), count)
    if uniform:
        return int(draws[0] * (count + 1))
    if settings.hint_schedule == "stage":
        return max(0, count - done // max(1, settings.hint_steps // (count + 1)))
    return int((draws < chance(done, settings)).sum())


def prompts(state, ctx, index, rows) -> tuple[list[tokenise.PromptTokens], dict[str, list]]:
    made, tags = [], {HINT: [], TOKENS: [], SHARE: []}
    for place, row in enumerate(rows):
        own = ctx.data.beginnings[row]
        count = drawn(ctx.settings, index, row, len(own) - 1, state.json["prompts_drawn"] + place)
        made.append(_joined(ctx.data.prompts[row], own[count]))
        tags[HINT].append(own[count].text)
        tags[TOKENS].append(len(own[count].ids))
        tags[SHARE].append(count / max(len(own) - 1, 1))
    return made, tags


def _joined(prompt, hint) -> tokenise.PromptTokens:
    return tokenise.PromptTokens(prompt.text + hint.text, prompt.ids + hint.ids) if hint.ids else prompt


def judged(rollouts: Rollouts) -> Rollouts:
    """The completions with their hints before them."""
    hints = zip(rollouts.prompt_ids, rollouts.columns[TOKENS], strict=True)
    before = [ids[len(ids) - count :] for ids, count in hints]
    return replace(
        rollouts,
        text=[hint + text for hint, text in zip(rollouts.columns[HINT], rollouts.text, strict=True)],
        ids=[hint + ids for hint, ids in zip(before, rollouts.ids, strict=True)],
        columns={name: values for name, values in rollouts.columns.items() if name not in (HINT, TOKENS, SHARE)},
    )


def batch(state, ctx, rollouts, updates, advantages_by=None) -> tuple[update.Batch, dict[str, float]]:
    """The completions' batch, and after it each group's hint as a row of its own, whose tokens are all scored."""
    whole, metrics = rl_batch.make(state, ctx, rollouts, updates, advantages_by)
    tokens = rollouts.columns.get(TOKENS, [0] * len(rollouts))
    at = [i for i in rl_batch.first_of_groups(rollouts) if tokens[i]]
    counts = [tokens[i] for i in at]
    whole.sequences = whole.sequences + [rollouts.prompt_ids[i] for i in at]
    whole.starts = whole.starts + [len(rollouts.prompt_ids[i]) - tokens[i] for i in at]
    for name, values in whole.columns.items():
        several = len(values) and hasattr(values[0], "__len__")
        whole.columns[name] = [*values, *([0.0] * n if several else 0.0 for n in counts)]
    # a pass cut into several updates: each has its share of the hints
    weight = max(1, updates // ctx.settings.num_iterations) / max(1, sum(counts))
    whole.columns[rl_batch.COMPANION] = [0.0] * len(rollouts) + [1.0] * len(at)
    whole.columns["hint"] = [0.0] * len(rollouts) + [weight] * len(at)
    return whole, metrics


def objective(settings, coef, index) -> Objective:
    made = partial(with_hints, settings=settings, entropy_coef=settings.entropy_coef if coef is None else coef)
    return Objective(
        made, frozenset({"entropy"} if rewards_entropy(settings) else ()), coupled=settings.top_entropy_quantile < 1
    )


def after(state, ctx, index, rollouts) -> dict[str, float]:
    hinted = np.array(rollouts.columns[TOKENS]) > 0
    made = {"hint/share": float(np.mean(rollouts.columns[SHARE])), "hint/rows": float(hinted.mean())}
    for name, at in (("hint/reward_with", hinted), ("hint/reward_without", ~hinted)):
        if at.any() and not np.isnan(rollouts.reward[at]).all():
            made[name] = float(np.nanmean(rollouts.reward[at]))
    return made


def check(task, settings) -> None:
    for name in (HINT, TOKENS, SHARE):
        check_no_column(task, name)


CHANGES = Variant(check=check, prompts=prompts, judged=judged, batch=batch, objective=objective, after=after)
METHOD = variant("uft", UFTSettings, CHANGES, prepare=prepare)
