"""Weights & Biases: histograms, a table of events, figures, alerts, and what runs can be filtered by."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import Record
from lightning_lossacc.sinks.distributions import distributions
from lightning_lossacc.sinks.event_table import COLUMNS
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.images import Image

# W&B refuses longer ones.
TITLE_LETTERS = 64


class WandbSink(GenericSink):
    """A `WandbLogger` of either Lightning package, online or offline.

    Everything goes through the logger's own methods, which log `trainer/global_step` as a field and never pass `step=`:
    W&B drops what is logged with a step lower than an earlier one.
    """

    shows_figures: ClassVar[bool] = True

    def start(self, config: dict[str, Any]) -> None:
        """Makes `trainer/global_step` the x-axis of our curves and adds the settings to the run's configuration."""
        run = self.logger.experiment
        run.define_metric(self.prefixed("lossacc/*"), step_metric="trainer/global_step")
        run.config.update({"lossacc": config}, allow_val_change=True)

    def record(self, record: Record, key: str, step: int) -> None:
        """Logs the histograms of margin and confidence from their counts."""
        import wandb

        found = {
            key.format(f"{name}_histogram"): wandb.Histogram(np_histogram=(spread.rows, spread.edges))
            for name, spread in distributions(record).items()
        }
        if found:
            self.logger.log_metrics(found, step)

    def event(self, event: Event, step: int) -> None:
        """Logs the count, the table `lossacc/event_table` and the summary keys; alerts when asked to.

        The summary gets `lossacc/events` (how many have opened in all stages) and `lossacc/last_event` (its name and
        its cause). An alert is sent when a warning opens.
        """
        super().event(event, step)
        self.logger.log_table("lossacc/event_table", list(COLUMNS), self.table.rows, step=step)
        words = event_words(event)
        run = self.logger.experiment
        run.summary.update(
            {self.prefixed("lossacc/events"): self.total_opened, self.prefixed("lossacc/last_event"): words}
        )
        if self.alert and event.level == "warning" and event.status == "open":
            run.alert(f"{event.stage}: {words}"[:TITLE_LETTERS], event.message, level="WARN")

    def figure(self, image: Image, step: int) -> None:
        """Logs the figure as an image of its name."""
        self.logger.log_image(image.name, [image.pixels], step, caption=[image.caption])

    def summary(self, text: str, step: int) -> None:
        """Logs the text as the panel `lossacc/summary`."""
        self._page("lossacc/summary", f"<pre>{escape(text)}</pre>", step)

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Adds `lossacc/final/<key>` to the run's summary, which sweeps and tables of runs show."""
        found = {self.prefixed(f"lossacc/final/{key}"): value for key, value in outcome.items()}
        self.logger.experiment.summary.update(found)

    def report(self, path: Path, step: int) -> None:
        """Logs the report as the panel `lossacc/report`."""
        self._page("lossacc/report", path.read_text(encoding="utf-8"), step)

    def _page(self, key: str, html: str, step: int) -> None:
        import wandb

        self.logger.log_metrics({key: wandb.Html(html, inject=False, data_is_not_path=True)}, step)
