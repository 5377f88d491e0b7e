"""Progressive thought refinement (PTR): see earlier drafts, learn the better answer.

A row is a question, drafts y_1 ... y_n of a weak model, a request to refine, and the better answer of a strong one.
Only that answer trains:

    L = - sum over t of log p(y_t | q, y_1, ..., y_n, refine, y_<t), over the number of trained tokens of the update

so the model learns to improve on what is there, without labels of right and wrong. When sampled, it is asked again with
the same request for 2 or 3 rounds (`workbench.transforms.thought_mask.refined`; `turned` counts what a round turned
from right to wrong and back).

    drafts = 3           the last so many of a row's column `drafts` are shown. 0: plain SFT on the better answer
    refine = ...         the request
    min_overlap = 0.0    rows whose last draft shares less of its words with the answer are left out: a plain stand-in
                         for the paper's check that draft and answer belong together

`workbench.transforms.thought_mask.drafted` samples drafts from a policy.

Du et al. 2024, "Think Thrice Before You Act: Progressive Thought Refinement in Large Language Models", arXiv
2410.13413. The paper's loss has two further terms, of consistency between drafts and of confidence; the released
trainer has the masked likelihood alone, and so has this. They train 3 epochs of about 40,000 rows of up to 4096 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.thought_mask import REFINE, thought_mask


@dataclass(frozen=True, kw_only=True)
class ThoughtMaskSettings(SFTSettings):
    """Supervised fine-tuning on answers that improve on drafts."""

    drafts: int = knob(3, at_least=0, fixed=True)
    """how many drafts are shown, the last of a row; 0: none, which is plain SFT"""
    refine: str = knob(REFINE, fixed=True)
    """what asks for the better answer"""
    min_overlap: float = knob(0.0, at_least=0.0, at_most=1.0, fixed=True)
    """least share of words that a row's last draft and its answer have in common"""


def rows(given, settings, tokenizer):
    if settings.drafts == 0:
        return given
    return thought_mask(given, settings.drafts, settings.refine, settings.min_overlap)


METHOD = variant("thought_mask", ThoughtMaskSettings, Variant(rows=rows))
