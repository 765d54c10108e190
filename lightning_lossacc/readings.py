"""How are many small tensors read from a device with a single wait?"""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """Collects tensors, reads them with one wait, and gives each part's numbers."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._length = 0
        self._numbers: list[float] = []

    def add(self, tensor: Tensor) -> slice:
        """Where its elements will be, in order."""
        self._parts.append(tensor.detach().reshape(-1))
        begin, self._length = self._length, self._length + tensor.numel()
        return slice(begin, self._length)

    def wait(self) -> None:
        """Reads everything; the device's work so far ends first."""
        if self._parts:
            device = self._parts[0].device
            # Apple's devices have no float64.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._numbers = torch.cat([part.to(device, dtype) for part in self._parts]).tolist()

    def __call__(self, place: slice) -> list[float]:
        """The numbers of one part, after `wait`."""
        return self._numbers[place]
