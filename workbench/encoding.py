"""Segments of text to token ids: each text tokenised at once, and where each of its segments ends among the tokens.

Shared by the readers of rows, `workbench.tokenise` and `workbench.labelled`. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from workbench import weights
from workbench.data import Rows
from workbench.errors import DataError, SettingError
from workbench.mask_report import Tally
from workbench.templates import Chat, Segment, Split, split_all, split_completion, split_turns, template_options
from workbench.text import common_prefix, shorten

CHUNK = 256
"""rows tokenised in one call: enough for the tokenizer's own speed, little enough for its memory"""


# Splitting rows


def split_row(chat: Chat, row: dict, form: str, assistant_only: bool, only_completion: bool) -> Split:
    """The segments of a row of `form`, one of `workbench.data.FORMS`, and which of them train."""
    options = template_options(row)
    if form == "text":
        return Split((Segment(ended(row["text"], chat.tokenizer), "all", True),))
    if form == "segments":
        return weights.segments(row)
    if form == "messages":
        weights.check_messages(row["messages"], assistant_only)
        split = split_turns if assistant_only else split_all
        return split(chat, row["messages"], options)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        segments = (
            Segment(prompt, "prompt", not only_completion),
            Segment(ended(completion, chat.tokenizer), "completion", True),
        )
        return Split(segments)
    weights.check_messages([*prompt, *completion], assistant_only)
    if assistant_only:
        return split_turns(chat, [*prompt, *completion], options, len(prompt) if only_completion else 0)
    if only_completion:
        return split_completion(chat, prompt, completion, options)
    return split_all(chat, [*prompt, *completion], options)


def ended(text: str, tokenizer: Any) -> str:
    """The text with the tokenizer's end token, unless it ends with it (TRL's `add_eos`)."""
    if tokenizer.eos_token is None:
        raise DataError(
            "The tokenizer has no end token, so plain rows cannot teach the model to stop. Set its eos_token."
        )
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def check_length(max_length: int | None) -> None:
    """Raises SettingError unless `max_length` is a number of tokens from 2, or None."""
    if max_length is not None and (not isinstance(max_length, int) or max_length < 2):
        raise SettingError(
            f"max_length={max_length!r}: give a number of tokens from 2, or None for no limit."
        )


# Tokens


@dataclass(frozen=True)
class Coded:
    """A split as tokens: segment s ends at `ends[s]`; `merged` is what the prompt alone would end in."""

    ids: list[int]
    ends: list[int]
    merged: str = ""


def encode(splits: Sequence[Split], tokenizer: Any, special: bool) -> list[Coded]:
    """Every split's ids and segment ends, from one call of the tokenizer."""
    texts: list[str] = []
    for split in splits:
        texts.append(split.text)
        texts += [split.text[:end] for end in _inner_ends(split)]
    coded = iter(tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else [])
    return [_code(split, list(next(coded)), coded, tokenizer, special) for split in splits]


def _inner_ends(split: Split) -> list[int]:
    ends, at = [], 0
    for segment in split.segments[:-1]:
        at += len(segment.text)
        ends.append(at)
    return ends


def _code(split: Split, ids: list[int], coded: Iterator[list[int]], tokenizer: Any, special: bool) -> Coded:
    ends, merged = [], ""
    for segment, end in zip(split.segments, _inner_ends(split), strict=False):
        before = list(next(coded))
        shared = common_prefix(before, ids)
        # A tokenizer that appends its end token does so to the beginning as well; that is no merge.
        extra = [token for token in before[shared:] if token != tokenizer.eos_token_id]
        if extra and segment.train:
            shared = _covering(split.text, end, shared, tokenizer, special)  # ends inside a token: train it
        elif extra and not merged:
            merged = shorten(tokenizer.decode(before[shared:]))
        ends.append(shared)
    return Coded(ids, [*ends, len(ids)], merged)


def _covering(text: str, end: int, least: int, tokenizer: Any, special: bool) -> int:
    """How many tokens it takes to cover `text[:end]`, when the last of them reaches beyond `end`."""
    if not getattr(tokenizer, "is_fast", False):
        return least + 1
    coded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    reached = [i for i, (first, stop) in enumerate(coded["offset_mapping"]) if first < end and stop > first]
    return max(least, reached[-1] + 1 if reached else 0)


def trained_span(split: Split, code: Coded) -> tuple[int, int] | None:
    """The tokens [first, end) of the split's one trained segment; None when there is none."""
    firsts = [0, *code.ends]
    spans = [(firsts[i], firsts[i + 1]) for i, segment in enumerate(split.segments) if segment.train]
    return spans[0] if spans and spans[0][0] < spans[0][1] else None


def chunks(items: Iterable) -> Iterator[list]:
    """Lists of up to CHUNK items."""
    items = iter(items)
    while chunk := list(islice(items, CHUNK)):
        yield chunk


# What is counted


@contextmanager
def naming(rows: Rows, index: int) -> Iterator[None]:
    """Names the row in a DataError that comes from inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{rows.where(index)}: {error}") from error


def tally_text(index: int, split: Split, code: Coded, tokenizer: Any, tally: Tally) -> None:
    """Count what is odd about a row's text: notes of its split, a merged prompt, doubled start and end tokens."""
    for name, detail in split.notes:
        tally.add(name, index, detail)
    if code.merged:
        tally.add("merged", index, f"the prompt alone ends in {code.merged}")
    if doubled_start(code.ids, tokenizer):
        tally.add("doubled_start", index)
    end = tokenizer.eos_token_id
    if end is not None and end != tokenizer.bos_token_id and code.ids[-2:] == [end, end]:
        tally.add("doubled_stop", index)


def doubled_start(ids: list[int], tokenizer: Any) -> bool:
    """Whether the ids begin with two start tokens: the text had one, and the tokenizer added another."""
    start = tokenizer.bos_token_id
    return start is not None and len(ids) > 1 and ids[0] == ids[1] == start
