"""Critique fine-tuning (CFT): learn to judge a noisy solution instead of imitating a right one.

A row's prompt is an instruction, the question and a solution that may be wrong; its target is a critique of that
solution, ending in a verdict:

    <instruction>  Question: <question>  Solution: <solution>   ->   <critique>  Conclusion: right / wrong

The loss is that of plain SFT on the critique alone. The trained model is then asked for solutions as usual: with the
plain question, and no critique.

Rows have `prompt`, `solution`, and `critique` (a teacher's: the paper has gpt-4o's, at temperature 0.3) or `correct`,
the verdict of a verifier, of which a short critique is written by rule: our stand-in, which has the verdict and a right
solution but no reasons. `workbench.transforms.critique.sampled` makes such rows of a policy's own samples and a
verifier, `verdict_accuracy` scores verdicts: show it beside the accuracy as a solver, the two can part.

    critique_share = 1.0    of the rows become critiques, the others stay as they are. 0: plain SFT (ours)

The paper trains for 1 epoch of 50,000 rows with a learning rate of 5e-6, a cosine, 10 % warm-up, and 512 rows an
update.

Wang et al. 2025, "Critique Fine-Tuning: Learning to Critique is More Effective than Learning to Imitate",
arXiv 2501.17703. The instruction's words are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.critique import INSTRUCTION, critique


@dataclass(frozen=True, kw_only=True)
class CritiqueSettings(SFTSettings):
    """Supervised fine-tuning on critiques of solutions."""

    critique_share: float = knob(1.0, at_least=0.0, at_most=1.0, fixed=True)
    """share of the rows, drawn by the seed, that become critiques; 0: none, which is plain SFT"""
    instruction: str = knob(INSTRUCTION, fixed=True)
    """what stands before the question and the solution"""


def rows(given, settings, tokenizer):
    if settings.critique_share == 0:
        return given
    return critique(given, settings.critique_share, settings.instruction, settings.seed)


METHOD = variant("critique", CritiqueSettings, Variant(rows=rows))
