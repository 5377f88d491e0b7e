"""Rows to token ids with the exact train mask; prompts to token ids.

The ids are those of TRL 1.16's SFTTrainer and DPOTrainer for the same rows: the row's whole text is tokenised
at once, and the mask is laid on it by tokenising the beginnings of that text that end where a segment ends.

    plain rows     text, completion, chosen and rejected get the tokenizer's end token unless they end
                   with it; the tokenizer adds its start token; no chat template
    messages       the chat template writes all special tokens; none is added
    trained        the completion (prompt_completion), all tokens (messages, text), or the assistant's turns
                   (`assistant_only_loss`), each with its stop token
    segments       the text as it stands, with the tokenizer's start token; each segment trained or not

Rows, messages and segments may carry weights (see `workbench.weights`).

For plain rows the mask is TRL's too. For conversational rows it is TRL's but for what a template writes after
the stop token, which is not trained here (see `workbench.templates`); a pair's answers end with the stop
token, so that such text is not scored either. Where the prompt's last tokens change once the completion
follows, training begins at the first that does, as in TRL.

What is wrong is an error or is counted in a `MaskReport`, to be shown before training. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from workbench import weights
from workbench.data import FORMS, Rows, explicit_prompt
from workbench.data import make as make_rows
from workbench.encoding import (
    Coded,
    check_length,
    chunks,
    doubled_start,
    encode,
    ended,
    naming,
    split_row,
    tally_text,
    trained_span,
)
from workbench.errors import DataError, SettingError
from workbench.mask_report import MaskReport, Tally, unless_empty
from workbench.templates import Chat, Segment, Split, split_completion, template_options
from workbench.text import clean, clean_all, shorten


@dataclass(frozen=True)
class Example:
    """One row for supervised training: `ids`, `mask` (1: the loss is taken on this token) `weight`, (T,)."""

    ids: list[int]
    mask: list[int]
    weight: list[float]
    row: int
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """the row it is made of, with all its columns"""


@dataclass(frozen=True)
class Examples:
    items: list[Example]
    report: MaskReport


@dataclass(frozen=True)
class Pair:
    """One preference row: prompt + chosen and prompt + rejected; all tokens of an answer are scored."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    row: int
    dropped: tuple[int, int] = (0, 0)
    """so many first tokens of prompt + chosen and of prompt + rejected are left out (`keep_end`)"""

    def sequences(self) -> list[tuple[list[int], int]]:
        """Of the chosen and of the rejected side the ids, and the first of them that is scored."""
        return [
            ((self.prompt + answer)[left:], max(1, len(self.prompt) - left))
            for answer, left in zip((self.chosen, self.rejected), self.dropped, strict=True)
        ]


@dataclass(frozen=True)
class Pairs:
    items: list[Pair]
    report: MaskReport


@dataclass(frozen=True)
class PromptTokens:
    """A prompt to sample from: the text as tokenised, and its ids."""

    text: str
    ids: list[int]


def fit_rows(
    rows: Rows | list[dict],
    tokenizer: Any,
    *,
    max_length: int | None = 1024,
    assistant_only_loss: bool = False,
    completion_only_loss: bool | None = None,
    truncation: Literal["keep_start", "keep_end"] = "keep_start",
) -> Examples:
    """Rows with prompt and completion, messages or text as Examples, with TRL 1.16's settings and defaults.

    `completion_only_loss` None: True where rows have a prompt and a completion. `assistant_only_loss` trains
    the assistant's turns only (with a prompt: those of the completion only). `max_length` None: rows are not
    cut. Rows with nothing to train on are dropped and counted. DataError when a column is missing, when the
    chat template refuses a row or cannot be split, or when no row is left; SettingError for settings that do
    not go together.
    """
    rows = rows if isinstance(rows, Rows) else make_rows(rows)
    form = fit_form(rows)
    rows = rows.as_form(form)
    _check_settings(rows, assistant_only_loss, completion_only_loss, max_length, truncation)
    only_completion = form == "prompt_completion" and completion_only_loss is not False
    chat, tally = Chat(tokenizer), Tally()

    def split(index: int, row: dict) -> Split:
        with naming(rows, index):
            return weights.of_row(split_row(chat, row, form, assistant_only_loss, only_completion), row)

    splits = ((index, split(index, row)) for index, row in enumerate(rows._rows))
    items = _examples(splits, tokenizer, not rows.conversational, max_length, truncation, tally)
    items = [replace(item, given=rows._rows[item.row]) for item in items]
    return Examples(items, _report(len(rows), items, tally, rows.notes, max_length))


def pairs(
    rows: Rows | list[dict],
    tokenizer: Any,
    *,
    max_length: int | None = 1024,
    truncation: Literal["keep_start", "keep_end"] = "keep_start",
) -> Pairs:
    """Preference rows as Pairs, as TRL 1.16's DPOTrainer prepares and cuts them.

    Rows whose prompt fills `max_length` are dropped and counted, unless the end is kept. Errors as in `fit_rows`.
    """
    rows = rows if isinstance(rows, Rows) else make_rows(rows)
    if "label" in rows.columns and rows.form != "preference":
        raise DataError(f"{rows.source} has single answers with a label, not pairs: wb.kto reads them.")
    rows.require("chosen", "rejected", what="Training on preferences")
    check_length(max_length)
    chat, tally = Chat(tokenizer), Tally()
    items: list[Pair] = []
    for chunk in chunks(enumerate(rows._rows)):
        both = []
        for index, row in chunk:
            with naming(rows, index):
                both += split_pair(chat, explicit_prompt(row))
        coded = encode(both, tokenizer, not rows.conversational)
        for number, (index, _) in enumerate(chunk):
            sides = slice(2 * number, 2 * number + 2)
            pair = _pair(index, both[sides], coded[sides], tokenizer, max_length, truncation, tally)
            if pair is not None:
                items.append(pair)
    sides = [side for item in items for side in item.sequences()]
    tokens, trained = sum(len(ids) for ids, _ in sides), sum(len(ids) - start for ids, start in sides)
    report = MaskReport(len(rows), len(items), tokens, trained, tally.problems(), rows.notes)
    return Pairs(items, unless_empty(report, max_length))


def prompt(
    prompt: str | list[dict], tokenizer: Any, *, tools: Any = None, chat_template_kwargs: dict | None = None
) -> PromptTokens:
    """A prompt to sample from, as TRL 1.16's GRPOTrainer tokenises it.

    Text gets the tokenizer's own special tokens and no chat template; messages get the chat template with the
    generation prompt. Unlike TRL, a start token is never doubled when a text already begins with it.
    DataError for an empty prompt, another type, or a template that refuses the messages.
    """
    if isinstance(prompt, str) and prompt:
        text, special = clean(prompt), True
    elif isinstance(prompt, (list, tuple)) and prompt and all(isinstance(item, dict) for item in prompt):
        row = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
        text = Chat(tokenizer).render(clean_all(list(prompt))[0], True, template_options(row))
        special = False
    else:
        raise DataError(
            f"A prompt is text or a list of messages, not empty; this is {shorten(repr(prompt))}."
        )
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    if doubled_start(ids, tokenizer):
        ids = ids[1:]
    return PromptTokens(text, ids)


# Splitting rows


def fit_form(rows: Rows) -> str:
    for form in ("prompt_completion", "messages", "text", "segments"):
        if set(FORMS[form]) <= set(rows.columns):
            return form
    if rows.form == "preference":
        raise DataError(
            f"{rows.source} has preference rows (chosen and rejected), which dpo reads. For supervised "
            "training give prompt and completion, e.g. rename={'chosen': 'completion'}."
        )
    rows.require("prompt", "completion", what="Supervised training (sft)")
    return "prompt_completion"


def split_pair(chat: Chat, row: dict) -> list[Split]:
    options, prompt = template_options(row), row["prompt"]
    if isinstance(prompt, str):
        first = Segment(prompt, "prompt", False)
        sides = [Segment(ended(row[side], chat.tokenizer), side, True) for side in ("chosen", "rejected")]
        return [Split((first, side)) for side in sides]
    return [split_completion(chat, prompt, row[side], options) for side in ("chosen", "rejected")]


def _check_settings(
    rows: Rows, assistant_only: bool, completion_only: bool | None, max_length: int | None, truncation: str
) -> None:
    check_length(max_length)
    if truncation not in ("keep_start", "keep_end"):
        raise SettingError(f"truncation={truncation!r}: give 'keep_start' or 'keep_end'.")
    if completion_only and rows.form != "prompt_completion":
        hint = " assistant_only_loss=True trains the assistant's turns." if rows.form == "messages" else ""
        raise SettingError(
            f"completion_only_loss=True needs rows with prompt and completion; these have {rows.form}.{hint}"
        )
    if assistant_only and not rows.conversational:
        raise SettingError(
            "assistant_only_loss=True needs conversational rows (messages); these are plain text."
        )


# Tokens


def _examples(
    splits: Iterator[tuple[int, Split]],
    tokenizer: Any,
    special: bool,
    max_length: int | None,
    truncation: str,
    tally: Tally,
) -> list[Example]:
    items = []
    for chunk in chunks(splits):
        coded = encode([split for _, split in chunk], tokenizer, special)
        for (index, split), code in zip(chunk, coded, strict=True):
            item = _example(index, split, code, tokenizer, max_length, truncation, tally)
            if item is not None:
                items.append(item)
    return items


def _example(
    index: int,
    split: Split,
    code: Coded,
    tokenizer: Any,
    max_length: int | None,
    truncation: str,
    tally: Tally,
) -> Example | None:
    mask, weight, at, stop = [], [], 0, -1
    for segment, end in zip(split.segments, code.ends, strict=True):
        mask += [int(segment.train and segment.weight > 0)] * (end - at)
        weight += [segment.weight] * (end - at)
        at = max(at, end)
        stop = at - 1 if segment.train else stop
    tally_text(index, split, code, tokenizer, tally)
    if 1 not in mask[1:]:  # nothing comes before the first token, so no loss is ever taken on it
        tally.add("empty", index)
        return None
    ids, first = code.ids, 0
    if max_length is not None and len(ids) > max_length:
        first = 0 if truncation == "keep_start" else len(ids) - max_length
        kept = slice(first, first + max_length)
        ids, mask, weight = ids[kept], mask[kept], weight[kept]
        if 1 not in mask[1:]:
            tally.add("masked", index)
            return None
        tally.add("cut", index)
        if not first <= stop < first + max_length:
            tally.add("stop_cut", index)
    return Example(ids, mask, weight, index)


def _pair(
    index: int,
    both: Sequence[Split],
    coded: Sequence[Coded],
    tokenizer: Any,
    max_length: int | None,
    truncation: str,
    tally: Tally,
) -> Pair | None:
    notes = (*both[0].notes, *both[1].notes)
    merged = coded[0].merged or coded[1].merged
    tally_text(index, Split(both[0].segments, notes), replace(coded[0], merged=merged), tokenizer, tally)
    spans = [trained_span(split, code) for split, code in zip(both, coded, strict=True)]
    if None in spans:
        tally.add("empty", index)
        return None
    begin = min(first for first, _ in spans)
    chosen, rejected = (code.ids for code in coded)
    if begin == 0:  # the first token is never scored, in TRL neither; it must at least be common
        if chosen[0] != rejected[0]:
            tally.add("no_context", index)
            return None
        begin = 1
    limit = max(len(chosen), len(rejected))
    dropped = (0, 0)
    if max_length is not None and truncation == "keep_end":
        dropped = tuple(max(0, end - max_length) for _, end in spans)
        if any(dropped):
            tally.add("cut", index)
    elif max_length is not None:
        if begin >= max_length:
            tally.add("prompt_too_long", index)
            return None
        if max(end for _, end in spans) > max_length:
            tally.add("cut", index)
            tally.add("stop_cut", index)
        limit = max_length
    chosen_part = chosen[begin : min(spans[0][1], limit)]  # what a template writes after the stop token
    rejected_part = rejected[begin : min(spans[1][1], limit)]  # is not scored
    if chosen_part == rejected_part:
        tally.add("same", index)
    return Pair(chosen[:begin], chosen_part, rejected_part, index, dropped)


# What is counted


def _report(
    given: int, items: list[Example], tally: Tally, notes: tuple[str, ...], max_length: int | None
) -> MaskReport:
    tokens = sum(len(item.ids) for item in items)
    trained = sum(sum(item.mask) for item in items)
    scale = [w for item in items for m, w in zip(item.mask, item.weight, strict=True) if m]
    spread = (min(scale), max(scale)) if scale else (1.0, 1.0)
    return unless_empty(MaskReport(given, len(items), tokens, trained, tally.problems(), notes, spread), max_length)
