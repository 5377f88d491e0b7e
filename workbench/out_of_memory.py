"""Memory that ran out: how that is recognised, and how what the attempt held is let go of before the next one."""

from __future__ import annotations

import gc

import torch
from torch import nn

from workbench import worker

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""in the texts of RuntimeErrors: torch has a class of its own only for what its CUDA allocator says"""


def recognised(error: BaseException) -> bool:
    """Whether `error` says that there was too little memory, on a GPU or off it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def clean_up(error: BaseException, model: nn.Module) -> str:
    """Lets go of all that the attempt held: locals in the error's frames, gradients, torch's reserve. Returns the
    error in a line. To be called before the next attempt."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    worker.let_go(error)
    error.__traceback__ = None
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return said
