"""Structure, not content: SFT on chains that are disturbed in one way, to see which of the two a model learns from.

    perturbation    what is disturbed, by strength f
    shuffle         structure: a share f of a chain's steps change places
    delete          structure: a share f of its steps is gone
    insert          structure: as many steps of other rows come in between
    digits          content: each digit becomes another one with probability f
    numbers         content: each number becomes a whole number from 0 to 10 with probability f (the released script)
    keywords        content: each "wait", "alternatively", ... goes with probability f
    wrong           content: a share f of the rows teach a wrong answer, from the column `wrong`

    strength = 1.0    f. 0: plain SFT

A chain is what stands between thinking tags, else all but the last step of an answer; its steps are its paragraphs, or
its lines where it has no empty one. Train one adapter for each perturbation on equal data and compare: the paper finds
accuracy flat in f for content (3.2 % lost with wrong answers) and falling for structure.
`workbench.transforms.perturb.wrong_answers` takes wrong answers from a policy's samples.

Li et al. 2025, "LLMs Can Easily Learn to Reason from Demonstrations Structure, not content, is what matters!", arXiv
2502.07374, with 17,000 rows and Qwen2.5-32B-Instruct. Of its perturbations only that of numbers is in the released
code; the others follow the abstract, and how steps are drawn is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.perturb import KINDS, perturb


@dataclass(frozen=True, kw_only=True)
class PerturbSettings(SFTSettings):
    """Supervised fine-tuning on disturbed chains."""

    perturbation: str = knob("shuffle", choices=tuple(KINDS), fixed=True)
    """what is disturbed: 'shuffle', 'delete', 'insert' (steps), 'digits', 'numbers', 'keywords', 'wrong' (content)"""
    strength: float = knob(1.0, at_least=0.0, at_most=1.0, fixed=True)
    """how much of it, from 0 (nothing, which is plain SFT) to 1"""


def rows(given, settings, tokenizer):
    if settings.strength == 0:
        return given
    return perturb(given, settings.perturbation, settings.strength, settings.seed)


METHOD = variant("perturb", PerturbSettings, Variant(rows=rows))
