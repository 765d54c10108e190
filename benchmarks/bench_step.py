"""What `LossAccuracyMonitor` costs a training run on a CPU: time per training step, per validation, and of the whole fit.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_step.py [--seconds 45]`. Writes
`benchmarks/results/step.jsonl`; about two minutes. Says which targets hold and exits with 0 whether they do or not.

The same module is fitted without and with the monitor in turn, in one process, from the same seed; the first pair is dropped.
Both runs have no logger, no progress bar and no checkpoints; the monitor has its defaults (files, and a picture at the end
where matplotlib is installed) except that it prints nothing. A step reaches from one `on_train_batch_start` to the next, so
that every hook and the data loader are in it. A validation reaches from its start to the next epoch, with both evaluations
of the monitor. The first epoch, in which the loss call is found, counts towards the fit alone. After every pair the weights
are compared: a monitor that changes training, or measures nothing, has no cost worth naming.
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
from functools import partial
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
Fit = Callable[[Trainer], LightningModule]


class Clock(Callback):
    """Durations of steps and validations (s) after the first epoch; must be the first callback."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []
        self.fit = 0.0
        self._step_began: float | None = None
        self._validation_began: float | None = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Ends the step before, within an epoch."""
        now = time.perf_counter()
        if trainer.current_epoch and self._step_began is not None:
            self.steps.append(now - self._step_began)
        self._step_began = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins a validation; the last step of an epoch has no successor and is left out."""
        self._step_began = None
        if trainer.current_epoch and not trainer.sanity_checking:
            self._validation_began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the validation of the epoch before."""
        if self._validation_began is not None:
            self.validations.append(time.perf_counter() - self._validation_began)
            self._validation_began = None


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
    """Fits 64 -> 1024 -> 1024 -> 10 on batches of 256 and validates on 4096 rows: a step of some milliseconds."""
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(10, 64, generator=generator)
    train, validation = (clusters(rows, generator, centres) for rows in (256 * batches, 4096))

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
class Runs:
    """Repeated fits of one variant; the lists have one element a fit."""

    monitored: bool
    clocks: list[Clock] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def run(self, fit: Fit, epochs: int) -> None:
        """One fit from the seed, in a directory that is removed afterwards.

        Raises:
            RuntimeError: if the monitor has not measured every epoch; then its cost would mean nothing.
        """
        torch.manual_seed(SEED)
        clock, monitor = Clock(), LossAccuracyMonitor(verbose=False)
        with tempfile.TemporaryDirectory() as directory:
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                logger=False,
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                default_root_dir=directory,
                callbacks=[clock, monitor] if self.monitored else [clock],
            )
            began = time.perf_counter()
            model = fit(trainer)
            clock.fit = time.perf_counter() - began
        measured = len(monitor.history.column("nll", "val", 0)), len(monitor.history.column("nll", "train", 0))
        if self.monitored and measured != (epochs, epochs):
            raise RuntimeError(f"Expected {epochs} measured epochs of val and train, but got {measured}.")
        self.clocks.append(clock)
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})


def measure_model(name: str, fit: Fit, epochs: int, budget: float) -> tuple[list[Row], list[Target]]:
    """Rows and targets of one model; prints a table.

    Raises:
        RuntimeError: if weights differ between a fit without and one with the monitor.
    """
    without, with_ = Runs(monitored=False), Runs(monitored=True)
    pair = {"without": partial(without.run, fit, epochs), "with": partial(with_.run, fit, epochs)}
    measure.interleave(pair, seconds=budget, most=200)
    for plain, monitored in zip(without.weights, with_.weights, strict=True):
        if any(not torch.equal(plain[key], monitored[key]) for key in plain):
            raise RuntimeError(f"Expected the same weights of {name} with and without the monitor, but they differ.")

    def by_fit(runs: Runs, phase: str) -> Array:
        return np.array([np.median(getattr(clock, phase)) for clock in runs.clocks[1:]])

    rows: list[Row] = []
    lines = []
    bars: list[Target] = []
    for phase in ("steps", "validations", "fit"):
        plain, monitored = by_fit(without, phase), by_fit(with_, phase)
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
        if phase == "steps":
            bars.append(Target("overhead of a training step, %", name, STEP_LIMIT, percent))
    measure.print_table(lines)
    return rows, bars


def main() -> None:
    """Measures both models, prints the tables and writes the file."""
    arguments = measure.parser(__doc__.partition("\n")[0], 45.0, "one model")
    arguments.add_argument("--epochs", type=_epochs, default=None, help="epochs of a fit (default: 4 and 30)")
    arguments.add_argument("--batches", type=int, default=32, help="batches in an epoch of the wide model (default 32)")
    chosen = arguments.parse_args()
    # Either variable would put the monitor into both runs, or into none.
    os.environ.pop("LOSSACC", None)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
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
