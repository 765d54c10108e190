"""CSV: numbers in `metrics.csv`, events in a table beside it."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.sinks.generic import GenericSink

FILE_NAME = "lossacc_events.csv"


class CsvSink(GenericSink):
    """A `CSVLogger` of either Lightning package; pictures and texts are among the run's own files."""

    def event(self, event: Event, step: int) -> None:
        """Logs the count and writes `lossacc_events.csv` in place of the one before."""
        super().event(event, step)
        directory = str(self.logger.log_dir)
        if "://" in directory:
            return
        path = Path(directory) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(self.table.csv(), encoding="utf-8", newline="")
        os.replace(draft, path)
