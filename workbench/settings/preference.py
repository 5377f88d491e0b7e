"""Settings of the methods that learn from preferences."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.settings.base import ReferenceSettings, Settings, knob


@dataclass(frozen=True, kw_only=True)
class DPOSettings(ReferenceSettings, Settings):
    """Direct preference optimisation."""

    lr: float = knob(1e-6, at_least=0.0)
    batch_size: int = knob(8, at_least=1)
    """pairs per update"""
    beta: float = knob(0.1, at_least=0.0)
    """strength of the pull to the reference, in units of reward per nat"""
    loss_type: str = knob("sigmoid", choices=("sigmoid",))
    """'sigmoid': the loss of the DPO paper"""
    max_length: int | None = knob(1024, at_least=2, fixed=True)
    """prompt and answer are cut to so many tokens, keeping the start"""
    disable_dropout: bool = True
    """train without dropout, whatever the model and the adapter say"""

    def problem(self) -> str | None:
        if self.beta == 0:
            return "beta=0 gives a constant loss, so nothing would be learned; TRL's default is 0.1."
        return None
