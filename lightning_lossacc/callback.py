"""`LossAccuracyMonitor`: the hooks of a Lightning callback, and the only place where tensors become a `Record`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from lightning_lossacc.capture import Capture
from lightning_lossacc.diagnosis import Event
from lightning_lossacc.diagnosis.engine import ACCURACY_MARGIN
from lightning_lossacc.history import History
from lightning_lossacc.run import Run
from lightning_lossacc.stages import Settings
from lightning_lossacc.train_probe import TrainProbe
from lightning_lossacc.watchers import Watcher

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that cannot raise into training: the first failure gives one warning."""

    @functools.wraps(hook)
    def wrapper(self: LossAccuracyMonitor, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._off or trainer.sanity_checking:
            return
        try:
            hook(self, trainer, *args, **kwargs)
        except Exception as error:
            _, stage, *when = hook.__name__.split("_")
            if when != ["epoch", "end"]:
                self._run.failed.add({"validation": "val"}.get(stage, stage))
            self._fail(hook.__name__, error)

    return wrapper


class LossAccuracyMonitor(Callback):
    """Measures loss, accuracy and confidence of an unmodified module, and says why loss and accuracy part.

    Logits and targets are taken from the loss call of each step (see `lightning_lossacc.capture`). After every
    validation it logs `lossacc/val/<quantity>` (and after every training epoch `lossacc/train/<quantity>`, without the
    refinement) to every attached logger, makes the same keys available to `EarlyStopping` and `ModelCheckpoint`, and
    reports events to the terminal, the loggers and files. With several loaders the bare key is their union and each has
    `.../dataloader_idx_<k>`. Training is bitwise the same with and without it, and nothing here can stop it.

    The history is about one fit: that of another Trainer starts a new one, that of the same Trainer or from a
    checkpoint goes on. One monitor a Trainer measures; a second one (with another `which`) is off and says so.

    Logged keys with `quantities="core"`: nll, accuracy, balanced_accuracy, refinement_nll, calibration_nll,
    temperature, overconfidence, margin_p05; with `"all"` every key of `lightning_lossacc.quantities.KEYS`.

    Args:
        capture: `(outputs, batch) -> (logits, target)`, for steps whose loss cannot be seen; called with what the step
            returned. None captures the loss call.
        which: which place in the program is captured if a step computes several losses, from 0 in order.
        quantities: what is logged; files always hold everything.
        accuracy_margin: largest change of accuracy called flat; less if 10 % of the error and its standard error are.
        probe_items: items that are compared one by one across evaluations; 0 switches pairing off.
        num_classes: checked against the captured logits; None takes theirs.
        dirpath: directory of `history.jsonl`, `events.jsonl`, `summary.txt` and the figures; None for `lossacc` in the
            Trainer's log directory, False for no files. Numbered (`lossacc-1`) if another run has written there.
        train_probe: training rows without augmentation, a data set or a loader of one. At most `probe_items` of them,
            always the same ones, go through `forward` with each validation, in eval mode: what tells overfitting from
            dropout, augmentation and leakage. Logged as `lossacc/train_probe/<quantity>`. True takes the data set of
            the Trainer's own training loader, in order, for data sets that do not augment.
        watch: whether activations, gradients and updates are watched; an integer k looks at every k-th step.
        on_event: called with each `Event` on every rank.
        verbose: whether the terminal shows the start, warnings and the summary.
        alert: whether W&B and Comet send you a message when a warning opens; off for the sake of sweeps.
        report: whether `report.html`, which stands alone, is written beside the other files and sent to the loggers.
        backend: what counts, as in `LossAccuracy`; with `num_classes` its kernels are compiled before the first step.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `train_probe` has no length.

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
        train_probe: DataLoader | Dataset | bool | None = None,
        watch: bool | int = True,
        on_event: Callable[[Event], Any] | None = None,
        verbose: bool = True,
        alert: bool = False,
        report: bool = True,
        backend: Literal["auto", "triton", "reference", "compiled"] = "auto",
    ) -> None:
        if quantities not in ("core", "all"):
            raise ValueError(f"Expected `quantities` to be 'core' or 'all', but got {quantities!r}.")
        if not 0 < accuracy_margin < 1:
            raise ValueError(f"Expected `accuracy_margin` to be between 0 and 1, but got {accuracy_margin!r}.")
        if probe_items < 0:
            raise ValueError(
                f"Expected `probe_items` to be 0 or larger, but got {probe_items!r}; 0 switches pairing off."
            )
        if not isinstance(watch, int) or watch < 0:
            raise ValueError(f"Expected `watch` to be True, False or a number of steps, but got {watch!r}.")
        if train_probe not in (None, False) and probe_items == 0:
            raise ValueError("Expected `probe_items` to be larger than 0 with `train_probe`, but got 0.")
        self._capture = Capture(capture, which)
        settings = Settings(probe_items=probe_items, num_classes=num_classes, backend=backend)
        self._key = {"which": which, "probe_items": probe_items}
        self._watcher = None if not watch else Watcher() if watch is True else Watcher(watch)
        probe = None if isinstance(train_probe, bool | None) else TrainProbe(train_probe, probe_items, capture)
        self._probes_training_rows, self._user = train_probe is True, capture
        self._run = Run(
            self._capture,
            settings,
            accuracy_margin,
            quantities == "all",
            dirpath,
            on_event,
            verbose,
            alert,
            report,
            {
                "which": which,
                "quantities": quantities,
                "accuracy_margin": accuracy_margin,
                "probe_items": probe_items,
                "train_probe": train_probe not in (None, False),
                "watch": int(watch),
            },
            watcher=self._watcher,
            train_probe=probe,
        )
        self._stage = "fit"
        self._off = False
        self._ambient = False

    @property
    def history(self) -> History:
        """All evaluations so far."""
        return self._run.history

    @property
    def events(self) -> list[Event]:
        """All reports of events so far, oldest first."""
        return self._run.events

    def plot(self, stage: str = "val", loader: int = 0, theme: Literal["light", "dark"] = "light") -> Figure:
        """The one picture so far: loss and accuracy over epochs, what one temperature removes, and the events.

        At the end of a notebook's cell it is shown. It is unknown to pyplot; `figure.savefig(path)` writes it.

        Args:
            stage: `"val"`, `"train"` or `"test"`.
            loader: index of the data loader; -1 for the union of several.
            theme: colours on white or on a dark background.

        Raises:
            ModuleNotFoundError: without matplotlib.
        """
        from lightning_lossacc.figures import picture, png

        figure = picture(self.history, self.events, stage=stage, loader=loader, theme=theme)
        # Notebooks know how to show figures only after pyplot was imported.
        figure._repr_png_ = functools.partial(png, figure)
        return figure

    # -- set-up and end ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decides whether this monitor measures anything: not with `LOSSACC=0`, nor beside another one."""
        self._run.interrupted = False
        self._stage = stage
        self._off = os.environ.get("LOSSACC") == "0"
        if not self._off:
            reason = self._superfluous(trainer)
            reason = _uneven(trainer, pl_module) if reason is None else reason
            self._off = reason is not None
            if reason:
                self._run.warn_once(reason)
        if not self._off:
            self._run.precompile(trainer)

    def _superfluous(self, trainer: Trainer) -> str | None:
        """Why this monitor leaves the work to another one; empty if that needs no words."""
        others = [callback for callback in trainer.callbacks if isinstance(callback, LossAccuracyMonitor)]
        explicit = [callback for callback in others if not callback._ambient]
        first = (explicit or others or [self])[0]
        if first is self:
            return None
        return (
            "" if self._ambient else "lossacc: the Trainer has two LossAccuracyMonitors; only the first one measures."
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores every patched function."""
        self._capture.abort()
        self._watch("stop")

    def _watch(self, what: str, *arguments: Any) -> None:
        """One of the watcher's methods; it is off after its first failure, and nothing else suffers."""
        if self._watcher is None:
            return
        try:
            getattr(self._watcher, what)(*arguments)
        except Exception as error:
            self._watcher = self._run.watcher = None
            self._fail(f"watching ({what})", error)

    def _fail(self, where: str, error: Exception) -> None:
        text = f"lossacc failed in {where}: {type(error).__name__}: {error}; training goes on."
        self._run.warn_once(text, "failed")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores every patched function and brings the local files up to date; no collective, no network."""
        self._run.interrupted = True
        self._capture.abort()
        self._watch("stop")
        self._run.save_files()

    @_guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.announce(trainer, pl_module)

    @_guarded
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The closing summary and the last picture."""
        self._run.close(trainer)

    # -- batches -------------------------------------------------------------------------------------------------------

    @_guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            # Not at the epoch's start: a run that resumes at an epoch's end, or within one, gets no such hook.
            self._run.begin_train(trainer)
        self._begin_batch(trainer, pl_module, "train", 0)
        self._watch("begin_step")

    @_guarded
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # An optimizer that evaluates the step again, such as LBFGS, shows rows that have been counted.
        if pl_module.automatic_optimization:
            self._capture.close()
        self._watch("end_forward")

    @_guarded
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._watch("before_optimizer_step", optimizer)

    @_guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch(trainer, "train", 0, outputs, batch)
        self._watch("after_step", trainer.optimizers)

    @_guarded
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, pl_module, "val", dataloader_idx)

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
        self._end_batch(trainer, "val", dataloader_idx, outputs, batch)

    @_guarded
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, pl_module, "test", dataloader_idx)

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
        self._end_batch(trainer, "test", dataloader_idx, outputs, batch)

    def _begin_batch(self, trainer: Trainer, pl_module: LightningModule, stage: str, loader: int) -> None:
        state = self._run.state(self._run.name(trainer, stage), loader)
        state.begin_batch()
        self._capture.start((state.stage, loader), pl_module, state.add, state.reserve)

    def _end_batch(self, trainer: Trainer, stage: str, loader: int, outputs: Any, batch: Any) -> None:
        self._capture.stop(outputs, batch)
        state = self._run.state(self._run.name(trainer, stage), loader)
        if self._capture.last_error is not None:
            state.fail(self._capture.last_error)
            self._capture.last_error = None
        state.end_batch()

    # -- evaluations ---------------------------------------------------------------------------------------------------

    @_guarded
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Loggers, the directory and a checkpoint's state are all there only now.
        self._run.prepare(trainer)
        if self._probes_training_rows:
            self._run.probe_training_rows(trainer.train_dataloader, self._user)
        self._run.resume_train(trainer)
        self._run.look_at_optimizers(trainer, pl_module)
        self._watch("start", pl_module)

    @_guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "train")

    @_guarded
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.begin_evaluation(trainer, "val")

    @_guarded
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "val")

    @_guarded
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.begin_evaluation(trainer, "test")

    @_guarded
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run.evaluate(trainer, pl_module, "test")

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Identifies this monitor among the callbacks of a checkpoint."""
        # Lightning refuses two callbacks of one key, and a user's own monitor may stand beside the ambient one.
        return self._generate_state_key(**self._key, **({"ambient": True} if self._ambient else {}))

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors only: at most 256 KB, 56 bytes an item for each of two references of a probe, and 128
        bytes for each row of `train_probe`.
        """
        if self._off:
            return {}
        try:
            return self._run.save()
        except Exception as error:
            self._fail("state_dict", error)
            return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a checkpoint's state in a fit; one of another version is ignored with one warning."""
        # `validate` and `test` load the weights of an earlier epoch; what has been measured since stays.
        if self._off or self._stage != "fit":
            return
        try:
            self._run.load(state_dict)
        except Exception as error:
            self._fail("load_state_dict", error)


def callbacks_factory() -> list[Callback]:
    """Entry point of `lightning.pytorch.callbacks_factory`: adds the monitor to every Trainer if `LOSSACC=1`."""
    if os.environ.get("LOSSACC") != "1":
        return []
    monitor = LossAccuracyMonitor()
    monitor._ambient = True
    return [monitor]


def _uneven(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """Why nothing can be added up: Lightning skips an evaluation without batches, hooks and all, on single ranks."""
    flag = "allow_zero_length_dataloader_with_multiple_devices"
    owners = (pl_module, getattr(trainer, "datamodule", None))
    if trainer.world_size > 1 and any(getattr(owner, flag, False) for owner in owners):
        return f"lossacc is off: with `{flag}` a rank may skip an evaluation, and the others would wait for it."
    return None
