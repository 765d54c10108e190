"""Generators of a third earlier report: smears, spectra, winds, soils and spikes.

Legend: N rows, P cells of a smear, F features, C classes, L steps of a sequence, K sites to choose from.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from planted.data import Pool, Source
from planted.generators import uniform


class Smears(Source):
    """Smears of P cells with six measurements each, in any order, (P, 6): the class is whether some cells are sick.

    A sick cell has both of two signs that are drawn for the task. A smear without one has as many cells more with
    either sign alone, so that the means of both classes are alike; and every smear is stained in its own way.
    """

    num_classes, shape, size = 2, (16, 6), 3.2

    def setup(self, generator: Generator) -> None:
        signs, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator))
        self.signs = self.size * signs.T

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, cells = len(target), self.shape[0]
        sick = torch.randint(2, 5, (rows, 1), generator=generator)
        alone = torch.randint(1, 4, (rows, 2), generator=generator)
        alone = alone + sick * (1 - target.unsqueeze(1))
        # The cells in a random order: sick ones, then those with the first sign alone, then with the second.
        place = torch.rand(rows, cells, generator=generator).argsort(1)
        ends = torch.cat((sick * target.unsqueeze(1), alone), dim=1).cumsum(1).unsqueeze(2)
        both = place < ends[:, 0]
        first = both | ((place >= ends[:, 0]) & (place < ends[:, 1]))
        second = both | ((place >= ends[:, 1]) & (place < ends[:, 2]))
        measured = torch.stack((first, second), dim=2).float() @ self.signs
        stain = 0.4 * self.noise * torch.randn(rows, 1, self.shape[1], generator=generator)
        return (
            measured + stain + self.noise * torch.randn(measured.shape, generator=generator) - 0.3 * self.signs.sum(0)
        )


class Spectra(Source):
    """Infrared spectra (1, 64) of mixtures: the class is the substance of which there is most.

    A substance has five of twelve bands, with heights that are drawn. Another substance is mixed in, the bands lie a
    little elsewhere in every row, and the baseline wanders.
    """

    num_classes, shape, bands = 12, (1, 64), 12

    def setup(self, generator: Generator) -> None:
        shift = uniform(-1.2, 1.2, (self.bands,), generator)
        self.centres = torch.linspace(4, self.shape[1] - 5, self.bands) + shift
        self.widths = uniform(1.2, 2.2, (self.bands,), generator)
        size = (200, self.num_classes, self.bands)
        has = torch.rand(size, generator=generator).argsort(2) < 5
        heights = has * uniform(0.5, 1.5, size, generator)
        # Of many draws the one whose substances differ most from each other.
        apart = (heights.unsqueeze(1) - heights.unsqueeze(2)).abs().sum(3) + 99 * torch.eye(self.num_classes)
        self.heights = heights[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1)
        other = torch.randint(1, self.num_classes, (rows,), generator=generator)
        share = uniform(0, min(0.7 * self.noise, 0.95), one, generator)
        heights = self.heights[target] + share * self.heights[(target + other) % self.num_classes]
        heights = heights * (0.15 * self.noise * torch.randn(heights.shape, generator=generator)).exp()
        places = torch.arange(float(self.shape[1]))
        moved = self.centres + uniform(-1, 1, one, generator)
        away = (places - moved.unsqueeze(2)) / self.widths.unsqueeze(1)
        bands = (heights.unsqueeze(2) / (1 + away**2)).sum(1)
        along = torch.linspace(-1, 1, self.shape[1])
        slope, bend = (torch.randn(one, generator=generator) for _ in range(2))
        spectrum = bands * uniform(0.7, 1.3, one, generator) + 0.4 * slope * along + 0.4 * bend * (along**2 - 0.3)
        spectrum = spectrum + 0.35 * self.noise * torch.randn(spectrum.shape, generator=generator)
        return (spectrum - 1.0).unsqueeze(1)


class Winds(Source):
    """Maps of wind (2, 12, 12), to the right and up: an eddy of either sense, a source, a sink or one of two saddles.

    It lies anywhere in the middle, in a wind that is stronger here than there; names and axes of the saddles are drawn.
    """

    num_classes, shape = 6, (2, 12, 12)

    def setup(self, generator: Generator) -> None:
        angle = 2 * math.pi * torch.rand(1, generator=generator)
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        away = torch.eye(2)
        reflect = torch.stack((torch.cat((angle.cos(), angle.sin())), torch.cat((angle.sin(), -angle.cos()))))
        kinds = torch.stack((turn, -turn, away, -away, reflect, -reflect))
        self.kinds = kinds[torch.randperm(self.num_classes, generator=generator)]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1, 1)
        y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
        centre = uniform(3, 8, (rows, 2, 1, 1), generator)
        place = torch.stack((x, y)) - centre
        size = uniform(1.5, 2.5, one, generator).unsqueeze(1)
        core = (-(place**2).sum(1, keepdim=True) / (2 * size**2)).exp() / size
        flow = torch.einsum("nij,njyx->niyx", self.kinds[target], place) * core
        flow = 2.2 * uniform(0.7, 1.3, one, generator).unsqueeze(1) * flow
        steady = torch.randn(rows, 2, 1, 1, generator=generator)
        change = 0.12 * self.noise * torch.randn(rows, 2, 2, generator=generator)
        grown = torch.einsum("nij,jyx->niyx", change, torch.stack((x, y)) - 5.5)
        return flow + steady + grown + 0.7 * self.noise * torch.randn(flow.shape, generator=generator)


class Soils(Source):
    """Sites of a map (F,): two coordinates, and four measurements of which two say something; the class is the soil.

    Where each soil lies is a landscape of waves that is drawn; a second one counts as far as the first measurement
    says. Of K sites the one is taken that the class makes likely.
    """

    num_classes, shape, sites = 2, (6,), 12

    def setup(self, generator: Generator) -> None:
        direction = torch.randn(2, 6, 2, generator=generator)
        # One or two waves across a map of side 3.5.
        length = uniform(1.7, 3.5, (2, 6, 1), generator)
        self.waves = 2 * math.pi * direction / direction.norm(dim=2, keepdim=True) / length
        self.phases = uniform(0, 2 * math.pi, (2, 6), generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows = len(target)
        place = uniform(-1.75, 1.75, (rows, self.sites, 2), generator)
        measured = torch.randn(rows, self.sites, 4, generator=generator)
        waves = torch.einsum("nkp,swp->nksw", place, self.waves) + self.phases
        landscape = waves.cos().sum(3) / math.sqrt(3)
        height = landscape[:, :, 0] + 0.7 * landscape[:, :, 1] * measured[:, :, 0] + 0.5 * measured[:, :, 1]
        sign = 2.0 * target.unsqueeze(1) - 1
        chance = logsigmoid(3.5 * sign * height / max(self.noise, 0.1)).exp()
        taken = torch.multinomial(chance + 1e-9, 1, generator=generator).squeeze(1)
        features = torch.cat((place, measured), dim=2)[torch.arange(rows), taken]
        wrong = torch.randn(features.shape, generator=generator)
        return features + self.noise * wrong * torch.tensor([0.08, 0.08, 0.3, 0.3, 0.3, 0.3])


class Spikes(Source):
    """How often three cells fire, (L, 3): none hears another, one drives the next, or all hear one that is not seen.

    Every cell fires as often in all classes. How much later a driven one fires is drawn, and so are the names.
    """

    num_classes, shape = 5, (36, 3)

    def setup(self, generator: Generator) -> None:
        self.delays = torch.randint(1, 4, (3,), generator=generator)
        self.names = torch.randperm(3, generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps = len(target), self.shape[0]
        rate = 0.5 * (0.3 * self.noise * torch.randn(rows, 1, generator=generator)).exp()
        # What a cell takes from another's firing replaces its own.
        heard = uniform(0.75, 0.95, (rows, 1), generator) / (1 + 0.15 * self.noise)
        bursts = torch.poisson(rate.expand(rows, steps) * heard, generator=generator)
        own = torch.poisson(rate.unsqueeze(2).expand(rows, steps, 3), generator=generator)
        kept = torch.rand(rows, steps, 3, generator=generator) > heard.unsqueeze(2)
        thinned = own * kept
        series = []
        for cell in range(3):
            driver = own[:, :, (cell - 1) % 3].roll(int(self.delays[cell]), 1)
            passed = driver * (torch.rand(rows, steps, generator=generator) < heard)
            driven = (target == cell + 1).unsqueeze(1)
            common = (target == 4).unsqueeze(1)
            found = torch.where(common, thinned[:, :, cell] + bursts, own[:, :, cell])
            series.append(torch.where(driven, thinned[:, :, cell] + passed, found))
        counts = torch.stack(series, dim=2)[:, :, self.names]
        # Of every cell some firing is another's.
        counts = counts + torch.poisson(torch.full_like(counts, 0.12 * self.noise), generator=generator)
        return 2 * (counts + 0.375).sqrt() - 1.9 + 0.15 * self.noise * torch.randn(counts.shape, generator=generator)
