"""The generators of the part that is reported: siblings, loans, players, lenses and poses.

Legend: N rows, C classes, G places of a genome, K loans to choose from, L rounds, J joints.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from planted.data import Pool, Source
from planted.generators import uniform


class Siblings(Source):
    """Genes of two people, (G, 2): the class is whether they have both parents in common, or none.

    At each place a person carries 0, 1 or 2 copies of a letter, one of either parent, read as a brightness from -1 to
    1. How common the letter is in each of two peoples is drawn for the task, and both are of one people, so that
    strangers are alike as well. Where a letter is as common as p, the copies x and y of strangers have E[(x - 2p)(y -
    2p)] = 0, and those of siblings p(1 - p): every mean is the same in both classes.
    """

    num_classes, shape = 2, (60, 2)

    def setup(self, generator: Generator) -> None:
        self.common = uniform(0.15, 0.85, (2, self.shape[0]), generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, places = len(target), self.shape[0]
        people = torch.randint(2, (rows,), generator=generator)
        # Two couples, two parents each, two letters a parent.
        letters = torch.rand(rows, 2, 2, 2, places, generator=generator) < self.common[people][:, None, None, None]
        couple = torch.stack((torch.zeros_like(target), 1 - target), dim=1)
        parents = letters[torch.arange(rows).unsqueeze(1), couple]
        given = torch.randint(2, (rows, 2, 2, 1, places), generator=generator)
        copies = parents.float().gather(3, given).sum((2, 3))
        copies = copies + 0.5 * self.noise * torch.randn(copies.shape, generator=generator)
        return (copies - 1).transpose(1, 2)


class Loans(Source):
    """A table of loans (5 + 4 + 3 + 2 + 5,): trade, purpose, region and whether a house is owned, one-hot, zeros where
    nobody asked; then income, age, debt, size of the loan and roots of the counts of earlier delays.

    The class is whether it was repaid, repaid late or not at all. Every column is parted in two in a way that is drawn,
    which gives nine signs; z_c is linear in them and in the products of four pairs of them, and of K loans loan k is
    taken with a chance that is proportional to exp(z_c(k) / noise).
    """

    num_classes, shape, loans = 3, (19,), 12
    values = (5, 4, 3, 2)

    def setup(self, generator: Generator) -> None:
        # For each column which values count as holding: half of them, rounded up.
        self.holds = [torch.randperm(count, generator=generator) < (count + 1) // 2 for count in self.values]
        self.limits = uniform(-0.5, 0.5, (5,), generator)
        conditions = len(self.values) + 5
        self.pairs = torch.randperm(conditions, generator=generator)[:8].view(4, 2)
        weights = torch.randn(conditions + len(self.pairs), self.num_classes, generator=generator)
        weights = weights - weights.mean(1, keepdim=True)
        # Every class is told by as much.
        self.weights = 2.0 * weights / weights.norm(dim=0)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, size = len(target), (len(target), self.loans)
        columns = [torch.randint(count, size, generator=generator) for count in self.values]
        wealth = torch.randn(size, generator=generator)
        numbers = torch.randn(*size, 4, generator=generator)
        numbers[:, :, 0] = 0.7 * wealth + 0.7 * numbers[:, :, 0]
        numbers[:, :, 3] = 0.5 * wealth + 0.85 * numbers[:, :, 3]
        delays = torch.poisson((0.3 - 0.5 * wealth).exp(), generator=generator).sqrt() - 1
        numbers = torch.cat((numbers, delays.unsqueeze(2)), dim=2)
        held = [holds[column] for holds, column in zip(self.holds, columns, strict=True)]
        true = torch.cat((torch.stack(held, dim=2), numbers > self.limits), dim=2)
        signs = 2.0 * true - 1
        told = torch.cat((signs, signs[:, :, self.pairs].prod(3)), dim=2)
        every = torch.arange(rows)
        likely = (told @ self.weights)[every, :, target] / max(self.noise, 0.1)
        taken = torch.multinomial(likely.softmax(1), 1, generator=generator).squeeze(1)
        asked = torch.rand(rows, len(self.values), generator=generator) > min(0.05 * self.noise, 0.5)
        answers = [
            one_hot(column[every, taken], count).float() * asked[:, place, None]
            for place, (column, count) in enumerate(zip(columns, self.values, strict=True))
        ]
        measured = numbers[every, taken]
        measured = measured + 0.15 * self.noise * torch.randn(measured.shape, generator=generator)
        return torch.cat((*answers, measured), dim=1)


class Players(Source):
    """Rounds of a game of two, (L, 2): each plays with the other, 1, or against, -1.

    The class is the strategy of the second: a table, drawn for the task, of its move after each of the eight cases of
    its own move before and the other's last two. The first has a temper and habits of its own, and hands slip.
    """

    num_classes, shape = 5, (20, 2)

    def setup(self, generator: Generator) -> None:
        # Of many draws the one whose strategies differ most; all of them play with the other in half of the cases.
        tables = (torch.rand(300, self.num_classes, 8, generator=generator).argsort(2) < 4).long()
        apart = (tables.unsqueeze(1) != tables.unsqueeze(2)).sum(3) + 99 * torch.eye(self.num_classes).long()
        self.tables = tables[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, rounds = len(target), self.shape[0]
        temper, habit = uniform(0.25, 0.75, (rows,), generator), uniform(0, 0.5, (rows,), generator)
        chance = torch.rand(rounds, 3, rows, generator=generator)
        slip = min(0.22 * self.noise, 0.5)
        first, before, second = (torch.randint(2, (rows,), generator=generator) for _ in range(3))
        moves = []
        for fresh, kept, slips in chance:
            answer = self.tables[target, 4 * second + 2 * first + before]
            second = torch.where(slips < slip, 1 - answer, answer)
            first, before = torch.where(kept < habit, first, (fresh < temper).long()), first
            moves.append(torch.stack((first, second), dim=1))
        return 2.0 * torch.stack(moves, dim=1) - 1


class Lenses(Source):
    """Stars seen through a bad lens, (1, 14, 14): the class is its error, the focus, one of two astigmatisms, a coma of
    one of three directions, or a trefoil of either sign.

    The image is |F(p exp(i w))|², F the Fourier transform, p the round opening, and w the sum of all errors, each a
    polynomial of Zernike, that of the class far above the others. Axes and names of the errors are drawn for the task;
    strength, brightness and place of the star differ from image to image.
    """

    num_classes, shape, grid, radius = 8, (1, 14, 14), 24, 6.5

    def setup(self, generator: Generator) -> None:
        turn = 2 * math.pi * torch.rand(1, generator=generator)
        names = torch.randperm(self.num_classes, generator=generator)
        places = (torch.arange(self.grid) - (self.grid - 1) / 2) / self.radius
        y, x = torch.meshgrid(places, places, indexing="ij")
        self.tilts = torch.stack((x, y))
        distance, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x) + turn
        coma = math.sqrt(8) * (3 * distance**3 - 2 * distance)
        trefoil = math.sqrt(8) * distance**3 * (3 * angle).cos()
        errors = [math.sqrt(3) * (2 * distance**2 - 1)]
        errors += [math.sqrt(6) * distance**2 * (2 * angle + way).cos() for way in (0, math.pi / 2)]
        errors += [coma * (angle + way).cos() for way in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
        self.opening = distance <= 1
        self.errors = torch.stack([*errors, trefoil, -trefoil])[names]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, one = len(target), (len(target), 1, 1)
        strength = 0.22 * self.noise * torch.randn(rows, self.num_classes, generator=generator)
        strength[torch.arange(rows), target] += uniform(0.8, 1.3, (rows,), generator)
        moved = uniform(-1.3, 1.3, (rows, 2), generator)
        phase = torch.einsum("nk,kyx->nyx", strength, self.errors) + torch.einsum("nk,kyx->nyx", moved, self.tilts)
        image = torch.fft.fft2(torch.polar(self.opening.float().expand_as(phase), phase)).abs().square()
        edge = (self.grid - self.shape[1]) // 2
        image = torch.fft.fftshift(image, dim=(1, 2))[:, edge:-edge, edge:-edge]
        bright = 0.012 * uniform(0.7, 1.4, one, generator)
        # Roots of the light, as its chance grows with it.
        seen = 1.7 * (bright * image / self.radius).sqrt() - 0.9
        return (seen + 0.3 * self.noise * torch.randn(seen.shape, generator=generator)).unsqueeze(1)


class Poses(Source):
    """Joints of a body in a picture, (J, 3): how far right and up from the hip, and whether it is seen; zeros if not.

    The class is the posture: the angles of ten bones, drawn for the task. A joint lies where the one before it lies,
    and a bone of its length in its angle from there. People are large or small, lean, and are seen from one side.
    """

    num_classes, shape = 12, (11, 3)
    # Hip, neck, head, elbow and hand of both sides, knee and foot of both sides.
    before = (0, 0, 1, 1, 3, 1, 5, 0, 7, 0, 9)
    lengths = (0.0, 1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8)

    def setup(self, generator: Generator) -> None:
        upright = math.pi * torch.tensor([0.0, 0.5, 0.5, -0.8, -0.7, -0.2, -0.3, -0.6, -0.55, -0.4, -0.45])
        free = torch.tensor([0.0, 0.4, 0.3, 1.5, 1.2, 1.5, 1.2, 0.7, 0.6, 0.7, 0.6])
        angles = upright + free * uniform(-1, 1, (200, self.num_classes, 11), generator)
        apart = (angles.unsqueeze(1) - angles.unsqueeze(2)).abs().sum(3) + 99 * torch.eye(self.num_classes)
        # Of many draws the one whose postures differ most from each other.
        self.angles = angles[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, joints, one = len(target), self.shape[0], (len(target), 1)
        lean = 0.15 * self.noise * torch.randn(one, generator=generator)
        angle = self.angles[target] + lean + 0.4 * self.noise * torch.randn(rows, joints, generator=generator)
        bones = torch.stack((angle.cos(), angle.sin()), dim=2) * torch.tensor(self.lengths).unsqueeze(1)
        places = [torch.zeros(rows, 2)]
        for joint in range(1, joints):
            places.append(places[self.before[joint]] + bones[:, joint])
        body = torch.stack(places, dim=1) * uniform(0.8, 1.2, (rows, 1, 1), generator)
        side = torch.cat((uniform(-0.6, 0.6, one, generator).cos(), torch.ones(one)), dim=1)
        body = body * side.unsqueeze(1) + 0.15 * self.noise * torch.randn(body.shape, generator=generator)
        seen = torch.rand(rows, joints, 1, generator=generator) > min(0.08 * self.noise, 0.5)
        return torch.cat((body * seen, seen.float()), dim=2)
