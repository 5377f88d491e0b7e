"""A chat box: turns, and the answers that stream into them. The model is asked through a player handed in.

From the page: {kind: "hello"}, {kind: "send", text, at}, {kind: "again", turn}, {kind: "stop"}, {kind: "clear"},
{kind: "pick", turn, answer}, {kind: "change", settings, sides, mode, system}. To the page:

    state    everything but tokens; after a hello one `tokens` for each turn follows
    turn     {turn}: one turn anew, without its tokens
    tokens   {turn, answers: [{answer, from, n, keep, add}]}, columns id, piece, special, logprob, entropy: the tokens
             from `from` on of some answers, one after the other; a text is its first `keep` UTF-16 units and `add`

No handler waits for the model: tokens come by themselves, at most thirty messages a second. A turn is named by its key.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import traitlets

from workbench.errors import DataError
from workbench.text import clean, common_prefix
from workbench.views.base import Ask, Reply, View, assets
from workbench.views.text import escape, visible

FLUSH = 1 / 30
"""least seconds between two messages of tokens"""
HOW = """A chat box needs a notebook. In a terminal:
    policy.sample({prompt}, n=1, max_new_tokens=128, temperature=1.0, seed=0).text[0]"""
FINISH = {"length": "cut off at max tokens", "stopped": "stopped", "failed": "failed"}


@dataclass
class Answer:
    """One sample of one side: what came so far."""

    side: str
    label: str
    sample: int
    seed: int
    holder: str = ""
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    finish: str = ""
    """empty while it is written; stop, length, stopped or failed"""
    sent: int = 0
    """tokens that the page has been told"""
    sent_text: str = ""


@dataclass(eq=False)
class Turn:
    """What was asked, and all its answers; the one `picked` is what the conversation goes on from."""

    key: int
    text: str
    mode: str
    settings: dict[str, Any]
    answers: list[Answer]
    picked: int = 0
    status: str = "waiting"
    """waiting (for the step in flight), answering, done"""
    trouble: str = ""

    @property
    def answer(self) -> Answer | None:
        """The picked one, if it was begun."""
        answer = self.answers[self.picked] if self.answers else None
        return answer if answer is not None and (answer.ids or answer.finish in ("stop", "length")) else None


@dataclass(frozen=True)
class Ear:
    """Hears the answers to one turn, on the worker; what comes after the turn was ended or dropped is not heard."""

    view: PlayView
    turn: Turn

    def started(self) -> bool:
        return self.view.started(self.turn)

    def side(self, side: str, holder: str) -> None:
        self.view.heard_side(self.turn, side, holder)

    def token(self, side: str, sample: int, drawn: Any) -> None:
        self.view.heard_token(self.turn, side, sample, drawn)

    def ended(self, why: str, stopped: bool) -> None:
        self.view.ended(self.turn, why, stopped)


class PlayView(View):
    """See `Policy.play`. `messages` is the conversation, `rows` the same as rows for training."""

    _esm = assets("frame.js", "strip.js", "play.js", main="WbPlay")
    _css = assets("common.css", "tokens.css", "play.css")
    first = traitlets.Dict().tag(sync=True)

    def __init__(self, player: Any, settings: dict[str, Any], mode: str, system: str, sides: list[str]):
        self.player = player
        self.settings = settings
        self.mode = mode
        self.system = system
        self.sides = sides
        self.turns: list[Turn] = []
        self._job: Any = None
        self._keys = itertools.count()
        self._flushed = 0.0
        super().__init__()
        self.first = self._state()

    # -- what was said ---------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages, with the answers that are picked."""
        made = [{"role": "system", "content": self.system}] if self.system and self.mode == "chat" else []
        for turn in self.turns:
            if turn.mode == "chat" and turn.answer is not None:
                made.append({"role": "user", "content": turn.text})
                made.append({"role": "assistant", "content": turn.answer.text})
        return made

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows for `wb.rows`: in chat mode one of `messages`, in plain mode `prompt` and `completion` of each turn."""
        if self.mode == "chat":
            return [{"messages": self.messages}] if any(m["role"] == "assistant" for m in self.messages) else []
        turns = [turn for turn in self.turns if turn.mode == "plain" and turn.answer is not None]
        return [{"prompt": turn.text, "completion": turn.answer.text} for turn in turns]

    # -- asked by the page -----------------------------------------------------------------------------------

    def on_hello(self, ask: Ask) -> None:
        with self._guard:
            ask.answer(self._state())
            for turn in self.turns:
                parts = [_part(i, answer, 0, "") for i, answer in enumerate(turn.answers)]
                self._tell_tokens(turn, parts, [(answer, 0, answer.sent) for answer in turn.answers], ask.view)

    def on_change(self, ask: Ask, **given: Any) -> dict[str, Any]:
        """Settings, sides, mode or system prompt for the turns to come."""
        with self._guard:
            settings = self.player.check(self.settings | (given.get("settings") or {}))
            sides = [side for side in given.get("sides", self.sides) if side in self.player.sides()]
            if not sides:
                raise DataError("Nobody would answer: choose at least one.")
            mode = given.get("mode", self.mode)
            if mode not in self.player.modes:
                raise DataError(f"There is no mode {mode!r}.")
            self.settings, self.sides, self.mode = settings, sides, mode
            self.system = clean(str(given.get("system", self.system)))
            self._tell_state()
            return {}

    def on_send(self, ask: Ask, text: str, at: int | None = None) -> dict[str, Any]:
        """A turn after those there are; with `at` in the place of turn `at`, those after it dropped."""
        with self._guard:
            self._free()
            if not text:
                raise DataError("There is nothing to send yet: write something first.")
            self.turns = self.turns[: len(self.turns) if at is None else max(0, int(at))]
            self._begin(clean(text))
            return {}

    def on_again(self, ask: Ask, turn: int) -> dict[str, Any]:
        """The same turn with the next seed; turns after it are dropped."""
        with self._guard:
            self._free()
            if not 0 <= turn < len(self.turns):
                raise DataError("That turn is gone.")
            text, seed = self.turns[turn].text, self.turns[turn].settings["seed"]
            self.settings = self.settings | {"seed": seed + 1}
            self.turns = self.turns[:turn]
            self._begin(text)
            return {}

    def on_stop(self, ask: Ask) -> dict[str, Any]:
        self.stop()
        return {}

    def stop(self) -> None:
        """Stop the answer that is being written, within a token; what came is kept."""
        with self._guard:
            if self._job is None:
                return
            self._job.cancelled.set()
            if self.turns[-1].status == "waiting":  # its job still stands behind a step
                self.ended(self.turns[-1], "", True)

    def on_clear(self, ask: Ask) -> dict[str, Any]:
        self.stop()
        with self._guard:
            self.turns, self._job = [], None
            self._tell_state()
        self.keep()
        return {}

    def on_pick(self, ask: Ask, turn: int, answer: int) -> dict[str, Any]:
        """Go on from another answer; only the last turn's, as the turns after one were asked of what was picked."""
        with self._guard:
            self._free()
            if turn == len(self.turns) - 1 and 0 <= answer < len(self.turns[turn].answers):
                self.turns[turn].picked = answer
                self._tell_turn(self.turns[turn])
        return {}

    def close(self) -> None:
        self.stop()
        super().close()

    # -- the answer, heard on the worker ---------------------------------------------------------------------

    def _hears(self, turn: Turn) -> bool:
        return turn in self.turns and turn.status != "done"

    def started(self, turn: Turn) -> bool:
        with self._guard:
            if not self._hears(turn):
                return False
            turn.status = "answering"
            self._tell_turn(turn)
            return True

    def heard_side(self, turn: Turn, side: str, holder: str) -> None:
        with self._guard:
            if self._hears(turn):
                for answer in turn.answers:
                    answer.holder = holder if answer.side == side else answer.holder
                self._flush(turn)
                self._tell_turn(turn)

    def heard_token(self, turn: Turn, side: str, sample: int, drawn: Any) -> None:
        with self._guard:
            if not self._hears(turn):
                return
            answer = next(a for a in turn.answers if (a.side, a.sample) == (side, sample))
            answer.ids, answer.logprob, answer.entropy = drawn.ids, drawn.logprob, drawn.entropy
            if drawn.finish_reason == "stop":
                answer.finish = "stop"
            elif len(drawn.ids) >= turn.settings["max_new_tokens"]:
                answer.finish = "length"
            if time.monotonic() - self._flushed >= FLUSH:
                self._flush(turn)

    def ended(self, turn: Turn, why: str, stopped: bool) -> None:
        with self._guard:
            if not self._hears(turn):
                return
            self._job = None
            self._flush(turn)
            turn.status, turn.trouble = "done", why
            for answer in turn.answers:
                answer.finish = answer.finish or ("stopped" if stopped else "failed")
            self._tell_turn(turn)
            self.first = self._state()
        self.keep()

    # -- inside ----------------------------------------------------------------------------------------------

    def _free(self) -> None:
        if self._job is not None:
            raise DataError("An answer is being written: stop it first (Escape).")

    def _begin(self, text: str) -> None:
        words, settings = self.player.sides(), self.player.check(self.settings)
        samples = [(side, sample) for side in self.sides for sample in range(settings["n"])]
        answers = [Answer(side, words[side], sample, settings["seed"]) for side, sample in samples]
        prompt = [*self.messages, {"role": "user", "content": text}] if self.mode == "chat" else text
        turn = Turn(next(self._keys), text, self.mode, settings, answers)
        self.turns.append(turn)
        self._tell_state()
        self._job = self.player.answer(prompt, list(self.sides), settings, Ear(self, turn))

    def _flush(self, turn: Turn) -> None:
        """Tell every page the tokens that none was told yet."""
        self._flushed = time.monotonic()
        parts, spans = [], []
        for i, answer in enumerate(turn.answers):
            if answer.sent < len(answer.ids):
                answer.text = self.player.text_of(answer.ids)
                spans.append((answer, answer.sent, len(answer.ids)))
                before, answer.sent_text, answer.sent = answer.sent_text, visible(answer.text), len(answer.ids)
                parts.append(_part(i, answer, spans[-1][1], before))
        if parts:
            self._tell_tokens(turn, parts, spans, None)

    def _tell_tokens(self, turn: Turn, parts: list[dict], spans: list[tuple[Answer, int, int]], to: str | None) -> None:
        def joined(name: str, kind: type) -> np.ndarray:
            return np.array([v for a, start, end in spans for v in getattr(a, name)[start:end]], dtype=kind)

        ids = joined("ids", np.int32)
        pieces = [self.player.piece(int(i)) for i in ids]
        columns = {
            "id": ids,
            "piece": [visible(text) for text, _ in pieces],
            "special": np.array([special for _, special in pieces], dtype=np.uint8),
            "logprob": joined("logprob", np.float32),
            "entropy": joined("entropy", np.float32),
        }
        self.tell("tokens", Reply({"turn": turn.key, "answers": parts}, columns), to=to)

    def _state(self) -> dict[str, Any]:
        return {
            "model": visible(self.player.model),
            "holder": visible(self.player.opened),
            "modes": list(self.player.modes),
            "mode": self.mode,
            "settings": self.settings,
            "sides": [[key, visible(words)] for key, words in self.player.sides().items()],
            "chosen": self.sides,
            "system": self.system,
            "examples": self.player.examples(self.mode),
            "turns": [_shown(turn) for turn in self.turns],
        }

    def _tell_state(self) -> None:
        """To every page; tokens of the turns that stay are theirs already, by turn and answer."""
        self.first = self._state()
        self.tell("state", self.first)

    def _tell_turn(self, turn: Turn) -> None:
        self.tell("turn", {"turn": _shown(turn)})

    # -- static forms ----------------------------------------------------------------------------------------

    def static_html(self) -> str:
        if not self.turns:
            return f"<pre>{escape(self.static_text())}</pre>"
        parts = [f"<p><b>{escape(self.player.model)}</b>, weights: {escape(self.player.opened)}</p>"]
        if self.system and self.mode == "chat":
            parts.append(_block("system", self.system))
        for turn in self.turns:
            parts.append(_block("you" if turn.mode == "chat" else "prompt", turn.text))
            parts += [_block(_title(a), a.text) for a in turn.answers]
            parts += [f"<p>{escape(turn.trouble)}</p>"] if turn.trouble else []
        return "".join(parts)

    def static_text(self) -> str:
        if not self.turns:
            prompt = '[{"role": "user", "content": "..."}]' if self.mode == "chat" else '"..."'
            return HOW.format(prompt=prompt)
        parts = [f"{visible(self.player.model)}, weights: {visible(self.player.opened)}"]
        for turn in self.turns:
            parts.append(f"[{'you' if turn.mode == 'chat' else 'prompt'}] {visible(turn.text)}")
            parts += [f"[{visible(_title(a))}] {visible(a.text)}" for a in turn.answers]
            parts += [visible(turn.trouble)] if turn.trouble else []
        return "\n".join(parts)

    def __repr__(self) -> str:
        return f"<PlayView: {visible(self.player.model)}, {len(self.turns)} turns>"


def _part(i: int, answer: Answer, start: int, before: str) -> dict[str, Any]:
    """What is new of an answer, whose page has `start` tokens and the text `before`."""
    kept = common_prefix(before, answer.sent_text)
    keep = len(before[:kept].encode("utf-16-le")) // 2
    return {"answer": i, "from": start, "n": answer.sent - start, "keep": keep, "add": answer.sent_text[kept:]}


def _shown(turn: Turn) -> dict[str, Any]:
    """A turn as the page sees it, tokens apart."""
    answers = [
        {"label": visible(a.label), "holder": visible(a.holder), "sample": a.sample, "seed": a.seed,
         "says": FINISH.get(a.finish, ""), "written": bool(a.finish)}
        for a in turn.answers
    ]  # fmt: skip
    return {
        "key": turn.key, "raw": turn.text, "text": visible(turn.text), "mode": turn.mode, "status": turn.status,
        "picked": turn.picked, "trouble": visible(turn.trouble), "answers": answers,
    }  # fmt: skip


def _title(answer: Answer) -> str:
    says = [answer.label, *([f"sample {answer.sample}"] if answer.sample else []), FINISH.get(answer.finish, "")]
    return ", ".join(part for part in says if part)


def _block(title: str, text: str) -> str:
    return (
        f'<div style="margin: 6px 0"><b>{escape(title)}</b>'
        f'<pre style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 2px 0">{escape(text)}</pre></div>'
    )
