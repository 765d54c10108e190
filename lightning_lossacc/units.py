"""What makes a hidden unit silent, and how many units of a layer were silent on all inputs of a window?

A unit is dead, or saturated, if no gradient passed through it on any input. One batch cannot tell: a healthy ReLU
network has 50-90 % zeros in every batch. So one vector is kept for each layer: the largest activity of each unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A unit that is active on 1 % of the inputs is silent on all of 256 with probability 8 %, one of 2 % with 0.6 %.
MIN_ROWS = 256
# In a layer of two or three units the share means little.
MIN_UNITS = 4
# Elements of one output that are looked at; contiguous ones take 0.03 ms on a CPU.
MAX_ELEMENTS = 1 << 18
# Derivative below which a bounded activation counts as saturated: Adam's and float32's resolution are far below, and
# a signal through two such layers is gone. Sigmoid: |x| > 9.2, tanh: |x| > 5.3.
SATURATED = 1e-4
# GELU, SiLU and Mish approach zero from below; at |output| = 1e-6 their derivative is below 1e-5.
_SILENT = 1e-6


@dataclass(frozen=True, slots=True)
class Kind:
    """What a unit's activity is, and when it is silent.

    Attributes:
        activity: output -> a number of the same shape that grows with the derivative.
        limit: a unit is silent where its activity is at most this.
        bounded: whether silent means saturated rather than dead.
    """

    activity: Callable[[Tensor], Tensor]
    limit: float
    bounded: bool = False


def _clipped(low: float, high: float) -> Kind:
    # ReLU6 is a ReLU that may also be stuck at the top: either way no gradient passes.
    return Kind(lambda output: (output - low) * (high - output), 0.0, bounded=low != 0)


def _exponential(floor: float) -> Kind:
    """ELU and its kin: the derivative is output + floor where the output is negative."""
    return Kind(lambda output: output, -floor * (1 - SATURATED))


RELU = Kind(lambda output: output, 0.0)
SMOOTH = Kind(torch.abs, _SILENT)
SIGMOID = Kind(lambda output: output * (1 - output), SATURATED, bounded=True)
TANH = Kind(lambda output: 1 - output * output, SATURATED, bounded=True)
HARD_SIGMOID = Kind(_clipped(0.0, 1.0).activity, 0.0, bounded=True)
# LeakyReLU, PReLU and Softplus always pass some gradient and are not here.
_MODULES: dict[type[nn.Module], Kind] = {
    nn.ReLU: RELU,
    nn.GELU: SMOOTH,
    nn.SiLU: SMOOTH,
    nn.Mish: SMOOTH,
    nn.Hardswish: SMOOTH,
    nn.Sigmoid: SIGMOID,
    nn.Tanh: TANH,
    nn.Hardsigmoid: HARD_SIGMOID,
}
_NODES = {
    "Relu": RELU,
    "Gelu": SMOOTH,
    "Silu": SMOOTH,
    "Mish": SMOOTH,
    "Hardswish": SMOOTH,
    "Sigmoid": SIGMOID,
    "Tanh": TANH,
    "Hardsigmoid": HARD_SIGMOID,
}


def kind_of(module: nn.Module) -> Kind | None:
    """How the units of an activation module fall silent; None for other modules and those that never do."""
    if isinstance(module, nn.Hardtanh):
        return _clipped(module.min_val, module.max_val)
    if isinstance(module, nn.ELU):
        return _exponential(module.alpha)
    if isinstance(module, nn.SELU):
        return _exponential(1.7580993)
    return _MODULES.get(type(module))


def kind_of_node(node: Any) -> Kind | None:
    """The same for a node of the autograd graph."""
    name = node.name().partition("Backward")[0]
    if name == "Hardtanh":
        return _clipped(float(node._saved_min_val), float(node._saved_max_val))
    return _NODES.get(name)


class Site:
    """One layer of hidden units.

    Attributes:
        name: of the module, for people.
        channels: whether units are in dimension 1 rather than the last one.
        groups: of a flattened input, how many channels it had; 0 if it was not flattened.
        before: whether the input of the module is looked at, rather than its output.
        hidden: whether a later layer reads the units.
        rows: inputs so far: images of a convolution, else rows of features.
        last: silent and all units of the last window that had rows enough, (0, 0) before it. Layers fill their windows
            at different times, and the worst one must not be forgotten while its window fills.
    """

    def __init__(self, name: str, kind: Kind, channels: bool, groups: int, before: bool) -> None:
        self.name = name
        self.kind = kind
        self.channels = channels
        self.groups = groups
        self.before = before
        self.hidden = before
        self.last = (0, 0)
        self.clear()

    def clear(self) -> None:
        """Begins a new window."""
        self.rows = 0
        self.activity: Tensor | None = None

    def add(self, output: Tensor) -> None:
        """Takes the outputs (B, F), (B, ..., F) or (B, C, ...) of one call, the first rows of a very large one."""
        if output.ndim < 2 or not output.numel():
            return
        output = output.detach()
        rows = max(1, MAX_ELEMENTS * len(output) // output.numel())
        if rows < len(output):
            output = output[:rows]
        unit = 1 if self.channels else output.ndim - 1
        activity = self.kind.activity(output).amax([dim for dim in range(output.ndim) if dim != unit])
        if self.groups:
            activity = activity.view(self.groups, -1).amax(1)
        if self.activity is None:
            self.activity = activity
        elif activity.shape != self.activity.shape or activity.device != self.activity.device:
            return
        else:
            self.activity = torch.maximum(self.activity, activity)
        self.rows += len(output) if self.channels or self.groups else output.numel() // output.shape[-1]

    @property
    def units(self) -> int:
        """Number of units; 0 before the first call."""
        return 0 if self.activity is None else len(self.activity)

    def silent(self) -> Tensor:
        """Number of units that were silent throughout, () int64 on the device."""
        return (self.activity <= self.kind.limit).sum()


def shares(sites: list[Site]) -> dict[str, float]:
    """Shares of silent units in the last full window of each layer: the worst layer's, and that of all that can die."""
    dying = [site.last for site in sites if site.last[1] and not site.kind.bounded]
    bounded = [site.last for site in sites if site.last[1] and site.kind.bounded]
    found: dict[str, float] = {}
    if dying:
        found["dead_units"] = max(silent / units for silent, units in dying)
        found["dead_units_total"] = sum(silent for silent, _ in dying) / sum(units for _, units in dying)
    if bounded:
        found["saturated_units"] = max(silent / units for silent, units in bounded)
    if dying or bounded:
        found["watched_units"] = float(sum(units for _, units in (*dying, *bounded)))
    return found
