"""The tables of docs/speed.md, from the lines that the benchmarks of tests/bench end in (`make bench` keeps them)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.generator.markdown import table
from docs.generator.source import ROOT

RESULTS = ROOT / "docs" / "generator" / "speed.jsonl"
"""a line a benchmark, the last one measured"""
NOTHING = "Not measured yet: `make bench` measures on your machine, and fills this in."
TITLES = {
    "grpo": "a step of GRPO",
    "generation": "sampling",
    "sft": "a step of SFT",
    "dpo": "a step of DPO",
    "start": "waiting",
    "gpu": "GPU",
    "grpo_growth": "a step of GRPO",
}
"""what a benchmark of times measures; those with another table are not among them"""
SIDES = {
    "workbench": "workbench",
    "workbench_checkpointing": "workbench, gradient checkpointing",
    "trl": "TRL",
    "trl_default": "TRL, nothing set",
    "trl_trainer": "TRL's trainer",
    "generate": "`generate`",
    "generate_batch": "`generate_batch`",
    "full_logits": "all logits at once",
}


def keep(line: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Puts a benchmark's line in the place of its last one."""
    lines = {found["bench"]: found for found in read(path)} | {line["bench"]: dict(line)}
    path.write_text("".join(json.dumps(lines[name]) + "\n" for name in sorted(lines)), encoding="utf-8")


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines that were kept."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def speed_times(path: Path = RESULTS) -> str:
    """Times of both sides, their ratio, and how near the floor ours is."""
    return _of(path, [name for name in TITLES if name != "grpo_growth"], _times)


def speed_growth(path: Path = RESULTS) -> str:
    """How a step of GRPO grows with its settings."""
    return _of(path, ("grpo_growth",), _times)


def speed_memory(path: Path = RESULTS) -> str:
    """What an update adds at its peak."""
    return _of(path, ("memory",), _memory)


def speed_recording(path: Path = RESULTS) -> str:
    """What recording costs."""
    return _of(path, ("recording",), _recording)


def speed_forecast(path: Path = RESULTS) -> str:
    """How near the forecast of memory comes."""
    rows = [[name, f"{ratio:.3f}"] for line in read(path) for name, ratio in line.get("ratios", {}).items()]
    return table(["run", "forecast over measured peak"], rows) if rows else NOTHING


def speed_machines(path: Path = RESULTS) -> str:
    """Where and when each benchmark was run."""
    rows = [
        [f"`{line['bench']}`", line["date"], *_machine(line["machine"])] for line in read(path) if "machine" in line
    ]
    head = ["benchmark", "date", "machine", "threads", "matrix products", "versions"]
    return table(head, rows) if rows else NOTHING


def _of(path: Path, names: Sequence[str], made: Callable[[list[dict]], str]) -> str:
    lines = [line for line in read(path) if line["bench"] in names]
    return made(sorted(lines, key=lambda line: names.index(line["bench"]))) if lines else NOTHING


def _times(lines: list[dict]) -> str:
    rows = []
    for line in lines:
        for case in line["cases"]:
            ours = case["sides"]["workbench"]
            floor = f"{_number(case['floor'])} ({case['near']:.0%})" if "floor" in case else ""
            what = f"{TITLES[line['bench']]}: {case['case']}"
            unit = case["unit"]
            for side, other in list(case["sides"].items())[1:] or [(None, None)]:
                mine = f"{_number(ours['best'])} ({_number(ours['median'])}) {unit}"
                theirs = f"{_number(other['best'])} ({_number(other['median'])}) {unit}" if other else ""
                rows.append([what, mine, SIDES[side] if side else "", theirs, _ratio(case, side), floor])
    return table(["what", "workbench", "other side", "it takes", "times as fast", "floor"], rows)


def _ratio(case: Mapping[str, Any], side: str | None) -> str:
    if side is None:
        return ""
    ratio = case["ratio"][side]
    per_token = f"; {ratio['per_token']:.2f} per token" if "per_token" in ratio else ""
    return f"**{ratio['best']:.2f}** ({ratio['median']:.2f}){per_token}"


def _memory(lines: list[dict]) -> str:
    rows = []
    for case in lines[0]["cases"]:
        for side, found in case["sides"].items():
            other = side != "workbench"
            more = f"**{case['ratio'][side]['best']:.2f}**" if other else ""
            rows.append(
                [
                    case["case"], SIDES[side], f"{found['best']:.0f} MiB", more, f"{_number(found['seconds'])} s",
                    f"{case['time_ratio'][side]:.2f}" if other else "",
                ]
            )  # fmt: skip
    return table(["update", "side", "adds at its peak", "times ours", "takes", "times ours"], rows)


def _recording(lines: list[dict]) -> str:
    rows = [
        [name, f"{1000 * seconds:.1f} ms", f"{case['shares'][name]:.1%}"]
        for case in lines[0]["cases"]
        for name, seconds in case["parts"].items()
    ]
    return table(["what is recorded", "per step", "of a step"], rows)


def _machine(machine: Mapping[str, Any]) -> list[str]:
    where = f"{machine['processor']}, {machine['cores']} cores"
    device = "" if machine["device"] == "cpu" else f"; {machine['device']}"
    flops = f"{machine['gflops']:.0f} GFLOP/s" if "gflops" in machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [where + device, str(machine["threads"]), flops, versions]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
