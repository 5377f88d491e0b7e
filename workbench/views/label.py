"""Choosing between two answers, or marking one, by keyboard; each choice is committed at once.

From the page: {kind: "hello"}, {kind: "choose", item, round, choice, seconds} (`choice`: left, right, tie, skip; good,
bad, skip) and {kind: "undo"}. To all pages: {kind: "state", mode, done, total, question, counts, facts, notes, rater,
out}. `question`: {item, round, prompt, answers: [{parts, facts, cut}], diff}, its texts as `parts` [[role, text], ...]
(role empty for plain text), `diff` for each side [[kind, text], ...] with kind same, delete or insert.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import traitlets

from workbench.errors import DataError
from workbench.store.choices import Item, Labels
from workbench.views.base import Ask, View, assets
from workbench.views.differences import segments, shown
from workbench.views.picture import table_html
from workbench.views.text import escape, number, one_line, visible

KEEP = 3.0
"""seconds after a choice until the picture is made anew"""
FACTS = {"finish_reason": "finish"}


@dataclass(frozen=True)
class Question:
    """An item to ask about: for the first time (round 0) or again (1), with its second answer on the left or not."""

    item: Item
    round: int = 0
    swapped: bool = False

    @property
    def order(self) -> tuple[int, ...]:
        """Which answer stands where, from the left."""
        if self.item.mode == "mark":
            return (0,)
        return (1, 0) if self.swapped else (0, 1)


class LabelView(View):
    """See `wb.label`. `rows`, `pairs`, `marks` and `good` are rows to train on; `labels` has all that was chosen."""

    _esm = assets("frame.js", "label.js", main="WbLabel")
    _css = assets("common.css", "label.css")
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, labels: Labels, questions: Sequence[Question], rater: str, seed: int, notes: Sequence[str] = ()):
        self.labels = labels
        self.questions = list(questions)
        self.rater = rater
        self.seed = seed
        self.notes = list(notes)
        self.mode = self.questions[0].item.mode
        self.opened = time.time()
        self._session = secrets.token_hex(4)
        self._places = {(q.item.key, q.round): place for place, q in enumerate(self.questions)}
        self._timer: threading.Timer | None = None
        super().__init__()
        self.first = self._state()

    # -- what was chosen -------------------------------------------------------------------------------------

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows for `wb.dpo` (pairs: prompt, chosen, rejected) or `wb.kto` (marks: prompt, completion, label); all that
        is in the file, by all raters. Ties and skips are left out."""
        return self.pairs if self.mode == "pair" else self.marks

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return self.labels.pairs

    @property
    def marks(self) -> list[dict[str, Any]]:
        return self.labels.marks

    @property
    def good(self) -> list[dict[str, Any]]:
        """Rows for `wb.sft`: what was marked good."""
        return self.labels.good

    # -- asked by the page -----------------------------------------------------------------------------------

    def on_hello(self, ask: Ask) -> dict[str, Any]:
        return self._state()

    def on_choose(self, ask: Ask, item: str, round: int, choice: str, seconds: float | None = None) -> dict[str, Any]:
        with self._guard:
            place = self._places.get((item, round))
            if place is None:
                raise DataError("This question is not one of this view.")
            asked = self.questions[place]
            added = self.labels.add(
                asked.item,
                _chosen(asked, choice),
                round=asked.round,
                rater=self.rater,
                on_left="" if self.mode == "mark" else ("first", "second")[asked.order[0]],
                seconds=seconds,
                seed=self.seed,
                place=place,
                session=self._session,
            )
            note = "" if added else "That one was answered in another view meanwhile; its answer stands."
            self._tell_all()
        return {"note": note}

    def on_undo(self, ask: Ask) -> dict[str, Any]:
        with self._guard:
            undone = self.labels.undo(self.rater, self._session, self.opened)
            if undone is not None and undone not in self._places:
                note = "The last choice was about something that is not asked here; it was taken back."
            else:
                note = "" if undone else "There is nothing to take back."
            self._tell_all()
        return {"note": note}

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    # -- inside ----------------------------------------------------------------------------------------------

    def _tell_all(self) -> None:
        self.first = self._state()
        self.tell("state", self.first)
        if self._timer is None:
            self._timer = threading.Timer(KEEP, self._keep)
            self._timer.daemon = True
            self._timer.start()

    def _keep(self) -> None:
        self._timer = None
        if not self._closed.is_set():
            self.keep()

    def _state(self) -> dict[str, Any]:
        answered = self.labels.answered(self.rater)
        mine = [answered[key] for key in self._places if key in answered]
        counts = Counter(_plural(choice) for choice in mine)
        left = next((q for q in self.questions if (q.item.key, q.round) not in answered), None)
        return {
            "mode": self.mode,
            "done": len(mine),
            "total": len(self.questions),
            "question": None if left is None else _question(left),
            "counts": [[name, n] for name, n in counts.items()],
            "facts": self._facts(),
            "notes": [visible(note) for note in self.notes],
            "rater": visible(self.rater),
            "out": visible(self.labels.folder),
        }

    def _facts(self) -> list[str]:
        """What the choices say about reward and rater, in words."""
        of = self.labels.agreement(self.rater)
        words = {
            "reward": "higher reward preferred",
            "self": "asked twice, answered alike",
            "left": "left preferred",
            "good": "marked good",
        }
        return [f"{words[name]}: {yes} of {n}" for name, (yes, n) in of.items() if n]

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self, rows: int = 10) -> str:
        head, *facts = self._lines()
        said = "".join(f"<p>{escape(line)}</p>" for line in facts)
        cells = [
            [one_line(c, 20), one_line(prompt, 90), one_line(better, 120)] for c, prompt, better in self._last(rows)
        ]
        return f"<p><b>{escape(head)}</b></p>{said}{table_html(('choice', 'prompt', 'answer'), cells)}"

    def static_text(self) -> str:
        lines = [visible(line) for line in self._lines()]
        return "\n".join([*lines, "Choosing needs a notebook; wb.labels(out) reads what was chosen anywhere."])

    def _lines(self) -> list[str]:
        state = self._state()
        counts = ", ".join(f"{n} {name}" for name, n in state["counts"])
        head = f"{state['done']} of {state['total']} answered" + (f" ({counts})" if counts else "")
        return [head, f"kept in {self.labels.path}", *state["facts"], *self.notes]

    def _last(self, n: int) -> list[tuple[str, str, str]]:
        """Of the last choices: choice, prompt, and the answer that it is about."""
        made = []
        for record in self.labels.records(self.mode)[-n:]:
            about = record[record["choice"]] if record["choice"] in ("first", "second") else record["first"]
            choice = {"first": "better", "second": "better"}.get(record["choice"], record["choice"])
            made.append((choice, _flat(record["prompt"]), _flat(about)))
        return made

    def __repr__(self) -> str:
        return f"<LabelView: {self._lines()[0]}; {visible(self.labels.path)}>"


def _chosen(asked: Question, choice: str) -> str:
    """The page's word in those of the file: sides become answers."""
    if asked.item.mode == "pair" and choice in ("left", "right"):
        return ("first", "second")[asked.order[0 if choice == "left" else 1]]
    return choice


def _plural(choice: str) -> str:
    return {"first": "preferred", "second": "preferred", "tie": "tied", "skip": "skipped"}.get(choice, choice)


def _question(asked: Question) -> dict[str, Any]:
    item = asked.item
    answers = [
        {"parts": _parts(item.answers[i]), "facts": _facts(item.facts[i]), "cut": _cut(item.facts[i])}
        for i in asked.order
    ]
    made = {"item": item.key, "round": asked.round, "prompt": _parts(item.prompt), "answers": answers, "diff": None}
    if item.mode == "pair":
        parts = segments(*(_flat(item.answers[i]) for i in asked.order))
        made["diff"] = [shown([p for p in parts if p[0] != hidden]) for hidden in ("insert", "delete")]
    return made


def _cut(facts: dict[str, Any]) -> str:
    return "cut off at the token limit" if facts.get("finish_reason") == "length" else ""


def _facts(facts: dict[str, Any]) -> list[list[str]]:
    def said(value: Any) -> str:
        return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else visible(value)

    return [[visible(FACTS.get(name, name)), said(value)] for name, value in facts.items() if value != "given"]


def _parts(value: Any) -> list[list[str]]:
    """A text, or messages, as [role, text] in which nothing hides."""
    if isinstance(value, list):
        return [[visible(m.get("role", "?")), visible(_content(m))] for m in value]
    return [["", visible(value)]]


def _flat(value: Any) -> str:
    """The same as one text."""
    if not isinstance(value, list):
        return str(value)
    if len(value) == 1:
        return _content(value[0])
    return "\n".join(f"[{m.get('role')}] {_content(m)}" for m in value)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    called = message.get("tool_calls")
    return "\n".join(part for part in (content or "", f"{called}" if called else "") if part)
