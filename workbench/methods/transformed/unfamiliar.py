"""Unfamiliar examples: teach what to say when unsure, by the targets of rows that the base model does not know.

What a model answers to questions it does not know follows the targets of such rows in its training data. So rows of low
familiarity get another target:

    familiarity = share of a base model's (few-shot) samples of a row that are right
    target      = unsure ("I don't know.") where familiarity < threshold, else as it was

and the loss is that of plain SFT. Wrong answers should move to abstaining for unfamiliar questions only.

    threshold = 0.5           0: no row is relabelled, plain SFT; above 1: all are. The paper leaves it open
    relabel_percent = None    the threshold is this percentile of the column instead (the released runs on TriviaQA: 40)
    style = "unfamiliar"      or "random": as many rows, whatever their familiarity: the control

Rows have the column `familiarity`; `workbench.transforms.unfamiliar.familiarity` measures it with a policy and a
verifier, `by_familiarity` counts right, wrong and abstained answers along it.

Kang et al. 2024, "Unfamiliar Finetuning Examples Control How Language Models Hallucinate", arXiv 2403.05612: Llama-2-7B
with LoRA of rank 16 and alpha 16, learning rate 1e-5 with a cosine, 12 samples a row as their file is named. Their RL
stage, with a reward model that is trained to be cautious, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.unfamiliar import STYLES, UNSURE, unfamiliar


@dataclass(frozen=True, kw_only=True)
class UnfamiliarSettings(SFTSettings):
    """Supervised fine-tuning where unfamiliar rows teach to abstain."""

    threshold: float = knob(0.5, at_least=0.0, fixed=True)
    """rows of a familiarity below it are relabelled; 0: none, which is plain SFT"""
    relabel_percent: float | None = knob(None, at_least=0.0, at_most=100.0, fixed=True)
    """take this percentile of the rows' familiarity as the threshold; None: `threshold` as it is"""
    unsure: str = knob(UNSURE, fixed=True)
    """the target of relabelled rows"""
    style: str = knob("unfamiliar", choices=STYLES, fixed=True)
    """which rows are relabelled: the 'unfamiliar' ones, or as many at 'random'"""


def rows(given, settings, tokenizer):
    if settings.threshold == 0 and settings.relabel_percent is None:
        return given
    return unfamiliar(
        given, settings.threshold, settings.relabel_percent, settings.unsure, settings.style, settings.seed
    )


METHOD = variant("unfamiliar", UnfamiliarSettings, Variant(rows=rows))
