"""Question-free fine-tuning (QFFT): learn long answers without learning that a question calls for one.

The question is deleted from every row. What is left is the text of the answer alone: no system or user turn, no role,
no chat template and, as in the released template, no end token. All its tokens train:

    L = - sum over t of log p(R_t | R_<t), over the number of trained tokens of the update

The model is sampled with its usual prompt afterwards. It keeps its short style where that does, and falls back on the
reflective style of the answers R where it gets stuck. The answers are to be long chains of a reasoning model.

    question_share = 0.0    of the rows keep their question, which is read and not trained (the paper's control: even
                            few of them undo most of the effect). 1: plain SFT
    end_token = False       the end token is trained after the answers without a question, too

The first token has nothing before it and is not scored, unless the tokenizer has a start token. The released runs took
1.0e-5 as the learning rate with a cosine and 10 % warm-up, 6 epochs, weight decay 1e-4 and rows of up to 16384 tokens.
`workbench.transforms.question_free` has the transform alone, and RAK (`rak`), the paper's measure of whether a model
thinks long just where it has to; what is long can be told by counting words of reflection (`reflections`), a stand-in.

Liu et al. 2025, "QFFT, Question-Free Fine-Tuning for Adaptive Reasoning", arXiv 2506.12860; settings are those of the
released code. Rows with a question must be plain text where `question_share` is between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.question_free import question_free


@dataclass(frozen=True, kw_only=True)
class QuestionFreeSettings(SFTSettings):
    """Supervised fine-tuning on answers without their question."""

    question_share: float = knob(0.0, at_least=0.0, at_most=1.0, fixed=True)
    """share of the rows, drawn by the seed, that keep their question; 1: all, which is plain SFT"""
    end_token: bool = knob(False, fixed=True)
    """train the end token after answers without a question, too"""


def rows(given, settings, tokenizer):
    if settings.question_share == 1:
        return given
    end = tokenizer.eos_token or ""
    return question_free(given, settings.question_share, end=end, end_token=settings.end_token, seed=settings.seed)


METHOD = variant("question_free", QuestionFreeSettings, Variant(rows=rows))
