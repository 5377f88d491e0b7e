"""Discriminative fine-tuning: raise the given answer, lower the model's own bad ones.

The probability is maximised that the given answer y beats all other outputs, and a few samples y' of the starting model
stand in for those: no preference labels, no reward model. With s(y) the log-prob of an answer,

    d_j = s(y'_j) / tau - s_ref(y'_j)                                             (version 1: s a sum over tokens)
    d_j = s(y'_j) / tau                                                           (version 2: s a mean, no reference)
    u  <- log((1 - g) * exp(u) + g * mean over j of exp(d_j))                     one number a row, 0 at first
    loss = mean over rows of [ -s(y) + mean over j of sg(exp(d_j - u)) * s(y'_j) ]

u is an average of the normaliser that moves each time a row comes up (where it does so twice in one batch, which runs
from one epoch into the next, in turn); it is kept, in log space, in `State.tensors`.
Rows bring their negatives in a column `negatives`, a list of texts; `sample_negatives(policy, rows, n)` adds it. Each
epoch takes the next `negatives` ones of the list, and begins again where it ends: give several times as many as epochs.

Guo et al. 2025, arXiv 2502.18679; formulas and defaults as in the authors' code (PenGuln/DFT): version 1 tau 1 and
gamma 0.85, version 2 tau 0.3 and gamma 0.9, two negatives a row and epoch, lr 2e-6 with cosine and 10 % warm-up, 2
epochs; negatives at temperature 0.7, top-k 50, up to 320 tokens, asked for by the system prompt "You are an unhelpful
assistant.". Differs: s(y') for the weights is taken in a pass of its own before the update (the same number without
dropout), so that u is known, and replayed, as a part of the step. "DFT" elsewhere is dynamic fine-tuning (`dynamic`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from workbench import data, tokenise, update
from workbench.errors import DataError
from workbench.methods import reference, sft
from workbench.methods.context import Context
from workbench.methods.supervised import whole_rows
from workbench.objectives import Objective
from workbench.objectives.sequences import discriminated
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State
from workbench.transforms.parts import shown

NORMALISER = "discriminative/normaliser"
DEFAULTS = {1: (1.0, 0.85), 2: (0.3, 0.9)}
"""version: tau, gamma"""


@dataclass(frozen=True, kw_only=True)
class DiscriminativeSettings(SFTSettings):
    """Discriminative fine-tuning."""

    version: int = knob(1, at_least=1, at_most=2, fixed=True)
    """1: sums of log-probs, and a reference; 2: means over tokens, and none"""
    tau: float | None = knob(None, above=0.0)
    """temperature of the negatives' scores; None: 1.0 of version 1, 0.3 of version 2"""
    gamma: float | None = knob(None, above=0.0, at_most=1.0)
    """how fast a row's normaliser follows; 1: it is the step's own. None: 0.85 of version 1, 0.9 of version 2"""
    negatives: int = knob(2, at_least=1, fixed=True)
    """negatives of each row in an update; every row must bring so many, or more for later epochs"""

    def problem(self) -> str | None:
        return super().problem() or whole_rows.problem(self, packs=False, loss=False)

    def constants(self) -> tuple[float, float]:
        """tau and gamma."""
        tau, gamma = DEFAULTS[self.version]
        return (tau if self.tau is None else self.tau), (gamma if self.gamma is None else self.gamma)


@dataclass(frozen=True)
class Contrasts(tokenise.Examples):
    """Rows as tokens, each together with its first negatives, and all that each of them has."""

    pools: list[list[tokenise.Example]]


def prepare(tokenizer: Any, rows: Any, settings: DiscriminativeSettings) -> Contrasts:
    rows = rows if isinstance(rows, data.Rows) else data.make(rows)
    wanted = settings.negatives
    rows.require("prompt", "completion", "negatives", what="wb.method('discriminative')")
    for index, texts in enumerate(rows.column("negatives")):
        if not isinstance(texts, list) or len(texts) < wanted or not all(isinstance(t, str) and t for t in texts):
            raise DataError(
                f"{rows.where(index)}: column 'negatives' is {shown(texts)}; it must be a list of {wanted}"
                f" answers as text, or more (negatives={wanted}). sample_negatives(policy, rows, n={wanted}), from"
                " workbench.methods.supervised.discriminative, makes one."
            )
    gold = sft.prepare(tokenizer, rows, settings)
    owners = [item.row for item in gold.items for _ in item.given["negatives"]]
    pools: dict[int, list[tokenise.Example]] = {}
    for other in sft.prepare(tokenizer, _others(rows, gold.items), settings).items:
        pools.setdefault(owners[other.row], []).append(replace(other, row=owners[other.row]))
    for item in gold.items:
        if len(pools.get(item.row, ())) < wanted:
            raise DataError(f"{rows.where(item.row)}: of its negatives fewer than {wanted} have a token to train on.")
    items = [sft.Together([item, *pools[item.row][:wanted]]) for item in gold.items]
    return Contrasts(items, gold.report, [pools[item.row] for item in gold.items])


def _others(rows: data.Rows, golds: Sequence[tokenise.Example]) -> data.Rows:
    """A row for each negative of these rows, one after the other."""
    made = []
    for row in (rows[item.row] for item in golds):
        answers = row.pop("negatives")
        if rows.conversational:
            answers = [[{"role": "assistant", "content": text}] for text in answers]
        made += [{**row, "completion": answer} for answer in answers]
    return data.make(made, f"the negatives of {rows.source}")


def draw(ctx: Context, index: int) -> list[sft.Together]:
    """The rows of a step, each with the negatives of its epoch."""
    size, count, wanted = ctx.settings.batch_size, len(ctx.data.items), ctx.settings.negatives
    made = []
    for place, (row, _) in enumerate(ctx.draw(index, size, count)):
        epoch, pool = ((index - 1) * size + place) // count, ctx.data.pools[row]
        mine = [pool[(epoch * wanted + j) % len(pool)] for j in range(wanted)]
        made.append(sft.Together([ctx.data.items[row][0], *mine]))
    return made


def columns(state: State | None, ctx: Context, examples: Sequence[tokenise.Example]) -> dict[str, list]:
    """`share`: see `discriminated`; `row` and `normaliser`: the row of each gold answer, and its u after this step."""
    wanted, (tau, gamma) = ctx.settings.negatives, ctx.settings.constants()
    golds = examples[:: 1 + wanted]
    others = sft.make_batch([example for i, example in enumerate(examples) if i % (1 + wanted)])
    apart = scores_of(others, ctx.logprobs(others, "negatives"), ctx.settings.version == 2) / tau
    if ctx.settings.version == 1:
        apart = apart - scores_of(others, reference.logprobs(state, ctx, others), False)
    apart = apart.reshape(len(golds), wanted)  # d_j of each row
    after, last = np.zeros(len(golds)), {}
    for place, example in enumerate(golds):  # one after the other: a row may come up twice
        before = last.get(example.row, known(state, ctx, example))
        after[place] = last[example.row] = normaliser(np.array([before]), apart[place : place + 1], gamma)[0]
    shares = np.exp(apart - after[:, None]) / wanted
    return {
        "share": [value for row in shares for value in (-1.0, *row)],
        "row": [example.row for example in examples],
        "normaliser": [value for u in after for value in (u, *[0.0] * wanted)],
    }


def scores_of(batch: update.Batch, logprobs: list[list[float]], mean: bool) -> np.ndarray:
    """(B,): the sum, or the mean, of the log-probs of each row's trained tokens."""
    made = []
    for values, weights in zip(logprobs, batch.columns["weight"], strict=True):
        trained = [value for value, weight in zip(values, weights, strict=True) if weight]
        made.append(math.fsum(trained) / (max(len(trained), 1) if mean else 1))
    return np.array(made)


def normaliser(before: np.ndarray, apart: np.ndarray, gamma: float) -> np.ndarray:
    """(rows,): u after a step, of u before it and of the d_j (rows, negatives)."""
    now = math.log(gamma) + np.logaddexp.reduce(apart, axis=1) - math.log(apart.shape[1])
    return now if gamma == 1 else np.logaddexp(math.log(1 - gamma) + before, now)


def known(state: State | None, ctx: Context, gold: tokenise.Example) -> float:
    """The normaliser of a row so far; 0 for one that is not of the run's rows (a preview of others)."""
    tensor = None if state is None else state.tensors.get(NORMALISER)
    place = bisect_left(ctx.data.items, gold.row, key=lambda unit: unit[0].row)
    if tensor is None or place == len(ctx.data.items) or ctx.data.items[place][0] is not gold:
        return 0.0
    return float(tensor[place])


def after(state: State, ctx: Context, batch: update.Batch, index: int) -> dict[str, float]:
    """Keep the normalisers of the rows that came up."""
    items, unit, device = ctx.data.items, 1 + ctx.settings.negatives, ctx.policy.device
    if NORMALISER not in state.tensors:
        state.tensors[NORMALISER] = torch.zeros(len(items), device=device)
    rows, values = batch.columns["row"][::unit], batch.columns["normaliser"][::unit]
    last = {bisect_left(items, row, key=lambda unit: unit[0].row): u for row, u in zip(rows, values, strict=True)}
    state.tensors[NORMALISER][list(last)] = torch.tensor(list(last.values()), dtype=torch.float32, device=device)
    shares = [share for share in batch.columns["share"] if share >= 0]
    return {"normaliser": float(np.mean(values)), "negative_weight": float(np.mean(shares)) * ctx.settings.negatives}


def objective(settings: DiscriminativeSettings, index: int) -> Objective:
    return Objective(partial(discriminated, negatives=settings.negatives, mean=settings.version == 2))


METHOD = sft.variant(
    "discriminative",
    DiscriminativeSettings,
    sft.Variant(draw=draw, columns=columns, objective=objective, after=after),
    prepare=prepare,
)


def sample_negatives(
    policy: Any,
    rows: Any,
    n: int = 2,
    *,
    system: str | None = "You are an unhelpful assistant.",
    max_new_tokens: int = 320,
    temperature: float = 0.7,
    top_k: int = 50,
    seed: int = 0,
) -> data.Rows:
    """The rows with a column `negatives`: `n` answers of the policy as it is now to each prompt, as text.

    `system`: the system message of conversational prompts, in place of theirs; None: theirs. Plain prompts have none.
    A sample without text becomes one space. Raises DataError and SettingError as `policy.sample` does.
    """
    rows = data.rows(rows)
    rows.require("prompt", what="sample_negatives")
    prompts = rows.column("prompt")
    if system is not None and isinstance(prompts[0], list):
        said = {"role": "system", "content": system}
        prompts = [[said, *(m for m in prompt if m["role"] != "system")] for prompt in prompts]
    made = policy.sample(prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed)
    texts = [text or " " for text in made.text]
    return data.make(
        [{**row, "negatives": texts[i * n : (i + 1) * n]} for i, row in enumerate(rows.to_list())], rows.source
    )
