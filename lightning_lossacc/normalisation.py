"""Do batch normalisation's running statistics describe the batches that it saw?

In evaluation mode a layer uses them, in training mode the batch. A module that is fine in one mode and poor in the
other is explained by the distance between the two. The batch's statistics need no pass over data: an update moves the
running ones by a known share towards them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Batches whose statistics are averaged; a single small batch is far from any average.
_MAX_BATCHES = 8
_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class _Running:
    """Statistics of all layers at one time, F features together.

    Attributes:
        layers: number of features and momentum of each.
        moments: running means, then variances, (2 F,).
        updates: how often each layer was updated (L,).
    """

    layers: tuple[tuple[int, float], ...]
    moments: Tensor
    updates: Tensor


class Normalisation:
    """Compares running statistics with those of sampled batches.

    With running mean r, variance v and momentum m, an update to r' saw the batch mean r + (r' - r) / m; k updates in
    one step saw about r + (r' - r) / (1 - (1 - m)^k). The distance of a layer is the larger of the root mean square
    over its features of (mean of the batches - r) / sqrt(v), and of ln(variance of the batches / v) / 2, both averaged
    over up to 8 sampled batches. About 0 where they agree; 1 is one standard deviation, or a factor of 2.7 in scale.

    Args:
        module: the network; layers in evaluation mode or with `momentum=None` are left out.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = [
            child
            for child in module.modules()
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
        ]
        self._before: _Running | None = None
        self._pairs: list[tuple[_Running, _Running]] = []

    def settings(self) -> dict[str, float]:
        """Number of layers with running statistics, and the smallest momentum of those that have one."""
        shares = [float(layer.momentum) for layer in self.layers if layer.momentum]
        return {"batch_norm_layers": float(len(self.layers))} | ({"batch_norm_momentum": min(shares)} if shares else {})

    def begin(self) -> None:
        """Before a sampled forward pass."""
        self._before = self._read()

    def end(self) -> None:
        """After it."""
        before, self._before = self._before, None
        after = self._read() if before is not None else None
        if after is None or before.layers != after.layers:
            return
        if self._pairs and self._pairs[-1][0].layers != before.layers:
            self._pairs.clear()
        self._pairs = [*self._pairs[1 - _MAX_BATCHES :], (before, after)]

    def _read(self) -> _Running | None:
        layers = [layer for layer in self.layers if layer.training and layer.momentum and layer.running_var is not None]
        if not layers or any(is_traceable_wrapper_subclass(layer.running_var) for layer in layers):
            return None
        if len({layer.running_var.device for layer in layers}) > 1:
            return None
        moments = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
        return _Running(
            tuple((layer.num_features, float(layer.momentum)) for layer in layers),
            torch.cat(moments),
            torch.stack([layer.num_batches_tracked for layer in layers]),
        )

    def collect(self, add: Callable[[Tensor], slice]) -> Callable[[Callable[[slice], Sequence[float]]], float | None]:
        """Hands over what has to be read from the device and begins a new window.

        Returns:
            A function that takes what was read and gives the largest distance, None if no batch was seen.
        """
        pairs, self._pairs = self._pairs, []
        places = [
            tuple(add(part) for side in pair for part in (side.moments, side.updates.to(side.moments.dtype)))
            for pair in pairs
        ]
        layers = pairs[-1][0].layers if pairs else ()

        def largest(read: Callable[[slice], Sequence[float]]) -> float | None:
            batches = [
                _Batch(*(torch.tensor(read(place), dtype=torch.float64) for place in pair), layers) for pair in places
            ]
            distances = _distances([batch for batch in batches if batch.seen.all()], layers)
            return max(distances, default=None)

        return largest


class _Batch:
    """Running statistics before a sampled batch, and those of the batch, each (2, F)."""

    def __init__(
        self,
        before: Tensor,
        before_updates: Tensor,
        after: Tensor,
        after_updates: Tensor,
        layers: tuple[tuple[int, float], ...],
    ) -> None:
        sizes = torch.tensor([size for size, _ in layers])
        momentum = torch.tensor([share for _, share in layers], dtype=torch.float64)
        self.seen = after_updates > before_updates
        share = 1 - (1 - momentum) ** (after_updates - before_updates)
        self.running = before.view(2, -1)
        self.batch = self.running + (after - before).view(2, -1) / share.repeat_interleave(sizes)


def _distances(batches: list[_Batch], layers: tuple[tuple[int, float], ...]) -> list[float]:
    if not batches:
        return []
    mean = torch.stack([(one.batch[0] - one.running[0]) / (one.running[1] + _EPSILON).sqrt() for one in batches])
    ratio = torch.stack([(one.batch[1].clamp(min=0) + _EPSILON) / (one.running[1] + _EPSILON) for one in batches])
    found = []
    for part in zip(*(x.mean(0).split([size for size, _ in layers]) for x in (mean, ratio)), strict=True):
        shift, scale = (values.square().mean().sqrt().item() for values in (part[0], part[1].log() / 2))
        found.append(max(shift, scale))
    return [distance for distance in found if math.isfinite(distance)]
