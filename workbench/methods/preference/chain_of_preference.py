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
step in the midst of an answer gets no end token (`open_steps`), nor a chat template's, or the policy would learn to
stop after it. Rows without these columns, or with None there, are taken to end. TRL's DPO trainer, which the authors
use, ends every step: open_steps=False.

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
from typing import Any

from workbench import tokenise
from workbench.data import Rows, explicit_prompt
from workbench.data import make as make_rows
from workbench.errors import DataError
from workbench.methods import dpo
from workbench.settings.base import knob
from workbench.settings.preference import DPOSettings
from workbench.templates import Chat, template_options
from workbench.transforms.parts import shown

SIDES = ("chosen", "rejected")


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
    if not settings.open_steps:
        return dpo.prepare(tokenizer, rows, settings)
    for column in (f"{side}_ends" for side in SIDES if f"{side}_ends" in rows.columns):
        for index, value in enumerate(rows.column(column)):
            if not (value is None or isinstance(value, bool)):
                raise DataError(
                    f"{rows.where(index)}: column {column!r} is {shown(value)}; it takes True (the answer ends with the"
                    " step), False, or None (it ends)."
                )
    data, chat = dpo.prepare(tokenizer, rows, settings), Chat(tokenizer)
    return replace(data, items=[opened(pair, rows[pair.row], chat) for pair in data.items])


def opened(pair: tokenise.Pair, row: dict, chat: Chat) -> tokenise.Pair:
    """The pair without the stop token that was put after a step in the midst of an answer."""
    steps = {side: getattr(pair, side) for side in SIDES}
    for side, ids in steps.items():
        if row.get(f"{side}_ends") is False and len(ids) > 1 and ids[-1] == stop_id(row, side, chat):
            steps[side] = ids[:-1]
    return replace(pair, **steps)


def stop_id(row: dict, side: str, chat: Chat) -> int | None:
    """What ends this side when it is written out: the tokenizer's end token, or the one of the chat template."""
    row = explicit_prompt(row)
    if isinstance(row["prompt"], str):
        return chat.tokenizer.eos_token_id
    messages: list[dict[str, Any]] = [*row["prompt"], *row[side]]
    stop = chat.stop(messages, len(messages) - 1, template_options(row))
    return None if stop is None else chat.tokenizer.convert_tokens_to_ids(stop)


METHOD = dpo.variant(
    "chain_of_preference", ChainOfPreferenceSettings, dpo.Variant(), prepare=prepare, prepare_eval=prepare
)
