"""Networks of another earlier report: for letters, spectrograms, two receivers, driven systems and tables.

Hidden layers keep their units in the second dimension, as convolutions do. Legend: N rows, F features, C classes,
L steps, V words of the vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from planted.networks import Shape, dense, tail


class BagOfWords(nn.Module):
    """The mean of the embeddings of words and of pairs of neighbours goes through dense layers; no order but theirs."""

    buckets = 509

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        width = shape.width // 2
        self.words = nn.EmbeddingBag(inputs[1], width, mode="sum")
        # Pairs share places, as a table of all of them would be large.
        self.pairs = nn.EmbeddingBag(self.buckets, width, mode="sum")
        self.hidden = dense(2 * width, shape)
        self.classify = tail(shape.width if shape.depth else 2 * width, classes, shape)

    def forward(self, letters: Tensor) -> Tensor:
        """Logits (N, C) of one-hot words (N, L, V), zeros after the last."""
        strength, words = letters.max(2)
        written = (strength > 0).float()
        # The root keeps means of many words as large as those of few.
        weights = written / written.sum(1, keepdim=True).clamp(min=1).sqrt()
        pairs = (words[:, :-1] * 67 + words[:, 1:]) % self.buckets
        known = self.words(words, per_sample_weights=weights)
        known_pairs = self.pairs(pairs, per_sample_weights=weights[:, 1:])
        return self.classify(self.hidden(torch.cat((known, known_pairs), dim=1)))


def _norm(channels: int, shape: Shape) -> nn.Module:
    """Over groups of channels, or over the batch, where `shape.norm` says so."""
    return nn.BatchNorm2d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(4, channels)


class _Separable(nn.Module):
    """Each channel on its own, then all at one place, around a shortcut; a look at the whole says what passes."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            _norm(channels, shape),
            shape.activation(),
        )
        self.squeeze, self.excite = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) of such images."""
        changed = self.change(images)
        passes = torch.sigmoid(self.excite(functional.silu(self.squeeze(changed.mean((2, 3))))))
        return images + changed * passes[:, :, None, None]


def squeeze_excite(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """A convolution of stride two, separable blocks with pooling after the first, one dense layer."""
    channels = shape.width // 2
    layers: list[nn.Module] = [nn.Conv2d(inputs[0], channels, 3, stride=2, padding=1), shape.activation()]
    for place in range(shape.depth):
        layers.append(_Separable(channels, shape))
        if place == 0:
            layers.append(nn.MaxPool2d(2))
    # A sum of what is never negative would drive the dense layer out of its range.
    layers.append(_norm(channels, shape))
    features = channels * (inputs[1] // 4) * (inputs[2] // 4)
    return nn.Sequential(*layers, nn.Flatten(), tail(features, classes, shape))


class Siamese(nn.Module):
    """One convolution reads both receivers; how alike they are at each delay goes through one dense layer."""

    reach = 7

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels, before = shape.width // 4, 1
        layers: list[nn.Module] = []
        for _ in range(shape.depth):
            layers.append(nn.Conv1d(before, channels, 5, padding=2))
            if shape.norm:
                layers.append(nn.BatchNorm1d(channels, momentum=shape.norm))
            layers.append(shape.activation())
            before = channels
        self.read = nn.Sequential(*layers)
        features = channels * (2 * self.reach + 1)
        # What the batch normalises needs no other.
        self.norm = nn.Identity() if shape.norm else nn.LayerNorm(features)
        self.classify = tail(features, classes, shape)

    def forward(self, heard: Tensor) -> Tensor:
        """Logits (N, C) of two signals (N, 2, L)."""
        first, second = (self.read(heard[:, place : place + 1]) for place in range(2))
        steps = first.shape[2]
        # The second at every delay, in the third dimension.
        moved = functional.pad(second, (self.reach, self.reach)).unfold(2, steps, 1)
        alike = (moved * first.unsqueeze(2)).mean(3)
        return self.classify(self.norm(alike.flatten(1)))


class _States(nn.Module):
    """A linear recurrence of one complex number a channel, read through a gate, around a shortcut.

    As every state is a sum over the past whose weights fall and swing, all steps are one product with a matrix.
    """

    def __init__(self, channels: int, steps: int, shape: Shape) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(channels, momentum=shape.norm) if shape.norm else nn.GroupNorm(1, channels)
        self.norm, self.activation = norm, shape.activation()
        self.mix, self.gate = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)
        # Memories of 1 to 30 steps, and swings of up to a fifth of a turn a step.
        self.log_decay = nn.Parameter(-torch.linspace(0, math.log(30), channels))
        self.swing = nn.Parameter(1.2 * torch.rand(channels))
        self.phase = nn.Parameter(0.5 * torch.randn(channels))
        ago = torch.arange(steps)[:, None] - torch.arange(steps)
        self.register_buffer("ago", ago.clamp(min=0).float())
        self.register_buffer("past", (ago >= 0).float())

    def forward(self, states: Tensor) -> Tensor:
        """States (N, channels, L) of such states."""
        decay = self.log_decay.exp()[:, None, None]
        weights = (-decay * self.ago).exp() * (self.swing[:, None, None] * self.ago + self.phase[:, None, None]).cos()
        # As large as its input.
        weights = weights * self.past * (1 - (-2 * decay).exp()).sqrt()
        seen = self.norm(states)
        found = torch.einsum("ncs,cts->nct", seen, weights)
        return states + self.activation(self.mix(found)) * torch.sigmoid(self.gate(seen))


class StateSpace(nn.Module):
    """Gated linear recurrences; mean and last state go through one dense layer."""

    def __init__(self, inputs: tuple[int, ...], classes: int, shape: Shape) -> None:
        super().__init__()
        channels = shape.width // 2
        self.embed = nn.Conv1d(inputs[1], channels, 1)
        self.layers = nn.Sequential(*[_States(channels, inputs[0], shape) for _ in range(shape.depth)])
        self.classify = tail(2 * channels, classes, shape)

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (N, C) of sequences (N, L, F)."""
        states = self.layers(self.embed(steps.transpose(1, 2)))
        return self.classify(torch.cat((states.mean(2), states[:, :, -1]), dim=1))


class _Curves(nn.Module):
    """Every output is a sum of one learnt curve for each input: bumps of equal distance, and a hinge."""

    def __init__(self, features: int, units: int, shape: Shape, bumps: int = 7) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2.4, 2.4, bumps))
        self.activation = shape.activation()
        self.hinge = nn.Linear(features, units)
        self.curves = nn.Linear(features * bumps, units, bias=False)
        with torch.no_grad():
            # Curves begin flat.
            self.hinge.weight *= 0.2
            self.curves.weight *= 0.2
        self.norm = nn.BatchNorm1d(units, momentum=shape.norm) if shape.norm else nn.LayerNorm(units)

    def forward(self, features: Tensor) -> Tensor:
        """(N, units) of (N, features)."""
        # Neighbours overlap at 0.6 of their height.
        bumps = (-((1.25 * (features.unsqueeze(2) - self.centres)) ** 2) / 2).exp()
        return self.norm(self.hinge(self.activation(features)) + self.curves(bumps.flatten(1)))


def splines(inputs: tuple[int, ...], classes: int, shape: Shape) -> nn.Module:
    """Layers of learnt curves, then one dense layer."""
    features, layers = math.prod(inputs), [nn.Flatten()]
    for _ in range(shape.depth):
        layers.append(_Curves(features, shape.width, shape))
        features = shape.width
    return nn.Sequential(*layers, tail(features, classes, shape))
