"""Long-short mixture (LS-Mixture SFT): each problem with its long chain and with a short rewrite of it.

A rewriter turns a long chain into a short one that keeps the order of its steps and its turning points. The rewrite is
used only where its final answer is that of the long chain and it is shorter in tokens. Training is plain SFT on the
shuffled union, so the model learns to reason without learning to ramble; when asked, it is told to think in balance
(`workbench.transforms.ls_mixture.BALANCED`).

    mix_ratio = 1.0    share of the usable rewrites that go in. 0: the long chains alone, plain SFT

Rows have the long chain in the completion and the rewrite, text, in the column `short`; where it is None or not usable,
the long chain stays alone (our reading: the sources do not say). `workbench.transforms.ls_mixture.rewritten` fills the
column by any function of a row, `by_policy` asks a policy. Answers are compared as `final_answer` reads them: the last
box, or the number that the text ends on.

Yu et al. 2025, "Long-Short Chain-of-Thought Mixture Supervised Fine-Tuning Eliciting Efficient Reasoning in Large
Language Models", arXiv 2505.03469: Qwen2.5-72B-Instruct rewrites s1K-1.1, Qwen2.5-32B-Instruct learns. The rewriting
prompt's words are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods.sft import Variant, variant
from workbench.settings.base import knob
from workbench.settings.supervised import SFTSettings
from workbench.transforms.ls_mixture import ls_mixture


@dataclass(frozen=True, kw_only=True)
class LsMixtureSettings(SFTSettings):
    """Supervised fine-tuning on long chains and short rewrites."""

    mix_ratio: float = knob(1.0, at_least=0.0, at_most=1.0, fixed=True)
    """share of the usable rewrites that are trained on, beside all long chains; 0: none, which is plain SFT"""


def rows(given, settings, tokenizer):
    if settings.mix_ratio == 0:
        return given

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    return ls_mixture(given, settings.mix_ratio, length=tokens, seed=settings.seed)


METHOD = variant("ls_mixture", LsMixtureSettings, Variant(rows=rows))
