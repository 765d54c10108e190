"""Where rows come from: generators without end, and bundled tables whose held-out part stands for new data.

Legend: N rows, F features, C classes, L steps of a sequence.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Generator, Tensor

Pool = Literal["train", "val", "fresh"]


class Source(ABC):
    """Rows of one classification task; the task itself (means, motifs, chains) is drawn from `seed`.

    Args:
        seed: draws the task; two sources of one seed give rows of one task.
        noise: standard deviation of what is added to every input; 1 unless said.

    Attributes:
        num_classes: C.
        shape: of one input.
    """

    num_classes: int
    shape: tuple[int, ...]

    def __init__(self, seed: int, noise: float = 1.0) -> None:
        self.noise = noise
        self.setup(torch.Generator().manual_seed(7919 * seed + 13))

    def setup(self, generator: Generator) -> None:  # noqa: B027 - a task may be fixed
        """Draws the task, where there is something to draw."""

    @abstractmethod
    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        """Inputs (N, *shape) float32 of target (N,)."""

    def sample(
        self, rows: int, generator: Generator, prior: tuple[float, ...] | None = None, pool: Pool = "fresh"
    ) -> tuple[Tensor, Tensor]:
        """New rows: inputs (N, *shape) and target (N,), classes drawn from `prior` (None: all alike)."""
        shares = torch.ones(self.num_classes) if prior is None else torch.tensor(prior)
        target = torch.multinomial(shares, rows, replacement=True, generator=generator)
        return self.inputs(target, generator, pool), target


class Vectors(Source):
    """Gaussian mixture: two modes a class at random places, and features that say nothing.

    The nearest modes of two classes lie about 3.5 standard deviations apart at noise 1.
    """

    num_classes, shape = 4, (20,)

    def setup(self, generator: Generator) -> None:
        modes = torch.randn(self.num_classes, 2, 6, generator=generator)
        self.modes = 2.9 * modes / modes.norm(dim=2, keepdim=True)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        mode = torch.randint(2, target.shape, generator=generator)
        features = self.noise * torch.randn(len(target), *self.shape, generator=generator)
        features[:, :6] += self.modes[target, mode]
        return features


class Images(Source):
    """Gratings of 12 x 12 pixels: the class is the orientation; phase, frequency and contrast are random."""

    num_classes, shape = 5, (1, 12, 12)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows = len(target)
        angle = math.pi * (target + 0.15 * torch.randn(rows, generator=generator)) / self.num_classes
        phase = 2 * math.pi * torch.rand(rows, generator=generator)
        frequency = 0.9 + 0.5 * torch.rand(rows, generator=generator)
        contrast = 0.6 + 0.8 * torch.rand(rows, generator=generator)
        y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
        place = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
        wave = contrast[:, None, None] * (frequency[:, None, None] * place + phase[:, None, None]).sin()
        pixels = wave + 1.1 * self.noise * torch.randn(rows, 12, 12, generator=generator)
        return pixels.unsqueeze(1)


class Sequences(Source):
    """Real-valued sequences (L, 2): one of C motifs of six steps begins at a random step, in noise."""

    num_classes, shape = 4, (16, 2)

    def setup(self, generator: Generator) -> None:
        motifs = torch.randn(self.num_classes, 6, 2, generator=generator)
        self.motifs = 4.0 * motifs / motifs.flatten(1).norm(dim=1)[:, None, None]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        steps = self.noise * 0.8 * torch.randn(len(target), *self.shape, generator=generator)
        begin = torch.randint(self.shape[0] - 6 + 1, target.shape, generator=generator)
        place = begin[:, None] + torch.arange(6)
        steps[torch.arange(len(target))[:, None], place] += self.motifs[target]
        return steps


class Tokens(Source):
    """Sequences of 16 tokens out of 8, given one-hot (L, 8): the class is the Markov chain that wrote them.

    Above noise 1 a share of 1 - 1 / noise of the tokens is replaced by any token.
    """

    num_classes, shape = 3, (16, 8)

    def setup(self, generator: Generator) -> None:
        self.chains = (1.1 * torch.randn(self.num_classes, 8, 8, generator=generator)).softmax(dim=2)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        token = torch.randint(8, target.shape, generator=generator)
        tokens = [token]
        for _ in range(self.shape[0] - 1):
            token = torch.multinomial(self.chains[target, token], 1, generator=generator).squeeze(1)
            tokens.append(token)
        written = torch.stack(tokens, dim=1)
        if self.noise > 1:
            replaced = torch.rand(written.shape, generator=generator) < 1 - 1 / self.noise
            written = torch.where(replaced, torch.randint(8, written.shape, generator=generator), written)
        return torch.nn.functional.one_hot(written, 8).float()


class Bundled(Source):
    """A table of scikit-learn, split by seed in three pools; rows are drawn with replacement and noise is added.

    The noise makes every drawn row a new one, but the truth rests on the rows of the held-out pool (30 %).
    """

    table: str

    def setup(self, generator: Generator) -> None:
        from sklearn import datasets

        features, target = getattr(datasets, f"load_{self.table}")(return_X_y=True)
        features, target = torch.from_numpy(features).float(), torch.from_numpy(target).long()
        features = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)
        self.rows: dict[str, list[Tensor]] = {"train": [], "val": [], "fresh": []}
        for label in range(self.num_classes):
            mine = features[target == label]
            mine = mine[torch.randperm(len(mine), generator=generator)]
            first, second = int(0.4 * len(mine)), int(0.7 * len(mine))
            for pool, part in (("train", mine[:first]), ("val", mine[first:second]), ("fresh", mine[second:])):
                self.rows[pool].append(part)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        features = torch.empty(len(target), self.rows["train"][0].shape[1])
        for label, mine in enumerate(self.rows[pool]):
            here = (target == label).nonzero().squeeze(1)
            features[here] = mine[torch.randint(len(mine), here.shape, generator=generator)]
        features += self.noise * torch.randn(features.shape, generator=generator)
        return features.reshape(-1, *self.shape)


class Digits(Bundled):
    """Handwritten digits, 8 x 8 pixels (Alpaydin and Kaynak, 1998), with noise."""

    table, num_classes, shape = "digits", 10, (1, 8, 8)


class DigitRows(Digits):
    """Handwritten digits read from above, a row of eight pixels a step."""

    shape = (8, 8)


class Wine(Bundled):
    """Wines of three growers (Forina et al., 1991), with noise."""

    table, num_classes, shape = "wine", 3, (13,)


class Cells(Bundled):
    """Wisconsin breast cancer (Street et al., 1993) as a generator: one Gaussian a class, fitted to the table."""

    table, num_classes, shape = "breast_cancer", 2, (30,)

    def setup(self, generator: Generator) -> None:
        super().setup(generator)
        self.means, self.roots = [], []
        for label in range(self.num_classes):
            mine = torch.cat([self.rows[pool][label] for pool in ("train", "val", "fresh")])
            covariance = torch.cov(mine.T) + 0.05 * torch.eye(mine.shape[1])
            self.means.append(mine.mean(0))
            self.roots.append(torch.linalg.cholesky(covariance))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        normal = torch.randn(len(target), *self.shape, generator=generator)
        features = torch.empty_like(normal)
        for label in range(self.num_classes):
            here = target == label
            features[here] = self.means[label] + normal[here] @ self.roots[label].T
        return features + self.noise * torch.randn(features.shape, generator=generator)
