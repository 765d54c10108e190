"""Evaluations with known truth: logits = scale * separation * (separation * true direction + noise), noise of variance
1.

With scale 1 they are the log-posterior of two Gaussians and so calibrated: the scale is the best temperature. It moves
confidence alone: no answer flips, and the loss after one temperature stays. The separation moves what is known:
    answers flip,
and no temperature repairs it. Everything is measured by the package's own path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.diagnosis import Diagnosis, Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.probe import Probe
from lightning_lossacc.quantities import class_table, summary
from lightning_lossacc.refinement import half_temperatures
from lightning_lossacc.sums import Layout


@dataclass
class Simulation:
    """A validation set of `num_rows` rows that is evaluated again and again."""

    num_rows: int = 2000
    num_classes: int = 5
    seed: int = 0
    paired: bool = True
    history: History = field(default_factory=History)
    events: list[Event] = field(default_factory=list)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.layout = Layout(self.num_classes)
        self.target = torch.randint(0, self.num_classes, (self.num_rows,), generator=self.generator)
        self.noise = self._normal()
        self.other_noise = self._normal()
        self.probe = Probe(self.num_rows, self.layout)

    def _normal(self) -> Tensor:
        return torch.randn(self.num_rows, self.num_classes, dtype=torch.float64, generator=self.generator)

    def logits(self, scale: float, separation: float, turn: float, jitter: float) -> Tensor:
        """`turn` in [0, 1] replaces that part of the noise by another one: as many right, but others."""
        direction = torch.nn.functional.one_hot(self.target, self.num_classes).double()
        noise = (1 - turn) * self.noise + turn * self.other_noise
        return scale * separation * (separation * direction + noise + jitter * self._normal())

    def evaluate(self, scale: float, separation: float, turn: float = 0.0, jitter: float = 0.02) -> list[Event]:
        """One more evaluation, and the events that it caused."""
        logits = self.logits(scale, separation, turn, jitter)
        counts, sums = self.layout.zeros()
        kernels.row_statistics(logits, self.target, counts, sums, self.layout)
        values = summary(counts, sums, self.layout)
        epoch = len(self.history)
        paired = {}
        if self.paired:
            self.probe.update(torch.arange(self.num_rows), logits, self.target)
            for name, sign in (("nll", 1), ("accuracy", -1)):
                compared = self.probe.compare(name, values["temperature"])
                if compared is not None:
                    paired[name] = compared
                earlier = self.history.column(name)
                if all(sign * values[name] < sign * value for value in earlier):
                    self.probe.keep(name, epoch, 10 * epoch, values["temperature"], values["nll"])
        arrays = {
            "half_temperatures": half_temperatures(counts, sums, self.layout),
            "classes": class_table(counts, sums, self.layout),
        }
        self.history.append(
            Record("val", 0, epoch, 10 * epoch, 0.0, True, self.num_rows, self.num_rows, values, arrays, {}, paired)
        )
        found = self.diagnosis.examine(self.history)
        self.events += found
        return found

    def run(
        self, epochs: int, scale: Callable[[int], float], separation: Callable[[int], float], **more: float
    ) -> Sequence[Event]:
        """Many evaluations; returns all events."""
        for epoch in range(epochs):
            self.evaluate(scale(epoch), separation(epoch), **more)
        return self.events


def learning(epoch: int, level: float = 2.5, speed: float = 4.0) -> float:
    """A separation that rises to `level` and stays."""
    return level * (1 - 2.718281828 ** (-(epoch + 1) / speed))
