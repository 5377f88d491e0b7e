"""Many-shot in-context fine-tuning (ManyICL): every answer of a context full of examples is a target.

`shots` examples of one task make one row, x1 y1 x2 y2 ... xn yn, and every y trains:

    L = - sum over k of sum over t of log p(y_k,t | x1 y1 ... x_k, y_k,<t), over the number of trained tokens

so one pass gives n signals, for 0 to n - 1 examples in the context, and the model learns to use examples of any task.
Other than in packing, examples see those before them. When sampled, the model gets the same layout with the last answer
left blank (`workbench.transforms.many_shot.prompt`).

    shots = 8             examples in a row; as many as `max_length` holds is the idea. 1: plain SFT
    task_column = None    the column that says which task a row is of; None: all are of one
    orders = 1            arrangements of the rows that are made; for a new order in each epoch give as many as epochs

Each answer ends in the end token (so that `shots=1` is plain SFT), between examples stands `separator`, untrained. The
metrics `nll/shot_<k>`, for k = 1, 2, 4, 8, ... and the last, are the loss of the k-th answer: it must fall with k.
`workbench.transforms.many_shot.loss_by_shot` gives the whole curve of a policy.

He et al. 2025, "You Only Fine-tune Once: Many-Shot In-Context Fine-Tuning for Large Language Model",
arXiv 2506.11103; objective from the abstract, layout and defaults are ours. Rows are plain prompt and completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from workbench.methods import sft
from workbench.methods.sft import Variant, variant
from workbench.objectives import Objective, mean_over
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.many_shot import SEPARATOR, many_shot


@dataclass(frozen=True, kw_only=True)
class ManyShotSettings(SFTSettings):
    """Supervised fine-tuning on rows of many examples."""

    shots: int = knob(8, at_least=1, fixed=True)
    """examples of one task in a row; 1: plain SFT"""
    task_column: str | None = knob(None, fixed=True)
    """the column that says which task a row is of; None: all rows are of one task"""
    separator: str = knob(SEPARATOR, fixed=True)
    """what stands between examples"""
    orders: int = knob(1, at_least=1, fixed=True)
    """how many times the rows are shuffled and gathered anew"""


def rows(given, settings, tokenizer):
    if settings.shots == 1:
        return given
    end = tokenizer.eos_token or ""
    column, separator = settings.task_column, settings.separator
    return many_shot(given, settings.shots, column, separator, end, settings.orders, settings.seed)


def columns(state, ctx, examples):
    """`shot`: the place of each trained token's answer in its row, from 1; 0 for context."""
    return {"shot": [_shots(example.mask) for example in examples]}


def _shots(mask: list[int]) -> list[int]:
    number, made = 0, []
    for before, here in pairwise([0, *mask]):
        number += here and not before
        made.append(number * here)
    return made[max(1, mask.index(1)) :]


def objective(settings, index: int) -> Objective:
    plain = sft.objective(settings)
    places = sorted({2**power for power in range(settings.shots.bit_length())} | {settings.shots})

    def made(scores, columns, totals):
        loss, metrics = plain(scores, columns, totals)
        each = {f"nll/shot_{k}": mean_over(-scores.logprob, columns["shot"] == k) for k in places}
        return loss, metrics | each

    return Objective(made, plain.needs)


METHOD = variant("many_shot", ManyShotSettings, Variant(rows=rows, columns=columns, objective=objective))
