"""TL-Training: weight the few tokens of a tool call that decide which tool is called, and leave failed calls out.

Rows are dialogues (`messages`), which become one row for each turn of the assistant, trained on that turn alone; turns
whose next tool message tells of an error are left out. Or rows with prompt and completion. A column `tools` says what
the prompt offers: JSON schemas, as chat templates take them, or names. In each trained turn

    K   the first token of the tool's name and, for every other tool whose name begins with the same tokens, the token
        at the first difference
    P   the last token of each argument's value
    w   of K: min(n / |K|, max_weight) where n, the number of trained tokens outside K and P, is above |K|, else 1; of
        all others: 1
    loss = sum of w * -log p / sum of w over the update          loss_reduction="weight"

Turns without a call keep weight 1. A call is read as JSON (`{"name": ..., "arguments": {...}}`) or as
`name(argument=value)`; the first of a turn counts. `wb.show_mask` shows the weights of rows that `weighted_rows` made.

Ye et al. 2024, arXiv 2412.15495; rules and the largest weight 9 as in the authors' code (Junjie-Ye/TL-Training), which
divides by the weights of each row, one row a micro-batch. There 1,217 rows, CodeLlama-7B, 1 epoch, lr 1e-6. Differs:
turns that the user answers are kept; in a JSON call K begins at the name and not at the bracket before it, as only the
name decides. The third part of the paper, PPO with a reward by error type, is the reward `wb.rewards.tool_call`, for
`wb.grpo` and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench import data
from workbench.encoding import naming, split_row
from workbench.errors import DataError
from workbench.methods import sft
from workbench.rewards.tool_calls import Call, read_call, tools_of
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.templates import Chat

ERRORS = (
    "error", "exception", "traceback", "is not defined", "positional argument", "unexpected keyword", "not supported",
    "invalid api call",
)  # fmt: skip
CONTEXT = 24
"""characters before a name that are tokenised with it, to see where two names part"""


@dataclass(frozen=True, kw_only=True)
class KeyTokenSettings(SFTSettings):
    """Key tokens of tool calls."""

    max_weight: float = knob(9.0, at_least=1.0, fixed=True)
    """the largest weight of a key token; 1: plain SFT"""
    error_marks: tuple[str, ...] = knob(ERRORS, fixed=True)
    """a turn is left out where the tool's answer to it has one of these texts, whatever the case"""
    loss_reduction: str = knob("weight", choices=("token", "weight", "row"))
    """how token losses become one number, as in SFT; 'weight', over the sum of the weights, is the paper's"""

    def problem(self) -> str | None:
        if self.assistant_only_loss or self.completion_only_loss is not None:
            return "it trains completions and turns anyway; leave assistant_only_loss and completion_only_loss out."
        return super().problem()


def weighted_rows(rows: Any, settings: KeyTokenSettings, tokenizer: Any) -> data.Rows:
    """The rows as segments, in which key tokens carry their weight."""
    rows = rows if isinstance(rows, data.Rows) else data.make(rows)
    rows.require("tools", what="wb.method('key_token')")
    if rows.form not in ("messages", "prompt_completion"):
        raise DataError(f"wb.method('key_token') reads messages, or prompt and completion, not {rows.form} rows.")
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("wb.method('key_token') needs a fast tokenizer, which tells where in the text each token lies.")
    turns, failed = _turns(rows, settings) if rows.form == "messages" else (list(enumerate(rows.to_list())), 0)
    chat, made, calls = Chat(tokenizer), [], 0
    for index, row in turns:
        with naming(rows, index):
            segments, found = _segments(chat, row, settings.max_weight)
        made.append({name: value for name, value in row.items() if name not in data.KNOWN} | {"segments": segments})
        calls += found
    if not calls:
        raise DataError(
            f"None of the {len(rows)} rows of {rows.source} has a tool call that can be read: JSON with 'name' and"
            " 'arguments', or name(argument=value), of a tool in the column 'tools'."
        )
    made = data.make(made, rows.source)
    notes = (f"{failed} turns are left out, as the tool's answer to them tells of an error",) * bool(failed)
    return data.Rows(made, made.columns, made.form, made.source, None, made.notes + notes)


def _turns(rows: data.Rows, settings: KeyTokenSettings) -> tuple[list[tuple[int, dict]], int]:
    """For each turn of the assistant the row's number and a row with prompt and completion; how many failed and are not
    among them."""
    marks, made, failed = [mark.lower() for mark in settings.error_marks], [], 0
    for index, row in enumerate(rows.to_list()):
        messages = row.pop("messages")
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or not turn:
                continue
            after = messages[turn + 1] if turn + 1 < len(messages) else {"role": "none"}
            said = str(after.get("content", "")).lower()
            if after["role"] == "tool" and any(mark in said for mark in marks):
                failed += 1
                continue
            made.append((index, {**row, "prompt": messages[:turn], "completion": [message]}))
    return made, failed


def _segments(chat: Chat, row: dict, largest: float) -> tuple[list[dict], bool]:
    """The row's text in pieces with weights, and whether a call of one of its tools was found."""
    split = split_row(chat, row, "prompt_completion", False, True)
    conversational = not isinstance(row["prompt"], str)
    text = _started(split.text, chat.tokenizer) if conversational else split.text
    lost = len(split.text) - len(text)
    coded = chat.tokenizer(text, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    spans, at, made = coded["offset_mapping"], -lost, []
    tools, found = tools_of(row["tools"]), False
    for segment in split.segments:
        begin, at = max(at, 0), at + len(segment.text)
        piece = {"train": segment.train, "role": segment.role}
        call = read_call(text[begin:at]) if segment.train else None
        if call is None or call.name not in tools:
            made.append(piece | {"text": text[begin:at]})
            continue
        found = True
        mine = [span for span in spans if begin <= span[0] < span[1] <= at]
        keys, weight = _weighed(chat.tokenizer, text[begin:at], call, tools, mine, begin, largest)
        for start, end, key in _pieces(keys, begin, at):
            made.append(piece | {"text": text[start:end], "weight": weight if key else 1.0})
    return [piece for piece in made if piece["text"]], found


def _started(text: str, tokenizer: Any) -> str:
    """A chat's text as a tokenizer that adds its start token takes it. Raises DataError where that changes its ids."""
    wanted = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for candidate in (text, text.removeprefix(tokenizer.bos_token or "")):
        if tokenizer(candidate, add_special_tokens=True, verbose=False)["input_ids"] == wanted:
            return candidate
    raise DataError("the tokenizer adds special tokens to text that the chat template does not write.")


def _weighed(
    tokenizer: Any, text: str, call: Call, tools: Any, spans: Sequence[tuple[int, int]], begin: int, largest: float
) -> tuple[list[tuple[int, int]], float]:
    """The key tokens of a call (where each lies) and their weight. `spans`: the trained tokens; `begin`: where `text`
    begins among them."""
    places = {call.at, *(call.at + place for place in _partings(tokenizer, text, call, tools))}
    keys = _tokens(spans, {begin + place for place in places})
    ends = _tokens(spans, {begin + place for place in call.ends}) - keys
    others = len(spans) - len(keys) - len(ends)
    return sorted(keys), min(others / len(keys), largest) if others > len(keys) else 1.0


def _tokens(spans: Sequence[tuple[int, int]], places: set[int]) -> set[tuple[int, int]]:
    return {span for span in spans if any(span[0] <= place < span[1] for place in places)}


def _partings(tokenizer: Any, text: str, call: Call, tools: Any) -> list[int]:
    """Where, counted from the name's first character, the tokens of the call part from those of it with each other
    tool's name; 0 where their first tokens differ."""
    before, after = text[max(0, call.at - CONTEXT) : call.at], text[call.at + len(call.name) :][:CONTEXT]

    def tokens(name: str) -> tuple[list[int], list[tuple[int, int]]]:
        coded = tokenizer(before + name + after, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return coded["input_ids"], coded["offset_mapping"]

    ids, spans = tokens(call.name)
    made = []
    for name in tools:
        other = tokens(name)[0]
        same = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
        if name != call.name and same < len(ids):
            made.append(max(spans[same][0] - len(before), 0))
    return made


def _pieces(keys: list[tuple[int, int]], begin: int, end: int):
    """The text from `begin` to `end` cut at the key tokens: where each piece lies, and whether it is one."""
    at = begin
    for start, stop in keys:
        if start > at:
            yield at, start, False
        yield start, stop, True
        at = stop
    if at < end:
        yield at, end, False


METHOD = sft.variant("key_token", KeyTokenSettings, sft.Variant(rows=weighted_rows))
