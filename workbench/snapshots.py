"""Snapshots of a run's State in its folder: safetensors files by branch and step, and the reference."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from workbench.errors import StoreError
from workbench.state import State

NAME = re.compile(r"b(\d+)-s(\d+)\.safetensors")


class Snapshots:
    """The folder `snapshots/` of a run."""

    def __init__(self, run_folder: Path):
        self.folder = run_folder / "snapshots"
        self.reference = self.folder / "reference.safetensors"
        """the parameters the run began with: the reference of every KL and log-ratio"""

    def save(self, state: State, branch: int) -> None:
        """Write the state after its step, which was written on `branch`."""
        path = self.folder / f"b{branch}-s{state.step:06d}.safetensors"
        if not path.exists():
            state.save(path)

    def all(self) -> dict[tuple[int, int], Path]:
        """Files by (branch, step)."""
        found = ((NAME.fullmatch(path.name), path) for path in self.folder.glob("*.safetensors"))
        return {(int(match[1]), int(match[2])): path for match, path in found if match}

    def nearest(self, line: list[tuple[int, int]], step: int, device: torch.device) -> State:
        """The latest snapshot at or before `step` among the (branch, last step) of `line`."""
        limits = dict(line)
        usable = {key: path for key, path in self.all().items() if key[1] <= min(limits.get(key[0], -1), step)}
        if not usable:
            raise StoreError(f"{self.folder} holds no snapshot at or before step {step}.")
        return State.load(usable[max(usable, key=lambda key: key[1])], device)

    def prune(self, gigabytes: float) -> None:
        """Delete the oldest snapshots while they take more than `gigabytes`; the first and the latest stay."""
        files = sorted(self.all().items(), key=lambda item: item[1].stat().st_mtime_ns)
        size = sum(path.stat().st_size for _, path in files)
        for _, path in files[1:-1]:
            if size <= gigabytes * 1e9:
                return
            size -= path.stat().st_size
            path.unlink()
