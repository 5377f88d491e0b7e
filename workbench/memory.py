"""How much memory is free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available() -> int | None:
    """Bytes of the machine's memory to be had without swapping, within this control group's limit; None where that
    cannot be told."""
    try:
        fields = dict(text.split(":") for text in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        used, limit = ((group / name).read_text().strip() for name in ("memory.current", "memory.max"))
        # what files have left in memory is given back when it is needed
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        return free if limit == "max" else min(free, max(0, int(limit) - int(used) + int(cached)))
    except (OSError, KeyError, ValueError):
        return free


def free_bytes(device: torch.device) -> int | None:
    """Bytes to be had on `device`: CUDA's free memory with what torch holds in reserve, or the machine's. None where
    that cannot be told."""
    import torch

    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return available() if device.type == "cpu" else None
