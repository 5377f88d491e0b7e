"""Answers in turns: a thought between tags, the answer it leads to, then the next thought, as often as it takes.

    <think>first thought</think>an answer<think>another thought</think>another answer

`parse` and `written` go there and back; `turn_format` and `one_unit_a_turn` are MinD's rewards (Zeng et al. 2025,
arXiv 2505.19788), `mind_rows` makes the rows that it is fine-tuned on first, and `accuracy_by_turn` tells what
stopping earlier would have cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from workbench.errors import DataError, SettingError
from workbench.rewards.text import completion_text

OPEN, CLOSE = "<think>", "</think>"
MARKERS = ("wait", "alternatively", "hmm", "aha", "let me check", "let me verify", "another way", "on second thought")
"""words with which a new line of attack begins"""
_TURN = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<answer>.*?)(?=<think>|\Z)", re.DOTALL)


class Turn(NamedTuple):
    thought: str
    answer: str


def parse(text: str) -> list[Turn] | None:
    """The turns of a text; None where it is not built of turns, or an answer is empty."""
    made, at = [], 0
    while at < len(text):
        found = _TURN.match(text, at)
        if found is None:
            return None
        made.append(Turn(found["thought"], found["answer"]))
        at = found.end()
    stray = any(tag in part for turn in made for part in turn for tag in (OPEN, CLOSE))
    return None if stray or not made or not all(turn.answer.strip() for turn in made) else made


def written(turns: Iterable[Turn | tuple[str, str]]) -> str:
    """The text of turns, which `parse` takes apart again."""
    return "".join(f"{OPEN}{thought}{CLOSE}{answer}" for thought, answer in turns)


def until(text: str, count: int) -> str:
    """The text up to the end of its turn `count` (1, 2, ...); all of it where it has fewer, or no turns."""
    turns = parse(text)
    return text if turns is None else written(turns[:count])


def _pattern(markers: Sequence[str]) -> re.Pattern:
    if isinstance(markers, str) or not markers:
        raise SettingError(f"markers must be a list of words, not {markers!r}.")
    return re.compile(r"\b(?:" + "|".join(map(re.escape, markers)) + r")\b", re.IGNORECASE)


def lines_of_attack(thought: str, markers: Sequence[str] = MARKERS) -> int:
    """How many a thought has, by its markers: one, and one more for each marker that does not stand at its start."""
    text = thought.strip()
    return 1 + sum(found.start() > 0 for found in _pattern(markers).finditer(text))


def units(chain: str, markers: Sequence[str] = MARKERS) -> list[str]:
    """A chain of thought cut before each sentence that begins with a marker. Joined, the units are the chain again."""
    cuts = [found.start() for found in _pattern(markers).finditer(chain) if _begins(chain, found.start())]
    edges = [0, *(cut for cut in cuts if chain[:cut].strip()), len(chain)]
    return [chain[a:b] for a, b in zip(edges, edges[1:], strict=False) if chain[a:b].strip()]


def _begins(text: str, at: int) -> bool:
    before = text[:at].rstrip(" ")
    return not before or before[-1] in ".!?\n;:"


def turn_format(completions: list, **kwargs: Any) -> list[float]:
    """1.0 where a completion is made of turns, `<think>...</think> answer` once or more with no empty answer, else
    0.0."""
    return [float(parse(completion_text(completion)) is not None) for completion in completions]


def one_unit_a_turn(completions: list, **kwargs: Any) -> list[float]:
    """0.0 where each turn holds one line of attack, -1.0 where a turn has several, by the words that begin one ("wait",
    "alternatively", ...) other than at the turn's start. A completion without turns counts as one turn."""
    made = []
    for completion in completions:
        text = completion_text(completion)
        thoughts = [turn.thought for turn in parse(text) or ()] or [text]
        made.append(-float(any(lines_of_attack(thought) > 1 for thought in thoughts)))
    return made


def mind_rows(
    rows: Iterable[Mapping[str, Any]],
    answer: Callable[[Mapping[str, Any], list[str]], str],
    split: Callable[[str], list[str]] = units,
    keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    column: str = "completion",
) -> list[dict[str, Any]]:
    """Rows for MinD's fine-tuning: a long chain of thought as turns, each with the answer that it had reached.

    `column` holds the trace: a chain, or `<think>chain</think>answer`, whose own answer ends the last turn. `split`:
    a chain -> its units; the default cuts at MARKERS, the authors let a large model do it. `answer(row, units so
    far)`: what the model says if it has to answer then (`answering(policy)`). `keep`: which rows to take, say those
    whose trace is right. Zeng et al. 2025, arXiv 2505.19788. DataError for a row without the column.
    """
    made = []
    for i, row in enumerate(rows):
        trace = row.get(column)
        if not isinstance(trace, str) or not trace.strip():
            raise DataError(
                f"mind_rows: row {i} has no text in the column {column!r}, where its reasoning is looked for."
            )
        if not keep(row):
            continue
        given = parse(trace)
        chain = trace if given is None else "".join(turn.thought for turn in given)
        parts = split(chain)
        last = "" if given is None else given[-1].answer
        answers = [answer(row, parts[: k + 1]) for k in range(len(parts) - bool(last))] + [last] * bool(last)
        made.append({**row, column: written(zip(parts, answers, strict=True))})
    if not made:
        raise DataError("mind_rows: no row is left; `keep` took none of them.")
    return made


def answering(policy: Any, lead: str = "", max_new_tokens: int = 32) -> Callable[[Mapping[str, Any], list[str]], str]:
    """For `mind_rows`: the policy's greedy answer after the row's prompt, the thoughts so far and `lead`."""

    def answer(row: Mapping[str, Any], thoughts: list[str]) -> str:
        if not isinstance(row.get("prompt"), str):
            raise DataError("answering: rows need a prompt of plain text; for messages write a function of your own.")
        text = f"{row['prompt']}{OPEN}{''.join(thoughts)}{CLOSE}{lead}"
        drawn = policy.sample([text], n=1, temperature=0.0, max_new_tokens=max_new_tokens)
        said = drawn.text[0].split(OPEN)[0].replace(CLOSE, "")
        return f"{lead}{said}" if (lead + said).strip() else " (no answer)"

    return answer


def accuracy_by_turn(completions: Sequence[str], right: Callable[[list[str]], Sequence[float]]) -> list[float]:
    """Mean accuracy if each completion had been stopped after turn 1, 2, ... up to the most turns there are.

    `right(texts)` says how right each is, as a reward function does (`lambda texts: reward(None, texts, answer=...)`).
    Nothing is sampled: every prefix is one of a completion that is there.
    """
    most = max((len(parse(text) or [text]) for text in completions), default=0)
    made = []
    for count in range(1, most + 1):
        scores = [float(score) for score in right([until(text, count) for text in completions])]
        if len(scores) != len(completions):
            raise DataError(f"accuracy_by_turn: `right` gave {len(scores)} numbers for {len(completions)} texts.")
        made.append(sum(scores) / len(scores))
    return made
