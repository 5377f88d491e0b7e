"""Chat templates: a conversation as segments, of which exactly the model's own words and stop token train.

A template is a program that writes one text; nothing in it says which part the model is to learn. Here that
is found by rendering, never by `{% generation %}` marks, which most published templates lack:

- **where a turn begins**: the conversation before it, rendered with the generation prompt, must be a
  beginning of the whole. This is what the model sees when it is sampled.
- **where it ends**: the text up to the content of the next message (found by rendering with other content
  there) holds the turn and the next header; the turn ends with the last stop token in it.
- **what the stop token is**: the first special token that the template writes after a probe put in the turn's
  place (`<|eot_id|>`, `<|im_end|>`, `<end_of_turn>`, `</s>`, `<|end|>`), whatever the tokenizer calls its end
  token.

Where a template drops or changes an earlier turn's text (thinking is stripped) or rewrites what stands before
it (a system message moves), that turn is not trained, or the row is refused, and the report says which. A
turn whose text is whole but which would be written otherwise when sampled (Qwen3 leaves the empty think block
out of earlier turns) is trained as it stands, and counted.

Difference from TRL 1.16: TRL trains all text after the prompt, so also what a template writes after the stop
token ("\\n" in Qwen and Gemma, "\\n<|endoftext|>" in Phi-3). Here training ends with the stop token; the text
stays in the ids. With `assistant_only_loss` TRL replaces a known template by a training variant of its own
(Qwen3's then writes an empty think block in every turn); here the tokenizer's own template is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import DataError
from workbench.text import common_prefix, shorten

PROBE = "Zq7probe"
"""stands for a turn while the template is asked what it writes after one; plain letters survive any
template"""
OTHER = "\ue000"
"""stands for another message's content: a private-use character, so that no real content begins alike"""


@dataclass(frozen=True)
class Segment:
    """A piece of a row's text: who wrote it, whether the loss is taken on it, and with what weight."""

    text: str
    role: str
    train: bool
    weight: float = 1.0


@dataclass(frozen=True)
class Split:
    """A row as segments, whose texts in order are the row's text; `notes` are (problem, detail)."""

    segments: tuple[Segment, ...]
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


class Unsplittable(Exception):
    """The template's text cannot be cut where a turn begins or ends; the message is the reason, in words."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template. Raises DataError where the tokenizer has none or the template refuses."""

    tokenizer: Any
    _stops: dict[str, str | None] = field(default_factory=dict, repr=False)

    def render(
        self, messages: list[dict[str, Any]], generate: bool = False, options: dict | None = None
    ) -> str:
        """The template's text, with the generation prompt if `generate`. `options` go to the template."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                "The rows hold messages, but the tokenizer has no chat template. Set its chat_template, "
                "take the instruct variant of the model, or give plain text rows."
            )
        try:
            return self.tokenizer.apply_chat_template(
                [_flat(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generate,
                **(options or {}),
            )
        except Exception as error:  # templates raise through jinja2, with any type
            raise DataError(f"the chat template refused the messages: {error}") from error

    def stop(self, messages: list[dict], turn: int, options: dict | None) -> str | None:
        """The special token that ends message `turn` when it is the assistant's, or None."""
        after = messages[turn + 1]["role"] if turn + 1 < len(messages) else None
        key = json.dumps([self.tokenizer.chat_template, after, options], sort_keys=True, default=str)
        if key not in self._stops:
            probe = {"role": "assistant", "content": PROBE}
            text = self.render([*messages[:turn], probe, *messages[turn + 1 :]], options=options)
            tail = text[text.rindex(PROBE) + len(PROBE) :] if PROBE in text else ""
            self._stops[key] = self._first_special(tail)
        return self._stops[key]

    def _first_special(self, text: str) -> str | None:
        special = [str(token) for token in self.tokenizer.all_special_tokens]
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        special += [str(token) for token in added if token.special]
        for names in (special, [str(token) for token in added]):  # any added token only failing a special one
            found = [(text.index(name), -len(name), name) for name in names if name and name in text]
            if found:
                return min(found)[2]
        return None


def template_options(row: dict[str, Any]) -> dict[str, Any]:
    """What a row passes to its template, as in TRL: `tools` (list or JSON), `chat_template_kwargs`."""
    tools = row.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise DataError(f"column 'tools' is not JSON ({error.msg}): {shorten(row['tools'])}") from error
    return {"tools": tools or None, **(row.get("chat_template_kwargs") or {})}


def split_all(chat: Chat, messages: list[dict], options: dict | None = None) -> Split:
    """The whole conversation as one trained segment, as TRL trains `messages` by default."""
    return Split((Segment(chat.render(messages, options=options), "all", True),))


def split_completion(
    chat: Chat, prompt: list[dict], completion: list[dict], options: dict | None = None
) -> Split:
    """Prompt, completion with its stop token (trained), and what the template writes after it.

    The completion is all that follows the generation prompt: for Qwen3 also the think block that the template
    writes around the answer, which the model has to write itself when it is sampled. DataError when the
    template writes the prompt differently once a completion follows.
    """
    if completion[-1]["role"] != "assistant":
        raise DataError(
            f"the completion ends with the role {completion[-1]['role']!r}; it must be 'assistant'."
        )
    messages = [*prompt, *completion]
    whole = chat.render(messages, options=options)
    last = len(messages) - 1
    try:
        start, notes = _begin(chat, messages, len(prompt), whole, options)
    except Unsplittable as error:
        raise DataError(
            f"the chat template cannot be split before the completion: {error} Give the row as messages or "
            "as plain text, or use a template that writes a prompt alike with and without a completion."
        ) from error
    end, stop_notes = _end(chat, messages, last, whole, start, options)
    notes = [*notes, *stop_notes]
    for turn in range(len(prompt), len(messages)):
        if not _holds(whole[start:], messages[turn]):
            notes.append(("rewritten", f"message {turn} ({messages[turn]['role']})"))
    return Split(_cut(whole, [(start, end)]), tuple(notes))


def split_turns(chat: Chat, messages: list[dict], options: dict | None = None, first: int = 0) -> Split:
    """Each assistant turn from message `first` on with its stop token is trained, with the message's `weight` if it
    has one, and nothing else.

    A turn whose text the template drops or changes, or before which it rewrites messages, is left out, with a
    note; if it was the row's only turn, nothing is trained.
    """
    whole = chat.render(messages, options=options)
    spans: list[tuple[int, int]] = []
    weights: list[float] = []
    notes: list[tuple[str, str]] = []
    for turn in range(first, len(messages)):
        if messages[turn]["role"] != "assistant":
            continue
        try:
            start, begin_notes = _begin(chat, messages, turn, whole, options)
            end, end_notes = _end(chat, messages, turn, whole, start, options)
        except Unsplittable as error:
            notes.append(("turn_left_out", f"message {turn}: {error}"))
            continue
        if not _holds(whole[start:end], messages[turn]):
            notes.append(
                ("turn_left_out", f"message {turn}: the template drops or changes part of its text.")
            )
            continue
        notes += [*begin_notes, *end_notes]
        if turn + 1 < len(messages) and not _as_sampled(
            chat, messages[: turn + 1], whole, start, end, options
        ):
            notes.append(("turn_differs", f"message {turn}: {shorten(whole[start:end])}"))
        spans.append((start, end))
        weight = messages[turn].get("weight")
        weights.append(1.0 if weight is None else float(weight))
    return Split(_cut(whole, spans, weights), tuple(notes))


def _begin(
    chat: Chat, messages: list[dict], turn: int, whole: str, options: dict | None
) -> tuple[int, list[tuple[str, str]]]:
    """Where message `turn` begins in `whole`, after its header."""
    try:
        before = chat.render(messages[:turn], True, options) if turn else None
    except DataError:
        before = None
    if before is None:  # the template takes no conversation that short: find the content itself
        altered = [*messages[:turn], {**messages[turn], "content": OTHER}, *messages[turn + 1 :]]
        begin = common_prefix(whole, chat.render(altered, options=options))
        return begin, [("no_prompt", f"message {turn}")]
    if whole.startswith(before):
        return len(before), []
    # Some templates end the generation prompt with more than a row's turn begins with ("<think>\n"). Cutting
    # where they part is safe only inside the generation prompt; any earlier, and the prompt was rewritten.
    begin = common_prefix(before, whole)
    if begin < common_prefix(before, chat.render(messages[:turn], False, options)):
        raise Unsplittable(
            f"it writes the messages before message {turn} differently once that message follows: "
            f"{shorten(before[begin:])} became {shorten(whole[begin:])}."
        )
    return begin, [("prompt_differs", shorten(before[begin:]))]


def _end(
    chat: Chat, messages: list[dict], turn: int, whole: str, start: int, options: dict | None
) -> tuple[int, list[tuple[str, str]]]:
    """Where message `turn`, which begins at `start`, ends in `whole`: after its stop token."""
    limit = len(whole)
    if turn + 1 < len(messages):
        altered = [*messages[: turn + 1], {**messages[turn + 1], "content": OTHER}, *messages[turn + 2 :]]
        limit = common_prefix(whole, chat.render(altered, options=options))
        if limit <= start:
            alone = chat.render(messages[: turn + 1], options=options)
            limit = len(alone) if whole.startswith(alone) else limit
        if limit <= start:
            raise Unsplittable("the text before it changes with the message after it.")
    stop = chat.stop(messages, turn, options)
    at = whole.rfind(stop, start, limit) if stop else -1
    if at < 0:
        if turn + 1 < len(messages):
            raise Unsplittable("no stop token ends it before the next message.")
        return limit, [("no_stop", "")]
    return at + len(stop), []


def _as_sampled(
    chat: Chat, messages: list[dict], whole: str, start: int, end: int, options: dict | None
) -> bool:
    """Whether the turn stands in the conversation as it does while it is the last one."""
    try:
        return chat.render(messages, options=options)[start:end] == whole[start:end]
    except DataError:
        return True  # a template that takes no conversation that short has no other way of writing it


def _flat(message: dict) -> dict:
    """A content given as text parts as one text: templates that know only text drop lists without a word."""
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": "".join(part["text"] for part in message["content"])}


def _holds(text: str, message: dict) -> bool:
    """Whether all that the message says is in `text`, whatever white space the template changed."""
    message, squeezed = _flat(message), "".join(text.split())
    said = [message.get("content"), message.get("reasoning_content"), message.get("thinking")]
    return all("".join(part.split()) in squeezed for part in said if isinstance(part, str))


def _cut(whole: str, spans: list[tuple[int, int]], weights: list[float] | None = None) -> tuple[Segment, ...]:
    """`whole` as segments, trained inside the spans, with a weight for each (1 where none are given)."""
    segments, at = [], 0
    for (start, end), weight in zip(spans, weights or [1.0] * len(spans), strict=True):
        segments.append(Segment(whole[at:start], "prompt", False))
        segments.append(Segment(whole[start:end], "assistant", True, weight))
        at = end
    segments.append(Segment(whole[at:], "after" if spans else "prompt", False))
    return tuple(segment for segment in segments if segment.text)
