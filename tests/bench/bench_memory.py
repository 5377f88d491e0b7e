"""Peak memory that one update adds, at a vocabulary of 151,936: SFT and GRPO, ours and TRL's.

Hidden size 512, 8 layers, tied embeddings, LoRA on all linear layers; 8 rows of 512 tokens (64 of the prompt). For GRPO
the completions are given. Every side runs in a process of its own and makes the same update three times: once to warm
up, once for its seconds, and once for its memory, which is the highest resident memory during the update less that at
its start; for that last one the allocator is told to hand freed memory back at once (mallopt). Sides:

    workbench                our defaults
    workbench_checkpointing  with gradient_checkpointing=True
    trl                      float32, no gradient checkpointing; TRL 1.16 computes the losses of all its trainers in
                             chunks of the vocabulary, and has no switch for it
    trl_default              nothing said: bfloat16 mixed precision, gradient checkpointing (with `--all`)
    full_logits              transformers' own loss, with the logits of all tokens, backward included (with `--all`)
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import common
import theirs
import torch
from common import OURS

import workbench as wb

SETTINGS = {"hidden": 512, "layers": 8, "vocab": 151_936, "rows": 8, "tokens": 512, "prompt_tokens": 64}
SMALL = {"hidden": 64, "layers": 2, "vocab": 3000, "rows": 4, "tokens": 24, "prompt_tokens": 8}
GROUP = 4
SYMBOLS = 2048
"""tokens the tokenizer knows; the model's vocabulary is larger"""
CHECKPOINTING = OURS + "_checkpointing"
SIDES = {"sft": (OURS, CHECKPOINTING, "trl"), "grpo": (OURS, "trl")}
ALL = {"sft": (*SIDES["sft"], "trl_default", "full_logits"), "grpo": (OURS, CHECKPOINTING, "trl", "trl_default")}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""of glibc's mallopt"""
MIB = 2**20


# -- measuring


def resident() -> dict[str, int]:
    """Bytes of resident memory of this process: now (VmRSS), and the highest since the last reset (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line[:5]: int(line.split()[1]) * 1024 for line in status if line.startswith(("VmRSS", "VmHWM"))}


def give_back_freed() -> None:
    """From now on the C library hands freed blocks of 64 KiB and more back to the system, and so what it holds now."""
    with suppress(OSError, AttributeError):  # another C library has its own ways
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 65536)
        libc.mallopt(M_TRIM_THRESHOLD, 65536)
        libc.malloc_trim(0)


def seconds_of(update: Callable[[], object]) -> float:
    started = time.perf_counter()
    update()
    common.settle()
    return time.perf_counter() - started


def added(update: Callable[[], object], device: str = "cpu") -> float:
    """The MiB that `update` adds at its peak; a page at least."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        give_back_freed()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = resident()["VmRSS"]
    update()
    common.settle()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident()["VmHWM"]
    return max(peak - before, 4096) / MIB


# -- the updates


def rows_of(settings: dict, kind: str) -> list[dict]:
    """Rows of `tokens` tokens, the end token among them; for GRPO, GROUP completions of a prompt."""
    made = []
    for i in range(settings["rows"]):
        prompt = common.symbol_text(settings["prompt_tokens"], SYMBOLS, i // GROUP if kind == "grpo" else i)
        rest = settings["tokens"] - settings["prompt_tokens"]
        made.append({"prompt": prompt, "completion": common.symbol_text(rest - 1, SYMBOLS, 100 + i)})
    return made


def prepared(side: str, kind: str, settings: dict, folder: Path, device: str) -> Callable[[], object]:
    """The update of a side, to be called as often as one likes."""
    tokenizer = common.symbol_tokenizer(SYMBOLS)
    size = (settings["hidden"], settings["layers"])
    common.model_folder(folder, size, settings["vocab"], tokenizer, tie_word_embeddings=True)
    policy = common.our_policy(folder, device, adapter=folder / "adapter")
    rows = rows_of(settings, kind)
    if side.startswith(OURS):
        return ours(policy, rows, kind, folder, checkpointing=side == CHECKPOINTING)
    del policy
    if side == "full_logits":
        return full_logits(rows, tokenizer, folder, device)
    how = dict(device=device, defaults=side == "trl_default", per_device_train_batch_size=len(rows))
    if kind == "sft":
        return theirs.steps(theirs.trainer("SFT", folder, folder / "adapter", rows, **how))
    prompts = [{"prompt": rows[i]["prompt"]} for i in range(0, len(rows), GROUP)]
    completions = completion_ids(rows, tokenizer)

    def given(prompts, trainer):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * len(c) for c in completions]}

    more = {"reward_funcs": [reward], "rollout_func": given}
    how |= dict(num_generations=GROUP, max_completion_length=settings["tokens"], more=more)
    return theirs.steps(theirs.trainer("GRPO", folder, folder / "adapter", prompts, **how))


def reward(completions: list[str], **columns) -> list[float]:
    """Different within a group."""
    return [float(i % GROUP) for i in range(len(completions))]


def completion_ids(rows: list[dict], tokenizer) -> list[list[int]]:
    return [[*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id] for row in rows]


def ours(policy, rows: list[dict], kind: str, folder: Path, checkpointing: bool) -> Callable[[], object]:
    """A step of SFT; for GRPO, whose step would sample, loss and gradients on the given completions."""
    how = dict(steps=theirs.ENDLESS, lr=1e-4, gradient_checkpointing=checkpointing, out=folder / "run")
    if kind == "sft":
        run = iter(wb.sft(policy, rows, batch_size=len(rows), **how))
        return lambda: next(run)
    prompts = [{"prompt": rows[i]["prompt"]} for i in range(0, len(rows), GROUP)]
    run = wb.grpo(policy, wb.Task(prompts, [reward]), prompts_per_step=len(prompts), group_size=GROUP, **how)
    ids = [policy.tokenizer(row["prompt"])["input_ids"] for row in rows]
    done = completion_ids(rows, policy.tokenizer)
    old = [[-float(i % 7) - 1.0 for i in range(len(each))] for each in done]
    return lambda: run.gradients(wb.Rollouts.of(ids, done, reward(done), old))


def full_logits(rows: list[dict], tokenizer, folder: Path, device: str) -> Callable[[], object]:
    """The loss of the model's own forward on the completions, and its gradients."""
    model = theirs.model(folder, folder / "adapter", device).train()
    done = completion_ids(rows, tokenizer)
    ids = [tokenizer(row["prompt"])["input_ids"] + c for row, c in zip(rows, done, strict=True)]
    table = torch.tensor(ids, device=device)
    labels = table.clone()
    labels[:, : table.shape[1] - len(done[0])] = -100

    def update() -> None:
        model.zero_grad()
        model(input_ids=table, attention_mask=torch.ones_like(table), labels=labels).loss.backward()

    return update


# -- one process a side


def one_side(options, folder: Path) -> dict:
    """What the process of one side prints."""
    update = prepared(options.side, options.kind, SMALL if options.small else SETTINGS, folder, options.device)
    update()
    return {"seconds": seconds_of(update), "mib": added(update, options.device)}


def asked(side: str, kind: str, options) -> dict[str, float]:
    """What a fresh process measures. Raises RuntimeError with the end of what it said if it fails."""
    command = [sys.executable, __file__, "--side", side, "--kind", kind, "--device", options.device]
    command += ["--small"] * options.small + (["--threads", str(options.threads)] if options.threads else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}, {side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options, folder: Path) -> dict:
    started = time.perf_counter()
    settings = SMALL if options.small else SETTINGS
    cases = []
    for kind, names in (ALL if options.all else SIDES).items():
        found = {}
        for side in names:
            got = asked(side, kind, options)
            common.say(f"{kind}, {side}: {got['mib']:.0f} MiB, {got['seconds']:.2f} s")
            found[side] = {"best": got["mib"], "median": got["mib"], "all": [got["mib"]], "seconds": got["seconds"]}
        cases.append(common.case(f"{kind} update", found, unit="MiB", settings=settings))
        cases[-1]["time_ratio"] = {side: found[side]["seconds"] / found[OURS]["seconds"] for side in names[1:]}
    return common.line("memory", cases, started, options.device)


def arguments(argv: list[str] | None = None):
    parser = common.parser(__doc__)
    parser.add_argument("--all", action="store_true", help="more sides")
    parser.add_argument("--side", choices=ALL["sft"], help="only this side, in this process")
    parser.add_argument("--kind", choices=tuple(ALL), default="sft")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    options = arguments()
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise SystemExit("bench_memory.py reads the peak of resident memory from /proc, which only Linux has.")
    common.run(one_side if options.side else measure, options)
