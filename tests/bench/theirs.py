"""The other side: TRL 1.16 with transformers' generation, at the settings that are best for it on this machine.

Float32 on the CPU, bfloat16 on a GPU; all rows in one batch, no gradient checkpointing, nothing saved, nothing printed,
no progress bar. It logs every step, as ours does. The model and the adapter are the other side's, read from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

ENDLESS = 100_000
"""steps of a trainer; it is left standing when the rounds are over"""


def model(folder: Path, adapter: Path, device: str = "cpu", trainable: bool = True):
    """The model of `folder` with the adapter of `adapter`."""
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    return PeftModel.from_pretrained(base.to(device), adapter, is_trainable=trainable)


def trainer(
    kind: str,
    folder: Path,
    adapter: Path,
    rows: list[dict],
    *,
    device: str = "cpu",
    defaults: bool = False,
    more: dict[str, Any] | None = None,
    **settings: Any,
):
    """TRL's trainer of that `kind` (SFT, DPO, GRPO) on the rows in the order given. `defaults`: its own precision and
    gradient checkpointing (bfloat16 mixed precision and checkpointing in 1.16)."""
    import trl
    from datasets import Dataset

    common: dict[str, Any] = dict(
        output_dir=str(folder / "trl"), use_cpu=device == "cpu", max_steps=ENDLESS, learning_rate=1e-4, seed=0,
        lr_scheduler_type="constant", max_grad_norm=1.0, logging_steps=1, report_to="none", save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    if kind == "GRPO":
        common["shuffle_dataset"] = False
    else:
        common["train_sampling_strategy"] = "sequential"
    if not defaults:
        common |= dict(gradient_checkpointing=False, bf16=device == "cuda")
    made = getattr(trl, f"{kind}Trainer")(
        model=model(folder, adapter, device),
        args=getattr(trl, f"{kind}Config")(**common | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        **more or {},
    )
    made.remove_callback(PrinterCallback)
    return made


class Pause(TrainerCallback):
    """Hands control back after every step."""

    def __init__(self, back: greenlet):
        self.back = back

    def on_step_end(self, args, state, control, **how):
        self.back.switch()


def steps(made: Any, counted: Callable[[Any], dict[str, float]] = lambda trainer: {}) -> Callable[[], dict[str, float]]:
    """One step of TRL's own `train()` for each call, then `counted(trainer)`.

    `train()` does not return between steps, so it runs in a coroutine on this very thread. A turn lasts from the end
    of a step to the end of the next one: reading rows, the step, the optimiser and the log of the step before.
    """
    made.add_callback(Pause(getcurrent()))
    training = greenlet(made.train)
    step, losses = made.training_step, []

    def noting(*inputs, **how):
        losses.append(step(*inputs, **how))
        return losses[-1]

    made.training_step = noting  # its log rounds the loss

    def turn() -> dict[str, float]:
        training.switch()
        if training.dead:
            raise RuntimeError("TRL's training ended before the benchmark did.")
        return {"loss": float(losses.pop()), **counted(made)}

    return turn


def metric(made: Any, name: str) -> float:
    """The last value of one of the trainer's own metrics."""
    return float(made._metrics["train"][name][-1])
