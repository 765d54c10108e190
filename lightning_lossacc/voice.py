"""Where is it said, and how often? Loggers, files, terminal and warnings of one Trainer, each text at most once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_lossacc import closing
from lightning_lossacc.capture import Capture
from lightning_lossacc.diagnosis import Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.resume import free_directory
from lightning_lossacc.sinks import FileSink, Reporter, Sink, find_sinks, tell
from lightning_lossacc.sinks.terminal import printer_for, show
from lightning_lossacc.stages import StageState

PICTURE_SECONDS = 30.0


class Voice:
    """Rank zero's terminal, files and loggers; on other ranks silent.

    Args:
        dirpath: directory of the files, None for the Trainer's, False for none.
        verbose: whether the terminal shows anything.

    Attributes:
        directory: of the files; None where there are none.
        directories: where this history has been written to.
        reporter: hands results to every sink.
    """

    def __init__(self, dirpath: str | Path | bool | None, verbose: bool) -> None:
        self._dirpath = dirpath
        self._verbose = verbose
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
        self.directories: set[str] = set()

    def find_places(self, trainer: Trainer, events: Sequence[Event]) -> None:
        """Finds the loggers and the directory of a Trainer."""
        # Asking for the log directory broadcasts it, so every rank asks.
        log_dir = str(trainer.log_dir or trainer.default_root_dir)
        sinks: list[Sink] = []
        self.directory = None
        if trainer.is_global_zero and not trainer.fast_dev_run:
            if self._dirpath is not False:
                self.directory = self._choose_directory(log_dir)
            if self.directory is not None:
                sinks.append(FileSink(self.directory, rank_zero_warn))
            sinks += find_sinks(trainer.loggers, events)
        self.reporter = Reporter(sinks, rank_zero_warn)

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

    def draw(self, history: History, events: Sequence[Event], step: int, at_end: bool) -> None:
        """The picture of every validation loader; before the end at most every 30 seconds."""
        now = time.monotonic()
        if not at_end and now - self._last_picture < PICTURE_SECONDS:
            return
        for stage, loader in history.streams():
            if stage == "val" and loader >= 0:
                name = "lossacc" if loader == 0 else f"lossacc/dataloader_idx_{loader}"
                self.reporter.picture(name, history, events, step, stage=stage, loader=loader)
        self._last_picture = time.monotonic()
