"""Two models side by side: the tuned one, and what it was before; logits, hidden states and blocks of both.

    pair(policy)                    the adapter on, and off
    pair(run)                       the run after its last step, and the base of its adapter (or how it began)
    pair((run, 40), base=(run, 10)) two states of a run
    pair(policy, base=other)        two policies with the same vocabulary

With an adapter, both share one set of weights: the base is a forward with the adapter switched off, so nothing is
copied. All work is done in eval mode without gradients, and afterwards the policies hold the weights that they held
before, also after an error. What uses a `Side` runs on the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench import adapters, layouts, scoring, trunk, worker
from workbench.errors import DataError, RunError, SettingError
from workbench.forwards import replaced
from workbench.policy import START, Policy
from workbench.run import Run
from workbench.sampling.rollouts import Rollouts, is_ids

TOKENS = 8192
"""of a batch, padding included"""


@dataclass(frozen=True)
class Side:
    """A policy with certain weights in it."""

    policy: Policy
    name: str
    params: Callable[[], dict[str, Tensor] | None] = lambda: None
    """the trained tensors to hold; None: those it holds anyway"""
    bare: bool = False
    """whether its adapter is off"""

    def weights(self) -> AbstractContextManager:
        """Puts them in for the length of a `with` block."""
        if self.bare:
            return adapters.without(self.policy.model)
        params = self.params()
        return nullcontext() if params is None else self.policy.holding(params, self.name)

    def pinned(self) -> Side:
        """The same, with the weights looked up once and for all: for use within one job of the worker."""
        params = self.params()
        return replace(self, params=lambda: params)

    @contextmanager
    def held(self) -> Iterator[Policy]:
        """The policy with these weights, without gradients and dropout; on the worker."""
        with self.weights(), self.policy.at_rest():
            yield self.policy


@dataclass(frozen=True)
class Pair:
    base: Side
    tuned: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.base, self.tuned

    def pinned(self) -> Pair:
        """See `Side.pinned`."""
        return Pair(self.base.pinned(), self.tuned.pinned())

    @worker.on_worker
    def logits(self, ids: Sequence[Sequence[int]] | Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, V) of the base and of the tuned model for `ids` (B, L)."""
        made = []
        for side in self.sides:
            with side.held() as policy:
                given = torch.as_tensor(ids, dtype=torch.long, device=policy.device)
                made.append(policy.logits(given, given.shape[1]))
        return made[0], made[1]


@dataclass(frozen=True)
class Compared:
    """What both models say of N tokens of some sequences."""

    row: Tensor
    """(N,) the sequence of each"""
    column: Tensor
    """(N,) its place among the scored tokens of its sequence"""
    target: Tensor
    """(N,) its id"""
    base: Tensor
    """(N, V) log-probs, nats"""
    tuned: Tensor
    """(N, V)"""


# -- which two ------------------------------------------------------------------------------------------------


def side(model: Any, name: str | None = None) -> Side:
    """A policy as it is now, a Run after its last step, or `(run, step)`. Raises SettingError for anything else."""
    if isinstance(model, Side):
        return model
    if isinstance(model, Policy):
        return Side(model, name or ("policy" if model.holder == START else model.holder))
    run, step = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
    if not isinstance(run, Run):
        raise SettingError(f"Give a policy, a run or (run, step), not {type(model).__name__}.")
    engine = _engine(run)
    step = engine.state.step if step is None else step
    named = name or f"{run.name}, step {step}"
    return Side(engine.policy, named, partial(_of_step, run, step))


def pair(tuned: Any, base: Any = None) -> Pair:
    """The two models. `tuned`: see `side`. `base`: another one; the number of a step of the run; "start", the weights
    that a run began from or a policy was loaded with; None: the tuned policy without its adapter or, where it has none,
    "start". Raises SettingError where there is no base, and says why."""
    here = side(tuned)
    if isinstance(base, bool) or not isinstance(base, int):
        there = _base_of(tuned, here) if base is None else _start_of(tuned) if base == "start" else side(base)
    else:
        there = side((tuned[0] if isinstance(tuned, tuple) else tuned, base))
    if here.policy is not there.policy:
        _check_vocabularies(there.policy, here.policy)
    return Pair(there, here)


def _base_of(tuned: Any, here: Side) -> Side:
    policy = here.policy
    if not policy.has_adapter:
        return _start_of(tuned)
    how = getattr(policy.adapter, "init_lora_weights", None)
    if adapters.edits_base(policy.adapter):
        raise SettingError(
            f"Without its adapter this model is not its base: init_lora_weights={how!r} moved a part of the weights"
            " into the adapter. Give base='start' (what the adapter began as), or base=wb.load(...)."
        )
    if any(getattr(module, "merged", False) is True for module in policy.model.modules()):
        raise SettingError(
            "The adapter is merged into the weights, so the base is no longer there. Unmerge it, or give the model from"
            " before: base=wb.load(...)."
        )
    return Side(policy, "base", bare=True)


def _start_of(tuned: Any) -> Side:
    model = tuned[0] if isinstance(tuned, tuple) else tuned
    if isinstance(model, Run):
        return Side(_engine(model).policy, f"start of {model.name}", partial(_of_start, model))
    policy = side(model).policy
    if policy.holder == START:
        raise SettingError(
            "There is no base to compare with: this policy holds the weights it was loaded with, and has no adapter to"
            " switch off. If an adapter was merged into them, the base is gone. Give the model from before:"
            " base=wb.load(...), or a run and a step: (run, step)."
        )
    return Side(policy, "start", lambda: policy._start)


def _engine(run: Run) -> Any:
    if run.engine is None:
        raise SettingError(f"{run.name} was opened to look at; take it up first: wb.resume({str(run.folder)!r}).")
    return run.engine


def _of_step(run: Run, step: int) -> dict[str, Tensor]:
    engine = _engine(run)
    if step == engine.state.step:
        return engine.state.params
    if engine.store is None:
        raise RunError(f"{run.name} has made no step yet, so there is no step {step}.")
    return engine.restore(step).params


def _of_start(run: Run) -> dict[str, Tensor]:
    engine = _engine(run)
    return engine.state.params if engine.store is None else engine.reference_params()


def _check_vocabularies(a: Policy, b: Policy) -> None:
    if a.vocab_size != b.vocab_size or a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise SettingError(
            f"The two policies have different vocabularies ({a.vocab_size} and {b.vocab_size} entries), so their tokens"
            " cannot be compared. Give two tunings of one model."
        )


# -- what they read -------------------------------------------------------------------------------------------


def sequences_of(
    policy: Policy, prompts: Sequence[Any], completions: Sequence[Any]
) -> tuple[list[list[int]], list[int]]:
    """Prompt and completion as ids, and where each completion begins. A prompt is text, messages or ids; a completion
    is text (as it stands, no end token is added) or ids. Raises DataError."""
    if len(prompts) != len(completions):
        raise DataError(f"{len(prompts)} prompts but {len(completions)} completions; give one completion a prompt.")
    before = [list(map(int, p)) if _ids(p) else list(policy.tokens_of(p, i).ids) for i, p in enumerate(prompts)]
    after = []
    for i, text in enumerate(completions):
        if not isinstance(text, str) and not (hasattr(text, "__len__") and is_ids(text)):
            raise DataError(f"Completion {i} is neither text nor token ids: {text!r:.60}")
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"] if isinstance(text, str) else text
        after.append([int(token) for token in ids])
    return [b + a for b, a in zip(before, after, strict=True)], [len(b) for b in before]


def _ids(prompt: Any) -> bool:
    return hasattr(prompt, "__len__") and len(prompt) > 0 and is_ids(prompt)


def greedy(one: Side, prompts: Sequence[Any], max_new_tokens: int) -> Rollouts:
    """The greedy completion of each prompt; on the worker."""
    with one.held() as policy:
        return policy.sample(list(prompts), n=1, max_new_tokens=max_new_tokens, temperature=0)


def batches(lengths: Sequence[int], most: int = TOKENS) -> Iterator[list[int]]:
    """The numbers of sequences that go together, short ones first, so that little is padded."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def laid(policy: Policy, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch: Sequence[int]) -> Any:
    """The layout of a batch of them; sequences with nothing to score are left out, None where none is left."""
    batch = [i for i in batch if len(sequences[i]) > starts[i]]
    if not batch:
        return None
    made = layouts.layout([sequences[i] for i in batch], [starts[i] for i in batch], policy.filler, policy.device)
    return made, torch.as_tensor(batch, device=policy.device)[made.row]


def compared(pair: Pair, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[Compared]:
    """What both models say of the tokens from `starts` on, some at a time; on the worker."""
    pair, vocab = pair.pinned(), pair.tuned.policy.vocab_size
    for batch in batches([len(s) for s in sequences]):
        worker.check()
        both = [_ahead(one, sequences, starts, batch) for one in pair.sides]
        if both[0] is None:
            continue
        (layout, row, base), (_, _, tuned) = both
        for part in tuned.parts(vocab):
            said = []
            for one, ahead in zip(pair.sides, (base, tuned), strict=True):
                with one.held():
                    said.append(scoring.softened(ahead.logits(part), 1.0).to(row.device))
            yield Compared(row[part], layout.column[part], layout.target[part], *said)


def _ahead(one: Side, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch: Sequence[int]) -> Any:
    with one.held() as policy:
        found = laid(policy, sequences, starts, batch)
        return None if found is None else (*found, scoring.predictions(policy.model, found[0]))


# -- inside the model -----------------------------------------------------------------------------------------


def blocks(policy: Policy) -> list[nn.Module]:
    """The decoder layers, the first one first. Raises SettingError for a model in which there are no such."""
    base = trunk.base_of(policy.model)
    depth = getattr(base.config.get_text_config(decoder=True), "num_hidden_layers", None)
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise SettingError(f"{type(base).__name__} is not a stack of blocks that this analysis knows how to enter.")


def whole(output: Any) -> Tensor:
    """The hidden state among what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def put(output: Any, hidden: Tensor) -> Any:
    """What a block returns, with another hidden state."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def traced(policy: Policy, edit: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Within the block the list has, after each forward, what every decoder layer gave, (B, L, D) each. `edit(layer,
    hidden)` gives another hidden state to go on with."""
    seen: list[Tensor] = []
    layers = blocks(policy)

    def noted(number: int, own: Callable[..., Any], *args: Any, **inputs: Any) -> Any:
        if number == 0:
            seen.clear()
        output = own(*args, **inputs)
        if edit is not None:
            output = put(output, edit(number, whole(output)))
        seen.append(whole(output))
        return output

    with replaced({layer: partial(noted, i, layer.forward) for i, layer in enumerate(layers)}):
        yield seen


@worker.on_worker
def means(one: Side, prompts: Sequence[Any]) -> Tensor:
    """The mean last hidden state of each prompt, (B, D) float32: a plain embedding, to find near ones by."""
    made: list[Tensor] = []
    with one.held() as policy:
        for i, prompt in enumerate(prompts):
            ids = list(map(int, prompt)) if _ids(prompt) else policy.tokens_of(prompt, i).ids
            with traced(policy) as seen:
                policy.logits(torch.as_tensor([ids], device=policy.device), 1)
            made.append(seen[-1][0].float().mean(0).cpu())
    return torch.stack(made)
