"""What `LossAccuracyMonitor` costs a run on a CPU: time per training step, per validation, and of the whole fit.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_step.py [--seconds 45]`. Writes
`benchmarks/results/step.jsonl`; about two minutes. Says which targets hold and exits with 0 whether they do or not.

The same module is fitted without and with the monitor in turn, in one process, from the same seed; the first pair is
dropped. Neither has a logger, a progress bar or checkpoints; the monitor has its defaults (files, and a picture at the
end) except that it prints nothing. Four times are taken, all after the first epoch, in which the loss call is found:

    training a step  an epoch without its validation, by its number of batches: the data loader, every hook, rows that
                     the monitor kept for later and its summary of the epoch are in it; the target is about this one
    median step      from one `on_train_batch_start` to the next; work that is done once in many steps is not in it
    validation       from `on_validation_start` to `on_validation_end`
    fit              `trainer.fit`, the first epoch and the picture included

After every fit the weights are compared: a monitor that changes training, or measures nothing, has no cost to speak of.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import measure
import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import ROOT, Array, Quantiles, Row, Target
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_lossacc import LossAccuracyMonitor
from lightning_lossacc.demo import Classifier, Digits

SEED = 20240
STEP_LIMIT = 2.0
# Name in the results, and attribute of `Clock`.
PHASES = {"training a step": "training", "median step": "steps", "validation": "validations", "fit": "fit"}
Fit = Callable[[Trainer], LightningModule]


class Clock(Callback):
    """Times (s) of one fit, after its first epoch; must be the first callback.

    Attributes:
        training: by epoch, its time without validation for each of its batches.
        steps: by step, up to the start of the next one; the last of an epoch has none.
        validations: by epoch.
        fit: one time, set from outside.
    """

    def __init__(self) -> None:
        self.training: list[float] = []
        self.steps: list[float] = []
        self.validations: list[float] = []
        self.fit: list[float] = []
        self._epoch_began: float | None = None
        self._starts: list[float] = []
        self._validation_began = 0.0
        self._validation = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the epoch before."""
        now = time.perf_counter()
        self._end_epoch(now)
        self._epoch_began = now if trainer.current_epoch else None
        self._starts = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Ends the step before."""
        self._starts.append(time.perf_counter())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a validation."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends it; the monitor's work is in `on_validation_epoch_end`, which comes earlier."""
        self._validation = time.perf_counter() - self._validation_began

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the last epoch."""
        self._end_epoch(time.perf_counter())

    def _end_epoch(self, now: float) -> None:
        if self._epoch_began is not None:
            self.training.append((now - self._epoch_began - self._validation) / len(self._starts))
            self.steps += np.diff(self._starts).tolist()
            self.validations.append(self._validation)


class Resident(Dataset[tuple[Tensor, Tensor]]):
    """Tensors in memory that hand out whole batches, so that collating rows one by one does not hide the step."""

    def __init__(self, features: Tensor, target: Tensor) -> None:
        self.features = features
        self.target = target

    def __len__(self) -> int:
        return len(self.target)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        """Features (B, F) and target (B,)."""
        return self.features[index], self.target[index]


def clusters(num_rows: int, generator: torch.Generator, centres: Tensor) -> Resident:
    """Rows around the centres (C, F) of their classes, near enough to be confused now and then."""
    target = torch.randint(len(centres), (num_rows,), generator=generator)
    return Resident(centres[target] + 2 * torch.randn(num_rows, centres.shape[1], generator=generator), target)


def wide(batches: int) -> Fit:
    """Fits 64 -> 1024 -> 1024 -> 10 on batches of 256 and validates on half as many rows."""
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(10, 64, generator=generator)
    train, validation = (clusters(rows, generator, centres) for rows in (256 * batches, 128 * batches))

    def fit(trainer: Trainer) -> LightningModule:
        model = Classifier(64, 10, hidden_sizes=(1024, 1024))
        loaders = (
            DataLoader(train, batch_size=256, shuffle=True, collate_fn=_as_it_is),
            DataLoader(validation, batch_size=512, collate_fn=_as_it_is),
        )
        trainer.fit(model, *loaders)
        return model

    return fit


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def digits() -> Fit:
    """Fits module and data of `configs/digits.yaml`: 64 -> 256 -> 10, 8 batches of 32, 1547 validation rows."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text(encoding="utf-8"))

    def fit(trainer: Trainer) -> LightningModule:
        model = Classifier(**config["model"]["init_args"])
        trainer.fit(model, datamodule=Digits(**config["data"]["init_args"]))
        return model

    return fit


@dataclass(slots=True)
class Pair:
    """Repeated fits of one model, without and with the monitor.

    Attributes:
        fit: builds the model and fits it.
        epochs: of every fit.
        without, monitored: one clock a fit, in the order of the fits.
        weights: what every fit has ended with so far.
    """

    fit: Fit
    epochs: int
    without: list[Clock] = field(default_factory=list)
    monitored: list[Clock] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def run_without(self) -> None:
        """One fit without the monitor."""
        clock = Clock()
        self._run(clock, [clock])
        self.without.append(clock)

    def run_monitored(self) -> None:
        """One fit with the monitor.

        Raises:
            RuntimeError: if the monitor has not measured every epoch.
        """
        clock, monitor = Clock(), LossAccuracyMonitor(verbose=False)
        self._run(clock, [clock, monitor])
        self.monitored.append(clock)
        measured = {stage: len(monitor.history.column("nll", stage, 0)) for stage in ("train", "val")}
        if set(measured.values()) != {self.epochs}:
            raise RuntimeError(
                f"Expected the monitor to measure {self.epochs} epochs of each stage, but got {measured}."
            )

    def _run(self, clock: Clock, callbacks: list[Callback]) -> None:
        torch.manual_seed(SEED)
        with tempfile.TemporaryDirectory() as directory:
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=self.epochs,
                logger=False,
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                default_root_dir=directory,
                callbacks=callbacks,
            )
            began = time.perf_counter()
            weights = self.fit(trainer).state_dict()
            clock.fit.append(time.perf_counter() - began)
        self.weights = self.weights or weights
        changed = [name for name, value in weights.items() if not torch.equal(value, self.weights[name])]
        if changed:
            raise RuntimeError(f"Expected every fit to end with the same weights, but got other {', '.join(changed)}.")


def measure_model(name: str, fit: Fit, epochs: int, budget: float) -> tuple[list[Row], list[Target]]:
    """Rows and targets of one model; prints a table."""
    pair = Pair(fit, epochs)
    fits = {"without": pair.run_without, "with": pair.run_monitored}
    measure.interleave(fits, seconds=budget, most=200)

    def by_fit(clocks: list[Clock], times: str) -> Array:
        return np.array([np.median(getattr(clock, times)) for clock in clocks[1:]])

    rows: list[Row] = []
    lines = []
    bars: list[Target] = []
    for phase, times in PHASES.items():
        plain, monitored = by_fit(pair.without, times), by_fit(pair.monitored, times)
        percent = Quantiles.of(100 * (monitored / plain - 1))
        added = Quantiles.of(1e3 * (monitored - plain))
        both = {"without": Quantiles.of(1e3 * plain), "with": Quantiles.of(1e3 * monitored)}
        shared = {"table": "step", "model": name, "epochs": epochs, "phase": phase}
        rows += [{**shared, "provider": who, "unit": "ms", **value.row()} for who, value in both.items()]
        rows.append({**shared, "provider": "added", "unit": "ms", **added.row()})
        rows.append({**shared, "provider": "overhead", "unit": "%", **percent.row()})
        lines.append(
            {name: phase, **{f"{who}, ms": str(value) for who, value in both.items()}}
            | {"added, ms": str(added), "overhead, %": str(percent), "pairs": percent.repeats}
        )
        if phase == "training a step":
            bars.append(Target("overhead of a training step, %", name, STEP_LIMIT, percent))
    measure.print_table(lines)
    return rows, bars


def main() -> None:
    """Measures both models, prints the tables and writes the file."""
    arguments = measure.parser(__doc__.partition("\n")[0], 45.0, "one model")
    arguments.add_argument("--epochs", type=_epochs, default=None, help="epochs of a fit (default: 4 and 30)")
    arguments.add_argument("--batches", type=int, default=16, help="batches in an epoch of the wide model (default 16)")
    chosen = arguments.parse_args()
    # Either variable would put the monitor into both runs, or into none.
    os.environ.pop("LOSSACC", None)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "is smaller than the logging interval",
        "isinstance.treespec, LeafSpec",
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")
    stamp = measure.environment()
    print(json.dumps(stamp), end="\n\n")
    rows: list[Row] = []
    bars: list[Target] = []
    models = {"64-1024-1024-10": (wide(chosen.batches), 4), "digits 64-256-10": (digits(), 30)}
    for name, (fit, epochs) in models.items():
        more_rows, more_bars = measure_model(name, fit, chosen.epochs or epochs, chosen.seconds)
        rows += more_rows
        bars += more_bars
    measure.report("step", rows, bars, stamp, chosen.results)


def _epochs(text: str) -> int:
    if not text.isdecimal() or int(text) < 3:
        raise argparse.ArgumentTypeError(f"Expected at least 3 epochs, since the first is dropped, but got {text!r}.")
    return int(text)


if __name__ == "__main__":
    main()
