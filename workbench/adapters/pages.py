"""Memory in large pages, for what is read from end to end again and again.

Addresses are translated page by page, and the processor remembers some thousand translations: of small pages, less than
a model's weights have. Large ones (2 MiB) are asked for, and had where the system gives them.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

PAGE = 2 << 20


def empty(size: int, device: torch.device) -> Tensor:
    """`size` bytes (uint8) with anything in them; on the CPU in large pages, if they are that many and can be had."""
    if device.type == "cpu" and size >= PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapped = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            mapped.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without large pages, or no memory: which torch says better
        else:
            whole = torch.frombuffer(mapped, dtype=torch.uint8)  # unmapped when the last tensor in it is gone
            first = -whole.data_ptr() % PAGE
            return whole[first : first + size]
    return torch.empty(size, dtype=torch.uint8, device=device)
