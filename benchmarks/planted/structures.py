"""Networks of a third earlier report: for smears, spectra, winds, soils and spikes.

Hidden layers keep their units in the second dimension, as convolutions do. Legend: N rows, P cells of a smear,
F features, C classes, L steps, Q questions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from planted.networks import Shape, tail


def _norm(channels: int, shape: Shape) -> nn.Module:
    """Over all of a row, or over the batch, where `shape.norm` says so; of (N, channels, places)."""
    return nn.BatchNorm1d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, channels)


class GatedPooling(nn.Module):
    """Dense layers for every cell alike; a gated attention says how much each counts, and their sum is classified."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        features, layers = inputs[1], []
        for _ in range(shape.depth):
            layers.append(nn.Conv1d(features, shape.width, 1))
            if shape.norm:
                layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
            layers.append(shape.activation())
            features = shape.width
        self.cells = nn.Sequential(*layers)
        views = 4
        self.look, self.gate = nn.Conv1d(features, shape.width // 2, 1), nn.Conv1d(features, shape.width // 2, 1)
        # A softmax knows no constant.
        self.weigh = nn.Conv1d(shape.width // 2, views, 1, bias=False)
        self.classify = tail(views * features, classes, shape)

    def forward(self, smears: Tensor) -> Tensor:
        """Logits (N, C) of cells (N, P, F) in any order."""
        seen = self.cells(smears.transpose(1, 2))
        share = self.weigh(torch.tanh(self.look(seen)) * torch.sigmoid(self.gate(seen))).softmax(2)
        return self.classify((seen @ share.transpose(1, 2)).flatten(1))


class _Growth(nn.Module):
    """Adds channels that see all channels before."""

    def __init__(self, channels: int, more: int, shape: Shape) -> None:
        super().__init__()
        self.change = nn.Sequential(_norm(channels, shape), nn.Conv1d(channels, more, 3, padding=1), shape.activation())

    def forward(self, signals: Tensor) -> Tensor:
        """(N, channels + more, L) of (N, channels, L)."""
        return torch.cat((signals, self.change(signals)), dim=1)


def dense_connections(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """A convolution, two dense blocks of layers that each see all before, a transition between; one dense layer."""
    more, channels, steps = shape.width // 4, shape.width // 4, inputs[1] // 2
    layers: list[nn.Module] = [nn.Conv1d(inputs[0], channels, 5, stride=2, padding=2), shape.activation()]
    for _ in range(2):
        for _ in range(shape.depth):
            layers.append(_Growth(channels, more, shape))
            channels += more
        layers += [nn.Conv1d(channels, channels // 2, 1), nn.AvgPool1d(2)]
        channels, steps = channels // 2, steps // 2
    layers.append(_norm(channels, shape))
    return nn.Sequential(*layers, nn.Flatten(), tail(channels * steps, classes, shape))


class _Reading(nn.Module):
    """Questions look at all places, and what each has found goes through a dense layer, both around shortcuts."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.asked, self.found = _norm(channels, shape), _norm(channels, shape)
        # What all places share changes no attention.
        self.question, self.key = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1, bias=False)
        self.value = nn.Conv1d(channels, channels, 1)
        self.feed = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1), shape.activation(), nn.Conv1d(2 * channels, channels, 1)
        )

    def forward(self, questions: Tensor, places: Tensor) -> Tensor:
        """Questions (N, channels, Q) that have read places (N, channels, places)."""
        fit = self.question(self.asked(questions)).transpose(1, 2) @ self.key(places) / math.sqrt(places.shape[1])
        questions = questions + self.value(places) @ fit.softmax(2).transpose(1, 2)
        return questions + self.feed(self.found(questions))


class Perceiver(nn.Module):
    """Learnt questions read the places of a map again and again; what they know goes through one dense layer."""

    questions = 8

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels = shape.width // 2
        self.cut = nn.Sequential(nn.Conv2d(inputs[0], channels, 4, stride=2, padding=1), shape.activation())
        places = (inputs[1] // 2) * (inputs[2] // 2)
        self.place = nn.Parameter(0.7 * torch.randn(channels, places))
        self.ask = nn.Parameter(0.1 * torch.randn(channels, self.questions))
        self.norm = _norm(channels, shape)
        self.readings = nn.ModuleList(_Reading(channels, shape) for _ in range(shape.depth))
        self.last = _norm(channels, shape)
        self.classify = tail(channels * self.questions, classes, shape)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (N, C) of maps (N, channels, H, W)."""
        places = self.norm(self.cut(maps).flatten(2) + self.place)
        questions = self.ask.expand(len(maps), -1, -1)
        for reading in self.readings:
            questions = reading(questions, places)
        return self.classify(self.last(questions).flatten(1))


class FourierFeatures(nn.Module):
    """Random waves over two coordinates go through hidden layers, which the other features scale and shift."""

    waves = 16

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        others = math.prod(inputs) - 2
        self.register_buffer("frequencies", 1.6 * torch.randn(2, self.waves))
        features = 2 * self.waves + 2
        self.layers, self.films = nn.ModuleList(), nn.ModuleList()
        for _ in range(shape.depth):
            norm = nn.BatchNorm1d(shape.width, momentum=shape.norm) if shape.norm else nn.LayerNorm(shape.width)
            self.layers.append(nn.Sequential(nn.Linear(features, shape.width), norm))
            self.films.append(nn.Linear(others, 2 * shape.width))
            features = shape.width
        self.activations = nn.ModuleList(shape.activation() for _ in range(shape.depth))
        self.classify = tail(features, classes, shape)

    def forward(self, sites: Tensor) -> Tensor:
        """Logits (N, C) of coordinates and measurements (N, F)."""
        place, others = sites[:, :2], sites[:, 2:]
        angle = place @ self.frequencies
        states = torch.cat((place, angle.sin(), angle.cos()), dim=1)
        for layer, film, activation in zip(self.layers, self.films, self.activations, strict=True):
            scale, shift = film(others).chunk(2, dim=1)
            states = activation(layer(states) * (1 + scale) + shift)
        return self.classify(states)


class _Gated(nn.Module):
    """A convolution whose output a second one lets pass or not, around a shortcut; and what it says to the end."""

    def __init__(self, channels: int, reach: int, shape: Shape) -> None:
        super().__init__()
        self.norm = _norm(channels, shape)
        self.change = nn.Conv1d(channels, channels, 3, padding=reach, dilation=reach)
        self.gate = nn.Conv1d(channels, channels, 3, padding=reach, dilation=reach)
        self.activation = shape.activation()
        self.back, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States and what is said, both (N, channels, L)."""
        seen = self.norm(states)
        passed = self.activation(self.change(seen)) * torch.sigmoid(self.gate(seen))
        return states + self.back(passed), self.skip(passed)


class WaveGates(nn.Module):
    """Gated convolutions, each looking twice as far; mean and maximum of what all say are classified."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels = shape.width // 2
        self.embed = nn.Conv1d(inputs[1], channels, 3, padding=1)
        self.layers = nn.ModuleList(_Gated(channels, 2**place, shape) for place in range(shape.depth))
        self.norm, self.activation = _norm(channels, shape), shape.activation()
        self.classify = tail(2 * channels, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states, said = self.embed(steps.transpose(1, 2)), torch.zeros(())
        for place, layer in enumerate(self.layers):
            states, more = layer(states)
            said = more if place == 0 else said + more
        found = self.activation(self.norm(said + states))
        return self.classify(torch.cat((found.mean(2), found.amax(2)), dim=1))
