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
        hidden_bias: added to the bias of the last hidden layer at the start.
        bottleneck: units of a narrow tanh layer before the head; 0 for none.
        softmax: whether the network ends in a softmax.
        logit_scale: starting value of a learnt factor of the logits; 0 for none.
        activation: of the hidden layers.
    """

    width: int = 64
    depth: int = 2
    dropout: float = 0.0
    norm: float = 0.0
    hidden_bias: float = 0.0
    bottleneck: int = 0
    softmax: bool = False
    logit_scale: float = 0.0
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
    layers.append(nn.Linear(features, classes))
    if shape.logit_scale:
        layers.append(LogitScale(shape.logit_scale))
    if shape.softmax:
        layers.append(nn.Softmax(dim=1))
    return layers


def mlp(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Hidden layers of one width."""
    width, layers = math.prod(inputs), [nn.Flatten()]
    for place in range(shape.depth):
        hidden = nn.Linear(width, shape.width)
        if shape.hidden_bias and place == shape.depth - 1:
            nn.init.constant_(hidden.bias, shape.hidden_bias)
        layers.append(hidden)
        if shape.norm:
            layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
        layers.append(shape.activation())
        if shape.dropout:
            layers.append(nn.Dropout(shape.dropout))
        width = shape.width
    return nn.Sequential(*layers, *head(width, classes, shape))


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
    hidden = nn.Linear(channels * side * side, shape.width)
    if shape.hidden_bias:
        nn.init.constant_(hidden.bias, shape.hidden_bias)
    layers += [nn.Flatten(), hidden, shape.activation()]
    if shape.dropout:
        layers.append(nn.Dropout(shape.dropout))
    return nn.Sequential(*layers, *head(shape.width, classes, shape))


class Recurrent(nn.Module):
    """A gated recurrent unit; the mean of its states goes through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        self.states = nn.GRU(inputs[1], shape.width // 2, batch_first=True)
        hidden = nn.Linear(shape.width // 2, shape.width)
        if shape.hidden_bias:
            nn.init.constant_(hidden.bias, shape.hidden_bias)
        layers: list[nn.Module] = [hidden]
        if shape.norm:
            layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
        layers.append(shape.activation())
        if shape.dropout:
            layers.append(nn.Dropout(shape.dropout))
        self.classify = nn.Sequential(*layers, *head(shape.width, classes, shape))

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
        hidden = nn.Linear(width, shape.width)
        if shape.hidden_bias:
            nn.init.constant_(hidden.bias, shape.hidden_bias)
        layers: list[nn.Module] = [hidden]
        if shape.norm:
            layers.append(nn.BatchNorm1d(shape.width, momentum=shape.norm))
        layers.append(shape.activation())
        if shape.dropout:
            layers.append(nn.Dropout(shape.dropout))
        self.classify = nn.Sequential(*layers, *head(shape.width, classes, shape))

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        earlier = torch.nn.functional.pad(steps, (0, 0, 1, 0))[:, :-1]
        states = torch.relu(self.embed(steps) + self.before(earlier)) + self.place
        states = self.first_norm(states + self.attention(states, states, states, need_weights=False)[0])
        states = self.second_norm(states + self.feed(states))
        return self.classify(states.mean(dim=1))
