"""How near `wb.forecast` comes: its peak beside the measured one, over a grid of eight runs on a CPU.

Each run is one of two steps on a random model (Llama-type, hidden 256 to 512, 4 to 8 layers), in a process of its own.
Measured is torch's memory: the weights that are there when the run begins, and every allocation and release that
`torch.profiler` sees from then to the end, kernels' workspaces included. Folded weights are asked of torch's allocator
for it, not of the system in large pages, which the profiler does not see. The last line is one JSON object: the ratio
of forecast to measured peak of each run, and the farthest from 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

TESTS = Path(__file__).parents[1]
SHAPES = {"small": (256, 4), "medium": (256, 6), "large": (512, 8)}
"""hidden size, layers"""
GRID = {
    "sft lora": ("sft", "medium", 2000, True, dict(batch_size=8), 256),
    "sft full": ("sft", "small", 2000, False, dict(batch_size=8), 128),
    "sft lora 50k": ("sft", "small", 50_000, True, dict(batch_size=4), 512),
    "sft full 50k recomputed 8bit": (
        "sft", "small", 50_000, False, dict(batch_size=4, gradient_checkpointing=True, optim="adamw_8bit"), 256
    ),
    "dpo lora": ("dpo", "medium", 2000, True, dict(batch_size=4), 256),
    "dpo full 50k": ("dpo", "small", 50_000, False, dict(batch_size=2), 128),
    "grpo lora": ("grpo", "large", 2000, True, dict(prompts_per_step=4, group_size=8, max_new_tokens=128), 32),
    "grpo full beta recomputed": (
        "grpo", "small", 2000, False,
        dict(prompts_per_step=4, group_size=4, max_new_tokens=64, beta=0.04, gradient_checkpointing=True), 64,
    ),
}  # fmt: skip
"""method, shape, vocabulary, adapter or all weights, settings, tokens of a row (GRPO: of a prompt)"""


def policy_of(folder: Path, shape: str, vocabulary: int, adapter: bool):
    sys.path.insert(0, str(TESTS))
    from models import tiny_model_folder

    import workbench as wb

    hidden, layers = SHAPES[shape]
    sizes = dict(hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers)
    made = dict(vocab_size=vocabulary, max_position_embeddings=2048, initializer_range=0.02, tie_word_embeddings=True)
    policy = wb.load(tiny_model_folder(folder, "llama", **sizes, **made))
    return policy.attach(wb.LoRA(r=16)) if adapter else policy


def data_of(method: str, tokens: int):
    """Rows whose texts have so many of the byte tokenizer's tokens; the end token is added to completions."""
    import workbench as wb

    if method == "sft":
        return [{"prompt": "a" * 16, "completion": "b" * (tokens - 17)}] * 16
    if method == "dpo":
        return [{"prompt": "a" * 16, "chosen": "b" * (tokens - 17), "rejected": "c" * (tokens - 17)}] * 16
    rows = [{"prompt": chr(97 + i) * tokens} for i in range(16)]
    return wb.Task(rows, rewards=[lambda completions, **kwargs: [float(len(text) % 5) for text in completions]])


def measured(function) -> int:
    """Most bytes alive at once, beyond those before, while `function()` runs on the worker."""
    from torch.profiler import ProfilerActivity, profile

    from workbench import worker
    from workbench.adapters import pages

    pages.PAGE = sys.maxsize

    def run():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            function()
        return record

    now = most = 0
    for event in worker.call(run).profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def one(name: str) -> dict:
    """Forecast and measured peak of one run of the grid, in bytes."""
    import workbench as wb

    warnings.simplefilter("ignore")
    method, shape, vocabulary, adapter, settings, tokens = GRID[name]
    settings = settings | {"steps": 2}
    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(Path(folder) / "model", shape, vocabulary, adapter)
        data = data_of(method, tokens)
        foretold = wb.forecast(policy, method, data, **settings)
        held = sum(policy.memory().values())

        def train() -> None:
            run = getattr(wb, method)(policy, data, out=Path(folder) / "run", lr=1e-4, **settings)
            for _ in run:
                pass

        peak = held + measured(train)
    return {"forecast": foretold.peak, "measured": peak, "ratio": foretold.peak / peak, "parts": foretold.parts}


def main() -> None:
    found = {}
    for name in GRID:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        mega = {what: found[name][what] / 1e6 for what in ("forecast", "measured")}
        print(f"{name:30} forecast {mega['forecast']:7.1f} MB  measured {mega['measured']:7.1f} MB  "
              f"ratio {found[name]['ratio']:.3f}", flush=True)  # fmt: skip
    ratios = {name: round(one["ratio"], 4) for name, one in found.items()}
    farthest = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    print(json.dumps({"bench": "forecast", "ratios": ratios, "farthest": farthest}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one(sys.argv[1])))
    else:
        main()
