"""What a module logs when its epoch ends is compared with the evaluation that it is of, not with the next one.

Lightning shows the value of the evaluation before while ours is being written. Proved here: sound modules that log so
get no word, of an accuracy or of a loss; an accuracy that is never reset is found; values logged in the step stay those
of this evaluation; the evaluation before gets its own.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch import seed_everything
from torch import Tensor

from tests.modules import NUM_CLASSES, QUIET, Plain, loader, monitor, trainer

pytestmark = QUIET


class AtTheEnd(Plain):
    """Updates a metric in the step and logs what it computes at the end, as torchmetrics' documentation has it."""

    resets = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=NUM_CLASSES)
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss = self.loss("val", batch)
        self.log("val_loss", loss)
        self.losses.append(loss)
        self.accuracy.update(self.seen["val"][-1][0], batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", self.accuracy.compute())
        self.log("val_loss_end", torch.stack(self.losses).mean())
        self.losses.clear()
        if self.resets:
            self.accuracy.reset()


class NeverReset(AtTheEnd):
    resets = False


class InTheStep(AtTheEnd):
    """Logs the metric itself, which Lightning computes."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_acc", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        self.losses.clear()


def fit(path: Path, module: Plain, epochs: int = 12) -> Any:
    seed_everything(3, verbose=False)
    watch = monitor()
    trainer(path, watch, max_epochs=epochs, num_sanity_val_steps=2).fit(
        module, loader(200, shuffle=True), loader(200, seed=3)
    )
    return watch


@pytest.mark.parametrize("module", [AtTheEnd, InTheStep])
def test_sound_modules_get_no_word(module: type[Plain], tmp_path: Path) -> None:
    watch = fit(tmp_path, module(rate=0.2))
    accuracies = watch.history.column("accuracy")
    assert max(abs(one - two) for one, two in itertools.pairwise(accuracies)) > 0.03, "it moves"
    assert [event for event in watch.events if event.event == "logged-differs"] == []


def test_values_are_of_their_own_evaluation(tmp_path: Path) -> None:
    records = fit(tmp_path, AtTheEnd(rate=0.2), 6).history.series("val")
    for record in records[:-1]:
        assert record.logged["val_acc"] == pytest.approx(record.values["accuracy"], abs=1e-6)
        assert record.logged["val_loss_end"] == pytest.approx(record.values["nll"], rel=0.05)
    assert all(record.logged["val_loss"] == pytest.approx(record.values["nll"], rel=1e-4) for record in records)
    assert set(records[-1].logged) == {"val_loss"}, "the last evaluation's is not there yet"


def test_an_accuracy_that_is_never_reset_is_found(tmp_path: Path) -> None:
    watch = fit(tmp_path, NeverReset(rate=0.05), 14)
    (event,) = [event for event in watch.events if event.event == "logged-differs" and event.status == "open"]
    assert event.cause == "wrong-accuracy" and event.causes[0].evidence[0].startswith("your val_acc is ")


class EveryThird(AtTheEnd):
    """Logs its accuracy after every third evaluation only."""

    def on_validation_epoch_end(self) -> None:
        if self.current_epoch % 3 == 0:
            self.log("val_acc", self.accuracy.compute())
        self.losses.clear()
        self.accuracy.reset()


class AfterTraining(AtTheEnd):
    """Logs what validation found when the training epoch ends, which is after it."""

    def on_validation_epoch_end(self) -> None:
        self.losses.clear()

    def on_train_epoch_end(self) -> None:
        self.log("val_acc", self.accuracy.compute())
        self.accuracy.reset()


@pytest.mark.parametrize(("module", "every"), [(EveryThird, 3), (AfterTraining, 1)])
def test_a_value_is_of_one_evaluation_only(module: type[Plain], every: int, tmp_path: Path) -> None:
    watch = fit(tmp_path, module(rate=0.2))
    assert [event for event in watch.events if event.event == "logged-differs"] == []
    records = watch.history.series("val")[:-1]
    assert [record.epoch for record in records if "val_acc" in record.logged] == list(range(0, 11, every))
    # The batches of the sanity check are among the first, where nothing reset the metric after them.
    for record in records[every::every]:
        assert record.logged["val_acc"] == pytest.approx(record.values["accuracy"], abs=1e-6)


class AnotherHead(AtTheEnd):
    """The accuracy of another head is logged in the step, that of these logits when the epoch ends."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_acc_aux", 0.01)


class OfAllLoaders(AtTheEnd):
    """One accuracy of two loaders."""

    def val_dataloader(self) -> Any:
        return [loader(200, seed=3), loader(100, seed=9)]


@pytest.mark.parametrize("module", [AnotherHead, OfAllLoaders])
def test_what_is_of_other_rows_or_heads_gets_no_word(module: type[Plain], tmp_path: Path) -> None:
    seed_everything(3, verbose=False)
    made, watch = module(rate=0.2), monitor()
    loaders = {} if module is OfAllLoaders else {"val_dataloaders": loader(200, seed=3)}
    trainer(tmp_path, watch, max_epochs=12).fit(made, loader(200, shuffle=True), **loaders)
    assert [event for event in watch.events if event.event == "logged-differs"] == []
