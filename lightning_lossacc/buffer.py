"""Small batches wait for each other, so that one pass counts many of them.

On a CPU an update is about 200 tensor operations whatever the size of the batch: for 32 rows of 10 classes that is more
than a small network's whole step. Copying the rows into a buffer is two. Nothing of the step is kept alive: the buffer
owns its copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BUFFER_BYTES = 1024 * 1024


class RowBuffer:
    """Rows of many batches, handed on when the buffer is full or flushed.

    Args:
        count: receives logits (I, C, R), target (I, R) and positions (I,) or None; must not keep them.
    """

    def __init__(self, count: Callable[[Tensor, Tensor, Tensor | None], None]) -> None:
        self._count = count
        self._filled = 0
        self._logits: Tensor | None = None
        self._target: Tensor | None = None
        self._position: Tensor | None = None

    def add(self, logits: Tensor, target: Tensor, position: Tensor | None) -> None:
        """Takes a batch; a large one, or one on another device than the CPU, is handed on at once.

        Args:
            logits: (I, C, R).
            target: (I, R) int64.
            position: (I,) int64 positions in the data set; None where rows are not paired.
        """
        if not self._fits(logits, position):
            self.flush()
            self._allocate(logits, target, position is not None)
        items, capacity = len(logits), len(self._logits)
        if not self.waits_for_more(logits):
            self.flush()
            self._count(logits, target, position)
            return
        if self._filled + items > capacity:
            self.flush()
        place = slice(self._filled, self._filled + items)
        self._logits[place] = logits
        self._target[place] = target
        if position is not None:
            self._position[place] = position
        self._filled += items

    def waits_for_more(self, logits: Tensor) -> bool:
        """Whether logits (I, C, ...) are few enough to be copied; each item is one of dimension 0."""
        capacity = BUFFER_BYTES // max(1, logits[:1].numel() * logits.element_size())
        return logits.device.type == "cpu" and 4 * len(logits) <= capacity

    def flush(self) -> None:
        """Hands on what waits."""
        filled, self._filled = self._filled, 0
        if filled:
            position = None if self._position is None else self._position[:filled]
            self._count(self._logits[:filled], self._target[:filled], position)

    def clear(self) -> None:
        """Drops what waits."""
        self._filled = 0

    def _fits(self, logits: Tensor, position: Tensor | None) -> bool:
        return (
            self._logits is not None
            and self._logits.shape[1:] == logits.shape[1:]
            and self._logits.dtype == logits.dtype
            and (self._position is None) == (position is None)
        )

    def _allocate(self, logits: Tensor, target: Tensor, positioned: bool) -> None:
        numbers = logits.shape[1] * logits.shape[2]
        capacity = BUFFER_BYTES // max(1, numbers * logits.element_size()) if logits.device.type == "cpu" else 0
        with torch.inference_mode(False):
            self._logits = torch.empty((capacity, *logits.shape[1:]), dtype=logits.dtype)
            self._target = torch.empty((capacity, target.shape[1]), dtype=torch.int64)
            self._position = torch.empty(capacity, dtype=torch.int64) if positioned else None
