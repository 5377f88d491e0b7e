"""Settings of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.settings.base import Settings, knob


@dataclass(frozen=True, kw_only=True)
class SFTSettings(Settings):
    """Supervised fine-tuning."""

    lr: float = knob(2e-5, at_least=0.0)
    batch_size: int = knob(8, at_least=1)
    """rows per update"""
    max_length: int | None = knob(1024, at_least=2, fixed=True)
    """longer rows are cut to so many tokens (counted and shown); None: never"""
    truncation_mode: str = knob("keep_start", choices=("keep_start", "keep_end"), fixed=True)
    """'keep_start' or 'keep_end': which part of an over-long row is kept"""
    loss_type: str = knob("nll", choices=("nll",))
    """'nll': mean negative log-likelihood of the trained tokens of the update"""
    assistant_only_loss: bool = knob(False, fixed=True)
    """train on the assistant's turns of `messages` only"""
    completion_only_loss: bool | None = knob(None, fixed=True)
    """train on the completion only; None: where rows have a prompt and a completion"""
