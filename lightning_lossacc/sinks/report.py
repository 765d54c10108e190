"""The report while training goes on: written anew now and then, whole or not at all, and always at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.report import FILE_NAME, write
from lightning_lossacc.sinks.images import Image

# A report is due after so many seconds, and after so many times as long as the last one took: 1 % of the time at most.
PAUSE = 30.0
SHARE = 100.0


class ReportSink:
    """Writes `report.html` beside the other files.

    A killed run leaves the last whole report; its newest evaluations are in `history.jsonl`, from which `lossacc
    report` makes it anew.

    Args:
        dirpath: the run's own directory.
        look: gives the history and the events of the run as they are now.
        title: name of the run.
        pause: seconds before the first report and between two of them; 0 writes with every evaluation.
    """

    name = "report"
    shows_figures: ClassVar[bool] = False

    def __init__(
        self,
        dirpath: Path | str,
        look: Callable[[], tuple[History, Sequence[Event]]],
        title: str = "",
        pause: float = PAUSE,
    ) -> None:
        self.path = Path(dirpath) / FILE_NAME
        self._look = look
        self._title = title or str(dirpath)
        self._pause = pause
        self._config: dict[str, Any] = {}
        self._due = time.monotonic() + pause
        self._is_stale = False
        # Evaluations outside of a fit are all there is.
        self._is_over = not pause

    def start(self, config: dict[str, Any]) -> None:
        """Keeps the settings for the report."""
        self._config = config

    def record(self, record: Record, key: str, step: int) -> None:
        """Remembers that there is something new."""
        self._is_stale = True
        if self._is_over and record.stage == "train":
            # Training goes on, and with it the pause between two reports.
            self._is_over = False
            self._due = time.monotonic() + self._pause

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Writes the report if it is due."""
        self._write_if_due()

    def event(self, event: Event, step: int) -> None:
        """Writes the report if it is due."""
        self._write_if_due()

    def figure(self, image: Image, step: int) -> None:
        """Nothing: the report has drawings of its own."""

    def summary(self, text: str, step: int) -> None:
        """Writes the last report; what is evaluated after it is written at once."""
        self._is_over = True
        self._write()
        self._due = time.monotonic()

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Nothing: the report says it."""

    def report(self, path: Path, step: int) -> None:
        """Nothing: it is this report."""

    def close(self) -> None:
        """Writes what no report holds yet: of a run that was interrupted."""
        if self._is_stale:
            self._write()

    def _write_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self._write()

    def _write(self) -> None:
        start = time.monotonic()
        history, events = self._look()
        try:
            write(self.path, history, events, title=self._title, configuration=self._config, finished=self._is_over)
            self._is_stale = False
        finally:
            now = time.monotonic()
            self._due = now + (max(self._pause, SHARE * (now - start)) if self._pause and not self._is_over else 0.0)
