"""What the benchmarks of SFT and DPO share: steps of both sides on the same rows, at equal loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import theirs
from common import ADAPTER, OURS
from floor import Floor, Group

import workbench as wb

VOCAB = 2048
AGREE = 1e-4
"""how far the losses of a step may be apart"""
METHODS = {"SFT": wb.sft, "DPO": wb.dpo}


@dataclass(frozen=True)
class Kind:
    """One of the two trainings."""

    name: str
    """SFT or DPO"""
    batch: int
    read: Callable[[Path, int], list[dict]]
    """so many rows from the folder of GSM8K"""
    made_up: Callable[[int], list[dict]]
    """so many rows for `--small`, which needs no data"""
    answers: tuple[str, ...]
    """the columns that stand after a prompt"""

    def groups(self, tokenizer, rows: Sequence[dict]) -> list[Group]:
        """Tokens of each prompt and of its answers, with the end token."""

        def tokens(text: str) -> int:
            return len(tokenizer(text)["input_ids"])

        return [(tokens(row["prompt"]), [tokens(row[name]) + 1 for name in self.answers]) for row in rows]

    def least(self, floor: Floor, groups: list[Group]) -> float:
        """Operations that must be done; DPO's reference is a forward pass more."""
        return floor.update(groups) + (floor.forward(groups, lora=False) if self.name == "DPO" else 0.0)


def same_losses(ours: list[float], other: list[float]) -> float:
    """The largest difference. Raises RuntimeError if it is more than AGREE."""
    apart = [abs(a - b) for a, b in zip(ours, other, strict=True)]
    if not all(difference <= AGREE for difference in apart):  # so that NaN is not let through
        raise RuntimeError(f"The losses differ by more than {AGREE}: ours {ours}, TRL's {other}.")
    return max(apart)


def compare(
    kind: Kind, folder: Path, name: str, size: tuple[int, int], rows: list[dict], batch: int, rounds: int, rate: float
) -> dict:
    """One case. Raises RuntimeError where the losses differ."""
    tokenizer = common.trained_tokenizer([text for row in rows for text in row.values()], VOCAB)
    common.model_folder(folder, size, VOCAB, tokenizer)
    policy = common.our_policy(folder, "cpu", adapter=folder / "adapter")
    how = dict(steps=rounds + 1, batch_size=batch, lr=1e-4, shuffle_dataset=False)
    run = iter(METHODS[kind.name](policy, rows, out=folder / "run", **how))
    turns = {OURS: lambda: {"loss": next(run).metrics["loss"]}}
    for side in ("trl", "trl_default"):
        trainer = theirs.trainer(
            kind.name, folder, folder / "adapter", rows, per_device_train_batch_size=batch,
            defaults=side == "trl_default",
        )  # fmt: skip
        turns[side] = theirs.steps(trainer)
    taken = common.interleave(turns, rounds)
    apart = same_losses([turn["loss"] for turn in taken[OURS]], [turn["loss"] for turn in taken["trl"]])
    groups = kind.groups(tokenizer, rows[batch:])
    tokens = sum(len(rest) * prompt + sum(rest) for prompt, rest in groups) / rounds
    found = {side: common.summary(counted) for side, counted in taken.items()}
    for summary in found.values():
        summary |= {"steps_per_second": 1 / summary["median"], "tokens_per_second": tokens / summary["median"]}
    settings = {"hidden": size[0], "layers": size[1], "batch": batch, "vocab": VOCAB, "tokens": tokens}
    least = kind.least(Floor.of(policy.model.config, ADAPTER["r"]), groups) / rounds / rate
    result = common.case(name, found, floor=least, settings=settings, apart=apart)
    common.say(f"{name}: {result['ratio']}")
    return result


def measure(kind: Kind, options, folder: Path) -> dict:
    """The line of the benchmark. Raises SystemExit where GSM8K is not there."""
    started = time.perf_counter()
    flops = common.rate()
    batch = 2 if options.small else kind.batch
    count = (options.rounds + 1) * batch
    if options.small:
        rows = kind.made_up(count)
    elif (data := common.gsm8k()) is None:
        raise SystemExit("GSM8K is not there: put it into shared/data/gsm8k, or name its parent in WORKBENCH_DATA.")
    else:
        rows = kind.read(data, count)
    cases = [
        compare(kind, folder / name, name, size, rows, batch, options.rounds, flops)
        for name, size in common.sizes(options).items()
    ]
    return common.line(kind.name.lower(), cases, started, flops=flops)
