"""S3FT, selective self-to-supervised fine-tuning: own answers, then own words for the written answer, then that.

For each row the first target that the judge accepts:

    1 self        the policy's own answer to the question
    2 paraphrase  its rewording of the written answer, asked for where 1 was not accepted
    3 gold        the written answer

All are made by the policy as it is when the round begins; then ordinary fine-tuning. It is `ssr` with a tier between.

Gupta et al. 2025, "Selective Self-to-Supervised Fine-Tuning for Generalization in Large Language Models", arXiv
2502.08130. There answer matches and tests judge mathematics and code, a model judges reading. With
tiers=["self", "gold"] this is `ssr`, with tiers=["gold"] it is wb.sft on the written answers, batch for batch.

Differs: the words that ask for a paraphrase are ours (`rephrase`). A paraphrase that repeats the written answer counts
as gold.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods import tiers
from workbench.methods.bootstrap import method
from workbench.settings.base import knob


@dataclass(frozen=True, kw_only=True)
class S3ftSettings(tiers.TierSettings):
    """Selective self-to-supervised fine-tuning."""

    tiers: tuple[str, ...] = knob(tiers.TIERS, choices=tiers.TIERS, fixed=True)


METHOD = method("s3ft", S3ftSettings, tiers.phases, tiers.check)
