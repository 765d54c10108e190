"""Where is it said, and how often? Loggers, files, terminal and warnings of one Trainer, each text at most once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lossacc import closing
from lightning_lossacc.capture import Capture
from lightning_lossacc.curves import plain
from lightning_lossacc.diagnosis import Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.records import UNION
from lightning_lossacc.resume import free_directory
from lightning_lossacc.sinks import ALL_FIGURES, FileSink, Reporter, Sink, TensorBoardSink, find_sinks, tell
from lightning_lossacc.sinks.outcome import outcome
from lightning_lossacc.sinks.report import PAUSE, ReportSink
from lightning_lossacc.sinks.terminal import printer_for, show
from lightning_lossacc.stages import StageState
from lightning_lossacc.train_probe import STAGE as TRAIN_PROBE

PICTURE_SECONDS = 30.0
# Loaders that get every figure at the end; the others get the one picture.
MAX_ALL_FIGURES = 4


class Voice:
    """Rank zero's terminal, files and loggers; on other ranks silent.

    Args:
        dirpath: directory of the files, None for the Trainer's, False for none.
        verbose: whether the terminal shows anything.
        alert: whether loggers that can send a message to people when a warning opens.
        report: whether `report.html` is written beside the other files.
        config: settings of the monitor, in plain values, for the loggers.

    Attributes:
        directory: of the files; None where there are none.
        directories: where this history has been written to.
        reporter: hands results to every sink.
    """

    def __init__(
        self,
        dirpath: str | Path | bool | None,
        verbose: bool,
        alert: bool = False,
        report: bool = True,
        config: dict[str, Any] | None = None,
    ) -> None:
        self._dirpath = dirpath
        self._verbose = verbose
        self._alert = alert
        self._report = report
        self._config = config or {}
        self._last_picture = -math.inf
        self.reporter = Reporter([])
        self.directory: Path | None = None
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        # Loggers hold threads and files, which no copy can have.
        return {**vars(self), "reporter": Reporter([]), "directory": None}

    def forget(self) -> None:
        """Another history begins."""
        self._said: set[str] = set()
        # By event: the cause that was told last, and whether accuracy was down.
        self._told: dict[str, tuple[str, bool]] = {}
        self.directories: set[str] = set()

    def find_places(
        self, trainer: Trainer, events: Sequence[Event], look: Callable[[], tuple[History, Sequence[Event]]]
    ) -> None:
        """Finds the loggers and the directory of a Trainer; `look` gives the history and events as they are later."""
        # Asking for the log directory broadcasts it, so every rank asks.
        log_dir = str(trainer.log_dir or trainer.default_root_dir)
        sinks: list[Sink] = []
        self.directory = None
        if trainer.is_global_zero and not trainer.fast_dev_run:
            if self._dirpath is not False:
                self.directory = self._choose_directory(log_dir)
            if self.directory is not None:
                sinks.append(FileSink(self.directory, rank_zero_warn))
                # Lightning resumes into a new directory by default; its report is to hold the whole run.
                sinks[-1].carry_on(*look())
            if self.directory is not None and self._report:
                # An evaluation outside of a fit has no end that could be waited for.
                sinks.append(ReportSink(self.directory, look, log_dir, PAUSE if trainer.state.fn == "fit" else 0.0))
            sinks += find_sinks(trainer.loggers, events, self._alert)
        self.reporter = Reporter(sinks, rank_zero_warn)
        self.reporter.start(self._config)

    def announce(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for the verdict beside the hyperparameters that Lightning is about to log."""
        owners = (pl_module, getattr(trainer, "datamodule", None))
        logged = [owner.hparams_initial for owner in owners if getattr(owner, "_log_hyperparams", False)]
        # A module's own hook may log hyperparameters with metrics of its own, and the first ones count.
        has_own = type(pl_module).on_fit_start is not LightningModule.on_fit_start
        if not logged or has_own or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        params = {key: value for found in logged for key, value in found.items() if key != "_class_path"}
        for sink in find_sinks(trainer.loggers):
            if isinstance(sink, TensorBoardSink):
                sink.announce(params)

    def _choose_directory(self, log_dir: str) -> Path | None:
        """`lossacc` in the log directory, numbered if another run has written there; the same one on resume."""
        if isinstance(self._dirpath, str | Path):
            wanted = Path(self._dirpath).absolute()
        elif "://" in log_dir:
            self.warn_once(f"lossacc writes no files to {log_dir}; give `dirpath`, a local directory.")
            return None
        else:
            wanted = Path(log_dir).absolute() / "lossacc"
        chosen = free_directory(wanted, self.directories)
        self.directories.add(str(chosen))
        return chosen

    def say(self, trainer: Trainer, text: str, level: Literal["info", "warning"] = "warning") -> None:
        """Shows a text in the terminal."""
        if self._verbose and trainer.is_global_zero:
            show(text, printer_for(trainer), level=level)

    def say_event(self, trainer: Trainer, event: Event) -> None:
        """Shows a report, unless only the words for an accuracy that has not fallen are other than before."""
        told = _what(event)
        if event.status == "revised" and self._told.get(event.id) == told:
            return
        self._told[event.id] = told
        self.say(trainer, event.message)

    def recall(self, events: Sequence[Event]) -> None:
        """What was told before a training went on from a checkpoint."""
        self._told |= {event.id: _what(event) for event in events if event.level == "warning"}

    def say_opening(self, trainer: Trainer, record: Record, state: StageState, source: str | None) -> None:
        """What was captured and what it can resolve, at the first evaluation of a stage and loader."""
        key = f"opening {record.stage} {record.loader}"
        if key in self._said or record.num_rows == 0:
            return
        self._said.add(key)
        self.say(trainer, closing.opening(record, source or "another rank", state.unpaired), level="info")

    def explain(self, state: StageState, capture: Capture) -> None:
        """One message where nothing, or not everything, could be counted."""
        if state.failure is not None:
            self.warn_once(f"lossacc could not count a batch of {state.stage}: {state.failure}", "failure")
        elif state.layout is None and state.batches:
            self.warn_once(capture.explanation((state.stage, state.loader)), "nothing")
        elif state.batches and not state.num_rows:
            excluded = ", ".join(f"{rows} {closing.EXCLUDED[name]}" for name, rows in state.excluded().items() if rows)
            self.warn_once(
                f"lossacc could count no row of {state.stage} loader {state.loader}: {excluded or 'none came'}.", "rows"
            )

    def warn_once(self, text: str, key: str | None = None) -> None:
        """Warns on rank zero; never raises, even if warnings are errors."""
        if (key or text) not in self._said:
            self._said.add(key or text)
            tell(rank_zero_warn, text)

    def publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        stage: str,
        found: Sequence[Record],
        num_loaders: int,
        quantities: Sequence[str],
    ) -> None:
        """Writes the records of an evaluation down, and makes their numbers known to loggers and to monitors.

        Args:
            trainer, pl_module: of the evaluation.
            stage: as the log keys name it.
            found: the records, that of the union among them.
            num_loaders: of the stage; with several, each record but the union's names its own.
            quantities: what is logged.
        """
        # Lightning counts one back for what it logs at a training epoch's end, so that both stages share their steps.
        scalars, step = {}, step_of(trainer) - (stage == "train")
        for record in found:
            name = TRAIN_PROBE if record.stage == TRAIN_PROBE else stage
            is_part = num_loaders > 1 and record.loader != UNION and name == stage
            key = f"lossacc/{name}/{{}}" + (f"/dataloader_idx_{record.loader}" if is_part else "")
            self.reporter.record(record, key, step)
            scalars |= {
                key.format(quantity): record.values[quantity] for quantity in quantities if quantity in record.values
            }
        if not scalars:
            return
        if trainer.barebones:
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
            return
        pl_module.log_dict(scalars, logger=False, on_step=False, on_epoch=True, add_dataloader_idx=False, batch_size=1)
        # Not through `self.log`: Lightning lets a logger's exception end the run, and this must not.
        self.reporter.scalars(scalars | {"epoch": float(trainer.current_epoch)}, step)

    def draw(self, history: History, events: Sequence[Event], step: int, loaders: Collection[int]) -> None:
        """The one picture of some validation loaders, at most every 30 seconds."""
        if time.monotonic() - self._last_picture < PICTURE_SECONDS:
            return
        for loader in sorted(loaders):
            self.reporter.figures(ALL_FIGURES[:1], history, events, step, loader=loader)
        self._last_picture = time.monotonic()

    def finish(self, trainer: Trainer, history: History, events: Sequence[Event], margin: float) -> None:
        """The closing text, every figure, the verdict and the report."""
        step = step_of(trainer)
        if history.streams():
            files = None if self.directory is None else plain(str(self.directory))
            text = closing.closing(history, events, margin, files, report=self._report)
            self.say(trainer, text, level="info")
            self.reporter.summary(text, step)
            loaders = sorted(loader for stage, loader in history.streams() if stage == "val" and loader >= 0)
            for place, loader in enumerate(loaders):
                names = ALL_FIGURES if place < MAX_ALL_FIGURES else ALL_FIGURES[:1]
                self.reporter.figures(names, history, events, step, loader=loader)
            verdict = outcome(history, events, loader=loaders[0] if loaders else 0)
            if verdict:
                self.reporter.outcome(verdict, step)
            for sink in self.reporter.sinks:
                if isinstance(sink, ReportSink) and os.path.exists(sink.path):
                    self.reporter.report(sink.path, step)
        self.reporter.close()


def _what(event: Event) -> tuple[str, bool]:
    """What makes a report news: its first cause, and whether accuracy is down."""
    return event.cause, event.event.endswith("-down") and not event.event.endswith("not-down")


def step_of(trainer: Trainer) -> int:
    """The step under which Lightning logs its own metrics, one lower than `global_step` at an epoch's last batch."""
    loop = trainer.fit_loop.epoch_loop
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))
