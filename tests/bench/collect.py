"""`make bench`: the benchmarks that suit this machine, one after the other, and the tables of docs/speed.md anew.

Each benchmark's line replaces its last one in docs/generator/speed.jsonl, so a part can be measured again by itself:

    make bench                          what suits this machine
    make bench ARGS="--only sft,dpo"    these
    make bench ARGS="--all"             longer: more sides, how a step grows, how near the forecast is
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from docs.generator import pages, speed  # noqa: E402

COMMANDS: dict[str, tuple[str, ...]] = {
    "grpo": ("bench_grpo.py",),
    "generation": ("bench_generation.py",),
    "sft": ("bench_sft.py",),
    "dpo": ("bench_dpo.py",),
    "memory": ("bench_memory.py",),
    "recording": ("bench_recording.py",),
    "start": ("bench_start.py",),
    "views": ("bench_views.py",),
}
"""by the name in their line"""
LONGER = {
    "memory": ("--all",),
    "grpo_growth": ("bench_grpo.py", "--grow", "--rounds", "2"),
    "forecast": ("bench_forecast.py",),
}
"""what `--all` adds: arguments, or a benchmark"""
GPU = {"gpu": ("bench_gpu.py",)}


def chosen(only: str | None, everything: bool, cuda: bool) -> dict[str, tuple[str, ...]]:
    """The commands to run, by name. Raises SystemExit for a name that there is not."""
    every = COMMANDS | {name: COMMANDS.get(name, ()) + more for name, more in LONGER.items()} | GPU
    if only is not None:
        names = only.split(",")
        if unknown := [name for name in names if name not in every]:
            raise SystemExit(f"There is no benchmark {', '.join(unknown)}; there are {', '.join(every)}.")
        return {name: every[name] if everything or name not in COMMANDS else COMMANDS[name] for name in names}
    plan = {name: command for name, command in every.items() if name not in GPU} if everything else dict(COMMANDS)
    return plan | GPU if cuda else plan


def measured(command: tuple[str, ...]) -> dict:
    """The line that a benchmark ends in. Raises SystemExit if it fails."""
    done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed; what was measured before it is kept.")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure, and write docs/speed.md anew.")
    parser.add_argument("--only", help="only these, as in sft,dpo")
    parser.add_argument("--all", action="store_true", help="more sides, how a step grows, how near the forecast is")
    options = parser.parse_args(argv)
    import torch

    for name, command in chosen(options.only, options.all, torch.cuda.is_available()).items():
        started = time.perf_counter()
        print(" ".join(command), file=sys.stderr, flush=True)
        found = measured(command)
        print(json.dumps(found), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        speed.keep(found)
    page = pages.DOCS / "speed.md"
    page.write_text(pages.filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
