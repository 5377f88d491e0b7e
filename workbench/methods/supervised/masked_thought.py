"""Masked thought (MFT): supervised fine-tuning with holes in the answer that the model reads.

Each token of the answer is replaced in the input, with probability p, by another one: a token drawn uniformly from the
vocabulary, or the mask token. What is asked for does not change: every token of the answer, those under holes included.
So the model has to look further back than the last few words, mainly at the question.

    p(step) = rate * min(1, step / (ramp * steps))        loss = mean over trained tokens of -log p(y_t | holed prefix)

The holes are drawn anew whenever a row comes up. The paper's rates: 0.4 for GSM8K, 0.2 for MATH and for MetaMath and
MAmmoTH data, reached after two thirds of the training. The training loss is that of the holed input, so it is higher
than plain SFT's; `eval/loss` of held-out rows is the plain one.

Chen et al. 2024, arXiv 2403.02178. Like the authors' code (ChangyuChen347/MaskedThought): one independent draw a token;
prompt, attention and labels stay as they are. Differs: `replace="mask"` takes the tokenizer's mask token or, where it
has none, its pad token, where the authors add a new token to the vocabulary; a pad token that is the end token, too, is
refused, as holes would read as ends. Leaves out the variant that drops holes from attention, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from workbench import keys, tokenise, update
from workbench.errors import SettingError
from workbench.methods import sft
from workbench.methods.context import Context
from workbench.settings import SFTSettings
from workbench.settings.base import knob
from workbench.state import State


@dataclass(frozen=True, kw_only=True)
class MaskedThoughtSettings(SFTSettings):
    """Masked thought."""

    rate: float = knob(0.4, at_least=0.0, at_most=1.0)
    """the largest share of answer tokens that are replaced in the input; 0: plain SFT"""
    ramp: float = knob(2 / 3, at_least=0.0, at_most=1.0)
    """share of the steps over which the rate rises from 0 to its largest; 0: all of it from the first step"""
    replace: str = knob("random", choices=("random", "mask"))
    """what stands in a hole: 'random', a token drawn uniformly from the vocabulary, or 'mask', the mask token"""


def prepare(tokenizer: Any, rows: Any, settings: MaskedThoughtSettings) -> tokenise.Examples:
    if settings.replace == "mask" and mask_of(tokenizer) in (None, tokenizer.eos_token_id):
        lacks = (
            "and the tokenizer has neither"
            if mask_of(tokenizer) is None
            else f"and here that is {tokenizer.eos_token!r}, the end token: holes would read as ends"
        )
        raise SettingError(
            f"wb.method('masked_thought'): replace='mask' needs a mask token or a pad token, {lacks}. Take"
            " replace='random', or set the tokenizer's mask_token to a token of the vocabulary that has no other use."
        )
    return sft.prepare(tokenizer, rows, settings)


def mask_of(tokenizer: Any) -> int | None:
    return tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id


def rate_at(settings: MaskedThoughtSettings, step: int) -> float:
    """The share of replaced tokens in step 1, 2, ..."""
    rising = settings.ramp * settings.steps
    return settings.rate * (min(1.0, step / rising) if rising else 1.0)


def holed(ctx: Context, batch: update.Batch, index: int) -> tuple[list[list[int]], float] | None:
    """The batch's rows with holes in their trained tokens."""
    if not (rate := rate_at(ctx.settings, index)):
        return None
    made = []
    for row, (ids, start, weights) in enumerate(
        zip(batch.sequences, batch.starts, batch.columns["weight"], strict=True)
    ):
        draws = keys.uniforms(keys.key(ctx.settings.seed, "masked thought", index, row), 2 * len(weights))
        fill = fillers(ctx, draws[len(weights) :])
        hit = [w != 0 and draw < rate for w, draw in zip(weights, draws, strict=False)]
        own = [new if there else old for old, new, there in zip(ids[start:], fill, hit, strict=True)]
        made.append([*ids[:start], *own])
    return made, 1.0


def fillers(ctx: Context, draws: Any) -> list[int]:
    """What would stand in each place, were it a hole."""
    tokenizer = ctx.policy.tokenizer
    if ctx.settings.replace == "mask":
        return [mask_of(tokenizer)] * len(draws)
    return (draws * min(tokenizer.vocab_size, ctx.policy.vocab_size)).astype(int).tolist()


def after(state: State, ctx: Context, batch: update.Batch, index: int) -> dict[str, float]:
    read = batch.sequences if batch.inputs is None else batch.inputs
    places = zip(chain.from_iterable(read), chain.from_iterable(batch.sequences), strict=True)
    changed = sum(a != b for a, b in places)
    trained = sum(w != 0 for weights in batch.columns["weight"] for w in weights)
    return {"mask_rate": rate_at(ctx.settings, index), "masked_fraction": changed / trained}


METHOD = sft.variant("masked_thought", MaskedThoughtSettings, sft.Variant(inputs=holed, after=after), prepare=prepare)
