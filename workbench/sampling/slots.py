"""A cache of keys and values in buffers made beforehand: rows come and go, and nothing is copied per token.

All rows write the same column. A row's text is the run of columns that ends there, and `start` is where it begins: so a
prompt that comes later is laid to the left of the column written next, there are no pads, and one mask says for each
row which columns are its own. Each layer gives its attention a view of the columns in use; one with a sliding window of
its last columns, so that no window needs a mask.

    columns   0  1  2  3  4  5  6  7
    row 0           a  b  c  d  e  .       start 2
    row 1                    x  y  .       start 5, came later
                     low ^         ^ column
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

BUCKET = 128
"""columns a buffer grows by, at least"""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer; `slots` says which rows and columns of the buffers are in use."""

    is_sliding = False

    def __init__(self, slots: Slots, window: int | None):
        super().__init__()
        self.slots, self.window = slots, window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the buffers (rows, heads, columns, width)."""
        places, columns = self.slots.places, self.slots.capacity
        self.keys, self.values = (
            t.new_zeros(places, t.shape[1], columns, t.shape[3]) for t in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token of each row. Returns keys and values (B, heads, columns in use, width)."""
        slots, batch = self.slots, key_states.shape[0]
        if slots.whole:
            for buffer, new in ((self.keys, key_states), (self.values, value_states)):
                buffer[:batch].index_copy_(2, slots.written, new)
            return self.keys[:batch], self.values[:batch]
        low, column = slots.first(self.window), slots.column
        self.keys[:batch, :, column : column + 1] = key_states
        self.values[:batch, :, column : column + 1] = value_states
        return self.keys[:batch, :, low : column + 1], self.values[:batch, :, low : column + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.slots.column - self.slots.first(self.window)

    def get_max_length(self) -> int:
        return -1


class Slots:
    """Buffers of `places` rows for layers with these windows (None: full attention), and who is where in them.

    The rows in use are always the first `batch`. `whole`: layers return all columns, and write where the tensor
    `written` says, so that shapes do not change from token to token.
    """

    def __init__(self, windows: list[int | None], places: int, capacity: int, device: torch.device, whole: bool):
        self.places, self.capacity, self.device, self.whole = places, capacity, device, whole
        self.batch = 0
        self.column = 0
        """written next"""
        self.low = 0
        """the first column in use"""
        self.start = np.zeros(places, dtype=np.int64)
        """the column where a row's text begins"""
        self.own = torch.zeros(places, capacity, dtype=torch.bool, device=device)
        """columns of a row's text"""
        self.written = torch.zeros(1, dtype=torch.long, device=device)
        self.layers = [SlotLayer(self, window) for window in windows]
        self.cache = Cache(layers=self.layers)

    def first(self, window: int | None) -> int:
        """The first column that a layer with this window looks at."""
        return self.low if window is None else max(self.low, self.column + 1 - window)

    def place(self, layers: list[DynamicLayer], row: int, length: int, count: int) -> None:
        """`count` new rows that begin with the first `length` columns of this row of a prefilled cache."""
        self._reach(length)
        rows = slice(self.batch, self.batch + count)
        columns = slice(self.column - length, self.column)
        for mine, given in zip(self.layers, layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(given.keys, given.values)
            mine.keys[rows, :, columns] = given.keys[row, :, :length]
            mine.values[rows, :, columns] = given.values[row, :, :length]
        self.start[rows] = self.column - length
        self.batch += count
        self._mark()

    def begin(self) -> None:
        """Makes room for one token a row."""
        if self.column >= self.capacity:
            if self.low >= self.capacity // 4:
                self._move(-self.low)
            else:
                self._grow(self.column + 1)
        self.own[:, self.column] = True  # rows not in use look at it, too, lest they look at nothing and become NaN
        self.written.fill_(self.column)

    def positions(self) -> np.ndarray:
        """Of the token written next, in each row's text (B,)."""
        return self.column - self.start[: self.batch]

    def end(self) -> None:
        """The token of each row is written."""
        self.column += 1

    def drop(self, holes: np.ndarray, movers: np.ndarray, batch: int) -> None:
        """Row `movers[i]` takes the place `holes[i]`; then the first `batch` rows stay."""
        if len(holes):
            to, of = (torch.from_numpy(places).to(self.device) for places in (holes, movers))
            used = slice(self.low, self.column)
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[:, :, used].index_copy_(0, to, buffer[:, :, used].index_select(0, of))
            self.start[holes] = self.start[movers]
        self.batch = batch
        self._mark()

    def visible(self, window: int | None) -> Tensor:
        """(B, columns returned) bool: which of them each row looks at, the one being written included."""
        if not self.whole:
            return self.own[: self.batch, self.first(window) : self.column + 1]
        if window is None:
            return self.own
        return self.own & (torch.arange(self.capacity, device=self.device) > self.column - window)

    def _mark(self) -> None:
        """`own` and `low` from `start` and `batch`."""
        self.low = int(self.start[: self.batch].min()) if self.batch else self.column
        start = torch.from_numpy(self.start).to(self.device)[:, None]
        columns = torch.arange(self.capacity, device=self.device)
        self.own = (columns >= start) & (columns < self.column)

    def _reach(self, length: int) -> None:
        """Has at least `length` columns before the one written next."""
        if not self.batch:
            self.column = length
        elif self.column < length:
            self._move(length - self.column)
        if self.column > self.capacity:
            self._grow(self.column)

    def _move(self, by: int) -> None:
        """Shifts all columns in use."""
        low, column = self.low, self.column
        if column + by > self.capacity:
            self._grow(column + by)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                used = buffer[: self.batch, :, low:column].clone()
                buffer[: self.batch, :, low + by : column + by] = used
        self.start += by
        self.column += by
        self._mark()

    def _grow(self, needed: int) -> None:
        """Buffers of at least `needed` columns, and half as many again as before."""
        more = max(needed, self.capacity + max(BUCKET, self.capacity // 2)) - self.capacity
        more += -more % BUCKET
        self.capacity += more
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    torch.cat([t, t.new_zeros(*t.shape[:2], more, t.shape[3])], dim=2)
                    for t in (layer.keys, layer.values)
                )
        self._mark()
