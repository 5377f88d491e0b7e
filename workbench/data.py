"""Rows: what training reads, in TRL's columns, checked before anything is trained.

    form                columns                       plain or conversational
    prompt_completion   prompt, completion            both
    messages            messages                      conversational
    text                text                          plain
    preference          chosen, rejected, (prompt)    both; no prompt: it is their shared beginning
    prompt_only         prompt                        both
    segments            segments                      plain

A plain value is text; a conversational one is a list of messages `{"role": ..., "content": ...}`. Segments are the text
in pieces, `{"text": ..., "train": bool, "weight": number}`, each trained or not. Supervised rows may carry a
`weight`, by which their loss is multiplied, and so may the assistant's messages. Any other
column is kept as it is (a reward may ask for it); `tools` and `chat_template_kwargs` go to the chat template,
as in TRL. `conversations` with `from` and `value` (ShareGPT) become `messages`. Rows count from 0 everywhere.

Everything that is wrong with a row is a DataError that names the row, the column and, for a file, the line.
No torch here, and nothing heavy until a source needs it.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from workbench.errors import DataError, did_you_mean, nearest
from workbench.sources import place, read
from workbench.text import clean_all, shorten

FORMS = {
    "preference": ("chosen", "rejected"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt_only": ("prompt",),
    "segments": ("segments",),
}
"""form -> the columns it needs; the first that fits is a data set's form"""
KNOWN = ("prompt", "completion", "messages", "text", "chosen", "rejected", "segments")
ROLES = ("system", "user", "assistant", "tool", "developer")
SHAREGPT = {"human": "user", "gpt": "assistant"}


def rows(
    source: Any,
    split: str = "train",
    limit: int | None = None,
    name: str | None = None,
    rename: dict[str, str] | None = None,
) -> Rows:
    """Rows from a list of dicts, a datasets.Dataset, a pandas.DataFrame, a file or the Hub.

    A file is .jsonl, .json, .csv or .parquet (.gz too), or a folder of `Dataset.save_to_disk`; what is in a
    CSV file stays text. `split` and `name` (a Hub data set's configuration) choose among a data set's parts,
    `limit` keeps the first rows only. `rename={"question": "prompt", "answer": "completion"}` gives columns
    other names. DataError for anything that cannot be read, and for rows that fit no form or do not fit
    together.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit={limit!r}: give how many rows to keep, from 1, or None for all.")
    if isinstance(source, Rows):
        chosen = source if limit is None else source[:limit]
        return chosen if not rename else make(chosen.to_list(), chosen.source, chosen._lines, rename)
    raw = read(source, split, limit, name)
    return make(raw.rows, raw.source, raw.lines, rename)


def make(
    found: list[dict[str, Any]],
    source: str = "the list",
    lines: Sequence[int] | None = None,
    rename: dict[str, str] | None = None,
) -> Rows:
    """`Rows` from dicts, after every check."""
    if not found:
        raise DataError(f"There are no rows in {source}.")
    if rename:
        _check_rename(rename, dict.fromkeys(column for row in found for column in row), source)
        found = [{rename.get(column, column): value for column, value in row.items()} for row in found]
    found = [_messages_named(row) for row in found]
    replaced, cleaned = 0, []
    for row in found:
        row, count = clean_all(row)
        replaced += bool(count)
        cleaned.append(row)
    columns = tuple(dict.fromkeys(column for row in cleaned for column in row))
    form = _find_form(columns, source)
    made = Rows(cleaned, columns, form, source, tuple(lines) if lines else None, _notes(replaced))
    _check_rows(made)
    return made


class Rows(Sequence):
    """An immutable sequence of rows (dicts), all of one form. `rows[3]` is a row, `rows[:10]` are Rows.

    `columns` are all column names, `form` is one of FORMS, `conversational` says whether its values are
    messages, `source` where the rows came from, `notes` what was changed in reading, in words.
    """

    def __init__(
        self,
        found: Iterable[dict[str, Any]],
        columns: tuple[str, ...],
        form: str,
        source: str,
        lines: tuple[int, ...] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._rows = tuple(found)
        self._lines = lines
        self.columns = columns
        self.form = form
        self.source = source
        self.notes = notes

    @property
    def conversational(self) -> bool:
        """Whether the form's values are lists of messages (of a preference: the chosen and rejected ones)."""
        if not self._rows or self.form == "segments":
            return False
        return isinstance(self._rows[0][FORMS[self.form][0]], list)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            lines = self._lines[index] if self._lines else None
            return Rows(self._rows[index], self.columns, self.form, self.source, lines, self.notes)
        return copy.deepcopy(self._rows[index])  # a copy, so that no reader can change the data of another

    def __repr__(self) -> str:
        kind = "conversational" if self.conversational else "plain"
        notes = "".join(f"; {note}" for note in self.notes)
        columns = ", ".join(self.columns)
        return f"Rows({len(self)} {self.form}, {kind}, columns {columns}, from {self.source}{notes})"

    def column(self, name: str) -> list[Any]:
        """The values of one column; None where a row lacks it. DataError naming the nearest column."""
        self.require(name)
        return [copy.deepcopy(row.get(name)) for row in self._rows]

    def map(self, transform: Callable[[dict[str, Any]], Any]) -> Rows:
        """New Rows: `transform(row)` gives a row, a list of rows, or None to drop it; all are checked."""
        made: list[dict[str, Any]] = []
        for index in range(len(self)):
            answer = transform(self[index])
            answers = [] if answer is None else [answer] if isinstance(answer, dict) else answer
            if not isinstance(answers, list) or not all(isinstance(item, dict) for item in answers):
                raise DataError(
                    f"{self.where(index)}: the transform gave {type(answer).__name__}; it must give a dict, "
                    "a list of dicts or None."
                )
            made.extend(answers)
        return make(made, f"{self.source}, transformed")

    def as_form(self, form: str) -> Rows:
        """The same rows read as another form, checked. DataError when they do not fit it."""
        if form == self.form:
            return self
        self.require(*FORMS[form], what=f"The form {form!r}")
        read_so = Rows(self._rows, self.columns, form, self.source, self._lines, self.notes)
        _check_rows(read_so)
        return read_so

    def where(self, index: int) -> str:
        """How messages name a row: `row 3 (counting from 0; train.jsonl, line 4)`."""
        return place(index, self.source, self._lines)

    def require(self, *columns: str, what: str = "This") -> Rows:
        """These rows, or DataError when a column is missing altogether; it names the nearest one there is."""
        for column in columns:
            if column not in self.columns:
                near = nearest(column, [name for name in self.columns if name not in columns])
                raise DataError(
                    f"{what} needs the row column {column!r}, which {self.source} does not have "
                    f"(columns: {', '.join(self.columns)})."
                    + (
                        f" Is it the row column {near!r}? Then give rename={{{near!r}: {column!r}}}."
                        if near
                        else ""
                    )
                )
        return self

    def to_list(self) -> list[dict[str, Any]]:
        """The rows as dicts of your own."""
        return [copy.deepcopy(row) for row in self._rows]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with one line per row."""
        import pandas

        return pandas.DataFrame(self.to_list(), columns=list(self.columns))

    def digest(self) -> str:
        """SHA-256 (hex) of the rows' content and order, the same on every machine."""
        state = hashlib.sha256()
        for row in self._rows:
            state.update(json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
        return state.hexdigest()


def explicit_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A preference row with its prompt apart, as TRL's `maybe_extract_prompt` does it.

    Without a `prompt`, or with a plain one beside conversational answers, the prompt is the longest beginning
    that chosen and rejected share: turns of a conversation, or characters (a last space goes to the answers).
    At least one turn or character stays with each answer. Unlike TRL, an answer that shares nothing stays
    whole: the prompt is then empty, for the caller to refuse.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row and isinstance(row["prompt"], list) == isinstance(chosen, list):
        return row
    length = min(len(chosen), len(rejected))
    shared = next((i for i in range(length) if chosen[i] != rejected[i]), None)
    if shared is None:
        shared = length - 1  # one begins with the other: TRL leaves the last shared item to the answers
    elif shared > 0 and chosen[shared - 1] == " ":
        shared -= 1
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {**row, **parts}


# Reading


def _check_rename(rename: dict[str, str], columns: Iterable[str], source: str) -> None:
    columns = [str(column) for column in columns]
    for old, new in rename.items():
        if old not in columns:
            raise DataError(
                f"rename: {source} has no column {old!r} (columns: {', '.join(columns)})."
                + did_you_mean(old, columns)
            )
        if (new in columns and new not in rename) or list(rename.values()).count(new) > 1:
            raise DataError(
                f"rename: {source} would have two columns {new!r}; {old!r} cannot take that name."
            )


def _messages_named(row: dict[str, Any]) -> dict[str, Any]:
    """ShareGPT's `conversations` with `from` and `value` as `messages` with `role` and `content`."""
    talk = row.get("conversations")
    if "messages" in row or not isinstance(talk, list) or not talk:
        return row
    if not all(isinstance(turn, dict) for turn in talk) or not any(
        "role" in turn or "from" in turn for turn in talk
    ):
        return row
    named = {"from": "role", "value": "content"}
    messages = [{named.get(key, key): value for key, value in turn.items()} for turn in talk]
    for message in messages:
        message["role"] = SHAREGPT.get(str(message.get("role")), message.get("role"))
    return {**{key: value for key, value in row.items() if key != "conversations"}, "messages": messages}


def _notes(replaced: int) -> tuple[str, ...]:
    if not replaced:
        return ()
    return (
        f"{replaced} row{'s' * (replaced > 1)} held lone surrogates (broken characters), replaced by U+FFFD",
    )


def _find_form(columns: tuple[str, ...], source: str) -> str:
    """The form that the columns make. DataError naming the misspelt column, or what is missing."""
    odd = next((column for column in columns if not isinstance(column, str)), None)
    if odd is not None:
        raise DataError(
            f"The row column {odd!r} of {source} is not named by text. Name columns 'prompt', ..."
        )
    form = next((form for form, needed in FORMS.items() if set(needed) <= set(columns)), None)
    wanted = [name for name in KNOWN if name not in columns]
    if form == "prompt_only":  # may be meant, or be half of a pair whose other half is misspelt
        wanted = [name for name in ("completion", "chosen", "rejected") if name in wanted]
    if form in (None, "prompt_only"):
        for column in columns:
            known = nearest(column, wanted) if column not in KNOWN else None
            if known and (form is None or _close(column, known)):
                raise DataError(
                    f"{source}: row column {column!r}? Did you mean {known!r}?"
                    f" (Columns: {', '.join(columns)}) "
                    f"Rename it, or give rename={{{column!r}: {known!r}}}."
                )
    if form is None:
        have = [name for name in KNOWN if name in columns]
        missing = f" {have[0]!r} alone is not enough." if have else ""
        raise DataError(
            f"The columns {', '.join(columns)} of {source} make no form of row.{missing} Rows have prompt "
            "and completion, or messages, or text, or chosen and rejected (prompt or not), or prompt. "
            "Other names: rename={'question': 'prompt', 'answer': 'completion'}."
        )
    return form


def _close(column: str, known: str) -> bool:
    """Nearer than a likeness: the same word but for an accent, a capital, a space, a plural or a slip."""
    return difflib.SequenceMatcher(None, column.lower(), known).ratio() >= 0.8


# Checks


def _check_rows(made: Rows) -> None:
    columns = FORMS[made.form]
    if made.form == "preference" and "prompt" in made.columns:
        columns = ("prompt", *columns)
    first: dict[str, bool] = {}
    for index, row in enumerate(made._rows):
        for column in columns:
            talk = _check_value(row, column, made.where(index))
            if talk is not first.setdefault(column, talk):
                now, then = ("messages", "plain text") if talk else ("plain text", "messages")
                raise DataError(
                    f"{made.where(index)}: mixed forms: column {column!r} holds {now}, in row 0 {then}. "
                    "Make all rows plain or all rows conversational."
                )
        kinds = {
            column: first[column] for column in columns if made.form != "preference" or column != "prompt"
        }
        if len(set(kinds.values())) > 1 or (
            made.form == "preference" and first.get("prompt") and not first["chosen"]
        ):
            shown = ", ".join(
                f"{column!r} holds {'messages' if first[column] else 'plain text'}" for column in columns
            )
            raise DataError(
                f"{made.where(index)}: mixed forms within the row: {shown}. Make them all one or the other."
            )
        if made.form == "preference":
            _check_shared(row, made.where(index))


def _check_value(row: dict[str, Any], column: str, where: str) -> bool:
    """Whether the value is conversational. DataError when it is missing, empty or of a wrong type."""
    if column not in row:
        extra = [name for name in row if name not in KNOWN]
        raise DataError(
            f"{where}: column {column!r} is missing; the row has {', '.join(map(str, row)) or 'no columns'}."
            f"{did_you_mean(column, extra)}"
        )
    value = row[column]
    if value is None or (isinstance(value, float) and value != value):
        raise DataError(
            f"{where}: column {column!r} is missing (None). Give it a value or leave the row out."
        )
    if column == "text" and not isinstance(value, str):
        raise DataError(f"{where}: column 'text' is {type(value).__name__}, not text: {shorten(str(value))}.")
    if column == "segments":
        _check_segments(value, where)
        return False
    if column == "messages" and not isinstance(value, list):
        raise DataError(f"{where}: column 'messages' is {type(value).__name__}, not a list of messages.")
    if isinstance(value, str):
        if not value:
            raise DataError(f"{where}: column {column!r} is empty. Give it text or leave the row out.")
        return False
    if isinstance(value, list):
        _check_messages(value, column, where)
        return True
    raise DataError(
        f"{where}: column {column!r} is {type(value).__name__} ({shorten(str(value))}), neither text nor "
        "a list of messages. Write numbers as text."
    )


def _check_segments(segments: Any, where: str) -> None:
    if not isinstance(segments, list) or not segments:
        raise DataError(f"{where}: column 'segments' is not a list of segments, each with a 'text'.")
    for i, segment in enumerate(segments):
        spot = f"{where}: segment {i}"
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise DataError(f"{spot} has no 'text': {shorten(repr(segment))}. Write {{'text': ..., 'train': False}}.")
        for name in segment:
            if name not in ("text", "train", "weight", "role"):
                hint = did_you_mean(str(name), ("train", "weight", "role"))
                raise DataError(f"{spot}: {name!r} is none of text, train, weight, role.{hint}")
        if segment.get("train") not in (None, True, False):
            raise DataError(f"{spot}: 'train' is {segment['train']!r}; give True or False.")


def _check_messages(messages: list[Any], column: str, where: str) -> None:
    if not messages:
        raise DataError(f"{where}: column {column!r} is an empty list of messages.")
    for turn, message in enumerate(messages):
        spot = f"{where}: column {column!r}, message {turn}"
        if not isinstance(message, dict):
            raise DataError(f"{spot} is {type(message).__name__}, not a dict with 'role' and 'content'.")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            near = did_you_mean("role", map(str, message)) if "role" not in message else ""
            raise DataError(f"{spot} has no 'role' (keys: {', '.join(map(str, message))}).{near}")
        if role not in ROLES and nearest(role, ROLES):
            raise DataError(f"{spot} has the role {role!r}.{did_you_mean(role, ROLES)}")
        _check_content(message, spot)


def _check_content(message: dict[str, Any], spot: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise DataError(
                    f"{spot}: a part of 'content' is not text; only text is supported: {shorten(str(part))}."
                )
        content = "".join(part["text"] for part in content)
    elsewhere = message.get("tool_calls") or message.get("reasoning_content") or message.get("thinking")
    if content is None and not elsewhere:
        near = (
            did_you_mean("content", [str(key) for key in message if key != "role"])
            if "content" not in message
            else ""
        )
        raise DataError(f"{spot} ({message['role']}) has no 'content'.{near}")
    if content is not None and not isinstance(content, str):
        raise DataError(f"{spot}: 'content' is {type(content).__name__}, not text: {shorten(str(content))}.")
    if content == "" and not elsewhere and message["role"] != "system":
        raise DataError(
            f"{spot} ({message['role']}) has an empty 'content'. Give it text or leave the row out."
        )


def _check_shared(row: dict[str, Any], where: str) -> None:
    if not explicit_prompt(row)["prompt"]:
        unit = "message" if isinstance(row["chosen"], list) else "character"
        raise DataError(
            f"{where}: there is no prompt, and chosen and rejected share no first {unit} that could be one. "
            "Add a 'prompt' column, or begin both with the prompt."
        )
