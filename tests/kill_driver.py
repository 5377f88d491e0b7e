"""Runs one GRPO run to its end through many lives, each killed with SIGKILL at a random moment, and a twin that is
never killed. Used by test_time.py as a process of its own: `kill_driver.py FOLDER KILLS SEED`."""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft  # noqa: F401  (imported before the first fork, so that a life starts quickly)
import torch
import transformers  # noqa: F401
from transformers import AutoModelForCausalLM  # noqa: F401

import workbench as wb
from tests.models import noisy_adapter
from tests.runs import letters, rows_for

SETTINGS = dict(
    steps=80, lr=1e-2, prompts_per_step=3, group_size=4, max_new_tokens=8, beta=0.05, num_iterations=2, snapshot_steps=7
)


def new_run(folder: Path, name: str):
    policy = noisy_adapter(wb.load(folder / "model").attach(wb.LoRA(r=4, alpha=8)))
    return wb.grpo(policy, wb.Task(rows_for("grpo"), rewards=[letters]), out=folder / name, **SETTINGS)


def life(folder: Path, ready: int) -> None:
    """Start the run, or go on with it, and train until killed or done; a byte goes to `ready` after each step."""
    target = folder / "killed"
    if (target / "run.db").exists():
        run = wb.resume(target, rewards=[letters])
    else:
        if target.exists():  # a life that died before step 0 was whole
            target.rename(folder / f"dead-{time.time_ns()}")
        run = new_run(folder, "killed")
    for _ in run:
        os.write(ready, b".")


def main() -> None:
    folder, wanted, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(seed)
    for _ in range(wanted):
        child, ready = born(folder)
        for _ in range(draw.choice((0, 1, 1, 2))):
            os.read(ready, 1)
        time.sleep(draw.uniform(0.0, 0.1))
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            sys.exit(f"a life ended by itself with status {status}")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
    child, ready = born(folder)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"the last life ended with status {status}")
    torch.set_num_threads(1)
    list(new_run(folder, "never"))


def born(folder: Path) -> tuple[int, int]:
    """A new life: its process and the end of a pipe that tells its steps."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    code = 1
    try:
        torch.set_num_threads(1)
        life(folder, theirs)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
