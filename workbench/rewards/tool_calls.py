"""Tool calls: reading one from text, and a reward by what is wrong with it.

Two ways of writing a call are read: JSON, `{"name": "get_weather", "arguments": {"city": "Oslo"}}`, between tags such
as `<tool_call>` or not (`parameters` for `arguments`, and OpenAI's `{"function": {...}}`, too); and a call with named
arguments, `get_weather(city="Oslo")`. The first call of a text counts. Text is only read, never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.rewards.text import completion_text

RUNGS = {
    "unparsable": -2.0,
    "invented_tool": -2.0,
    "invented_redundant_missing": -1.8,
    "wrong_tool": -1.5,
    "invented_and_another": -1.3,
    "redundant_missing": -1.0,
    "invented": -0.8,
    "redundant_or_missing": -0.5,
    "values": -0.25,
    "right": 1.0,
}
"""reward by what is wrong. Of argument names: invented, the tool has no such argument; redundant, it has, but the right
call does not give it; missing, the right call gives it"""
NAME = re.compile(r"(?<![\w.])[A-Za-z_][\w.\-]*(?=\()")
SPACE = re.compile(r"\s*")
LONGEST = 100_000
"""characters of a text that are looked at"""
TRIES = 50
"""braces or names at which a call is looked for"""
_decoder = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call: the tool's name, its arguments, and where in the text they stand."""

    name: str
    arguments: dict[str, Any]
    at: int
    """the place of the name's first character"""
    ends: tuple[int, ...] = ()
    """the place of the last character of each argument's value"""


def read_call(text: str) -> Call | None:
    """The first call in a text; None where there is none that can be read."""
    text = text[:LONGEST]
    for number, brace in enumerate(re.finditer(r"\{", text)):
        if number == TRIES:
            break
        if (call := _json_call(text, brace.start())) is not None:
            return call
    for number, found in enumerate(NAME.finditer(text)):
        if number == TRIES:
            break
        if (read := _named(text, found.end())) is not None:
            return Call(found[0], read[0], found.start(), read[1])
    return None


# JSON


def _json_call(text: str, at: int, inner: bool = False) -> Call | None:
    try:
        whole, _ = _decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    found = dict(_members(text, at))
    if isinstance(whole.get("function"), dict) and not inner:
        return _json_call(text, found["function"][1], inner=True)
    key = "arguments" if "arguments" in whole else "parameters"
    name, given = whole.get("name"), whole.get(key, {})
    if not isinstance(name, str) or not name:
        return None
    ends: tuple[int, ...] = ()
    if isinstance(given, dict) and key in found:
        ends = tuple(end - 1 for _, (_, _, end) in _members(text, found[key][1]))
    elif isinstance(given, str):  # OpenAI's: the arguments as JSON text
        given = _json(given)
    return Call(name, given, found["name"][1] + 1, ends) if isinstance(given, dict) else None


def _members(text: str, at: int) -> Iterator[tuple[str, tuple[Any, int, int]]]:
    """Of the JSON object that begins at `at`, and is one: each key with its value, and where that begins and ends."""
    at = SPACE.match(text, at + 1).end()
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        start = SPACE.match(text, SPACE.match(text, at).end() + 1).end()
        value, end = _decoder.raw_decode(text, start)
        yield key, (value, start, end)
        at = SPACE.match(text, end).end()
        if text[at] == ",":
            at = SPACE.match(text, at + 1).end()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# name(argument=value, ...)


def _named(text: str, at: int) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    """The arguments in the brackets that open at `at`, and where their values end; None unless all are named."""
    arguments, ends = {}, []
    for start, end in _pieces(text, at):
        name, equals, value = text[start:end].partition("=")
        if not equals or not name.strip().isidentifier():
            return ({}, ()) if not text[start:end].strip() and not arguments and text[end] == ")" else None
        arguments[name.strip()] = _value(value.strip())
        ends.append(start + len(text[start:end].rstrip()) - 1)
    return (arguments, tuple(ends)) if ends else None


def _pieces(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Where each part between the commas of a bracket begins and ends; of one that is not closed, the last is empty and
    lies at its beginning."""
    depth, quote, start, place = 0, "", at + 1, at
    while place < len(text):
        character = text[place]
        if quote:
            place += character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if not depth:
                yield start, place
                return
        elif character == "," and depth == 1:
            yield start, place
            start = place + 1
        place += 1
    yield at, at


def _value(text: str) -> Any:
    """A value: JSON, a text in single quotes, Python's constants, or else the characters themselves."""
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    if len(text) > 1 and text[0] == text[-1] == "'":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    made = _json(text)
    return text if made is None and text != "null" else made


# what is right, and what is wrong


def as_call(value: Any) -> Call | None:
    """The right call from a column: a text, or a dict with `name` and `arguments`."""
    if isinstance(value, Mapping):
        value = json.dumps(value, default=str)
    return read_call(value) if isinstance(value, str) else None


def tools_of(value: Any) -> dict[str, set[str] | None]:
    """Name -> its arguments' names (None: not known) of a column `tools`: JSON schemas as chat templates take them,
    names alone, or either as JSON text."""
    value = _json(value) if isinstance(value, str) else value
    made: dict[str, set[str] | None] = {}
    for tool in value if isinstance(value, (list, tuple)) else []:
        if isinstance(tool, str):
            made[tool] = None
        elif isinstance(tool, Mapping):
            inner = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
            parameters = inner.get("parameters")
            known = parameters.get("properties") if isinstance(parameters, Mapping) else None
            if isinstance(inner.get("name"), str):
                made[inner["name"]] = set(known) if isinstance(known, Mapping) else None
    return made


def wrong(call: Call | None, right: Call, tools: Mapping[str, set[str] | None]) -> str:
    """What is wrong with a call, one of RUNGS. Without known tools no name is invented; where a tool's arguments are
    not known, those that the right call does not give are redundant."""
    if call is None:
        return "unparsable"
    if call.name != right.name:
        return "invented_tool" if tools and call.name not in tools else "wrong_tool"
    known = tools.get(call.name)
    more = call.arguments.keys() - right.arguments.keys()
    invented = set() if known is None else call.arguments.keys() - known
    redundant, missing = more - invented, right.arguments.keys() - call.arguments.keys()
    if invented:
        both = bool(redundant) + bool(missing)
        return ("invented", "invented_and_another", "invented_redundant_missing")[both]
    if redundant or missing:
        return "redundant_missing" if redundant and missing else "redundant_or_missing"
    return "right" if call.arguments == right.arguments else "values"


def tool_call(completions: list, answer: list, tools: list | None = None, **kwargs: Any) -> list[float | None]:
    """A reward by what is wrong with a tool call, from -2 to 1: the first of these that is true.

    -2 it cannot be read, or the tool is none of `tools`; -1.5 another tool; of argument names -1.8 some are invented,
    some redundant and some missing, -1.3 invented and one of the two, -1 redundant and missing, -0.8 invented, -0.5
    redundant or missing; -0.25 all names are right and a value is not; 1 all is right. `answer`: the right call, as
    text (JSON or `name(argument=...)`) or as a dict with `name` and `arguments`; `tools`: what the prompt offers, as
    JSON schemas or names. Of several calls in a completion the first counts. None where the answer cannot be read.

    The ladder is that of TL-Training (Ye et al. 2024, arXiv 2412.15495). Can be rebuilt in a new process.
    """
    made: list[float | None] = []
    for completion, gold, offered in zip(completions, answer, tools or [None] * len(completions), strict=True):
        right = as_call(gold)
        call = read_call(completion_text(completion))
        made.append(None if right is None else RUNGS[wrong(call, right, tools_of(offered))])
    return made
