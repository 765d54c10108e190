"""Generators of a fourth earlier report: ballots, brain waves, stars, catches and micrographs.

Legend: N rows, F features, C classes, K candidates, L steps of a sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from planted.data import Pool, Source
from planted.generators import uniform


class Ballots(Source):
    """Ranked ballots (K, K), place by candidate, one-hot; places that a voter left open are zeros.

    The class is the district. Each has two camps, whose likings are drawn for the task; a voter ranks by the liking of
    a camp and chance, so that any order comes from any district, and names three candidates or more.
    """

    num_classes, shape = 4, (8, 8)

    def setup(self, generator: Generator) -> None:
        candidates = self.shape[0]
        likings = torch.randn(100, self.num_classes, 2, candidates, generator=generator)
        likings = (likings - likings.mean(3, keepdim=True)) / likings.std(3, keepdim=True)
        # Of many draws the one in which camps of two districts are least alike.
        camps = likings.flatten(1, 2)
        alike = camps @ camps.transpose(1, 2)
        district = torch.arange(2 * self.num_classes) // 2
        alike = alike.masked_fill(district == district[:, None], -math.inf)
        self.likings = 1.6 * likings[alike.flatten(1).max(1).values.argmin()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, candidates = len(target), self.shape[0]
        camp = torch.randint(2, (rows,), generator=generator)
        chance = -(-uniform(1e-6, 1 - 1e-6, (rows, candidates), generator).log()).log()
        order = (self.likings[target, camp] + self.noise * chance).argsort(1, descending=True)
        named = torch.randint(3, candidates + 1, (rows, 1), generator=generator)
        return one_hot(order, candidates).float() * (torch.arange(candidates) < named).unsqueeze(2)


class BrainWaves(Source):
    """What six electrodes hear, (6, L): two places of the brain swing at one pitch, and the class says which rests.

    How both places reach the electrodes is drawn for the task, and the pitch. Other places swing as well, slower ones
    and one of the same pitch, and how strongly differs from row to row, so that the classes overlap.
    """

    num_classes, shape = 2, (6, 40)

    def setup(self, generator: Generator) -> None:
        places, _ = torch.linalg.qr(torch.randn(6, 5, generator=generator))
        self.places = 2.0 * places.T
        pitch = uniform(0.16, 0.24, (1,), generator)
        slower = uniform(0.03, 0.09, (2,), generator)
        # The last one is heard everywhere as the first two are.
        self.pitches = torch.cat((pitch, pitch, slower, pitch))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps = len(target), self.shape[1]
        rests = torch.stack((target == 0, target == 1), dim=1).float()
        strength = torch.cat((1.3 - 0.7 * rests, torch.tensor([1.2, 0.9, 0.8]).expand(rows, 3)), dim=1)
        strength = strength * (0.45 * self.noise * torch.randn(rows, 5, generator=generator)).exp()
        wander = 0.25 * torch.randn(rows, 5, steps, generator=generator).cumsum(2)
        begin = uniform(0, 2 * math.pi, (rows, 5, 1), generator)
        swing = (2 * math.pi * self.pitches.unsqueeze(1) * torch.arange(steps) + begin + wander).sin()
        heard = (strength.unsqueeze(2) * swing).transpose(1, 2) @ self.places
        return heard.transpose(1, 2) + 0.6 * self.noise * torch.randn(rows, *self.shape, generator=generator)


class Stars(Source):
    """Brightness of stars at irregular times, (L, 3): time since the look before, brightness, and how sure it is.

    The class: it wanders, swings, rises fast and falls slowly, is eclipsed, flares once, or has faded. Names, pitch and
    the length of an eclipse are drawn for the task; the quality of the sky differs from look to look.
    """

    num_classes, shape = 6, (20, 3)

    def setup(self, generator: Generator) -> None:
        self.names = torch.randperm(self.num_classes, generator=generator)
        self.pitch = uniform(2.5, 4.0, (1,), generator)
        self.eclipse = uniform(0.14, 0.24, (1,), generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1)
        time = torch.rand(rows, self.shape[0], generator=generator).sort(1).values
        since = torch.diff(time, dim=1, prepend=torch.zeros(one))
        phase = (self.pitch * uniform(0.8, 1.25, one, generator) * time + torch.rand(one, generator=generator)) % 1
        slow = uniform(0.4, 1.2, one, generator) * time + torch.rand(one, generator=generator)
        after = (time - uniform(0.1, 0.8, one, generator)) / 0.12
        kinds = torch.stack(
            (
                0.9 * (2 * math.pi * slow).sin(),
                1.1 * (2 * math.pi * phase).sin(),
                torch.where(phase < 0.15, phase / 0.15, (1 - phase) / 0.85) * 3.2 - 1.6,
                0.5 - 2.4 * (phase < self.eclipse),
                2.8 * (-after.clamp(min=0)).exp() * (after > 0) - 0.5,
                1.1 * torch.tanh(-2 * after),
            )
        )
        brightness = kinds[self.names[target], torch.arange(rows)] * uniform(0.7, 1.3, one, generator)
        brightness = brightness + 0.3 * torch.randn(one, generator=generator)
        doubt = 0.5 * self.noise * uniform(-1, 0.6, (rows, self.shape[0]), generator).exp()
        brightness = brightness + doubt * torch.randn(brightness.shape, generator=generator)
        return torch.stack((15 * since - 0.7, brightness, -2 * (doubt / max(self.noise, 0.1)) + 0.9), dim=2)


class Catches(Source):
    """Catches of a net, (F,): roots of the counts of twenty kinds of fish, then depth and warmth of the water.

    The class is one of five waters, and whether the fish spawn, which moves each kind up or down. Fish keep to depths
    of their own, come in shoals, and how long the net was out is not written down; all preferences are drawn.
    """

    num_classes, shape, kinds = 10, (22,), 20

    def setup(self, generator: Generator) -> None:
        size = (100, 5, self.kinds)
        here = torch.randn(size, generator=generator)
        apart = (here.unsqueeze(1) - here.unsqueeze(2)).square().sum(3) + 999 * torch.eye(5)
        # Of many draws the one whose waters differ most from each other.
        self.here = here[apart.flatten(1).min(1).values.argmax()]
        self.depths = uniform(-1.5, 1.5, (self.kinds,), generator)
        self.moves = 1.5 * (torch.randint(2, (self.kinds,), generator=generator) - 0.5)
        self.often = uniform(0.2, 1.2, (self.kinds,), generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1)
        water, spawning = target % 5, (target // 5).float().unsqueeze(1)
        depth = uniform(-1.5, 1.5, one, generator)
        warmth = 0.5 * spawning - 0.25 - 0.3 * depth + 0.6 * torch.randn(one, generator=generator)
        kept = self.depths + self.moves * (2 * spawning - 1) * 0.8
        rate = self.often + 0.8 * self.here[water] - (depth - kept).square() / 2
        rate = rate + 0.5 * self.noise * torch.randn(one, generator=generator)
        # Shoals: the rate itself is drawn.
        rate = rate + 0.7 * self.noise * torch.randn(rows, self.kinds, generator=generator)
        counts = torch.poisson((rate + 2).clamp(max=6).exp(), generator=generator)
        return torch.cat((0.7 * ((counts + 0.375).sqrt() - 2.6), depth, warmth), dim=1)


class Micrographs(Source):
    """Polished metal (1, 16, 16) of two phases: the class is how its grains lie, long or short ones in one of three
    directions, or without any.

    Directions and lengths are drawn for the task; every piece is cut in its own way, and lit from one side.
    """

    num_classes, shape = 7, (1, 16, 16)

    def setup(self, generator: Generator) -> None:
        first = math.pi * torch.rand(1, generator=generator)
        direction = (first + math.pi * torch.arange(3.0) / 3).repeat(2)
        self.directions = torch.cat((direction, torch.zeros(1)))
        long, short = uniform(3.2, 4.0, (3,), generator), uniform(1.7, 2.1, (3,), generator)
        self.lengths = torch.cat((long, short, torch.ones(1)))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one, side = len(target), (len(target), 1, 1), 24
        turn = 0.16 * self.noise * torch.randn(rows, generator=generator)
        angle = (self.directions[target] + turn)[:, None, None]
        stretch = (0.16 * self.noise * torch.randn(rows, generator=generator)).exp()
        length = (self.lengths[target] * stretch)[:, None, None]
        size = uniform(0.8, 1.1, one, generator)
        waves = 2 * math.pi * torch.fft.fftfreq(side)
        down, right = waves[:, None], waves[None, :]
        along, across = angle.cos() * right + angle.sin() * down, angle.cos() * down - angle.sin() * right
        passes = (-((size * length * along) ** 2 + (size * across) ** 2) / 2).exp()
        white = torch.randn(rows, side, side, generator=generator)
        grains = torch.fft.ifft2(torch.fft.fft2(white) * passes).real[:, :16, :16]
        grains = (grains - grains.mean((1, 2), keepdim=True)) / grains.std((1, 2), keepdim=True)
        phases = torch.tanh(2.5 * (grains - uniform(-0.5, 0.5, one, generator)))
        y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        light = 0.4 * (torch.randn(one, generator=generator) * x + torch.randn(one, generator=generator) * y)
        pixels = phases * uniform(0.7, 1.3, one, generator) + light
        return (pixels + 0.6 * self.noise * torch.randn(pixels.shape, generator=generator)).unsqueeze(1)
