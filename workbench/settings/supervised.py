"""Settings of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from workbench.settings.base import Settings, knob


@dataclass(frozen=True, kw_only=True)
class SFTSettings(Settings):
    """Supervised fine-tuning."""

    lr: float = knob(2e-5, at_least=0.0)
    batch_size: int = knob(8, at_least=1)
    """rows per update; with `packing`, packs"""
    max_length: int | None = knob(1024, at_least=2, fixed=True)
    """longer rows are cut to so many tokens (counted and shown); None: never. With `packing`, the size of a pack"""
    truncation_mode: str = knob("keep_start", choices=("keep_start", "keep_end"), fixed=True)
    """'keep_start' or 'keep_end': which part of an over-long row is kept"""
    loss_type: str = knob(
        "nll", choices=("nll", "dft"), hints={"chunked_nll": "TRL's 'chunked_nll' is 'nll' under an older name."}
    )
    """the loss of a token: 'nll', its negative log-likelihood, or 'dft', that times its probability (dynamic
    fine-tuning, Wu et al. 2025, arXiv 2508.05629)"""
    label_smoothing_factor: float = knob(0.0, at_least=0.0, below=1.0)
    """share of each target that is spread over the whole vocabulary; with loss_type='nll'"""
    loss_reduction: str = knob("token", choices=("token", "weight", "row"))
    """how token losses become one number: 'token' (weighted sum over the number of trained tokens of the update),
    'weight' (over the sum of their weights), 'row' (mean over rows of each row's mean). They differ where rows carry
    weights, 'row' also where lengths differ"""
    assistant_only_loss: bool = knob(False, fixed=True)
    """train on the assistant's turns of `messages` only"""
    completion_only_loss: bool | None = knob(None, fixed=True)
    """train on the completion only; None: where rows have a prompt and a completion"""
    packing: bool = knob(False, fixed=True)
    """put several rows into one pack of up to `max_length` tokens; `batch_size` and `micro_batch_size` count packs"""
    packing_strategy: str = knob("bfd", choices=("bfd", "bfd_split", "wrapped"), fixed=True)
    """'bfd': best fit, longer rows lose their end; 'bfd_split': best fit, longer rows become several, which do not see
    each other; 'wrapped': one stream cut where a pack is full. Rows of a 'wrapped' pack see each other, of the others
    they never do"""
    eval_packing: bool | None = knob(None, fixed=True)
    """pack held-out rows; None: as `packing`. It changes numbers only where rows are split or wrapped"""

    def problem(self) -> str | None:
        if (self.packing or self.eval_packing) and self.max_length is None:
            return "packing needs a max_length, the size of a pack in tokens; max_length=None has none."
        if self.label_smoothing_factor and self.loss_type != "nll":
            return f"label_smoothing_factor goes with loss_type='nll'; {self.loss_type!r} would ignore it."
        return None

    def unread(self, given: Collection[str]) -> list[str]:
        if "packing_strategy" in given and not (self.packing or self.eval_packing):
            return ["packing_strategy changes nothing without packing=True."]
        return []

    def for_evaluation(self) -> SFTSettings:
        return self if self.eval_packing is None else replace(self, packing=self.eval_packing)
