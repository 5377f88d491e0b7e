"""SFT on GSM8K rows, ours and TRL's: steps and tokens a second, at equal loss.

Batches of 16 rows (question, solution), LoRA on all linear layers, AdamW. Same model, same adapter, same rows in the
same order; a byte-level BPE of 2,048 ids is trained on the rows, so that lengths are real ones. A step is counted
whole: reading the rows, forward, backward, optimiser, and what each side records. Sides:

    workbench   our defaults
    trl         TRL in float32 without gradient checkpointing, which is its fastest exact setting
    trl_default TRL with nothing said about either: bfloat16 mixed precision and gradient checkpointing

In float32 the losses of both sides must agree to 1e-4 in every step, or the benchmark stops.
"""

from __future__ import annotations

import functools
import json
from itertools import islice
from pathlib import Path

import common
import training


def read(folder: Path, count: int) -> list[dict]:
    with (folder / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, count)]
    return [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in rows]


def made_up(count: int) -> list[dict]:
    return [{"prompt": f"What is {i} + {i}?\n", "completion": f"It is {2 * i}. " * (1 + i % 3)} for i in range(count)]


SFT = training.Kind("SFT", 16, read, made_up, ("completion",))

if __name__ == "__main__":
    common.run(functools.partial(training.measure, SFT), common.parser(__doc__).parse_args())
