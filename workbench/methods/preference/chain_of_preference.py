"""Chain of Preference Optimization: DPO on single steps, with the pairs that a tree search leaves behind.

A tree search tries several next steps after each prefix and throws most of them away. For every path that ends in the
right answer, each of its steps is chosen over every sibling (another step after the same prefix) that is on no right
path. DPO on these pairs, with question and steps so far as the prompt, teaches a plain chain of thought to take the
steps that the search would have found. Only the tokens of the step are scored: the prefix gets no gradient.

    from workbench import judges
    from workbench.transforms.pairs import sibling_steps
    trees = judges.trees(policy, task, candidates=10, keep=3, steps=3)      # print(trees[0]) draws one
    run = wb.method("chain_of_preference")(policy, sibling_steps(trees))

Rows are pairs: prompt, chosen, rejected. `chosen_ends` and `rejected_ends` say whether the answer ends with the step: a
step in the midst of an answer gets no end token (`open_steps`), or the policy would learn to stop after it. Rows
without these columns are taken to end. TRL's DPO trainer, which the authors use, ends every step: open_steps=False.

Defaults: beta 0.2, lr 5e-6, from the authors' script; it also has batch_size=4, a cosine schedule with warm-up, a LoRA
of rank 8 and three epochs. beta=0.1 with open_steps=False is plain DPO. The search: 10 to 15 candidates, the best 3
kept, 3 steps.

Paper: Zhang et al. 2024, Chain of Preference Optimization, arXiv 2406.09136. Source read: sail-sg/CPO. What differs:
there the model writes its verdict of a prefix 5 times and the votes are added up, here the probability of its verdict
is read once, or any judge is asked; there a rejected step differs from the right steps of its depth, whatever their
prefix, here siblings alone are compared; texts are compared as they are, without their clean-up of case and blanks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench import tokenise
from workbench.data import Rows
from workbench.data import make as make_rows
from workbench.methods import dpo
from workbench.settings.base import knob
from workbench.settings.preference import DPOSettings


@dataclass(frozen=True, kw_only=True)
class ChainOfPreferenceSettings(DPOSettings):
    """DPO on steps."""

    lr: float = knob(5e-6, at_least=0.0)
    beta: float = knob(0.2, at_least=0.0)
    open_steps: bool = knob(True, fixed=True)
    """steps in the midst of an answer (`chosen_ends`, `rejected_ends` false) get no end token; False: all get one"""


def prepare(tokenizer, rows, settings: ChainOfPreferenceSettings) -> dpo.PairData:
    """Pairs of steps as tokens. Raises DataError where a row cannot be used."""
    rows = rows if isinstance(rows, Rows) else make_rows(rows)
    data = dpo.prepare(tokenizer, rows, settings)
    if not settings.open_steps:
        return data
    return replace(data, items=[opened(pair, rows[pair.row], tokenizer.eos_token_id) for pair in data.items])


def opened(pair: tokenise.Pair, row: dict, end: int) -> tokenise.Pair:
    """The pair without the end token that was put after a step in the midst of an answer."""
    steps = {
        side: ids[:-1] if not row.get(f"{side}_ends", True) and len(ids) > 1 and ids[-1] == end else ids
        for side, ids in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    return replace(pair, **steps)


METHOD = dpo.variant(
    "chain_of_preference", ChainOfPreferenceSettings, dpo.Variant(), prepare=prepare, prepare_eval=prepare
)
