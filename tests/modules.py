"""Tiny modules, data and loggers for tests of the callback: a fit takes tens of milliseconds."""

from __future__ import annotations

import inspect
import math
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lossacc import LossAccuracyMonitor

NUM_FEATURES, NUM_CLASSES = 5, 4

# Warnings are errors; these come from Lightning or torch with and without us.
QUIET = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`.*"),
]


class Plain(LightningModule):
    """Returns only the loss, as most modules do; dropout, so that it draws random numbers."""

    def __init__(self, drop: float = 0.5, rate: float = 0.5, smoothing: float = 0.0, weighted: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(drop), nn.Linear(16, NUM_CLASSES))
        self.rate = rate
        self.smoothing = smoothing
        self.register_buffer("weights", torch.arange(1.0, NUM_CLASSES + 1) if weighted else None)
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": [], "test": []}

    def loss(self, stage: str, batch: Any) -> Tensor:
        features, target = batch
        logits = self.net(features)
        self.seen[stage].append((logits.detach().clone(), target))
        return F.cross_entropy(logits, target, weight=self.weights, label_smoothing=self.smoothing)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss("train", batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss("val", batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_loss", self.loss("test", batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Manual(Plain):
    """Manual optimisation, which returns nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss("train", batch))
        optimizer.step()


class Twice(Plain):
    """Two losses in a step, at two places."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = self.loss("train", batch)
        return first + 0.1 * F.cross_entropy(self.net(batch[0]).flip(1), batch[1])


class Custom(Plain):
    """A loss by formula, of which nothing can be captured."""

    def loss(self, stage: str, batch: Any) -> Tensor:
        logits = self.net(batch[0])
        return (logits.logsumexp(1) - logits[torch.arange(len(logits)), batch[1]]).mean()


class NoValidation(LightningModule):
    """Has no validation step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Memory(Logger):
    """A logger nobody has heard of; keeps what it is given."""

    def __init__(self, name: str = "memory") -> None:
        super().__init__()
        self._name = name
        self.rows: list[tuple[dict[str, float], int | None]] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((dict(metrics), step))

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass

    def column(self, key: str) -> list[float]:
        return [metrics[key] for metrics, _ in self.rows if key in metrics]


class Failing(Memory):
    """A logger that fails on our keys only, as a full quota would."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(key.startswith("lossacc/") for key in metrics):
            raise ConnectionError("no network")
        super().log_metrics(metrics, step)


class Shown(Callback):
    """Counts the rows of each evaluation independently of us."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._now = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._now = 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self._now += len(batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.rows.append(self._now)


def dataset(num_rows: int = 41, seed: int = 1) -> TensorDataset:
    """Features and labels that are half noise, so that a small network overfits."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, NUM_FEATURES, generator=generator)
    target = features[:, :NUM_CLASSES].argmax(1)
    noise = torch.rand(num_rows, generator=generator) < 0.5
    return TensorDataset(
        features, torch.where(noise, torch.randint(NUM_CLASSES, (num_rows,), generator=generator), target)
    )


def loader(num_rows: int = 41, seed: int = 1, shuffle: bool = False, batch_size: int = 8) -> DataLoader:
    return DataLoader(dataset(num_rows, seed), batch_size=batch_size, shuffle=shuffle)


class Resumable(DataLoader):
    """Goes on in the middle of an epoch, as a stateful loader does; Lightning saves and loads its place."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The base class guards its own attributes, not ours.
        self.place = self.start = 0

    def __iter__(self) -> Any:
        first, self.start = self.start, 0
        for self.place, batch in enumerate(super().__iter__(), start=1):
            if self.place > first:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["place"]


def trainer(path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A silent Trainer on the CPU without loggers and checkpoints unless asked for."""
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": path,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def monitor(**options: Any) -> LossAccuracyMonitor:
    """Without files and terminal unless asked for."""
    return LossAccuracyMonitor(**{"dirpath": False, "verbose": False, **options})


def everything(module: LightningModule) -> dict[str, Any]:
    """All that a training leaves behind, in comparable form."""
    optimizer = module.trainer.optimizers[0]
    return {
        "parameters": [tensor.clone() for tensor in module.state_dict().values()],
        "gradients": [parameter.grad for parameter in module.parameters()],
        "optimizer": [value for state in optimizer.state_dict()["state"].values() for value in state.values()],
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "numpy_position": numpy.random.get_state()[2],
        "random": random.getstate(),
        "step": module.trainer.global_step,
    }


def safely(point: Any) -> dict[str, Any]:
    """Arguments of `Trainer.fit` that read a checkpoint with `weights_only`, which Lightning before 2.6 has not."""
    known = "weights_only" in inspect.signature(Trainer.fit).parameters
    return {"ckpt_path": point} | ({"weights_only": None if point is None else True} if known else {})


def assert_identical(first: Any, second: Any, where: str = "", relative: float = 0.0) -> None:
    """Bitwise, NaN equal to NaN; numbers of sums that were added in another order may differ by `relative`."""
    if isinstance(first, Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        assert same and first.numpy().tobytes() == second.numpy().tobytes(), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_identical(first[key], second[key], f"{where}/{key}", relative)
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_identical(one, other, f"{where}/{index}", relative)
    elif isinstance(first, float) and relative:
        assert math.isclose(first, second, rel_tol=relative, abs_tol=relative) or (
            first != first and second != second
        ), f"{where}: {first!r} and {second!r}"
    else:
        assert first == second or (first != first and second != second), f"{where}: {first!r} and {second!r}"
