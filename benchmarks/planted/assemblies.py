"""Networks of a fourth earlier report: for ballots, brain waves, stars, catches and micrographs.

Hidden layers keep their units in the second dimension, as convolutions do. Legend: N rows, F features, C classes,
L steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from planted.networks import Shape, tail


def _norm(channels: int, shape: Shape) -> nn.Module:
    """Over all of a row, or over the batch, where `shape.norm` says so; of (N, channels) or (N, channels, L)."""
    return nn.BatchNorm1d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, channels)


class CrossNetwork(nn.Module):
    """Layers that multiply what came in first with a sum of what is known by now, around shortcuts."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(inputs), shape.width), _norm(shape.width, shape), shape.activation()
        )
        self.crosses = nn.ModuleList(nn.Linear(shape.width, shape.width) for _ in range(shape.depth))
        self.norms = nn.ModuleList(_norm(shape.width, shape) for _ in range(shape.depth))
        self.classify = tail(shape.width, classes, shape)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...)."""
        first = self.embed(features)
        known = first
        for cross, norm in zip(self.crosses, self.norms, strict=True):
            known = norm(known + first * cross(known))
        return self.classify(known)


class LogPower(nn.Module):
    """Filters over all electrodes; the logarithm of their power goes through convolutions around shortcuts, then a
    dense layer.
    """

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels, window = shape.width // 2, 8
        self.filter = nn.Conv1d(inputs[0], channels, 9, padding=4, bias=False)
        self.pool = nn.AvgPool1d(window)
        self.norm = _norm(channels, shape)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, channels, 3, padding=1),
                _norm(channels, shape),
                shape.activation(),
            )
            for _ in range(shape.depth)
        )
        self.classify = tail(channels * (inputs[1] // window), classes, shape)

    def forward(self, signals: Tensor) -> Tensor:
        """Logits (N, C) of signals (N, electrodes, L)."""
        # Silence has a logarithm as well.
        states = self.norm((self.pool(self.filter(signals).square()) + 0.05).log())
        for layer in self.layers:
            states = states + layer(states)
        return self.classify(states.flatten(1))


class Attentive(nn.Module):
    """Dense layers for each look alike, then a gated recurrent unit; attention says which of its states are read."""

    views = 3

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels, features, layers = shape.width // 2, inputs[1], []
        for _ in range(shape.depth):
            layers += [nn.Conv1d(features, channels, 1), _norm(channels, shape), shape.activation()]
            features = channels
        self.looks = nn.Sequential(*layers)
        self.states = nn.GRU(features, channels, batch_first=True)
        # A softmax knows no constant.
        self.weigh = nn.Linear(channels, self.views, bias=False)
        self.classify = tail((self.views + 1) * channels, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states, last = self.states(self.looks(steps.transpose(1, 2)).transpose(1, 2))
        share = self.weigh(states).softmax(1)
        read = (share.transpose(1, 2) @ states).flatten(1)
        return self.classify(torch.cat((read, last[0]), dim=1))


class _Experts(nn.Module):
    """Some dense layers, of which each row takes the sum that a gate says."""

    experts = 4

    def __init__(self, features: int, units: int, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(features, self.experts)
        self.change = nn.Sequential(
            nn.Linear(features, self.experts * units), _norm(self.experts * units, shape), shape.activation()
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, units) of (N, features)."""
        share = self.gate(features).softmax(1)
        known = self.change(features).unflatten(1, (self.experts, -1))
        return (share.unsqueeze(2) * known).sum(1)


def experts(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Layers of experts under soft gates, then one dense layer."""
    features, layers = math.prod(inputs), [nn.Flatten()]
    for _ in range(shape.depth):
        layers.append(_Experts(features, shape.width, shape))
        features = shape.width
    return nn.Sequential(*layers, tail(features, classes, shape))


class _Shuffled(nn.Module):
    """Convolutions within groups of channels; the channels change groups between them, around a shortcut."""

    groups = 2

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        norms = [
            nn.BatchNorm2d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, channels) for _ in range(2)
        ]
        self.within = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=self.groups, bias=False), norms[0], shape.activation()
        )
        self.shuffle = nn.ChannelShuffle(self.groups)
        self.across = nn.Sequential(nn.Conv2d(channels, channels, 1, groups=self.groups, bias=False), norms[1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) of such images."""
        return images + self.across(self.shuffle(self.within(images)))


def shuffled(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """A convolution of stride two, shuffled blocks, mean over quarters of the image, one dense layer."""
    channels = shape.width // 2
    layers: list[nn.Module] = [nn.Conv2d(inputs[0], channels, 5, stride=2, padding=2), shape.activation()]
    layers += [_Shuffled(channels, shape) for _ in range(shape.depth)]
    layers += [shape.activation(), nn.AvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), tail(channels * (inputs[1] // 8) * (inputs[2] // 8), classes, shape))
