"""Layers that act in evaluation although they should act in training only are found, counted and named.

Proved here: what counts as such a layer; a module whose `forward` draws random numbers in eval mode and one that
evaluates in training mode are told so from their first evaluation on, with a remedy that names the place, and sound
modules with dropout and batch normalisation are not; the training is bitwise the same as without the question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from lightning_lossacc.capture import Captured
from lightning_lossacc.modes import dropout_rate, training_layers
from lightning_lossacc.train_probe import _differing
from tests.modules import QUIET, Plain, assert_identical, dataset, everything, loader, monitor, trainer

pytestmark = QUIET


class Sound(Plain):
    """Dropout and batch normalisation as they should be."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, nn.BatchNorm1d(16))

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)


class Dropping(Sound):
    """Drops in every mode, since `F.dropout` does unless it is told the mode."""

    def forward(self, features: Tensor) -> Tensor:
        return self.net(F.dropout(features, 0.3))


class Training(Sound):
    """Evaluates in training mode."""

    def on_validation_start(self) -> None:
        self.train()


def fit(path: Path, module: Plain, **options: Any) -> list[Any]:
    watch = monitor(**options)
    trainer(path, watch, max_epochs=3).fit(module, loader(40, shuffle=True), loader(64, seed=3))
    return [event for event in watch.events if event.event == "train-eval-gap"]


@pytest.mark.parametrize(
    ("layer", "rate", "acts"),
    [
        (nn.Dropout(0.3), 0.3, True),
        (nn.Dropout2d(0.2), 0.2, True),
        (nn.Dropout(0.0), 0.0, False),
        (nn.GRU(3, 3, 2, dropout=0.4), 0.4, True),
        (nn.GRU(3, 3, 1), 0.0, False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), 0.1, True),
        (nn.BatchNorm1d(3), 0.0, True),
        (nn.BatchNorm1d(3, track_running_stats=False), 0.0, False),
        (nn.LayerNorm(3), 0.0, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_what_acts_in_one_mode_only(layer: nn.Module, rate: float, acts: bool) -> None:
    network = nn.Sequential(layer, nn.Linear(3, 2))
    assert dropout_rate(layer) == rate
    assert training_layers(network) == acts
    assert training_layers(network.eval()) == 0


def test_random_answers_are_named(tmp_path: Path) -> None:
    (event,) = fit(tmp_path, Dropping(), train_probe=dataset())
    assert (event.cause, event.level, event.epoch, event.status) == ("train-eval-mismatch", "warning", 0, "open")
    assert " % of the same training rows got other logits" in event.causes[0].evidence[0]
    assert "F.dropout(x, p, self.training)" in event.remedies[0] and "in `forward`" in event.remedies[0]


def test_training_mode_is_named_without_a_probe(tmp_path: Path) -> None:
    (event,) = fit(tmp_path, Training())
    assert (event.cause, event.level, event.epoch) == ("train-eval-mismatch", "warning", 0)
    assert event.causes[0].evidence[0].startswith("2 layers of dropout or batch normalisation were in training mode")
    assert "validation_step" in event.remedies[0] and "running statistics" in " ".join(event.remedies)


def test_sound_modules_get_no_word(tmp_path: Path) -> None:
    assert fit(tmp_path, Sound(), train_probe=dataset()) == []


def test_asking_twice_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    found = []
    for options in ({}, {"train_probe": dataset()}):
        seed_everything(1, verbose=False)
        module = Dropping()
        fit(tmp_path, module, **options)
        found.append(everything(module))
    assert_identical(*found)


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.0), (0.01, 0.0), (0.2, 0.25)])
@pytest.mark.parametrize("kind", ["rows", "binary", "tokens"])
def test_share_of_rows_that_differ(kind: str, shift: float, share: float) -> None:
    shape = {"rows": (8, 5), "binary": (8,), "tokens": (8, 5, 3)}[kind]
    logits = torch.linspace(-4, 4, 8).view(8, *[1] * (len(shape) - 1)).expand(shape).clone()
    other = logits.clone()
    other[:2] += shift
    target = torch.zeros(8, dtype=torch.int64)
    pair = [Captured(part, target, "multiclass", -100, 0.0, False, "here") for part in (logits, other)]
    assert _differing(*pair) == share
