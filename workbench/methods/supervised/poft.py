"""PoFT: preference-oriented fine-tuning. Prefer yourself over a panel of aligned models.

    s = mean over a row's trained tokens of log p        a = the same of the panel: a column, the mean over its models
    loss = mean over rows of -log sigmoid( beta * (s - a) + gamma )

The gradient of a row is that of its plain loss times beta * sigmoid(-(beta * (s - a) + gamma)), a weight that falls as
the policy overtakes the panel. Where the panel itself finds a row unlikely (s above a from the start), which is often
bad data, the row is pushed less. The column is called `aligned_logprob`; `panel_logprobs(panel, rows)` makes it, once,
before training: each model reads the rows in its own chat template, and tokenizers may differ, as only means enter.

Fan et al. 2024, "Preference-Oriented Supervised Fine-Tuning: Favoring Target Model Over Aligned Large Language Models",
arXiv 2412.12865.
Loss and defaults as in the authors' code (Savannah120/alignment-handbook-PoFT): beta 1, gamma 0; there lr 1e-6 with
cosine and 10 % warm-up, 1 epoch, and the panel zephyr-7b-sft-full, Yi-6B-Chat, Llama-3-8B-Instruct. Differs: their
trainer averages the policy's log-probs over all tokens of a text and the panel's over the assistant's; here both are
means over the trained tokens. `loss_reduction` and `loss_type` have no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from workbench import data, tokenise, worker
from workbench.errors import DataError, SettingError
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.methods.supervised import whole_rows
from workbench.objectives import Objective
from workbench.objectives.sequences import preferred
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State

COLUMN = "aligned_logprob"
PART = 16
"""rows that the panel reads at once"""


@dataclass(frozen=True, kw_only=True)
class PoFTSettings(SFTSettings):
    """Preference-oriented fine-tuning."""

    beta: float = knob(1.0, above=0.0)
    """how sharply the margin over the panel counts"""
    gamma: float = 0.0
    """added to the margin: above 0 rows count as won earlier"""

    def problem(self) -> str | None:
        return super().problem() or whole_rows.problem(self, loss=False)


def checked(rows: Any, settings: PoFTSettings, tokenizer: Any) -> data.Rows:
    rows = rows if isinstance(rows, data.Rows) else data.make(rows)
    if COLUMN not in rows.columns:
        raise DataError(
            f"wb.method('poft') needs the row column {COLUMN!r}, the mean log-prob of each answer under a panel of"
            " aligned models: rows = panel_logprobs([wb.load(...), ...], rows), from workbench.methods.supervised.poft."
        )
    return whole_rows.check_numbers(rows, COLUMN, "wb.method('poft')")


def columns(state: State | None, ctx: Context, examples: Sequence[tokenise.Example]) -> dict[str, list]:
    return {"aligned": [float(example.given[COLUMN]) for example in examples]}


def objective(settings: PoFTSettings, index: int) -> Objective:
    return Objective(partial(preferred, beta=settings.beta, gamma=settings.gamma))


METHOD = sft.variant("poft", PoFTSettings, sft.Variant(rows=checked, columns=columns, objective=objective))


@worker.on_worker
def panel_logprobs(panel: Sequence[Any], rows: Any, max_length: int | None = 1024) -> data.Rows:
    """The rows with a column `aligned_logprob`: the mean over the policies of `panel` of a row's mean log-prob a token
    of its answer, in nats, each under the policy's own chat template and tokenizer.

    One forward pass a policy, as it is now; nothing trains. Raises SettingError for a panel that is none, DataError for
    rows that cannot be used or of which one of the policies has nothing to score.
    """
    rows, panel = data.rows(rows), panel if isinstance(panel, (list, tuple)) else [panel]
    if not panel or not all(hasattr(policy, "token_scores") for policy in panel):
        raise SettingError("panel_logprobs: the panel is a list of policies, [wb.load(...), ...].")
    every = [_means(policy, rows, max_length) for policy in panel]
    means = [sum(values) / len(values) for values in zip(*every, strict=True)]
    return data.make([{**row, COLUMN: mean} for row, mean in zip(rows.to_list(), means, strict=True)], rows.source)


def _means(policy: Any, rows: data.Rows, max_length: int | None) -> list[float]:
    """A number a row, under one policy."""
    items = tokenise.fit_rows(rows, policy.tokenizer, max_length=max_length).items
    if missing := set(range(len(rows))) - {item.row for item in items}:
        raise DataError(f"{rows.where(min(missing))}: {policy.origin.model} has no token of its answer to score.")
    made = [0.0] * len(rows)
    by_length = sorted(items, key=lambda item: len(item.ids))
    with policy.at_rest():
        for first in range(0, len(items), PART):
            worker.check()
            part = by_length[first : first + PART]
            batch = sft.make_batch(part)
            scores = policy.token_scores(batch.sequences, batch.starts, needs=frozenset())
            for item, logprobs, weights in zip(part, scores.logprob.tolist(), batch.columns["weight"], strict=True):
                trained = [value for value, weight in zip(logprobs, weights, strict=False) if weight]
                made[item.row] = sum(trained) / len(trained)
    return made
