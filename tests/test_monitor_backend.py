"""The monitor counts with the backend that was asked for, and has its kernels made before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_lossacc import LossAccuracyMonitor, kernels
from lightning_lossacc.stages import Settings, precompile
from tests.modules import NUM_CLASSES, NUM_FEATURES, QUIET, Plain

pytestmark = QUIET


def fit(monitor: LossAccuracyMonitor, directory: Path) -> None:
    """One epoch of a small classifier."""
    data = TensorDataset(torch.randn(64, NUM_FEATURES), torch.randint(0, NUM_CLASSES, (64,)))
    trainer = Trainer(
        max_epochs=1, logger=False, callbacks=[monitor], default_root_dir=directory, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(), DataLoader(data, 32), DataLoader(data, 32))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_every_stage_counts_with_the_backend(backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation hand the name on."""
    seen, original = [], kernels.row_statistics

    def count(*arguments: Any) -> None:
        seen.append(arguments[5])
        original(*arguments)

    monkeypatch.setattr(kernels, "row_statistics", count)
    monitor = LossAccuracyMonitor(backend=backend, dirpath=False, verbose=False, watch=False)
    fit(monitor, tmp_path)
    assert set(seen) == {backend}
    assert {stage for stage, _ in monitor.history.streams()} >= {"train", "val"}


def test_unknown_backend_is_refused_at_once() -> None:
    """At construction, with the names that exist."""
    with pytest.raises(ValueError, match="Expected `backend` to be one of"):
        LossAccuracyMonitor(backend="cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-true", torch.float16)]
)
def test_kernels_are_made_for_training_and_validation(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of classes given, both layouts in the dtype of the Trainer's precision; else nothing."""
    made = []
    monkeypatch.setattr(kernels, "precompile", lambda layout, *rest: made.append((bool(layout.temperatures), *rest)))
    device = torch.device("cpu")
    precompile(Settings(), precision, device)
    precompile(Settings(num_classes=9, backend="reference"), precision, device)
    assert made == []
    precompile(Settings(num_classes=9), precision, device)
    assert made == [(False, dtype, device), (True, dtype, device)]


def test_what_cannot_be_made_ahead_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing compiler gives one warning, and training and counting go on."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(kernels, "precompile", fail)
    monitor = LossAccuracyMonitor(num_classes=NUM_CLASSES, dirpath=False, verbose=False, watch=False)
    with pytest.warns(UserWarning, match="lossacc lacks kernels made ahead: RuntimeError: planted"):
        fit(monitor, tmp_path)
    assert monitor.history.measured("val", 0)
