"""DPO on right and wrong solutions of GSM8K, ours and TRL's: steps and tokens a second, at equal loss.

Batches of 8 pairs: a question, a right and a wrong solution of it by a language model. What is counted, the sides and
the rest are those of `bench_sft.py`. The reference is the policy as it began, on both sides, and computed within the
step.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import common
import training

WRITERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def read(folder: Path, count: int) -> list[dict]:
    pairs = []
    for line in (folder / "example_model_solutions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        right, wrong = ([row[w]["solution"] for w in WRITERS if row[w]["is_correct"] is good] for good in (True, False))
        if right and wrong and len(pairs) < count:
            pairs.append({"prompt": row["question"] + "\n", "chosen": right[0], "rejected": wrong[0]})
    return pairs


def made_up(count: int) -> list[dict]:
    return [{"prompt": f"What is {i} + {i}?\n", "chosen": f"{2 * i}", "rejected": f"{i} or so"} for i in range(count)]


DPO = training.Kind("DPO", 8, read, made_up, ("chosen", "rejected"))

if __name__ == "__main__":
    common.run(functools.partial(training.measure, DPO), common.parser(__doc__).parse_args())
