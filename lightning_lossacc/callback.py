"""`LossAccuracyMonitor`: the hooks of a Lightning callback, and the only place where tensors become a `Record`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lossacc.capture import Capture
from lightning_lossacc.diagnosis import Event
from lightning_lossacc.diagnosis.engine import ACCURACY_MARGIN
from lightning_lossacc.history import History
from lightning_lossacc.run import Run
from lightning_lossacc.stages import Settings


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that cannot raise into training: the first failure gives one warning."""

    @functools.wraps(hook)
    def wrapper(self: LossAccuracyMonitor, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._off or trainer.sanity_checking:
            return
        try:
            hook(self, trainer, *args, **kwargs)
        except Exception as error:
            if not self._failed:
                self._failed = True
                rank_zero_warn(
                    f"lossacc failed in {hook.__name__}: {type(error).__name__}: {error}; training goes on without it."
                )

    return wrapper


class LossAccuracyMonitor(Callback):
    """Measures loss, accuracy and confidence of an unmodified module, and says why loss and accuracy part.

    Logits and targets are taken from the loss call of each step (see `lightning_lossacc.capture`). After every validation
    it logs `lossacc/val/<quantity>` (and after every training epoch `lossacc/train/<quantity>`, without the refinement) to
    every attached logger, makes the same keys available to `EarlyStopping` and `ModelCheckpoint`, and reports events to the
    terminal, the loggers and files. With several loaders the bare key is their union and each has
    `.../dataloader_idx_<k>`. Training is bitwise the same with and without it, and nothing here can stop it.

    Logged keys with `quantities="core"`: nll, accuracy, balanced_accuracy, refinement_nll, calibration_nll, temperature,
    overconfidence, margin_p05; with `"all"` every key of `lightning_lossacc.quantities.KEYS`.

    Args:
        capture: `(outputs, batch) -> (logits, target)`, for steps whose loss cannot be seen; called with what the step
            returned. None captures the loss call.
        which: which place in the program is captured if a step computes several losses, from 0 in order.
        quantities: what is logged; files always hold everything.
        accuracy_margin: largest change of accuracy called flat (and at most a tenth of the error rate).
        probe_items: items that are compared one by one across evaluations; 0 switches pairing off.
        num_classes: checked against the captured logits; None takes theirs.
        dirpath: directory of `history.jsonl`, `events.jsonl`, `summary.txt` and `lossacc.png`; None for `lossacc` in the
            Trainer's log directory, False for no files.
        on_event: called with each `Event` on every rank.
        verbose: whether the terminal shows the start, warnings and the summary.

    Raises:
        ValueError: if an argument is out of range.

    Example::

        trainer = Trainer(callbacks=LossAccuracyMonitor())
    """

    def __init__(
        self,
        capture: Callable[[Any, Any], Any] | None = None,
        which: int = 0,
        quantities: Literal["core", "all"] = "core",
        accuracy_margin: float = ACCURACY_MARGIN,
        probe_items: int = 8192,
        num_classes: int | None = None,
        dirpath: str | Path | bool | None = None,
        on_event: Callable[[Event], Any] | None = None,
        verbose: bool = True,
    ) -> None:
        if quantities not in ("core", "all"):
            raise ValueError(f"Expected `quantities` to be 'core' or 'all', but got {quantities!r}.")
        if not 0 < accuracy_margin < 1:
            raise ValueError(f"Expected `accuracy_margin` to be between 0 and 1, but got {accuracy_margin!r}.")
        if probe_items < 0:
            raise ValueError(f"Expected `probe_items` to be 0 or larger, but got {probe_items!r}; 0 switches pairing off.")
        self._capture = Capture(capture, which)
        settings = Settings(probe_items=probe_items, num_classes=num_classes)
        self._key = {"which": which, "probe_items": probe_items}
        self._run = Run(self._capture, settings, accuracy_margin, quantities == "all", dirpath, on_event, verbose)
        self._off = self._failed = False

    @property
    def history(self) -> History:
        """All evaluations so far."""
        return self._run.history

    @property
    def events(self) -> list[Event]:
        """All reports of events so far, oldest first."""
        return self._run.events

    # -- set-up and end ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the loggers and the directory; does nothing with `LOSSACC=0`."""
        self._off = os.environ.get("LOSSACC") == "0" or _is_duplicate(self, trainer)
        self._prepare(trainer)

    @_guarded
    def _prepare(self, trainer: Trainer) -> None:
        self._run.prepare(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores every patched function."""
        self._capture.abort()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores every patched function; no collective, no network."""
        self._run.interrupted = True
        self._capture.abort()

    @_guarded
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The closing summary and the last picture."""
        self._run.close(trainer)

    # -- batches -------------------------------------------------------------------------------------------------------

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin_batch(pl_module, "train", 0)

    @_guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch("train", 0, outputs, batch)

    @_guarded
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(pl_module, "val", dataloader_idx)

    @_guarded
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch("val", dataloader_idx, outputs, batch)

    @_guarded
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(pl_module, "test", dataloader_idx)

    @_guarded
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch("test", dataloader_idx, outputs, batch)

    def _begin_batch(self, pl_module: LightningModule, stage: str, loader: int) -> None:
        state = self._run.state(stage, loader)
        state.begin_batch()
        self._capture.start((stage, loader), pl_module, state.add)

    def _end_batch(self, stage: str, loader: int, outputs: Any, batch: Any) -> None:
        self._capture.stop(outputs, batch)
        self._run.state(stage, loader).end_batch()

    # -- evaluations ---------------------------------------------------------------------------------------------------

    @_guarded
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.state("train", 0).clear()

    @_guarded
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that resumes in the middle of an epoch gets no epoch start; its sums come back here.
        self._run.resume_train(trainer)

    @_guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "train", [trainer.num_training_batches])

    @_guarded
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.begin_evaluation("val", trainer.val_dataloaders)

    @_guarded
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "val", trainer.num_val_batches)

    @_guarded
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.begin_evaluation("test", trainer.test_dataloaders)

    @_guarded
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "test", trainer.num_test_batches)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Identifies this monitor among the callbacks of a checkpoint."""
        return self._generate_state_key(**self._key)

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors only, at most 256 KB and the references of the probe (48 bytes an item each)."""
        return self._run.save()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a checkpoint's state; one of another version is ignored with one warning."""
        self._run.load(state_dict)


def callbacks_factory() -> list[Callback]:
    """Entry point of `lightning.pytorch.callbacks_factory`: adds the monitor to every Trainer if `LOSSACC=1`."""
    return [LossAccuracyMonitor()] if os.environ.get("LOSSACC") == "1" else []


def _is_duplicate(monitor: LossAccuracyMonitor, trainer: Trainer) -> bool:
    others = [callback for callback in trainer.callbacks if isinstance(callback, LossAccuracyMonitor)]
    return others.index(monitor) > 0 and others[0].state_key == monitor.state_key
