"""The decoder: draws completions token by token, each row by its own stateless random numbers.

Token t of a row is drawn by the inverse CDF from the t-th uniform number of that row's key. So what a row draws does
not hang on who else is in the batch: a float32 model gives the same tokens in any layout.

Each distinct prompt goes through the model once, whatever the number of its rows. The batch holds only rows that still
draw: one that is done leaves at once (the last row takes its place), and when enough places are free, waiting prompts
take them, the longest first. See `sources` for where logits come from, `drawing` for how a token is drawn from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workbench import keys as stateless
from workbench import memory, out_of_memory
from workbench.errors import RunError
from workbench.sampling.choices import Drawn, Sampling, check_stop_strings, check_whole
from workbench.sampling.drawing import draw, truncate
from workbench.sampling.fitting import bytes_per_token, why_plain
from workbench.sampling.sources import Plain, Prefilled, Slotted
from workbench.sampling.stops import StopStrings

__all__ = ["Drawn", "Sampling", "check_stop_strings", "check_whole", "decode", "draw", "truncate", "why_plain"]

ROWS = 256
"""rows of a batch at most; further ones wait, which changes no token"""
PREFILL = 8192
"""prompt tokens that go through the model at a time, pads included; at least one prompt"""
CACHE = 4 << 30
"""bytes of keys and values at most, on a device that cannot say what is free"""
COLUMNS = 256
"""tokens a row has room for at first, beyond its prompt"""


def decode(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    n: int,
    keys: Sequence[int],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    filler: int,
    text: Callable[[list[int]], str] | None = None,
    check: Callable[[], None] | None = None,
    on_token: Callable[[int, Drawn], None] | None = None,
    source: Any = None,
) -> list[Drawn]:
    """`n` completions of each prompt, prompt by prompt: row `p * n + s` is sample s of prompt p and uses its
    key.

    `text` gives the text of ids, by which `sampling.stop_strings` are found. `check` is called before every token and
    may raise to end the work; `on_token` after every one, with its row and what that row has so far. `source`: where
    logits come from (as those of `sampling.sources`), with room for min(ROWS, all rows); None: the model. Raises
    RunError if the model's logits are not numbers, and if memory runs out. The model must be in eval mode.
    """
    if not prompts:
        return []
    stops = StopStrings(sampling.stop_strings, text) if sampling.stop_strings else None
    try:
        places = min(ROWS, len(prompts) * n)
        if source is None:
            source, places = _source(model, filler, prompts, n, sampling)
        batch = _Batch(source, places, [tuple(p) for p in prompts for _ in range(n)], keys, sampling, stop_ids, stops)
        batch.check, batch.on_token = check or (lambda: None), on_token
        batch.run()
        return batch.drawn()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory.recognised(error):
            raise
        source = batch = None  # its keys and values, before what is left is given back
        said = out_of_memory.clean_up(error, model)
    raise RunError(
        f"Memory ran out while {min(ROWS, len(prompts) * n)} completions of up to {sampling.max_new_tokens} tokens were"
        f" sampled ({said}). What takes less: fewer of them at a time (prompts_per_step or group_size of a run, n); a"
        " smaller max_new_tokens; shorter prompts; wb.load(..., dtype='bfloat16') or quantize='nf4'."
    )


def _source(
    model: torch.nn.Module, filler: int, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling
) -> tuple[Slotted | Plain, int]:
    """Where logits come from, and how many rows it has room for."""
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    places = min(ROWS, len(prompts) * n)
    if why_plain(model, filler) is not None:
        return Plain(model, filler), places
    places = max(1, min(places, _room(model) // (bytes_per_token(model) * longest * 4 // 3)))
    return Slotted(model, filler, places, longest - max(0, sampling.max_new_tokens - COLUMNS)), places


def _room(model: torch.nn.Module) -> int:
    """Bytes that keys and values may take."""
    device = next(model.parameters()).device
    return memory.free_bytes(device) // 2 if device.type == "cuda" else CACHE


class _Batch:
    """Rows that draw now, those that wait, and what all of them have drawn.

    The rows that draw stand in the first `len(self.rows)` places.
    """

    def __init__(
        self,
        source: Slotted | Plain,
        places: int,
        prompts: list[tuple[int, ...]],
        keys: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
        stops: StopStrings | None,
    ):
        self.source, self.places, self.prompts, self.keys, self.sampling = source, places, prompts, keys, sampling
        self.stops = stops
        self.check: Callable[[], None] = lambda: None
        self.on_token: Callable[[int, Drawn], None] | None = None
        waiting: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            waiting.setdefault(prompt, []).append(row)
        self.waiting = sorted(waiting.items(), key=lambda entry: len(entry[0]))  # taken from the end
        self.begun: list[tuple[Prefilled, list[int]]] = []
        """prompts that went through the model and have rows without a place"""
        total, most = len(prompts), sampling.max_new_tokens
        self.ids = np.zeros((total, most), dtype=np.int64)
        self.logprob = np.zeros((total, most), dtype=np.float32)
        self.entropy = np.zeros((total, most), dtype=np.float32)
        self.count = np.zeros(total, dtype=np.int64)
        """tokens each row has"""
        self.stopped = np.zeros(total, dtype=bool)
        self.stop_ids = np.array(sorted(stop_ids), dtype=np.int64)
        self.rows = np.zeros(0, dtype=np.int64)
        """(B,) which row each place of the batch holds"""
        self.last = np.zeros(0, dtype=np.int64)
        """(B,) the token drawn last, not yet given to the model"""
        self.uniform = np.zeros((places, most))
        self.seen: torch.Tensor | None = None
        """(places, V) tokens of each row's text, where there is a repetition penalty"""

    def run(self) -> None:
        """To the end of all rows."""
        while self.waiting or self.begun or len(self.rows):
            free = self.places - len(self.rows)
            if (self.waiting or self.begun) and (free >= max(1, self.places // 8)):
                self._admit(free)
            else:
                self.check()
                logits = self.source.step(self.last)
                self._draw(logits, 0)

    def _admit(self, free: int) -> None:
        """Gives waiting rows a place and draws their first token."""
        if not self.begun:
            self._prefill(free)
        self.check()
        taken: list[tuple[Prefilled, list[int]]] = []
        while self.begun and free:
            prompt, rows = self.begun.pop()
            if rows[free:]:
                self.begun.append((prompt, rows[free:]))
            taken.append((prompt, rows[:free]))
            free -= len(rows[:free])
        first = len(self.rows)
        added = np.concatenate([rows for _, rows in taken])
        logits = self.source.place([(prompt, len(rows)) for prompt, rows in taken])
        self.rows = np.concatenate([self.rows, added])
        self.last = np.concatenate([self.last, np.zeros_like(added)])
        for place, row in enumerate(added, first):
            self.uniform[place] = stateless.uniforms(self.keys[row], self.sampling.max_new_tokens)
        if self.sampling.repetition_penalty != 1:
            self._mark_prompts(first, logits)
        self._draw(logits, first)

    def _prefill(self, free: int) -> None:
        """Runs as many waiting prompts as fit the free places and one pass."""
        chosen = [self.waiting.pop()]
        samples, width = len(chosen[0][1]), len(chosen[0][0])
        while self.waiting and samples < free and width * (len(chosen) + 1) <= PREFILL:
            chosen.append(self.waiting.pop())
            samples += len(chosen[-1][1])
        prefilled = self.source.prefill([prompt for prompt, _ in chosen])
        self.begun = [(done, rows) for done, (_, rows) in zip(prefilled, chosen, strict=True)][::-1]

    def _mark_prompts(self, first: int, logits: torch.Tensor) -> None:
        if self.seen is None:
            self.seen = torch.zeros(self.places, logits.shape[1], dtype=torch.bool, device=logits.device)
        self.seen[first : len(self.rows)] = False
        for place in range(first, len(self.rows)):
            self.seen[place, torch.tensor(self.prompts[self.rows[place]], device=logits.device)] = True

    def _draw(self, logits: torch.Tensor, first: int) -> None:
        """One token for each row of the batch from place `first` on; rows that are done leave."""
        rows = self.rows[first:]
        at = self.count[rows]
        uniform = torch.from_numpy(self.uniform[np.arange(first, len(self.rows)), at])
        seen = None if self.seen is None else self.seen[first : len(self.rows)]
        tokens, logprob, entropy = (column.numpy() for column in draw(logits, uniform, self.sampling, seen))
        if seen is not None:
            seen.scatter_(1, torch.from_numpy(tokens).to(seen.device)[:, None], True)
        self.ids[rows, at], self.logprob[rows, at], self.entropy[rows, at] = tokens, logprob, entropy
        self.count[rows] = at + 1
        self.last[first:] = tokens
        self.stopped[rows] = np.isin(tokens, self.stop_ids)
        if self.stops is not None:
            for row, token in zip(rows, tokens.tolist(), strict=True):
                self.stopped[row] |= self.stops.completed(row, token)
        if self.on_token is not None:
            self._tell(rows)
        done = self.stopped[self.rows] | (self.count[self.rows] == self.sampling.max_new_tokens)
        if done.any():
            self._leave(done)

    def _tell(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            self.on_token(row, self._drawn(row))

    def _leave(self, done: np.ndarray) -> None:
        """Takes rows that are done (B,) out of the batch: the last ones that stay take their places."""
        kept = np.flatnonzero(~done)
        batch = len(kept)
        holes, movers = np.flatnonzero(done[:batch]), kept[kept >= batch]
        self.source.drop(holes, movers, batch)
        for array in (self.rows, self.last, self.uniform):
            array[holes] = array[movers]
        if self.seen is not None:
            self.seen[torch.from_numpy(holes)] = self.seen[torch.from_numpy(movers)]
        self.rows, self.last = self.rows[:batch], self.last[:batch]

    def _drawn(self, row: int) -> Drawn:
        kept = slice(0, self.count[row])
        return Drawn(
            self.ids[row, kept].tolist(),
            self.logprob[row, kept].tolist(),
            self.entropy[row, kept].tolist(),
            "stop" if self.stopped[row] else "length",
        )

    def drawn(self) -> list[Drawn]:
        """What each row has drawn."""
        return [self._drawn(row) for row in range(len(self.prompts))]
