"""What a planned run will do at its fullest: the longest update that its rows, or its settings, lead to.

With data the rows are those that the run will draw, as it will tokenise them; without, all are as long as the settings
allow. Completions that are still to be sampled count as long as they may get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench import methods, trunk, update
from workbench.errors import SettingError
from workbench.methods import dpo, kto, rl_batch, sft
from workbench.methods.context import Context
from workbench.objectives import Objective
from workbench.objectives.policy_gradient import objective as policy_gradient
from workbench.objectives.preference import LOSSES

PROMPT = 128
"""tokens of a prompt, where nothing says how many"""
DRAWN = 200_000
"""rows that are looked through for the longest update"""


@dataclass(frozen=True)
class Work:
    """The largest update of a run, and what its step does before."""

    batch: update.Batch
    """the rows of the update"""
    objective: Objective
    scored: update.Batch | None = None
    """what is scored without gradients: by the reference, or before several updates on it"""
    prompts: tuple[int, ...] = ()
    """tokens of each prompt that is sampled from"""
    updates: int = 1
    """updates a step"""
    reference: bool = False
    """whether a copy of the weights at the beginning is needed"""


def work(policy: Any, method: methods.Method, settings: Any, data: Any, prompt_tokens: int | None) -> Work:
    """The largest update of `method` on prepared `data` (None: as long as the settings allow).

    Raises SettingError where prompt and completion do not fit into the model's context.
    """
    make = {"sft": _sft, "dpo": _pairs, "cpo": _pairs, "orpo": _pairs, "kto": _answers, "grpo": _rollouts}
    if method.name not in make:
        raise SettingError(
            f"There is no forecast of {method.name!r}. It changes one or two places of its loop; forecast that:"
            f" {', '.join(make)}."
        )
    return make[method.name](policy, Context(policy, settings, data), prompt_tokens)


def _sft(policy: Any, ctx: Context, prompt_tokens: int | None) -> Work:
    objective = sft.objective(ctx.settings)
    if ctx.data is None:
        texts = _texts(policy, ctx.settings, prompt_tokens or 1, ctx.settings.batch_size)
        return Work(update.Batch(*texts), objective)
    lengths = [
        sum(len(document.ids) for document in (item if isinstance(item, tuple) else (item,))) for item in ctx.data.items
    ]
    return Work(sft.batch_of(None, ctx, [ctx.data.items[row] for row in _longest(ctx, lengths)]), objective)


def _pairs(policy: Any, ctx: Context, prompt_tokens: int | None) -> Work:
    losses = [LOSSES[name] for name in ctx.settings.parts()]
    whole, reference = any(loss.whole for loss in losses), any(loss.reference for loss in losses)
    if ctx.data is None:
        given = _prompt(policy, prompt_tokens, _context(policy, ctx.settings.max_length) - 1)
        sequences, starts = _texts(policy, ctx.settings, given, 2 * ctx.settings.batch_size, 2)
        answers = update.Batch(sequences, starts, unit=2)
        batch = update.Batch(sequences, [1] * len(starts), unit=2) if whole else answers
    else:
        lengths = [max(len(ids) for ids, _ in pair.sequences()) for pair in ctx.data.items]
        items = [ctx.data.items[row] for row in _longest(ctx, lengths)]
        answers, batch = dpo.make_batch(items), dpo.make_batch(items, whole)
    return Work(batch, dpo.PLAIN.objective(ctx.settings, 1), answers if reference else None, reference=reference)


def _answers(policy: Any, ctx: Context, prompt_tokens: int | None) -> Work:
    if ctx.data is None:
        given = _prompt(policy, prompt_tokens, _context(policy, ctx.settings.max_length) - 1)
        batch = update.Batch(*_texts(policy, ctx.settings, given, ctx.settings.batch_size))
    else:
        lengths = [len(item.prompt) + len(item.completion) for item in ctx.data.items]
        items = [ctx.data.items[row] for row in _longest(ctx, lengths)]
        batch = kto.joined(ctx, items, [item.completion for item in items])
    return Work(batch, kto.objective(ctx), batch, reference=True)


def _rollouts(policy: Any, ctx: Context, prompt_tokens: int | None) -> Work:
    settings = ctx.settings
    if ctx.data is None:
        room = _context(policy, None) - settings.max_new_tokens
        if room < 1:
            raise SettingError(
                f"max_new_tokens={settings.max_new_tokens} leaves no room for a prompt within the"
                f" {_context(policy, None)} tokens this model can see."
            )
        prompts = [_prompt(policy, prompt_tokens, room)] * settings.prompts_per_step
    else:
        lengths = [len(prompt.ids) for prompt in ctx.data.prompts]
        prompts = [lengths[row] for row in _longest(ctx, lengths, settings.prompts_per_step)]
    sequences, starts = [], []
    for number, length in enumerate(prompts):
        for _ in range(settings.group_size):
            sequences.append(_text(policy, length + settings.max_new_tokens, number))
            starts.append(length)
    whole = update.Batch(sequences, starts)
    parts = rl_batch.split(settings, 1, len(whole))
    updates = len(parts) * settings.num_iterations
    before = updates > 1 or settings.beta > 0 or settings.sampler_correction is not None
    return Work(
        whole.take(max(parts, key=lambda rows: sum(len(sequences[row]) for row in rows))),
        policy_gradient(settings),
        whole if before else None,
        tuple(prompts),
        updates,
        reference=settings.beta > 0,
    )


def _longest(ctx: Context, lengths: Sequence[int], count: int | None = None) -> list[int]:
    """The rows that the run draws together among which the longest is, the fullest of such."""
    count = count or ctx.settings.batch_size
    drawn = [row for row, _ in ctx.draw_from(0, min(ctx.settings.steps * count, DRAWN // count * count), len(lengths))]
    steps = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    return max(steps, key=lambda rows: (max(lengths[row] for row in rows), sum(lengths[row] for row in rows)))


def _texts(
    policy: Any, settings: Any, prompt: int, rows: int, unit: int = 1
) -> tuple[list[list[int]], list[int]]:
    """Rows of the settings' greatest length, after a prompt that each unit has to itself."""
    length = _context(policy, settings.max_length)
    start = min(prompt, length - 1)
    return [_text(policy, length, row // unit) for row in range(rows)], [start] * rows


def _text(policy: Any, length: int, number: int) -> list[int]:
    """Ids of which nothing matters but how many they are, and that another number begins otherwise."""
    first = number % policy.vocab_size
    return [first, number // policy.vocab_size, *[policy.filler] * length][:length]


def _prompt(policy: Any, given: int | None, room: int) -> int:
    if given is not None and given > room:
        raise SettingError(f"prompt_tokens={given}: with these settings a prompt has at most {room} tokens.")
    return min(PROMPT, room) if given is None else given


def _context(policy: Any, most: int | None) -> int:
    """The tokens of the longest text: what the settings allow, within what the model can see."""
    config = trunk.base_of(policy.model).config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    return min(value for value in (most, limit, 2**20) if value)
