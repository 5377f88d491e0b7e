"""A policy answering its chat box: token by token, as it is, without its adapter, or as it was at the start.

All of it runs on the worker, as jobs that come between the steps of a run. Whatever weights an answer was drawn with,
the model holds afterwards what it held before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from workbench import adapters, keys, tokenise, worker
from workbench.errors import DataError, Interrupted, SettingError, WorkbenchError, did_you_mean
from workbench.sampling import decoder
from workbench.tasks.sums import make_rows
from workbench.views.play import PlayView

MOST = 4
"""samples of one turn"""
PINNED = 2**30
"""bytes of a run's weights that are copied for the box; larger ones are talked to as they are at each turn"""
DRAWING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_strings": (),
    "max_new_tokens": 128,
}  # fmt: skip
DEFAULTS = {**DRAWING, "seed": 0, "n": 1}


class Heard(Protocol):
    """Who listens to an answer; called on the worker."""

    def started(self) -> bool:
        """The job's turn has come; false when nobody waits for it any more."""

    def side(self, side: str, holder: str) -> None:
        """The answers of `side` begin, with weights of `holder` (empty where the side says whose)."""

    def token(self, side: str, sample: int, drawn: decoder.Drawn) -> None: ...

    def ended(self, why: str, stopped: bool) -> None:
        """Nothing more comes; `why` is empty when all went well."""


def play(
    policy: Any, *, system: str = "", compare: Sequence[str] = (), mode: str | None = None, **settings: Any
) -> PlayView:
    """See `Policy.play`."""
    if unknown := [name for name in settings if name not in DEFAULTS]:
        known = [*DEFAULTS, "system", "compare", "mode"]
        raise SettingError(
            f"policy.play has no setting {unknown[0]!r}.{did_you_mean(unknown[0], known)} It has: {', '.join(known)}."
        )
    player = Player(policy)
    compare = [compare] if isinstance(compare, str) else list(compare)
    for side in compare:
        if side not in player.sides():
            raise SettingError(f"compare={side!r}: this policy can answer as {', '.join(map(repr, player.sides()))}.")
    if mode is not None and mode not in player.modes:
        hint = " (the tokenizer has no chat template)" if mode == "chat" else ""
        raise SettingError(f"mode={mode!r}: give {' or '.join(map(repr, player.modes))}{hint}.")
    if not isinstance(system, str):
        raise SettingError(f"system={system!r}: give the system prompt as text.")
    chosen = list(dict.fromkeys([player.first, *compare]))
    return PlayView(player, player.check(DEFAULTS | settings), mode or player.modes[0], system, chosen).show()


class Player:
    """What a chat box asks of a policy. `answer` draws; everything else is cheap, and safe on any thread."""

    def __init__(self, policy: Any):
        self.policy = policy
        self.model = Path(policy.origin.model).name
        self.modes = ("chat", "plain") if getattr(policy.tokenizer, "chat_template", None) else ("plain",)
        self.opened, self.pinned = worker.call(_copy, policy) if policy.holder != "start" else ("start", {})
        self.first = "opened" if self.pinned else "now"

    def sides(self) -> dict[str, str]:
        """Who can answer: key and what it is, in words."""
        made = {"opened": f"{self.opened}, as of opening"} if self.pinned else {}
        made["now"] = "as it is now"
        if self.policy.has_adapter:
            made["off"] = "without adapter"
        if self.policy._start:
            made["start"] = "as at the start"
        return made

    def check(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings, if each makes sense. Raises SettingError."""
        decoder.Sampling(**{name: settings[name] for name in DRAWING}).checked()
        decoder.check_whole("seed", settings["seed"], 0)
        decoder.check_whole("n", settings["n"], 1)
        if settings["n"] > MOST:
            raise SettingError(f"n={settings['n']}: at most {MOST} answers a turn; policy.sample gives more.")
        return settings

    def examples(self, mode: str) -> list[str]:
        """Prompts to begin with: those that the shipped model was made for."""
        if self.policy.origin.base != "tiny":
            return []
        asked = [row["prompt"] for row in make_rows(2, seed=3, split="test")] + ["Q: Spell apples.\nA:"]
        return asked if mode == "plain" else [text.removeprefix("Q: ").removesuffix("\nA:") for text in asked]

    def piece(self, token: int) -> tuple[str, bool]:
        """What a token stands for, and whether it is a special one."""
        return self.policy.pieces[token]

    def text_of(self, ids: Sequence[int]) -> str:
        return self.policy.text_of(ids)

    def answer(self, prompt: Any, sides: Sequence[str], settings: dict[str, Any], heard: Heard) -> worker.Job:
        """Queue the answers of each side to `prompt` (text, or messages), one side after the other."""

        def work() -> None:
            if not heard.started():
                return
            why, stopped = "", False
            try:
                for side in sides:
                    self._draw(prompt, side, settings, heard)
            except Interrupted:
                stopped = True
            except WorkbenchError as error:
                why = str(error).replace("Prompt 0", "The prompt", 1)
            except BaseException as error:  # said in the page; raised all the same
                why = f"{type(error).__name__}: {error}"
                raise
            finally:
                heard.ended(why, stopped)

        return worker.submit(work)

    def _draw(self, prompt: Any, side: str, settings: dict[str, Any], heard: Heard) -> None:
        """As `policy.sample(prompt, **settings)` draws it."""
        worker.check()
        drawing = dict(settings)
        n, seed = drawing.pop("n"), drawing.pop("seed")
        tokens = tokenise.prompt(prompt, self.policy.tokenizer)
        if not tokens.ids:
            raise DataError("The prompt has no token; a model needs at least one to go on from.")
        with self.weights_of(side) as holder:
            heard.side(side, holder)
            self.policy.sample_prompts(
                [tokens],
                n,
                **drawing,
                keys=[keys.key(seed, "sample", 0, sample) for sample in range(n)],
                check=worker.check,
                on_token=lambda sample, drawn: heard.token(side, sample, drawn),
            )

    @contextlib.contextmanager
    def weights_of(self, side: str) -> Iterator[str]:
        """The model answers as `side` inside; gives whose weights those are, where the side does not say it."""
        policy = self.policy
        if side == "off":
            with adapters.without(policy.model):
                yield ""
        elif side == "start":
            with policy.holding(policy._start, "start"):
                yield ""
        elif side == "opened":
            with policy.holding(self.pinned, self.opened):
                yield ""
        else:
            yield policy.holder


def _copy(policy: Any) -> tuple[str, dict[str, Any]]:
    """Whose weights the model holds, and a copy of them, as a run changes its own in place. Those of the start need
    none, as nothing changes them."""
    params = policy.params() if policy.holder != "start" else {}
    size = sum(tensor.numel() * tensor.element_size() for tensor in params.values())
    return policy.holder, {name: tensor.clone() for name, tensor in params.items()} if size <= PINNED else {}
