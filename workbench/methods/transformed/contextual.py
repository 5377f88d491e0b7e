"""Contextual fine-tuning (CFT): raw text, each piece after a prompt that says how to study it.

Continued pre-training on `text` rows with a short prompt c before each, drawn from a small pool; c is read, not
trained:

    L = - sum over t of log p(x_t | c, x_<t), over the number of trained tokens of the update

The pool has a prompt for each of the ten ways of learning that the paper names: application, in-depth exploration,
reflection, creative interpretation, synthesis, key concepts, context, critical analysis, questions, comparison. A row's
own column `context` comes first: there the paper's variant of a prompt written for just this text goes.

    prefix = "study"    or a control: "contrary" (prompts that ask for the opposite), "meaningless" (a study prompt with
                        its words in random order, of equal length), "none" (plain continued pre-training)
    prompts = None      a pool of your own

What to look at: the held-out loss with and without a prefix, and a quiz on the text, for the three arms.

Choi et al. 2025, "Teaching LLMs How to Learn with Contextual Fine-Tuning", arXiv 2503.09032. The released pipeline
names the ten ways; the prompts' words are ours, and that c is not trained is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.contextual import PREFIXES, contextual


@dataclass(frozen=True, kw_only=True)
class ContextualSettings(SFTSettings):
    """Supervised fine-tuning on texts after study prompts."""

    prefix: str = knob("study", choices=PREFIXES, fixed=True)
    """what stands before a text: 'study' (a study prompt), 'contrary', 'meaningless', or 'none': plain SFT"""
    prompts: tuple[str, ...] | None = knob(None, fixed=True)
    """the pool that prompts are drawn from; None: the ten study prompts, or their contraries"""


def rows(given, settings, tokenizer):
    if settings.prefix == "none":
        return given
    return contextual(given, settings.prefix, settings.prompts, end=tokenizer.eos_token or "", seed=settings.seed)


METHOD = variant("contextual", ContextualSettings, Variant(rows=rows))
