"""Rows with a label, desirable or not, to token ids: what TRL 1.16's KTOTrainer reads. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.data import Rows, explicit_prompt
from workbench.data import make as make_rows
from workbench.encoding import Coded, check_length, chunks, encode, naming, split_row, tally_text, trained_span
from workbench.errors import DataError
from workbench.mask_report import MaskReport, Tally, unless_empty
from workbench.templates import Chat, Split
from workbench.text import shorten


@dataclass(frozen=True)
class Labelled:
    """One answer, desirable or not. It is whole: where it follows a prompt, its own or another, the two are cut."""

    prompt: list[int]
    completion: list[int]
    desirable: bool
    row: int


@dataclass(frozen=True)
class LabelledRows:
    items: list[Labelled]
    report: MaskReport


def labelled(rows: Rows | list[dict], tokenizer: Any, *, max_length: int | None = 1024) -> LabelledRows:
    """Rows with prompt, completion and label (true or false; 1 and 0 pass), as TRL 1.16's KTOTrainer prepares them.

    Preference rows become two labelled rows each, the chosen answers first and then the rejected ones. Rows whose
    prompt fills `max_length` are dropped and counted. Errors as in `fit_rows`, and for a label that is none.
    """
    rows = rows if isinstance(rows, Rows) else make_rows(rows)
    paired = rows.form == "preference"
    if not paired:
        rows.require("prompt", "completion", "label", what="Training on labelled answers (kto)")
    check_length(max_length)
    chat, tally, items = Chat(tokenizer), Tally(), []
    sides = (("chosen", True), ("rejected", False)) if paired else (("completion", None),)
    for chunk in chunks((index, side, known) for side, known in sides for index in range(len(rows))):
        splits, labels = [], []
        for index, side, known in chunk:
            with naming(rows, index):
                row = explicit_prompt(rows._rows[index]) if paired else rows._rows[index]
                splits.append(split_row(chat, row | {"completion": row[side]}, "prompt_completion", False, True))
                labels.append(_label(row) if known is None else known)
        coded = encode(splits, tokenizer, not rows.conversational)
        for (index, _, _), split, code, label in zip(chunk, splits, coded, labels, strict=True):
            item = _labelled(index, split, code, label, tokenizer, max_length, tally)
            items += [item] if item is not None else []
    tokens = sum(len(item.prompt) + len(item.completion) for item in items)
    trained = sum(len(item.completion) for item in items)
    report = MaskReport(len(sides) * len(rows), len(items), tokens, trained, tally.problems(), rows.notes)
    return LabelledRows(items, unless_empty(report, max_length))


def _labelled(
    index: int, split: Split, code: Coded, label: bool, tokenizer: Any, max_length: int | None, tally: Tally
) -> Labelled | None:
    tally_text(index, split, code, tokenizer, tally)
    span = trained_span(split, code)
    begin = max(1, span[0]) if span else 0  # the first token is never scored, in TRL neither
    if span is None or begin >= span[1]:
        tally.add("empty", index)
        return None
    if max_length is not None and begin >= max_length:
        tally.add("prompt_too_long", index)
        return None
    if max_length is not None and span[1] > max_length:
        tally.add("cut", index)
        tally.add("stop_cut", index)
    return Labelled(code.ids[:begin], code.ids[begin : span[1]], label, index)


def _label(row: dict) -> bool:
    value = row.get("label")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    said = "is missing" if value is None or value != value else f"is {shorten(str(value))}"
    raise DataError(
        f"column 'label' {said}; it says whether the answer is desirable: True or False (1 or 0)."
        " Turn other words into these first, say row['label'] = row['label'] == 'good'."
    )
