"""Networks of an earlier report: for point sets, graphs, tiles, tables of categories and long series.

Hidden layers keep their units in the second dimension, as convolutions do. Legend: N rows, P points, V vertices,
K columns of a table, C classes, L steps.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from planted.networks import Shape, dense, tail


def _hidden(features: int, units: int, shape: Shape) -> nn.Sequential:
    """One dense layer for every place alike: (N, units, places) of (N, features, places)."""
    layers: list[nn.Module] = [nn.Conv1d(features, units, 1)]
    if shape.norm:
        layers.append(nn.BatchNorm1d(units, momentum=shape.norm))
    return nn.Sequential(*layers, shape.activation())


class PointSet(nn.Module):
    """Dense layers for every point alike; mean and maximum over the points go through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        sizes = [inputs[1], *[shape.width] * shape.depth]
        layers = [_hidden(before, after, shape) for before, after in pairwise(sizes)]
        self.points = nn.Sequential(*layers)
        self.classify = tail(2 * shape.width, classes, shape)

    def forward(self, points: Tensor) -> Tensor:
        """Logits (N, C) of points (N, P, F) in any order."""
        seen = self.points(points.transpose(1, 2))
        return self.classify(torch.cat((seen.mean(2), seen.amax(2)), dim=1))


class MessagePassing(nn.Module):
    """Rounds in which a vertex hears the sum of its neighbours; mean and maximum go through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        vertices, features = inputs
        self.measured = features - vertices
        sizes = [self.measured, *[shape.width // 2] * shape.depth]
        self.rounds = nn.ModuleList(_hidden(2 * before + 1, after, shape) for before, after in pairwise(sizes))
        self.classify = tail(2 * sizes[-1], classes, shape)

    def forward(self, graphs: Tensor) -> Tensor:
        """Logits (N, C) of measurements and rows of neighbours (N, V, F + V)."""
        states, edges = graphs[:, :, : self.measured].transpose(1, 2), graphs[:, :, self.measured :]
        # As large as the states, for the few neighbours that a vertex has.
        heard = edges.transpose(1, 2) / 2
        degree = heard.sum(1, keepdim=True)
        for layer in self.rounds:
            states = layer(torch.cat((states, states @ heard, degree), dim=1))
        return self.classify(torch.cat((states.mean(2), states.amax(2)), dim=1))


class Mixer(nn.Module):
    """Tiles of 3 x 3 pixels; blocks mix first between tiles, then within each; all tiles go through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width // 2
        tiles = (inputs[1] // 3) * (inputs[2] // 3)
        self.cut = nn.Unfold(3, stride=3)
        self.embed = _hidden(9 * inputs[0], width, shape)
        self.between, self.within = nn.ModuleList(), nn.ModuleList()
        for _ in range(shape.depth):
            self.between.append(nn.Sequential(_hidden(tiles, tiles, shape), nn.Conv1d(tiles, tiles, 1)))
            norm = nn.BatchNorm1d(width, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, width)
            self.within.append(nn.Sequential(norm, _hidden(width, width, shape), nn.Conv1d(width, width, 1)))
        self.classify = tail(width * tiles, classes, shape)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, channels, H, W)."""
        states = self.embed(self.cut(images))
        for between, within in zip(self.between, self.within, strict=True):
            states = states + between(states.transpose(1, 2)).transpose(1, 2)
            states = states + within(states)
        return self.classify(states.flatten(1))


class WideAndDeep(nn.Module):
    """Embeddings of categories, and numbers: hidden layers, and a way around them that both join one dense layer."""

    columns, values = 7, 4

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        size, numbers = 4, math.prod(inputs) - self.columns * self.values
        # Each column has its own part of one table.
        self.register_buffer("first", self.values * torch.arange(self.columns))
        self.embed = nn.Embedding(self.columns * self.values, size)
        features = size * self.columns + numbers
        self.deep = dense(features, shape)
        self.classify = tail((shape.width if shape.depth else features) + features, classes, shape)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (N, C) of one-hot columns and numbers (N, K * values + numbers)."""
        categories = rows[:, : self.columns * self.values].unflatten(1, (self.columns, self.values))
        known = self.embed(categories.argmax(2) + self.first).flatten(1)
        features = torch.cat((known, rows[:, self.columns * self.values :]), dim=1)
        return self.classify(torch.cat((self.deep(features), features), dim=1))


class CausalConvolution(nn.Module):
    """Convolutions over the past, each looking twice as far; mean and last state go through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width // 2
        self.embed = nn.Conv1d(inputs[1], width, 1)
        self.layers = nn.ModuleList()
        for place in range(shape.depth + 1):
            reach = 2**place
            layers: list[nn.Module] = [nn.ConstantPad1d((2 * reach, 0), 0.0)]
            layers.append(nn.Conv1d(width, width, 3, dilation=reach))
            if shape.norm:
                layers.append(nn.BatchNorm1d(width, momentum=shape.norm))
            self.layers.append(nn.Sequential(*layers, shape.activation()))
        self.classify = tail(2 * width, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states = self.embed(steps.transpose(1, 2))
        for layer in self.layers:
            states = states + layer(states)
        return self.classify(torch.cat((states.mean(2), states[:, :, -1]), dim=1))
