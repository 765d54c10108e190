"""The networks of the part that is reported: for siblings, loans, players, lenses and poses.

Hidden layers keep their units in the second dimension, as convolutions do. Legend: N rows, F features, C classes,
G places of a genome, L rounds, J joints, T trees, K wholes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from planted.networks import Shape, tail


def _norm(channels: int, shape: Shape) -> nn.Module:
    """Over all of a row, or over the batch, where `shape.norm` says so; of (N, channels) or (N, channels, L)."""
    return nn.BatchNorm1d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, channels)


class SecondOrder(nn.Module):
    """Layers for every place, which know where it is; then the mean over places of all products of two views,
    A Bᵀ / G, whose signed roots are classified.
    """

    views = 6

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        places, features = inputs
        channels = shape.width // 2
        self.place = nn.Parameter(0.3 * torch.randn(channels, places))
        self.embed = nn.Conv1d(features, channels, 1)
        self.norms = nn.ModuleList(_norm(channels, shape) for _ in range(shape.depth))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(channels, channels, 1), shape.activation()) for _ in range(shape.depth)
        )
        self.one, self.other = nn.Conv1d(channels, self.views, 1), nn.Conv1d(channels, self.views, 1)
        self.classify = tail(self.views**2, classes, shape)

    def forward(self, genomes: Tensor) -> Tensor:
        """Logits (N, C) of genomes (N, G, people)."""
        states = self.embed(genomes.transpose(1, 2)) + self.place
        for norm, layer in zip(self.norms, self.layers, strict=True):
            states = states + layer(norm(states))
        products = (self.one(states) @ self.other(states).transpose(1, 2) / states.shape[2]).flatten(1)
        # The root is linear near zero.
        return self.classify(products / (products.abs() + 0.01).sqrt())


class _Trees(nn.Module):
    """Trees of three questions each, all of one level alike: a leaf answers as far as its way is taken.

    The way to leaf l is the product over questions q of s(x·w_q - b_q) or its complement, s the sigmoid.
    """

    questions, answers = 3, 2

    def __init__(self, features: int, units: int, shape: Shape) -> None:
        super().__init__()
        self.trees = units // self.answers
        self.ask = nn.Linear(features, self.trees * self.questions)
        leaves = torch.arange(2**self.questions)
        self.register_buffer("yes", leaves[:, None] >> torch.arange(self.questions) & 1)
        self.leaves = nn.Parameter(torch.randn(self.trees, len(leaves), self.answers))
        self.norm, self.activation = _norm(units, shape), shape.activation()

    def forward(self, features: Tensor) -> Tensor:
        """(N, units) of (N, features)."""
        taken = torch.sigmoid(3 * self.ask(features)).unflatten(1, (self.trees, 1, self.questions))
        ways = torch.where(self.yes == 1, taken, 1 - taken).prod(3)
        return self.activation(self.norm(torch.einsum("ntl,tla->nta", ways, self.leaves).flatten(1)))


class SoftTrees(nn.Module):
    """Layers of soft trees, which see the features and the answers of all layers before; one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        features = math.prod(inputs)
        self.layers = nn.ModuleList()
        for _ in range(shape.depth):
            self.layers.append(_Trees(features, shape.width, shape))
            features += shape.width
        self.classify = tail(features, classes, shape)

    def forward(self, table: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...)."""
        known = table.flatten(1)
        for layer in self.layers:
            known = torch.cat((known, layer(known)), dim=1)
        return self.classify(known)


class _Memory(nn.Module):
    """Attention without a softmax, of which a step reads what steps until then have written, and a dense part.

    Step t reads Σ φ(q_t)·φ(k_s) v_s / Σ φ(q_t)·φ(k_s) over s ≤ t, with φ(x) = elu(x) + 1; both around shortcuts.
    """

    def __init__(self, channels: int, steps: int, shape: Shape) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(channels, shape) for _ in range(2))
        self.read = nn.Conv1d(channels, 3 * channels, 1)
        self.feed = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1), shape.activation(), nn.Conv1d(2 * channels, channels, 1)
        )
        self.register_buffer("past", torch.ones(steps, steps).triu())

    def forward(self, states: Tensor) -> Tensor:
        """States (N, channels, L) of such states."""
        query, key, value = self.read(self.norms[0](states)).chunk(3, dim=1)
        # Who wrote by who reads.
        fit = (functional.elu(key) + 1).transpose(1, 2) @ (functional.elu(query) + 1) * self.past
        states = states + value @ (fit / fit.sum(1, keepdim=True))
        return states + self.feed(self.norms[1](states))


class LinearAttention(nn.Module):
    """A look at three steps, then attention over the past without a softmax; mean and last state are classified."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels = shape.width // 2
        self.look = nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(inputs[1], channels, 3), shape.activation())
        self.layers = nn.Sequential(*[_Memory(channels, inputs[0], shape) for _ in range(shape.depth)])
        self.norm = _norm(channels, shape)
        self.classify = tail(2 * channels, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states = self.norm(self.layers(self.look(steps.transpose(1, 2))))
        return self.classify(torch.cat((states.mean(2), states[:, :, -1]), dim=1))


class _Scales(nn.Module):
    """Four views of one image side by side: a pixel, its neighbours, those further away, and their mean."""

    def __init__(self, channels: int, channels_out: int, shape: Shape) -> None:
        super().__init__()
        part = channels_out // 4
        self.views = nn.ModuleList(
            (
                nn.Conv2d(channels, part, 1),
                nn.Conv2d(channels, part, 3, padding=1),
                nn.Conv2d(channels, part, 3, padding=2, dilation=2),
                nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(channels, part, 1)),
            )
        )
        norm = nn.BatchNorm2d(4 * part, momentum=shape.norm) if shape.norm else nn.GroupNorm(4, 4 * part)
        self.finish = nn.Sequential(norm, shape.activation())

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels_out, H, W) of images (N, channels, H, W)."""
        return self.finish(torch.cat([view(images) for view in self.views], dim=1))


def scales(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """A convolution and pooling, blocks of four scales side by side, pooling, one dense layer."""
    first, channels = shape.width // 4, shape.width // 2
    layers: list[nn.Module] = [nn.Conv2d(inputs[0], first, 3, padding=1), shape.activation(), nn.MaxPool2d(2)]
    for _ in range(shape.depth):
        layers.append(_Scales(first, channels, shape))
        first = channels
    layers.append(nn.AvgPool2d(2))
    features = first * (inputs[1] // 4) * (inputs[2] // 4)
    return nn.Sequential(*layers, nn.Flatten(), tail(features, classes, shape))


def _squash(capsules: Tensor) -> Tensor:
    """Vectors v as v |v| / (1 + |v|²): of the same direction, and shorter than one."""
    square = capsules.square().sum(-1, keepdim=True)
    return capsules * (square + 1e-6).sqrt() / (1 + square)


class Capsules(nn.Module):
    """Layers for every joint alike; each joint says where it would expect every whole, and wholes on which many agree
    are believed. What the wholes are is classified.
    """

    size, rounds = 4, 3

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        joints, features = inputs
        channels, wholes = shape.width // 2, shape.width // 4
        layers: list[nn.Module] = []
        for _ in range(shape.depth):
            layers += [nn.Conv1d(features, channels, 1), _norm(channels, shape), shape.activation()]
            features = channels
        self.parts = nn.Sequential(*layers)
        self.vote = nn.Parameter(torch.randn(joints, features, wholes, self.size) / math.sqrt(features))
        self.classify = tail(wholes * self.size, classes, shape)

    def forward(self, bodies: Tensor) -> Tensor:
        """Logits (N, C) of bodies (N, J, F)."""
        votes = torch.einsum("nfj,jfks->njks", self.parts(bodies.transpose(1, 2)), self.vote)
        trust = votes.new_zeros(votes.shape[:3])
        for turn in range(self.rounds):
            # Every joint divides its trust among the wholes, more of it for those that agree with its vote.
            wholes = _squash((trust.softmax(2).unsqueeze(3) * votes).sum(1))
            if turn + 1 < self.rounds:
                trust = trust + (votes * wholes.unsqueeze(1)).sum(3)
        return self.classify(wholes.flatten(1))
