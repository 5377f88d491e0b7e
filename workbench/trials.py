"""What a model can do, tried on the model itself: once for each, and not remembered where nothing was found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Found = TypeVar("Found")


class Once(Generic[Found]):
    """The outcome of a trial by module, for as long as the module lives."""

    def __init__(self) -> None:
        self.known: WeakKeyDictionary[nn.Module, Found] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, trial: Callable[[], tuple[Found, bool]]) -> Found:
        """What `trial` finds, and whether that is certain: weights that are not numbers now, say, or memory that ran
        out, tell nothing about the module."""
        if module in self.known:
            return self.known[module]
        found, certain = trial()
        if certain:
            self.known[module] = found
        return found
