"""SSR, selective self-rehearsal: train on the policy's own answer where it is acceptable, else on the written one.

One pass over the rows with the policy as it is: y' = its answer. A judge says whether y' is as good as the written
answer y. Then ordinary fine-tuning on

    target(x) = y'  if the judge accepts it,  else y

so that the weights move only where they have to, and less of what the model knew is lost. The judge is the task's
verdict, or any reward function of the task that `judge` names; it accepts by `accept` (1.0) or more.

Gupta et al. 2024, "Selective Self-Rehearsal: A Fine-Tuning Approach to Improve Generalization in Large Language
Models", arXiv 2409.04787. There the judge is a larger model, and an adapter is trained. One greedy answer, as there.

With tiers=["gold"], or a judge that accepts nothing, this is wb.sft on the written answers, batch for batch. Differs:
learning rate and batch are those of wb.sft, for the paper's were not found.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.methods import tiers
from workbench.methods.bootstrap import method


@dataclass(frozen=True, kw_only=True)
class SsrSettings(tiers.TierSettings):
    """Selective self-rehearsal."""


METHOD = method("ssr", SsrSettings, tiers.phases, tiers.check)
