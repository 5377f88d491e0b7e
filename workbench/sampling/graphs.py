"""Decode steps of fixed shape, captured once and replayed: on a GPU, launching kernels one by one takes longer than
running them.

A step is a call without arguments that works on tensors made beforehand (tokens, positions, masks, the slots' buffers).
Batches are rounded up to a size of `BATCHES`, so that few steps are captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench import worker

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Captured:
    """A call as a CUDA graph; its result is written to the same tensor each time."""

    def __init__(self, call: Callable[[], Tensor]):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is set up at a first call must not be captured
            call()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = call()

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.result


class Called:
    """The same without a graph, for devices that have none: the call on the same tensors."""

    def __init__(self, call: Callable[[], Tensor]):
        self.call = call

    def __call__(self) -> Tensor:
        return self.call()


def capturer(device: torch.device) -> type | None:
    """How steps are captured on this device; None: not at all."""
    return Captured if device.type == "cuda" else None


def bucket(batch: int) -> int:
    """The size that a batch is rounded up to."""
    return next((size for size in BATCHES if size >= batch), -(-batch // 256) * 256)


class Steps:
    """Captured steps by batch size, and the tensors they read."""

    def __init__(self, capture: type):
        self.capture = capture
        self.inputs: dict[str, Tensor] = {}
        self.steps: dict[int, Any] = {}

    def run(self, call: Callable[..., Tensor], inputs: dict[str, Tensor], batch: int) -> Tensor:
        """`call(**inputs)` for the first `batch` rows of inputs (rows, ...) whose shapes are the same every time.
        Returns the rows of its result."""
        if {name: t.shape for name, t in inputs.items()} != {name: t.shape for name, t in self.inputs.items()}:
            self.inputs = {name: t.clone() for name, t in inputs.items()}  # buffers have grown: earlier graphs are void
            self.steps = {}
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        size = bucket(batch)
        if size not in self.steps:
            first = {name: value[:size] for name, value in self.inputs.items()}
            self.steps[size] = self._captured(lambda: call(**first))
        return self.steps[size]()[:batch]

    def _captured(self, call: Callable[[], Tensor]) -> Any:
        try:
            return self.capture(call)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or self.capture is Called:
                raise
            worker.warn(
                f"The decode step of this model cannot be captured as a CUDA graph ({str(error).splitlines()[0]}), so "
                "sampling launches its kernels one by one: slower, with the same results."
            )
            self.capture = Called
            return Called(call)
