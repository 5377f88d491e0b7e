"""How long one waits: for the import, and from the start of a process to the first finished step of GRPO.

Each turn is a fresh process. "import": `import workbench`, `import trl` (which loads its trainers only when they are
named) and `from trl import GRPOTrainer`; the floor is a Python that imports nothing. "first step": both sides load the
shipped model, attach LoRA and make one step of 8 prompts x 8 completions of up to 40 tokens with the same reward; the
clock stops when the process says that the step is done. Files are in the system's cache: a warm-up turn comes first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import common
from common import OURS

MODEL = common.ROOT / "workbench" / "models" / "tiny"
IMPORTS = {
    OURS: "import workbench",
    "trl": "import trl",
    "trl_trainer": "from trl import GRPOConfig, GRPOTrainer",
    "python": "pass",
}
REWARD = """
import json, sys, warnings
warnings.simplefilter("ignore")
model, rows, out = sys.argv[1:]
rows = json.load(open(rows))
def reward(completions, answer, **columns):
    return [float(text.strip().endswith(a)) for text, a in zip(completions, answer)]
"""
OUR_STEP = REWARD + """
import workbench as wb
policy = wb.load(model, device="cpu").attach(wb.LoRA(r=16, alpha=32))
run = wb.grpo(policy, wb.Task(rows, rewards=[reward]), steps=1, max_new_tokens=40, lr=1e-5, out=out)
next(iter(run))
print("done", flush=True)
"""
THEIR_STEP = REWARD + """
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
class Say(TrainerCallback):
    def on_step_end(self, args, state, control, **how):
        print("done", flush=True)
args = GRPOConfig(
    output_dir=out, use_cpu=True, bf16=False, gradient_checkpointing=False, per_device_train_batch_size=64,
    num_generations=8, max_completion_length=40, learning_rate=1e-5, max_steps=1, logging_steps=1, report_to="none",
    save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    model_init_kwargs={"dtype": "float32"},
)
GRPOTrainer(
    model, reward_funcs=[reward], args=args, train_dataset=Dataset.from_list(rows), callbacks=[Say()],
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
).train()
"""


def imported(code: str) -> Callable[[], dict]:
    """A turn: a process that runs `code` and ends."""

    def turn() -> dict:
        subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True, capture_output=True)
        return {}

    return turn


def first_step(code: str, rows: Path, folder: Path) -> Callable[[], dict]:
    """A turn: the time until a process that runs `code` says "done". Raises RuntimeError if it never does."""
    number = iter(range(10**6))

    def turn() -> dict:
        command = [sys.executable, "-c", code, str(MODEL), str(rows), str(folder / f"out-{next(number)}")]
        log = folder / "said.txt"
        with log.open("w") as said:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=said, text=True)
            done = any(line.strip() == "done" for line in process.stdout)
            seconds = time.perf_counter() - started
            process.communicate()
        if not done:
            raise RuntimeError(f"No step was made: {log.read_text()[-2000:]}")
        return {"first_step": seconds}

    return turn


def measure(options, folder: Path) -> dict:
    import workbench as wb

    started = time.perf_counter()
    names = (OURS, "python") if options.small else tuple(IMPORTS)
    turns = common.interleave({name: imported(IMPORTS[name]) for name in names}, options.rounds)
    found = {name: common.summary([{"seconds": t["seconds"]} for t in taken]) for name, taken in turns.items()}
    bare = found.pop("python")
    cases = [common.case("import", found, floor=bare["best"])]
    rows = folder / "rows.json"
    task = wb.task("sums", size=64)
    rows.write_text(json.dumps([{"prompt": r["prompt"], "answer": str(r["answer"])} for r in task.rows]))
    steps = {OURS: OUR_STEP} if options.small else {OURS: OUR_STEP, "trl": THEIR_STEP}
    warmup = 0 if options.small else 1
    turns = common.interleave(
        {name: first_step(code, rows, folder) for name, code in steps.items()}, options.rounds, warmup
    )
    # the process's end, after its step, is not counted
    found = {name: common.summary([{"seconds": t["first_step"]} for t in taken]) for name, taken in turns.items()}
    cases.append(common.case("first GRPO step", found))
    return common.line("start", cases, started)


if __name__ == "__main__":
    common.run(measure, common.parser(__doc__).parse_args())
