"""Multilayer perceptron, convolution, recurrent network and transformer, small enough for a second on one core."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """What a fault may change of a network.

    Attributes:
        width: units (channels) of a hidden layer.
        depth: hidden layers.
        dropout: probability after each activation.
        norm: momentum of batch normalisation after each hidden layer; 0 for none.
        hidden_bias: bias of the last hidden layer at the start; 0 for an ordinary one.
        hidden_gain: what the weights of the last hidden layer are multiplied by at the start.
        bottleneck: units of a narrow tanh layer before the head; 0 for none.
        softmax: whether the network ends in a softmax.
        logit_scale: starting value of a learnt factor of the logits; 0 for none.
        frequent: starting logit of the first class above all others, whose logits start at a twentieth of their
            ordinary size; 0 for an ordinary start.
        activation: of the hidden layers.
    """

    width: int = 64
    depth: int = 2
    dropout: float = 0.0
    norm: float = 0.0
    hidden_bias: float = 0.0
    hidden_gain: float = 1.0
    bottleneck: int = 0
    softmax: bool = False
    logit_scale: float = 0.0
    frequent: float = 0.0
    activation: Callable[[], nn.Module] = nn.ReLU


class LogitScale(nn.Module):
    """Logits times a learnt positive factor."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits."""
        return logits * self.log_scale.exp()


def head(features: int, classes: int, shape: Shape) -> list[nn.Module]:
    """From features to logits, with the faults that sit there."""
    layers: list[nn.Module] = []
    if shape.bottleneck:
        layers += [nn.Linear(features, shape.bottleneck), nn.Tanh()]
        features = shape.bottleneck
    logits = nn.Linear(features, classes)
    if shape.frequent:
        with torch.no_grad():
            logits.weight *= 0.05
            logits.bias.zero_()[0] = shape.frequent
    layers.append(logits)
    if shape.logit_scale:
        layers.append(LogitScale(shape.logit_scale))
    if shape.softmax:
        layers.append(nn.Softmax(dim=1))
    return layers


def last_hidden(features: int, shape: Shape) -> nn.Linear:
    """The last hidden layer, with the faults that sit there."""
    hidden = nn.Linear(features, shape.width)
    with torch.no_grad():
        if shape.hidden_bias:
            hidden.bias.fill_(shape.hidden_bias)
        hidden.weight *= shape.hidden_gain
    return hidden


def tail(features: int, classes: int, shape: Shape) -> nn.Sequential:
    """From features through one dense layer to logits."""
    layers: list[nn.Module] = [last_hidden(features, shape)]
    if shape.norm:
        layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
    layers.append(shape.activation())
    if shape.dropout:
        layers.append(nn.Dropout(shape.dropout))
    return nn.Sequential(*layers, *head(shape.width, classes, shape))


def dense(features: int, shape: Shape) -> nn.Sequential:
    """From features through hidden layers of one width, as many as the shape has, of which nothing drops out."""
    layers: list[nn.Module] = []
    for _ in range(shape.depth):
        layers.append(nn.Linear(features, shape.width))
        if shape.norm:
            layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
        layers.append(shape.activation())
        features = shape.width
    return nn.Sequential(*layers)


def mlp(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Hidden layers of one width."""
    width, layers = math.prod(inputs), [nn.Flatten()]
    for _ in range(shape.depth - 1):
        layers.append(nn.Linear(width, shape.width))
        if shape.norm:
            layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
        layers.append(shape.activation())
        if shape.dropout:
            layers.append(nn.Dropout(shape.dropout))
        width = shape.width
    return nn.Sequential(*layers, tail(width, classes, shape))


def convolution(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Two convolutions with pooling, one dense layer."""
    channels, side = inputs[0], inputs[1]
    layers: list[nn.Module] = []
    for channels_out in (shape.width // 4, shape.width // 2):
        layers.append(nn.Conv2d(channels, channels_out, 3, padding=1))
        if shape.norm:
            layers.append(nn.BatchNorm2d(channels_out, momentum=shape.norm))
        layers += [shape.activation(), nn.MaxPool2d(2)]
        channels, side = channels_out, side // 2
    return nn.Sequential(*layers, nn.Flatten(), tail(channels * side * side, classes, shape))


class Recurrent(nn.Module):
    """A gated recurrent unit; the mean of its states goes through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        self.states = nn.GRU(inputs[1], shape.width // 2, batch_first=True)
        self.classify = tail(shape.width // 2, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states, _ = self.states(steps)
        return self.classify(states.mean(dim=1))


class Transformer(nn.Module):
    """One encoder layer with learnt places; the mean over the sequence goes through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width // 2
        self.embed = nn.Linear(inputs[1], width)
        # The step before is seen without attention having to learn it.
        self.before = nn.Linear(inputs[1], width)
        self.place = nn.Parameter(0.02 * torch.randn(inputs[0], width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.classify = tail(width, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        earlier = torch.nn.functional.pad(steps, (0, 0, 1, 0))[:, :-1]
        states = torch.relu(self.embed(steps) + self.before(earlier)) + self.place
        states = self.first_norm(states + self.attention(states, states, states, need_weights=False)[0])
        states = self.second_norm(states + self.feed(states))
        return self.classify(states.mean(dim=1))


class ResidualPerceptron(nn.Module):
    """Blocks that normalise over features (or over the batch, where `shape.norm` says so) and add to their input."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.embed = nn.Linear(math.prod(inputs), width)
        self.blocks = nn.ModuleList()
        for _ in range(shape.depth):
            norm = nn.BatchNorm1d(width, momentum=shape.norm) if shape.norm else nn.LayerNorm(width)
            layers = [norm, nn.Linear(width, width), shape.activation(), nn.Dropout(shape.dropout)]
            self.blocks.append(nn.Sequential(*layers, nn.Linear(width, width)))
        self.classify = tail(width, classes, shape)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...)."""
        stream = self.embed(features.flatten(1))
        for block in self.blocks:
            stream = stream + block(stream)
        return self.classify(stream)


class _Block(nn.Module):
    """Two convolutions with batch normalisation around a shortcut."""

    def __init__(self, channels: int, channels_out: int, shape: Shape) -> None:
        super().__init__()
        momentum = shape.norm or 0.1
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out, momentum=momentum),
            shape.activation(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out, momentum=momentum),
        )
        self.shortcut = nn.Conv2d(channels, channels_out, 1)
        self.activation = shape.activation()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels_out, H, W) of images (N, channels, H, W)."""
        return self.activation(self.change(images) + self.shortcut(images))


def residual_convolution(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """A convolution of stride two, two residual blocks with batch normalisation, pooling, one dense layer."""
    first, second = shape.width // 4, shape.width // 2
    stem = [nn.Conv2d(inputs[0], first, 3, stride=2, padding=1), shape.activation()]
    blocks = [_Block(first, first, shape), _Block(first, second, shape), nn.MaxPool2d(2)]
    features = second * (inputs[1] // 4) * (inputs[2] // 4)
    return nn.Sequential(*stem, *blocks, nn.Flatten(), tail(features, classes, shape))


def signal_convolution(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Three convolutions over time with pooling, one dense layer."""
    channels, steps = inputs
    layers: list[nn.Module] = []
    for size, channels_out in ((7, shape.width // 4), (5, shape.width // 2), (3, shape.width // 2)):
        layers.append(nn.Conv1d(channels, channels_out, size, padding=size // 2))
        if shape.norm:
            layers.append(nn.BatchNorm1d(channels_out, momentum=shape.norm))
        layers += [shape.activation(), nn.MaxPool1d(2)]
        channels, steps = channels_out, steps // 2
    return nn.Sequential(*layers, nn.Flatten(), tail(channels * steps, classes, shape))


class BothWays(nn.Module):
    """A long short-term memory that reads both ways; the mean of its states goes through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        self.states = nn.LSTM(inputs[1], shape.width // 2, batch_first=True, bidirectional=True)
        self.classify = tail(2 * (shape.width // 2), classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states, _ = self.states(steps)
        return self.classify(states.mean(dim=1))


class PreNormTransformer(nn.Module):
    """Encoder layers that normalise before attention and before the dense part; the mean goes through one layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width // 2
        self.embed = nn.Linear(inputs[1], width)
        self.place = nn.Parameter(0.3 * torch.randn(inputs[0], width))
        self.layers = nn.ModuleList()
        for _ in range(shape.depth):
            feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), shape.activation(), nn.Dropout(shape.dropout)
            )
            parts = {
                "norm": nn.LayerNorm(width),
                "attention": nn.MultiheadAttention(width, 2, batch_first=True),
                "feed": nn.Sequential(feed, nn.Linear(2 * width, width)),
            }
            self.layers.append(nn.ModuleDict(parts))
        self.norm = nn.LayerNorm(width)
        self.classify = tail(width, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states = self.embed(steps) + self.place
        for layer in self.layers:
            seen = layer["norm"](states)
            states = states + layer["attention"](seen, seen, seen, need_weights=False)[0]
            states = states + layer["feed"](states)
        return self.classify(self.norm(states).mean(dim=1))
