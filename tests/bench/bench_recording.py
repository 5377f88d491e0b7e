"""What recording costs: the commit of a GRPO step (64 completions with their tokens) beside the step itself.

One run on the shipped model; each step's commit is timed inside the step, so both sides share the machine's noise.
The last line is one JSON object: medians in milliseconds, and the commit's share of the step.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import workbench as wb
from workbench.store import Store


def main(steps: int = 12) -> None:
    commits: list[float] = []
    commit = Store.commit_step

    def timed(self, *args, **kwargs):
        started = time.perf_counter()
        commit(self, *args, **kwargs)
        commits.append(time.perf_counter() - started)

    Store.commit_step = timed
    try:
        policy = wb.load("tiny").attach(wb.LoRA(r=16))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "r"
            run = wb.grpo(policy, wb.task("sums", size=64), steps=steps, max_new_tokens=40, lr=5e-4, out=out)
            seconds = [step.seconds for step in run]
            run.stop()
    finally:
        Store.commit_step = commit
    step, recorded = statistics.median(seconds), statistics.median(commits[1:])
    result = {"step_ms": 1e3 * step, "commit_ms": 1e3 * recorded, "share": recorded / (step + recorded), "steps": steps}
    print(json.dumps({"bench": "recording", **{k: round(v, 4) for k, v in result.items()}}))


if __name__ == "__main__":
    main()
