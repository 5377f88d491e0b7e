"""The decoder: draws completions token by token, each row by its own stateless random numbers.

Token t of a row is drawn by the inverse CDF, in float64, from the t-th uniform number of that row's key. So
what a row draws does not hang on who else is in the batch: a float32 model gives the same tokens in any
layout.

Two sources of next-token logits share one loop. `Cached` keeps keys and values: prompts are padded on the
left, each is run once and its cache copied for its samples, and rows that are done leave the batch once they
are half of it.
`Plain` runs the whole sequence again for every token: slower, but right for every causal model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import keys as stateless
from workbench.errors import RunError, SettingError
from workbench.trunk import base_of, last_logits

ROWS = 256
"""completions decoded at a time; more are drawn in turns, which changes no token"""
CHUNK = 1 << 24
"""logits taken to float64 at a time (128 MiB)"""


@dataclass(frozen=True)
class Sampling:
    """How to draw; `checked()` says what is wrong with a setting."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0: always the likeliest token"""
    top_p: float = 1.0
    """keep the fewest tokens that hold this much probability (nucleus sampling, arXiv 1904.09751)"""
    top_k: int = 0
    """keep so many of the likeliest tokens, before top_p; 0: all"""

    def checked(self) -> Sampling:
        """Itself, if every setting makes sense. Raises SettingError."""
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("top_k", self.top_k, 0)
        if not (_is_number(self.temperature) and 0 <= self.temperature < float("inf")):
            raise SettingError(
                f"temperature={self.temperature!r} must be a number of at least 0; 0 is greedy."
            )
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise SettingError(f"top_p={self.top_p!r} must be above 0 and at most 1; 1 keeps every token.")
        return self


@dataclass
class Drawn:
    """One completion: ids with the stop token, and per token log-prob and entropy in nats."""

    ids: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    finish_reason: str = "length"


def decode(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    n: int,
    keys: Sequence[int],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    filler: int,
    check: Callable[[], None] | None = None,
    on_token: Callable[[int, Drawn], None] | None = None,
) -> list[Drawn]:
    """`n` completions of each prompt, prompt by prompt: row `p * n + s` is sample s of prompt p and uses its
    key.

    `check` is called before every token and may raise to end the work; `on_token` after every one, with its row and
    what that row has so far. Raises RunError if the model's logits are not numbers. The model must be in eval mode.
    """
    kind = Cached if has_usable_cache(model) else Plain
    out: list[Drawn] = []
    per_turn = max(1, ROWS // n)
    for at in range(0, len(prompts), per_turn):
        turn = list(prompts[at : at + per_turn])
        for first in range(0, n, ROWS):  # more samples of one prompt than fit a turn
            count = min(ROWS, n - first)
            places = [(at + p) * n + first + s for p in range(len(turn)) for s in range(count)]
            drawn = {place: Drawn() for place in places}
            turn_keys = [keys[place] for place in places]
            source = kind(model, turn, count, filler)
            _decode_turn(source, drawn, turn_keys, sampling, stop_ids, filler, check, on_token)
            out += drawn.values()
    return out


def _decode_turn(
    source: Cached | Plain, drawn: dict[int, Drawn], keys, sampling: Sampling, stop_ids, filler: int, check, on_token
) -> None:
    """Fills `drawn`, whose keys are the rows' places among all."""
    every = list(drawn.items())
    uniform = np.stack(
        [stateless.uniforms(k, sampling.max_new_tokens) for k in keys]
    )  # (rows, max_new_tokens)
    stops = set(stop_ids)
    rows = np.arange(len(keys))  # which row each place of the batch holds
    alive = np.ones(len(keys), dtype=bool)  # (batch,)
    tokens = None  # (batch,) drawn last
    for t in range(sampling.max_new_tokens):
        if check is not None:
            check()
        logits = source.start() if tokens is None else source.step(tokens)
        tokens, logprob, entropy = draw(logits, torch.from_numpy(uniform[rows, t]), sampling)
        tokens = np.where(alive, tokens.numpy(), filler)
        for place in np.flatnonzero(alive):
            (number, row), token = every[rows[place]], int(tokens[place])
            row.ids.append(token)
            row.logprob.append(float(logprob[place]))
            row.entropy.append(float(entropy[place]))
            if token in stops:
                row.finish_reason = "stop"
                alive[place] = False
            if on_token is not None:
                on_token(number, row)
        if not alive.any():
            break
        if 2 * alive.sum() <= len(alive):
            kept = np.flatnonzero(alive)
            source.select(kept)
            rows, tokens, alive = rows[kept], tokens[kept], alive[kept]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row: `(tokens int64, logprob float64, entropy float64)`, each (B,) on the CPU.

    `logits` (B, V); `uniform` (B,) float64 in [0, 1), used with the inverse CDF in the order of token ids.
    Log-prob and entropy are those of softmax(logits / temperature) before top_k and top_p cut it (at
    temperature 0, those of softmax(logits)): what a trainer scores, and what importance ratios are taken
    against. Raises RunError if a row's logits are not numbers.
    """
    if logits.device.type == "mps":  # no float64 there
        logits = logits.float().cpu()
    size = max(1, CHUNK // logits.shape[-1])
    parts = [
        _draw(z, u.to(z.device), sampling)
        for z, u in zip(logits.split(size), uniform.split(size), strict=True)
    ]
    return tuple(torch.cat(column).cpu() for column in zip(*parts, strict=True))


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    z = logits.double()  # (B, V)
    if sampling.temperature not in (0, 1):
        z = z / sampling.temperature
    logp = torch.log_softmax(z, dim=-1)
    if logp.isnan().any():
        raise RunError(
            "The model's logits are not numbers (NaN or infinite), so nothing can be drawn. Training went "
            "astray, or float16 overflowed: go back a step with a lower learning rate, or load with "
            "dtype='float32'."
        )
    p = logp.exp()
    entropy = torch.special.entr(p).sum(-1)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cdf = truncate(p, sampling.top_k, sampling.top_p).cumsum(-1)
        total = cdf[:, -1:]
        aim = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cdf, aim, right=True)[:, 0]
    return tokens, logp.gather(-1, tokens[:, None])[:, 0], entropy


def truncate(p: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (B, V) with the tail set to 0, not renormalised: first top_k, then top_p of what is left.

    As in transformers: tokens tied with the k-th stay; the token that crosses top_p stays.
    """
    if 0 < top_k < p.shape[-1]:
        p = p.where(p >= p.topk(top_k, dim=-1).values[:, -1:], 0.0)
    if top_p < 1:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
        ordered = ordered.where(before < top_p * p.sum(-1, keepdim=True), 0.0)
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    return p


def has_usable_cache(model: torch.nn.Module) -> bool:
    """Whether `Cached` is right for this model: its cache is only keys and values, and it takes positions and
    a mask.

    Not so for recurrent and hybrid models, whose state cannot tell left padding from text in general, for
    adapters that put virtual tokens before the prompt, and for those that switch on at an invocation text
    (aLoRA).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    base = base_of(model)
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None) is not None:
            return False
    if getattr(base, "_is_stateful", False) or getattr(base.config, "is_encoder_decoder", False):
        return False
    taken = inspect.signature(base.forward).parameters
    if not {"past_key_values", "position_ids", "attention_mask", "use_cache"} <= set(taken):
        return False
    try:
        layers = DynamicCache(config=base.config).layers
    except (KeyError, AttributeError, ValueError, TypeError):  # a kind of layer this cache does not know
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class Cached:
    """Next-token logits from a key-value cache, prompts padded on the left."""

    def __init__(self, model, prompts: list[Sequence[int]], n: int, filler: int):
        self.model, self.prompts, self.n, self.filler = model, prompts, n, filler
        self.device = next(model.parameters()).device
        self.cache: Any = None
        self.mask: Tensor | None = None  # (B, L so far) 1 where a real token is
        self.position: Tensor | None = None  # (B, 1) of the latest token

    def start(self) -> Tensor:
        """Runs each prompt once, then copies its cache for its n samples. Returns logits (B, V)."""
        from transformers.cache_utils import DynamicCache

        width = max(map(len, self.prompts))
        ids = torch.full((len(self.prompts), width), self.filler, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for p, prompt in enumerate(self.prompts):
            ids[p, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
            mask[p, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, output = last_logits(
            self.model,
            1,
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=DynamicCache(config=base_of(self.model).config),
            use_cache=True,
        )
        self.cache = output.past_key_values
        if self.n > 1:
            self.cache.batch_repeat_interleave(self.n)
        self.mask = mask.repeat_interleave(self.n, 0)
        self.position = position[:, -1:].repeat_interleave(self.n, 0)
        return logits[:, -1].repeat_interleave(self.n, 0)

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one token (B,) to each row. Returns logits (B, V)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.position = self.position + 1
        logits, output = last_logits(
            self.model,
            1,
            input_ids=torch.from_numpy(tokens).to(self.device)[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        return logits[:, -1]

    def select(self, places: np.ndarray) -> None:
        """Keeps only these places of the batch."""
        index = torch.from_numpy(places).to(self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[index]


class Plain:
    """Next-token logits by running the whole sequences again, padded on the right: no cache, no mask."""

    def __init__(self, model, prompts: list[Sequence[int]], n: int, filler: int):
        self.model, self.filler = model, filler
        self.device = next(model.parameters()).device
        self.rows = [list(prompt) for prompt in prompts for _ in range(n)]

    def start(self) -> Tensor:
        """Logits (B, V) after each row as it stands."""
        lengths = torch.as_tensor([len(row) for row in self.rows])
        width, shortest = int(lengths.max()), int(lengths.min())
        ids = torch.full((len(self.rows), width), self.filler, dtype=torch.long)
        for b, row in enumerate(self.rows):
            ids[b, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        logits, _ = last_logits(
            self.model, width - shortest + 1, input_ids=ids.to(self.device), use_cache=False
        )
        return logits[torch.arange(len(self.rows)), lengths - shortest]

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one token (B,) to each row. Returns logits (B, V)."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))
        return self.start()

    def select(self, places: np.ndarray) -> None:
        """Keeps only these places of the batch."""
        self.rows = [self.rows[place] for place in places]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises SettingError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SettingError(f"{name}={value!r} must be a whole number of at least {least}.")
