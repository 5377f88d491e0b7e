"""Settings of the methods that learn from preferences. Names, values and meanings are those of TRL 1.16's DPOConfig,
CPOConfig, ORPOConfig and KTOConfig."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from workbench.settings.base import ReferenceSettings, Settings, knob

PAIR_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "cdpo", "simpo", "cpo", "cpo_hinge", "cpo_ipo", "orpo",
)  # fmt: skip
"""the rows of `workbench.objectives.preference.LOSSES`"""
REFERENCE_FREE = ("sft", "simpo", "cpo", "cpo_hinge", "cpo_ipo", "orpo")
"""those that need no reference log-probs"""
DIFFERENCE_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft", "cdpo",
)  # fmt: skip
"""those that other f-divergences than the reverse KL go with: the partition function cancels in their difference"""
SORTED = ("aot", "aot_unpaired")
"""those that sort over the batch"""
READ_BY = {
    "label_smoothing": ("exo_pair", "robust", "aot", "aot_unpaired", "cdpo", "simpo", "cpo"),
    "discopop_tau": ("discopop",),
    "simpo_gamma": ("simpo",),
    "alpha": ("simpo", "cpo", "cpo_hinge", "cpo_ipo"),
    "cpo_alpha": ("cpo",),
}
"""setting -> the losses that read it; all but `sft` read beta"""
CPO_LOSSES = {"sigmoid": "cpo", "hinge": "cpo_hinge", "ipo": "cpo_ipo", "simpo": "simpo"}
"""what CPOConfig's names mean"""
MOVES = "sync_ref_model moves the reference, so its log-probs cannot be kept: precompute_ref_log_probs=False."
UNPAIRED_HINTS = {
    name: f"It reads single answers with a label: wb.kto(policy, rows, loss_type={name!r})."
    for name in ("kto", "apo_zero_unpaired")
}


def _unread(given: Collection[str], losses: Collection[str]) -> list[str]:
    """A sentence for each given setting that none of `losses` reads."""
    return [
        f"{setting} changes nothing: {' and '.join(losses)} does not read it. These losses do: {', '.join(readers)}."
        for setting, readers in READ_BY.items()
        if setting in given and not set(readers) & set(losses)
    ]


@dataclass(frozen=True, kw_only=True)
class PairSettings(Settings):
    """What every method on pairs takes."""

    lr: float = knob(1e-6, at_least=0.0)
    batch_size: int = knob(8, at_least=1)
    """pairs per update"""
    beta: float = knob(0.1, at_least=0.0)
    """strength of the pull to the reference, in units of reward per nat; in losses without a reference, the slope"""
    max_length: int | None = knob(1024, at_least=2, fixed=True)
    """prompt and answer are cut to so many tokens; None: never"""
    truncation_mode: str = knob("keep_start", choices=("keep_start", "keep_end"), fixed=True)
    """'keep_start' (pairs whose prompt alone fills max_length are dropped), or 'keep_end'"""
    disable_dropout: bool = True
    """train without dropout, whatever the model and the adapter say"""

    def parts(self) -> dict[str, float]:
        """The losses to add up, and their weights."""
        raise TypeError(f"{type(self).__name__} names no loss")

    def problem(self) -> str | None:
        if self.beta == 0 and set(self.parts()) - {"sft"}:
            return "beta=0 gives a constant loss, so nothing would be learned; TRL's default is 0.1."
        return super().problem()


@dataclass(frozen=True, kw_only=True)
class DPOSettings(ReferenceSettings, PairSettings):
    """Direct preference optimisation: a loss on pairs, or a weighted sum of several."""

    loss_type: str | tuple[str, ...] = knob("sigmoid", choices=PAIR_LOSSES, hints=UNPAIRED_HINTS)
    """a loss of `workbench.objectives.preference.LOSSES`, or a list of them; 'sigmoid' is that of the DPO paper"""
    loss_weights: tuple[float, ...] | None = None
    """a weight for each loss of the list; None: 1 each"""
    label_smoothing: float = knob(0.0, at_least=0.0, below=0.5)
    """how often a label is taken to be wrong"""
    f_divergence_type: str = knob(
        "reverse_kl", choices=("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    )
    """the divergence that holds the policy to the reference (f-DPO, Wang et al. 2023, arXiv 2309.16240)"""
    f_alpha_divergence_coef: float = 0.5
    """alpha of 'alpha_divergence'"""
    ld_alpha: float | None = knob(None, at_least=0.0, at_most=1.0)
    """tokens past the length of the shorter answer count so much (LD-DPO, Liu et al. 2024, arXiv 2409.06411);
    None: as much as the others"""
    use_weighting: bool = False
    """weight pairs by how likely the policy itself would write them (WPO, Zhou et al. 2024, arXiv 2406.11827)"""
    discopop_tau: float = knob(0.05, above=0.0)
    """temperature of 'discopop'"""
    simpo_gamma: float = knob(0.5, at_least=0.0)
    """target margin of 'simpo'"""
    alpha: float = 0.0
    """shape of the reward (1 - p^-alpha) / alpha in losses without a reference (AlphaPO, Gupta et al. 2025, arXiv
    2501.03884); 0: log p"""
    cpo_alpha: float = knob(1.0, at_least=0.0)
    """weight of the chosen answers' likelihood in 'cpo'"""
    precompute_ref_log_probs: bool = False
    """keep the reference's log-probs of a row in memory once they are known: no second reference pass over a row.
    They are computed in micro-batches that follow from the rows alone, so the same numbers come whatever is asked
    first; against False they differ by the last float32 digits"""

    @property
    def losses(self) -> tuple[str, ...]:
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    def parts(self) -> dict[str, float]:
        made: dict[str, float] = {}
        for name, weight in zip(self.losses, self.loss_weights or [1.0] * len(self.losses), strict=True):
            made[name] = made.get(name, 0.0) + weight
            if name == "cpo" and self.cpo_alpha:
                made["sft"] = made.get("sft", 0.0) + weight * self.cpo_alpha
        return made

    def problem(self) -> str | None:
        losses = self.losses
        if self.loss_weights is not None and len(self.loss_weights) != len(losses):
            return f"loss_weights has {len(self.loss_weights)} weights, loss_type {len(losses)} losses; give one each."
        if not any(self.parts().values()):
            return "loss_weights are all 0, so nothing would be learned."
        if "exo_pair" in losses and self.label_smoothing == 0:
            return "loss_type='exo_pair' needs label_smoothing above 0; the EXO paper takes 1e-3."
        if self.use_weighting and (found := [name for name in losses if name in SORTED]):
            return f"use_weighting does not go with {found[0]!r}, which sorts its pairs: weights would be misplaced."
        if self.f_divergence_type != "reverse_kl" and (found := [x for x in losses if x not in DIFFERENCE_LOSSES]):
            return (
                f"f_divergence_type={self.f_divergence_type!r} does not go with loss_type={found[0]!r};"
                f" it does with {', '.join(DIFFERENCE_LOSSES)}."
            )
        free = [name for name in losses if name in REFERENCE_FREE and name != "sft"]
        if free and (self.ld_alpha is not None or self.use_weighting):
            name = "use_weighting" if self.use_weighting else "ld_alpha"
            return f"{name} does not go with {free[0]!r}; it is made for losses with a reference."
        if self.sync_ref_model and self.precompute_ref_log_probs:
            return MOVES
        return super().problem()

    def unread(self, given: Collection[str]) -> list[str]:
        said = _unread(given, self.losses)
        if "f_alpha_divergence_coef" in given and self.f_divergence_type != "alpha_divergence":
            said.append("f_alpha_divergence_coef changes nothing without f_divergence_type='alpha_divergence'.")
        if set(self.losses) <= set(REFERENCE_FREE):
            idle = [name for name in ("sync_ref_model", "precompute_ref_log_probs") if getattr(self, name)]
            said += [f"{name} changes nothing: {'+'.join(self.losses)} has no reference." for name in idle]
        return said + unmoved(self, given)


@dataclass(frozen=True, kw_only=True)
class CPOSettings(PairSettings):
    """Contrastive preference optimisation and SimPO: losses on pairs without a reference, plus the likelihood."""

    loss_type: str = knob(
        "sigmoid", choices=(*CPO_LOSSES, "alphapo"), hints={"cpo": "The loss of the CPO paper is 'sigmoid' here."}
    )
    """'sigmoid' (CPO), 'hinge' (SLiC), 'ipo', 'simpo'; 'alphapo' is 'simpo' with cpo_alpha=0"""
    label_smoothing: float = knob(0.0, at_least=0.0, below=0.5)
    """how often a label is taken to be wrong"""
    cpo_alpha: float = knob(1.0, at_least=0.0)
    """weight of the chosen answers' likelihood; the SimPO paper has none: cpo_alpha=0"""
    simpo_gamma: float = knob(0.5, at_least=0.0)
    """target margin of 'simpo'"""
    alpha: float = 0.0
    """shape of the reward (1 - p^-alpha) / alpha (AlphaPO, Gupta et al. 2025, arXiv 2501.03884); 0: log p"""

    def parts(self) -> dict[str, float]:
        if self.loss_type == "alphapo":
            return {"simpo": 1.0}
        return {CPO_LOSSES[self.loss_type]: 1.0} | ({"sft": self.cpo_alpha} if self.cpo_alpha else {})

    def unread(self, given: Collection[str]) -> list[str]:
        if self.loss_type == "alphapo" and "cpo_alpha" in given:
            return ["cpo_alpha changes nothing: loss_type='alphapo' is 'simpo' without the likelihood."]
        simpo = self.loss_type in ("simpo", "alphapo")
        said = []
        if "label_smoothing" in given and self.loss_type in ("hinge", "ipo"):
            said.append("label_smoothing changes nothing: only loss_type='sigmoid' and 'simpo' read it.")
        if "simpo_gamma" in given and not simpo:
            said.append("simpo_gamma changes nothing: only loss_type='simpo' reads it.")
        return said


@dataclass(frozen=True, kw_only=True)
class ORPOSettings(PairSettings):
    """Odds-ratio preference optimisation: likelihood of the chosen text, and the odds of the answers."""

    def parts(self) -> dict[str, float]:
        return {"orpo": 1.0}

    def problem(self) -> str | None:
        return "beta=0 leaves the likelihood alone: that is wb.sft." if self.beta == 0 else super().problem()


@dataclass(frozen=True, kw_only=True)
class KTOSettings(ReferenceSettings, Settings):
    """Kahneman-Tversky optimisation: single answers, each desirable or not."""

    lr: float = knob(1e-6, at_least=0.0)
    batch_size: int = knob(8, at_least=1)
    """answers per update"""
    beta: float = knob(0.1, above=0.0)
    """strength of the pull to the reference, in units of reward per nat"""
    loss_type: str = knob("kto", choices=("kto", "apo_zero_unpaired"))
    """'kto', or 'apo_zero_unpaired', which needs no baseline"""
    desirable_weight: float = knob(1.0, at_least=0.0)
    """weight of desirable answers"""
    undesirable_weight: float = knob(1.0, at_least=0.0)
    """weight of the others. The KTO paper wants desirable_weight * desirable rows over undesirable_weight * other rows
    between 1 and 4/3"""
    max_length: int | None = knob(1024, at_least=2, fixed=True)
    """prompt and answer are cut to so many tokens, keeping the start; None: never"""
    disable_dropout: bool = True
    """train without dropout, whatever the model and the adapter say"""
    precompute_ref_log_probs: bool = False
    """keep the reference's log-probs of a row in memory once they are known (see `DPOSettings`); those that the
    baseline needs, of answers with other rows' prompts, are new at each update"""

    def problem(self) -> str | None:
        if self.loss_type == "kto" and self.batch_size < 2:
            return "loss_type='kto' needs batch_size of at least 2: its baseline pairs a prompt with another's answer."
        if self.desirable_weight == 0 and self.undesirable_weight == 0:
            return "desirable_weight and undesirable_weight are both 0, so nothing would be learned."
        if self.sync_ref_model and self.precompute_ref_log_probs:
            return MOVES
        return super().problem()

    def unread(self, given: Collection[str]) -> list[str]:
        return unmoved(self, given)


def unmoved(settings: ReferenceSettings, given: Collection[str]) -> list[str]:
    """A sentence for each given setting of a moving reference, where the reference stands still."""
    names = [] if settings.sync_ref_model else ["ref_model_mixup_alpha", "ref_model_sync_steps"]
    return [f"{name} changes nothing without sync_ref_model=True." for name in names if name in given]
