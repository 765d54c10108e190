"""Further generators: tones, drawn shapes, marked tokens, rings and series of visits.

Legend: N rows, F features, C classes, L steps of a sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from planted.data import Pool, Source


def uniform(low: float, high: float, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Random numbers of the given size between two limits."""
    return low + (high - low) * torch.rand(size, generator=generator)


class Tones(Source):
    """One-channel signals (1, L): low or high tone, rising or falling chirp, a burst, two tones at once."""

    num_classes, shape = 6, (1, 48)

    def setup(self, generator: Generator) -> None:
        self.low, self.high = 2.5 + torch.rand(1, generator=generator), 9 + 2 * torch.rand(1, generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1)
        time = torch.linspace(0, 1, self.shape[1])
        low, high = self.low * uniform(0.9, 1.1, one, generator), self.high * uniform(0.9, 1.1, one, generator)
        phase = uniform(0, 2 * math.pi, (2, rows, 1), generator)
        tones = [(2 * math.pi * pitch * time + phase[place]).sin() for place, pitch in enumerate((low, high))]
        rising = (2 * math.pi * (low + (high - low) * time / 2) * time + phase[0]).sin()
        falling = (2 * math.pi * (high - (high - low) * time / 2) * time + phase[1]).sin()
        burst = 1.6 * tones[1] * (-(((time - uniform(0.2, 0.8, one, generator)) / 0.1) ** 2)).exp()
        kinds = torch.stack((tones[0], tones[1], rising, falling, burst, 0.7 * (tones[0] + tones[1])))
        signal = kinds[target, torch.arange(rows)] * uniform(0.7, 1.3, one, generator)
        return (signal + 0.9 * self.noise * torch.randn(signal.shape, generator=generator)).unsqueeze(1)


class Shapes(Source):
    """Colour images (3, 12, 12): disc, ring, square, frame, plus, cross, stripes or checks; any place and colour."""

    num_classes, shape = 8, (3, 12, 12)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1, 1)
        y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
        right, down = (x - uniform(4.3, 6.7, one, generator)).abs(), (y - uniform(4.3, 6.7, one, generator)).abs()
        size, begin = uniform(3.0, 4.5, one, generator), torch.randint(4, one, generator=generator)
        far, near, distance = torch.maximum(right, down), torch.minimum(right, down), (right**2 + down**2).sqrt()
        kinds = torch.stack(
            (
                distance < size,
                (distance - size).abs() < 0.8,
                far < 0.9 * size,
                (far - size).abs() < 0.7,
                (near < 0.9) & (far < size + 0.5),
                ((right - down).abs() < 1.1) & (far < size),
                ((y + begin) % 4 < 2).expand(rows, 12, 12),
                ((y + begin) % 4 < 2) ^ ((x + begin) % 4 < 2),
            )
        )
        drawn = kinds[target, torch.arange(rows)].float().unsqueeze(1)
        ink, paper = (uniform(low, low + 1.2, (rows, 3, 1, 1), generator) for low in (0.2, -1.4))
        pixels = drawn * ink + (1 - drawn) * paper
        return pixels + 0.8 * self.noise * torch.randn(pixels.shape, generator=generator)


class Marks(Source):
    """Sequences of 16 tokens out of 10, one-hot (L, 10): the class is told by the first of two marks and the last of
    two others, far apart; of the tokens a share of 0.1 per unit of noise is any other.
    """

    num_classes, shape = 4, (16, 10)

    def setup(self, generator: Generator) -> None:
        self.names = torch.randperm(10, generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, every = len(target), torch.arange(len(target))
        tokens = torch.randint(4, 10, (rows, self.shape[0]), generator=generator)
        tokens[every, torch.randint(0, 6, (rows,), generator=generator)] = target // 2
        tokens[every, torch.randint(10, 16, (rows,), generator=generator)] = 2 + target % 2
        # Marks that say nothing: one of the first kind late, one of the second kind early.
        decoys = torch.randint(2, (2, rows), generator=generator)
        tokens[every, torch.randint(6, 8, (rows,), generator=generator)] = 2 + decoys[0]
        tokens[every, torch.randint(8, 10, (rows,), generator=generator)] = decoys[1]
        replaced = torch.rand(tokens.shape, generator=generator) < min(0.1 * self.noise, 0.9)
        tokens = torch.where(replaced, torch.randint(10, tokens.shape, generator=generator), tokens)
        return one_hot(self.names[tokens], 10).float()


class Rings(Source):
    """A table: the class is the ring in two features and the sign of the product of two others; eight say nothing."""

    num_classes, shape = 3, (12,)

    def setup(self, generator: Generator) -> None:
        self.places = torch.randperm(12, generator=generator)
        self.radii = torch.tensor([2.2, 1.0, 3.4]) + 0.2 * torch.rand(3, generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows = len(target)
        features = torch.randn(rows, 12, generator=generator)
        angle = uniform(0, 2 * math.pi, (rows,), generator)
        features[:, 0], features[:, 1] = self.radii[target] * angle.cos(), self.radii[target] * angle.sin()
        sign = torch.where(target == 0, 1.0, -1.0) * features[:, 2].sign()
        features[:, 3] = sign * features[:, 3].abs()
        features[:, :4] += 0.4 * self.noise * torch.randn(rows, 4, generator=generator)
        return features[:, self.places]


class Visits(Source):
    """Series of visits (L, 3): three measurements of a hidden state that rises in one class, and bends in the other.

    The noise is heavy-tailed, and every row has its own level and pace, so that the classes overlap.
    """

    num_classes, shape = 2, (12, 3)

    def setup(self, generator: Generator) -> None:
        self.loadings = torch.randn(3, generator=generator).sign() * uniform(0.6, 1.2, (3,), generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1)
        time = torch.linspace(-1, 1, self.shape[0])
        level, pace = torch.randn(one, generator=generator), uniform(0.3, 1.7, one, generator)
        bent = 1.2 - 2.4 * (time - uniform(-0.3, 0.3, one, generator)).abs()
        state = 0.5 * level + pace * torch.where(target[:, None] == 0, time, bent)
        # Student's t with 5 degrees of freedom.
        chance = torch.randn(5, rows, *self.shape, generator=generator).square().mean(0).rsqrt()
        chance = chance * torch.randn(rows, *self.shape, generator=generator)
        return state[:, :, None] * self.loadings + 1.1 * self.noise * chance
