"""TRICE: Markov-chain Monte Carlo EM over rationales, with a control variate.

Maximises sum over rows of log sum_z p(z | x) 1[answer(z) = y]. Each row remembers one rationale z; it begins with one
sampled from a hinted prompt, which may be wrong. A step takes M distinct rows and draws one proposal z~ ~ p(z | x) for
each. c~ = 1 where it is right; then it is remembered, else z stays. c' = 1 where what is remembered then is right;
C = sum c'.

    basic:            g = 1/C sum_m c'_m grad log p(z_m | x_m)
    control variate:  g = 1/C sum_m c'_m (grad log p(z_m | x_m) - beta_m grad log p(z~_m | x_m))
                      beta_m = sum_(j != m) c'_j c~_j / sum_(j != m) c'_j     (0 where that is 0 / 0)

log p is the sum over the tokens of rationale and answer, at the sampling temperature; beta is a number. So a step
trains on up to 2 M texts with signed weights, +c'/C on what is remembered and -c' beta/C on proposals, added up where
both are the same text. The variance goes to zero as the model gets it right: where every proposal is right, g is
exactly 0. A rationale that was cut off at the limit of tokens counts as wrong and is never remembered as right; as a
proposal it stays in the control variate, whose mean is one over all that may be proposed, with log p of the tokens that
it has.

Phan et al. 2023, "Training Chain-of-Thought via Latent-Variable Inference", arXiv 2312.02179. The paper tunes a soft
prompt; its batch and learning rate were not found, so those of wb.sft stand.

Differs: the rows of an epoch that do not fill a batch wait for the next one, so that rows of a step are distinct. Where
g is exactly 0 the optimiser makes no step. The subsample of the 2 M texts is left out. Memory is not kept: each stored
proposal names the step at which its row's rationale was sampled.

Of the settings that it has from wb.sft and from methods in rounds, `start`, `shuffle_dataset`, `truncation_mode` and
those of the loss change nothing; `packing`, `rows_per_round` and `n` above 1 are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from workbench import keys, update
from workbench.errors import SettingError
from workbench.methods.answers import HINT, PLAIN, check_hint, right
from workbench.methods.bootstrap import Ask, Place, RoundsSettings, Sample, gather, method, within
from workbench.methods.context import Context, Step, count_tokens
from workbench.methods.rounds import describe
from workbench.objectives import Objective
from workbench.objectives.supervised import weighted
from workbench.sampling.rollouts import Rollouts
from workbench.settings.base import knob
from workbench.state import State

MEMORY = "memory"
"""the column of a proposal: the step at which its row's rationale, as remembered after it, was sampled"""
IDLE = ("start", "shuffle_dataset", "loss_type", "label_smoothing_factor", "loss_reduction", "truncation_mode")
IDLE += ("completion_only_loss", "assistant_only_loss")
"""settings of wb.sft and of rounds that have no say here"""


@dataclass(frozen=True, kw_only=True)
class TriceSettings(RoundsSettings):
    """MCMC-EM over rationales."""

    batch_size: int = knob(8, at_least=1, fixed=True)
    """rows that a step visits"""
    n: int = knob(1, at_least=1, at_most=1)
    """proposals a row and step: one"""
    estimator: str = knob("control_variate", choices=("control_variate", "basic"))
    """how the gradient is estimated: 'basic' (from remembered rationales alone), or 'control_variate' (less beta times
    that of each proposal, which has the same mean and less variance)"""
    hint: str = knob(HINT, fixed=True)
    """how the first rationales are asked for: with a column of the task that shows the answer"""

    def unread(self, given: Collection[str]) -> list[str]:
        idle = [name for name in IDLE if name in given]
        said = f"{', '.join(idle)} changes nothing: updates go on from the last, on summed log-probs."
        return [*[said] * bool(idle), *super().unread(given)]

    def problem(self) -> str | None:
        if self.packing or self.rows_per_round is not None:
            return "TRICE goes over all rows one by one: neither packing nor rows_per_round goes with it."
        return super().problem()


def check(task, settings: TriceSettings) -> None:
    check_hint(task, settings.hint)
    if settings.batch_size > len(task.rows):
        raise SettingError(
            f"batch_size={settings.batch_size} takes distinct rows, and {task.rows.source} has {len(task.rows)}."
        )


def phases(settings: TriceSettings, round: int) -> list[Any]:
    hinted = [Sample((Ask("hint", settings.hint),))] if round == 1 else []
    return [*hinted, Visit(settings.fit_steps)]


@dataclass(frozen=True)
class Visit:
    """A proposal for each row of a batch, and one update on what is remembered and what was proposed."""

    steps: int

    def length(self, settings: Any, rows: int) -> int:
        return self.steps

    def step(self, state: State, ctx: Context, place: Place, known: dict) -> Step:
        task, settings, stored = ctx.data.task, ctx.settings, cache(ctx.stored)
        made, metrics = (ctx.replay.rollouts, {}) if ctx.replay else self.proposed(state, ctx, place, stored)
        steps = made.columns[MEMORY]
        asked = zip(made.row, steps, strict=True)
        kept = [_of(made if step == place.index else stored(step), row) for row, step in asked]
        solved = [right(task, rollouts, settings)[i] for rollouts, i in kept]
        good = right(task, made, settings)
        signs = coefficients(good, solved, settings.estimator == "control_variate")
        texts = signed(made.ids, [rollouts.ids[i] for rollouts, i in kept], *signs)
        metrics |= {
            "trice/acceptance": float(np.mean(good)),
            "trice/solved": float(np.mean(solved)),
            "trice/memory_age": float(np.mean([place.index - step for step in steps])),
            "round": float(place.round),
        }
        metrics |= learn(state, within(ctx, place), made.prompt_ids, texts, place.number)
        metrics["num_tokens"] = count_tokens(state, made.prompt_ids + made.ids)
        return Step(place.index, metrics, made)

    def proposed(
        self, state: State, ctx: Context, place: Place, stored: Callable[[int], Rollouts]
    ) -> tuple[Rollouts, dict[str, float]]:
        """The scored proposals of this visit, each with the step whose rationale its row remembers from now on."""
        settings, count = ctx.settings, len(ctx.data.prompts)
        visit = (place.round - 1) * self.steps + place.number
        hinted = Sample((Ask("hint"),)).length(settings, count)  # the steps before the first visit
        made, metrics = gather(state, ctx, place.index, visited(settings, count, visit), [Ask("plain", PLAIN)])
        made.columns[MEMORY] = []
        for row, good in zip(made.row, right(ctx.data.task, made, settings), strict=True):
            before = last_visit(settings, count, row, visit)
            step = place.index if good else row // settings.rows_per_step + 1
            if before and not good:
                rollouts, i = _of(stored(hinted + before), row)
                step = rollouts.columns[MEMORY][i]
            made.columns[MEMORY].append(step)
        return made, describe(made) | metrics


def _of(rollouts: Rollouts, row: int) -> tuple[Rollouts, int]:
    return rollouts, rollouts.row.index(row)


def visited(settings: Any, count: int, visit: int) -> list[int]:
    """The rows of visit 1, 2, ...: an epoch gives each to one visit at most."""
    epoch, i = divmod(visit - 1, count // settings.batch_size)
    return _order(settings, count, epoch)[i * settings.batch_size : (i + 1) * settings.batch_size]


def last_visit(settings: Any, count: int, row: int, visit: int) -> int:
    """The visit before `visit` that asked `row`; 0 where none did."""
    each = count // settings.batch_size
    for epoch in range((visit - 1) // each, -1, -1):
        i = _order(settings, count, epoch).index(row) // settings.batch_size
        if i < each and epoch * each + i + 1 < visit:
            return epoch * each + i + 1
    return 0


def _order(settings: Any, count: int, epoch: int) -> list[int]:
    return keys.permutation(keys.key(settings.seed, "visit", epoch), count).tolist()


def coefficients(proposed: Sequence[bool], solved: Sequence[bool], control: bool) -> tuple[np.ndarray, np.ndarray]:
    """(M,) the weights of log p of what is remembered and of what was proposed, from c~ and c'."""
    now, kept = np.asarray(proposed, dtype=np.float64), np.asarray(solved, dtype=np.float64)  # (M,)
    total = kept.sum()
    if not total:
        return kept, kept
    both, others = (kept * now).sum() - kept * now, total - kept
    beta = np.divide(both, others, out=np.zeros_like(both), where=others > 0)
    return kept / total, -kept * beta / total * control


def signed(
    proposals: Sequence[Sequence[int]], memories: Sequence[Sequence[int]], kept: np.ndarray, drawn: np.ndarray
) -> list[tuple[int, list[int], float]]:
    """(row, text, weight) of all that is trained on; one where what is remembered is what was proposed."""
    made = []
    for m, (proposal, memory) in enumerate(zip(proposals, memories, strict=True)):
        if list(proposal) == list(memory):
            made.append((m, list(memory), float(kept[m] + drawn[m])))
        else:
            made += [(m, list(memory), float(kept[m])), (m, list(proposal), float(drawn[m]))]
    return [(m, ids, weight) for m, ids, weight in made if weight]


def learn(
    state: State, ctx: Context, prompts: Sequence[list[int]], texts: list[tuple[int, list[int], float]], step: int
) -> dict[str, float]:
    """One update on the signed sum of log-probs; none where every weight is 0."""
    if not texts:
        return {}
    batch = update.Batch(
        [prompts[m] + ids for m, ids, _ in texts],
        [len(prompts[m]) for m, *_ in texts],
        {"weight": [[weight] * len(ids) for _, ids, weight in texts]},
    )
    totals = update.totals_of(batch) | {"tokens": 1.0}  # the sum itself: 1 / C stands in the weights
    return ctx.learn(state, batch, Objective(weighted), totals, step, temperature=ctx.settings.temperature).metrics


METHOD = method("trice", TriceSettings, phases, check)
