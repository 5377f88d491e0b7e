"""Runs one self-training run to its end through lives that kill themselves, while they sample and while they fit. Used
by test_selftraining_rounds.py as a process of its own: `selftraining_driver.py FOLDER THREADS`. Its last line: how each
life ended, and the steps that it sampled."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft  # noqa: F401  (imported before the first fork, so that a life starts quickly)
import torch
import transformers  # noqa: F401
from transformers import AutoModelForCausalLM  # noqa: F401

import workbench as wb
from tests.test_selftraining_rounds import two_rounds
from workbench.methods import bootstrap, sft

DEATHS = ("sample 2", "fit 4", None)


def going(folder: Path):
    if (folder / "killed" / "run.db").exists():
        return wb.resume(folder / "killed")
    return two_rounds(wb.load("tiny").attach(wb.LoRA(r=4)), folder / "killed")


def life(folder: Path, death: str | None) -> None:
    """Go on with the run; die within the step that `death` names, its work done and not committed."""
    run = going(folder)
    gather, fit = bootstrap.gather, sft.fit

    def gathering(state, ctx, index, rows, asks):
        made = gather(state, ctx, index, rows, asks)
        with open(folder / "sampled", "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {index}\n")
        die(f"sample {index}")
        return made

    def fitting(state, ctx, items, index):
        made = fit(state, ctx, items, index)
        die(f"fit {state.step + 1}")
        return made

    def die(here: str) -> None:
        if here == death:
            os.kill(os.getpid(), signal.SIGKILL)

    bootstrap.gather, sft.fit = gathering, fitting
    list(run)


def main() -> None:
    folder = Path(sys.argv[1])
    lives, pids = [], []
    for death in DEATHS:
        child = os.fork()
        if not child:
            code = 1
            try:
                torch.set_num_threads(int(sys.argv[2]))
                life(folder, death)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(child)
        _, status = os.waitpid(child, 0)
        lives.append("killed" if os.WIFSIGNALED(status) else "finished" if status == 0 else "failed")
    noted = [tuple(map(int, line.split())) for line in (folder / "sampled").read_text().splitlines()]
    print(json.dumps({"lives": lives, "sampled": [[step for pid, step in noted if pid == own] for own in pids]}))


if __name__ == "__main__":
    main()
