"""Comet: histograms, the table of events, figures, summary and report, verdict as a tag and as other values."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import Record
from lightning_lossacc.sinks.distributions import distributions
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.images import Image

TAG = "lossacc: warning"


class CometSink(GenericSink):
    """A `CometLogger` of either Lightning package, online or offline."""

    shows_figures: ClassVar[bool] = True

    def prefixed(self, key: str) -> str:
        """A key as Comet's own methods write it: it joins prefixes by an underscore."""
        prefix = getattr(self.logger, "_prefix", None)
        return f"{prefix}_{key}" if prefix else key

    def start(self, config: dict[str, Any]) -> None:
        """Adds the settings to the run's other values."""
        self._other(config)

    def record(self, record: Record, key: str, step: int) -> None:
        """Logs the histograms of margin and confidence from their counts, each at the middle of its bin.

        Comet sorts them into bins of its own, a tenth of the value wide.
        """
        from comet_ml import Histogram

        for name, spread in distributions(record).items():
            histogram = Histogram()
            histogram.add(spread.middles, counts=list(spread.rows))
            self._run.log_histogram_3d(histogram, name=self.prefixed(key.format(name)), step=step)

    def event(self, event: Event, step: int) -> None:
        """Logs the count, the table `lossacc_events.csv` and other values; tags a run that was warned of.

        Sends a notification when a warning opens, when asked to (online runs only).
        """
        super().event(event, step)
        self._run.log_asset(io.StringIO(self.table.csv()), file_name="lossacc_events.csv", overwrite=True)
        words = event_words(event)
        self._other({"events": self.total_opened, "last_event": words})
        if event.level == "warning":
            self._run.add_tag(TAG)
            if self.alert and event.status == "open":
                self._run.send_notification(f"{event.stage}: {words}", "warning", {"message": event.message})

    def figure(self, image: Image, step: int) -> None:
        """Logs the figure as an image of its name."""
        name = self.prefixed(image.name)
        self._run.log_image(io.BytesIO(image.png), name=name, step=step, metadata={"caption": image.caption})

    def summary(self, text: str, step: int) -> None:
        """Shows the text on the run's HTML page."""
        self._run.log_html(f"<pre>{escape(text)}</pre>")

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Adds the verdict to the run's other values."""
        self._other(outcome)

    def report(self, path: Path, step: int) -> None:
        """Adds the report to the run's assets."""
        self._run.log_asset(str(path), file_name="lossacc_report.html", step=step)

    @property
    def _run(self) -> Any:
        return self.logger.experiment

    def _other(self, values: dict[str, Any]) -> None:
        self._run.log_others({f"lossacc/{key}": value for key, value in values.items()})
