"""Dynamic logit fusion: small tuned models steer a large one that was not tuned (Fan et al. 2024, arXiv 2406.15480).

    p~ = softmax(z_L + sum_t a_t (z_t - z_S))

z_L the logits of the large model (distribution P), z_S of the small base (Q), z_t of small expert t (Q_t). The strength
a is chosen anew for each token, so that the large model moves as far as the expert moved the small one:

    a = argmin [KL(p~ || P) - KL(Q_t || Q)]^2 + [KL(P || p~) - KL(Q || Q_t)]^2

over a grid from 0 to 2 (steps of 0.1, our choice; of equally good ones the smallest). With several experts one acts per
token: each is searched alone, the best taken. A fixed a = 1 is proxy tuning (Liu et al. 2024, arXiv 2401.08565). Every
model has a cache of its own; the grid needs no further pass. All models share one vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import adapters, keys, worker
from workbench.errors import SettingError
from workbench.policy import Policy
from workbench.sampling import decoder
from workbench.sampling.choices import Sampling
from workbench.sampling.fitting import why_plain
from workbench.sampling.sources import Plain, Prefilled, Slotted

GRID = torch.linspace(0, 2, 21, dtype=torch.float64)
"""strengths that are tried"""
Within = Callable[[], AbstractContextManager]


@dataclass
class Fused:
    """Completions of fused models: `text` and `ids`, and for each token `strength`, the a it was drawn with, and
    `expert`, which one acted."""

    prompt: list[Any]
    text: list[str]
    ids: list[list[int]]
    strength: list[list[float]]
    expert: list[list[int]]


@worker.on_worker
def fuse(
    large: Policy,
    base: Policy,
    experts: Sequence[Policy] | None,
    prompts: Sequence[Any] | str,
    n: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    strength: float | None = None,
    seed: int = 0,
) -> Fused:
    """`n` completions of each prompt by the large model, steered by small experts.

    `experts`: policies tuned from `base`; None: `base` with its adapter is the expert, without it the small base.
    `strength`: a fixed a in place of the search. Draws depend on the seed and a prompt's place in the list. Raises
    SettingError where vocabularies differ, or where there is no expert.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = Sampling(max_new_tokens, temperature, 1.0, 0, 0.0, 1.0, ()).checked()
    decoder.check_whole("n", n, 1)
    parts = _parts(large, base, experts)
    tokens = [large.tokens_of(prompt, i).ids for i, prompt in enumerate(texts)]
    rows = len(texts) * n
    source = Fusion(parts, strength, min(decoder.ROWS, rows), max(map(len, tokens)) + max_new_tokens)
    acted: list[list[tuple[float, int]]] = [[] for _ in range(rows)]
    with ExitStack() as stack:
        for policy, _ in parts:
            stack.enter_context(policy.at_rest())
        drawn = decoder.decode(
            large.model,
            tokens,
            n,
            [keys.key(seed, "sample", p, s) for p in range(len(texts)) for s in range(n)],
            settings,
            stop_ids=large.stop_ids,
            filler=large.filler,
            on_token=lambda row, done: acted[row].append(source.latest.popleft()),
            source=source,
        )
    return Fused(
        prompt=[prompt for prompt in texts for _ in range(n)],
        text=[large.text_of(done.ids) for done in drawn],
        ids=[done.ids for done in drawn],
        strength=[[a for a, _ in row] for row in acted],
        expert=[[e for _, e in row] for row in acted],
    )


def _parts(large: Policy, base: Policy, experts: Sequence[Policy] | None) -> list[tuple[Policy, Within]]:
    """The large model, the small base, the experts; each with what surrounds its forward."""
    if experts is None:
        if not base.has_adapter:
            raise SettingError("fuse: give experts, or a base whose adapter is the expert.")
        made = [(large, nullcontext), (base, lambda: adapters.without(base.model)), (base, nullcontext)]
    elif not experts:
        raise SettingError("fuse: experts is empty; give at least one policy that was tuned from the base.")
    else:
        made = [(policy, nullcontext) for policy in (large, base, *experts)]
    sizes = {policy.vocab_size for policy, _ in made}
    words = {tuple(sorted(policy.tokenizer.get_vocab().items())) for policy, _ in made}
    if len(sizes) > 1 or len(words) > 1:
        raise SettingError("fuse: the models do not share one vocabulary, so their logits do not add up.")
    return made


class Fusion:
    """A source of logits for the decoder (see `sampling.sources`), made of one source for each model."""

    def __init__(self, parts: Sequence[tuple[Policy, Within]], strength: float | None, places: int, columns: int):
        self.withins = [within for _, within in parts]
        self.strength = strength
        self.sources = [
            Plain(policy.model, policy.filler)
            if why_plain(policy.model, policy.filler)
            else Slotted(policy.model, policy.filler, places, columns)
            for policy, _ in parts
        ]
        self.latest: deque[tuple[float, int]] = deque()
        """strength and expert of the logits that were asked for last, row by row"""

    def prefill(self, prompts: list[Sequence[int]]) -> list[Prefilled]:
        """Runs prompts once through every model."""
        made = [self._by(i, lambda source: source.prefill(prompts)) for i in range(len(self.sources))]
        return [Prefilled(prompt, made[0][p].logits, [part[p] for part in made]) for p, prompt in enumerate(prompts)]

    def place(self, begun: list[tuple[Prefilled, int]]) -> Tensor:
        """Adds so many rows of each prompt. Returns their fused logits (rows, V)."""
        logits = [
            self._by(i, lambda source, i=i: source.place([(prompt.layers[i], count) for prompt, count in begun]))
            for i in range(len(self.sources))
        ]
        return self._fused(logits)

    def step(self, tokens: np.ndarray) -> Tensor:
        """Appends one token (B,) to each row. Returns fused logits (B, V)."""
        logits = [self._by(i, lambda source: source.step(tokens)) for i in range(len(self.sources))]
        return self._fused(logits)

    def drop(self, holes: np.ndarray, movers: np.ndarray, batch: int) -> None:
        """Row `movers[i]` takes the place `holes[i]`; then the first `batch` rows stay."""
        for source in self.sources:
            source.drop(holes, movers, batch)

    def _by(self, i: int, work: Callable[[Any], Any]) -> Any:
        with self.withins[i]():
            return work(self.sources[i])

    def _fused(self, logits: list[Tensor]) -> Tensor:
        large, base, *experts = (z.double() for z in logits)
        made, strength, expert = fused(large, base, experts, self.strength)
        self.latest = deque(zip(strength.tolist(), expert.tolist(), strict=True))
        return made


def fused(
    large: Tensor, base: Tensor, experts: Sequence[Tensor], strength: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fused logits (B, V) of logits (B, V) each, the strength (B,) and the expert (B,) that acted.

    With a fixed `strength` all experts act, and the expert is -1 where there are several.
    """
    if strength is not None:
        moved = large + strength * sum(z - base for z in experts)
        who = 0 if len(experts) == 1 else -1
        return moved, large.new_full((len(large),), strength), torch.full((len(large),), who)
    p, q = large.log_softmax(-1), base.log_softmax(-1)
    costs = torch.stack([_costs(p, q, z.log_softmax(-1), large, z - base) for z in experts])  # (E, A, B)
    least = costs.flatten(0, 1).amin(0)  # (B,)
    at = (costs.flatten(0, 1) <= least + 1e-12).to(torch.int8).argmax(0)  # the first: of equal ones the smallest a
    expert, a = at // len(GRID), GRID.to(large.device)[at % len(GRID)]
    shift = torch.stack([z - base for z in experts])[expert, torch.arange(len(large))]
    return large + a[:, None] * shift, a, expert


def _costs(p: Tensor, q: Tensor, expert: Tensor, large: Tensor, shift: Tensor) -> Tensor:
    """(A, B) how far each strength of the grid is from moving the large model as the expert moved the small one."""
    moved = (large + GRID.to(large.device)[:, None, None] * shift).log_softmax(-1)  # (A, B, V)
    return (_kl(moved, p) - _kl(expert, q)) ** 2 + (_kl(p, moved) - _kl(q, expert)) ** 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probs, over the vocabulary."""
    return (p.exp() * (p - q)).sum(-1)
