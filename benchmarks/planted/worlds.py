"""Generators of an earlier report: point clouds, graphs, mosaics, tables of categories, pen strokes.

Legend: N rows, P points, V vertices, K columns of a table, C classes, L steps of a sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from planted.data import Pool, Source
from planted.generators import uniform


class Clouds(Source):
    """Sets of points in space (P, 3), in any order: sphere, disc, ring, rod, pair of blobs or cross around the origin.

    All of one task lie along the same three axes, but for a small turn; a share of the points is anywhere.
    """

    num_classes, shape = 6, (24, 3)

    def setup(self, generator: Generator) -> None:
        self.axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        size, one = (len(target), self.shape[0]), (len(target), 1, 1)
        way = torch.nn.functional.normalize(torch.randn(*size, 3, generator=generator), dim=2)
        angle, share = (torch.rand(*size, 1, generator=generator) for _ in range(2))
        side = torch.randint(2, (*size, 1), generator=generator)
        first, second, third = torch.eye(3)
        across, up = (2 * math.pi * angle).cos() * first, (2 * math.pi * angle).sin()
        along = 1.73 * (2 * share - 1)
        kinds = torch.stack(
            (
                way,
                1.41 * share.sqrt() * (across + up * second),
                across + up * third,
                along * (second + third) / math.sqrt(2),
                0.9 * (2 * side - 1) * third + 0.45 * way,
                along * torch.where(side == 0, first, second),
            )
        )
        points = kinds[target, torch.arange(size[0])] * uniform(0.9, 1.1, one, generator)
        turn = 0.06 * torch.randn(len(target), 3, 3, generator=generator)
        turns = torch.linalg.matrix_exp(turn - turn.transpose(1, 2))
        points = points @ turns @ self.axes + 0.34 * self.noise * torch.randn(*size, 3, generator=generator)
        lost = torch.rand(*size, 1, generator=generator) < min(0.06 * self.noise, 0.9)
        return torch.where(lost, 1.2 * torch.randn(points.shape, generator=generator), points)


class Graphs(Source):
    """Graphs of V vertices with two measurements each, (V, 2 + V): measurements, then the row of neighbours.

    The class says whether edges gather at two hubs or fall anywhere, and whether neighbours are of like or unlike sign
    in a sum of the measurements that is drawn for the task. Vertices are in any order.
    """

    num_classes, shape = 4, (14, 16)

    def setup(self, generator: Generator) -> None:
        self.sums, _ = torch.linalg.qr(torch.randn(2, 2, generator=generator))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, vertices = len(target), self.shape[0]
        hubs, like = target // 2 == 0, target % 2 == 0
        # Half of the vertices of each sign, and a hub of each.
        place = torch.rand(rows, vertices, generator=generator).argsort(1)
        sign, hub = 1.0 - 2.0 * (place % 2), place < 2
        agree = sign.unsqueeze(2) * sign.unsqueeze(1) > 0
        central = hub.unsqueeze(2) | hub.unsqueeze(1)
        # About as many edges in every class.
        chance = torch.where(hubs[:, None, None], torch.where(central, 0.66, 0.02), torch.tensor(0.16))
        tilt = torch.where(agree == like[:, None, None], 0.9, -0.9)
        edges = torch.rand(rows, vertices, vertices, generator=generator) < chance * (1 + tilt)
        flipped = torch.rand(edges.shape, generator=generator) < min(0.06 * self.noise, 0.5)
        edges = (edges ^ flipped).float().triu(1)
        measured = torch.stack((sign, torch.randn(rows, vertices, generator=generator)), dim=2)
        measured += 0.7 * self.noise * torch.randn(measured.shape, generator=generator)
        return torch.cat((measured @ self.sums, edges + edges.transpose(1, 2)), dim=2)


class Mosaics(Source):
    """Images (1, 12, 12) of 4 x 4 tiles: each shows one of two patterns, light or dark at random.

    The class is the layout of the patterns, so that every pixel has mean zero in all classes; patterns and layouts are
    drawn.
    """

    num_classes, shape = 7, (1, 12, 12)

    def setup(self, generator: Generator) -> None:
        patterns, _ = torch.linalg.qr(torch.randn(9, 2, generator=generator))
        self.patterns = 2.4 * patterns.T
        # Of many draws the one whose layouts differ most from each other.
        drawn = torch.randint(2, (60, self.num_classes, 16), generator=generator)
        apart = (drawn.unsqueeze(1) != drawn.unsqueeze(2)).sum(3) + 99 * torch.eye(self.num_classes).long()
        self.layouts = drawn[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        size = (len(target), 16)
        light = torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
        layout = self.layouts[target]
        wrong = torch.rand(size, generator=generator) < min(0.14 * self.noise, 0.5)
        tiles = light.unsqueeze(2) * self.patterns[torch.where(wrong, 1 - layout, layout)]
        pixels = tiles.reshape(-1, 4, 4, 3, 3).transpose(2, 3).reshape(-1, 1, 12, 12)
        return pixels + 0.45 * self.noise * torch.randn(pixels.shape, generator=generator)


class Choices(Source):
    """A table of seven categorical columns of four values, one-hot, and four numbers: (7 * 4 + 4,).

    Each value of a column is of one of two hidden kinds. The class says which pairs of columns are alike in kind, and
    moves one column and one number a little.
    """

    num_classes, shape, columns, values = 2, (32,), 7, 4

    def setup(self, generator: Generator) -> None:
        # Two of the four values are of the first kind.
        self.kinds = torch.stack([torch.randperm(self.values, generator=generator) % 2 for _ in range(self.columns)])
        self.alike = torch.randint(2, (3,), generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows = len(target)
        kind = torch.randint(2, (rows, self.columns), generator=generator)
        tied = (kind[:, :3] + self.alike + target[:, None]) % 2
        strays = torch.rand(tied.shape, generator=generator) < min(0.17 * self.noise, 0.5)
        kind[:, 3:6] = torch.where(strays, 1 - tied, tied)
        kind[:, 6] = torch.where(
            torch.rand(rows, generator=generator) > min(0.35 * self.noise, 0.5), target, 1 - target
        )
        # Of the values of the kind, any: the largest of random numbers that are -1 elsewhere.
        chance = torch.rand(rows, self.columns, self.values, generator=generator)
        value = torch.where(self.kinds == kind.unsqueeze(2), chance, -1.0).argmax(2)
        numbers = torch.randn(rows, 4, generator=generator)
        numbers[:, 0] += 0.9 * (target - 0.5) / max(self.noise, 0.1)
        return torch.cat((one_hot(value, self.values).flatten(1).float(), numbers), dim=1)


class Strokes(Source):
    """Pen strokes (L, 3): movement right, movement up, and whether the pen is down.

    The class is a path of five turns, drawn for the task; it begins at any step, and is written fast or slowly, large
    or small, and slanted.
    """

    num_classes, shape = 10, (24, 3)

    def setup(self, generator: Generator) -> None:
        first = uniform(0, 2 * math.pi, (300, self.num_classes, 1), generator)
        turns = uniform(-2.2, 2.2, (300, self.num_classes, 4), generator)
        angles = torch.cat((first, turns), dim=2).cumsum(2)
        # Of many draws the one whose paths differ most from each other.
        apart = 1 - (angles.unsqueeze(1) - angles.unsqueeze(2)).cos().mean(3) + 9 * torch.eye(self.num_classes)
        self.angles = angles[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps, one = len(target), self.shape[0], (len(target), 1)
        length = uniform(12, 16, one, generator)
        begin = torch.rand(one, generator=generator) * (steps - length)
        # Where on the path of five parts the pen is at each step.
        place = 5 * (torch.arange(steps) + 0.5 - begin) / length
        down = (place > 0) & (place < 5)
        angle = self.angles[target].gather(1, place.floor().long().clamp(0, 4))
        angle = angle + 0.15 * torch.randn(one, generator=generator)
        movement = torch.stack((angle.cos(), angle.sin()), dim=2) * uniform(0.7, 1.3, (rows, 1, 1), generator)
        signal = torch.cat((movement * down.unsqueeze(2), down.unsqueeze(2).float()), dim=2)
        return signal + 0.66 * self.noise * torch.randn(signal.shape, generator=generator)
