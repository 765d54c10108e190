"""TensorBoard: charts, histograms, figures, events as text, and the outcome as hyperparameters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from lightning_lossacc.curves import event_words, level_word
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import Record
from lightning_lossacc.sinks.distributions import distributions
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.hyperparameters import announce, write
from lightning_lossacc.sinks.images import Image
from lightning_lossacc.sinks.layouts import add_charts

# TensorBoard does not fold these lines, and its page shows 120 of their letters in a window of 1400 pixels.
LINE_LETTERS = 100
QUANTILES = {"margin_p05": 0.05, "margin_p50": 0.5, "margin_p95": 0.95}


class TensorBoardSink(GenericSink):
    """A `TensorBoardLogger` of either Lightning package; its writer reaches ClearML as well.

    Scalars get what the charts need beside the logged quantities: `error_rate` (1 - accuracy) and the margin's
    quantiles `margin_p05`, `margin_p50` and `margin_p95`.
    """

    shows_figures: ClassVar[bool] = True

    def __init__(self, logger: Any, earlier: Iterable[Event] = (), alert: bool = False) -> None:
        super().__init__(logger, earlier, alert)
        self._config: dict[str, Any] = {}
        self._charted: dict[str, float] = {}
        self._has_charts = False

    def start(self, config: dict[str, Any]) -> None:
        """Keeps the settings for the hyperparameters at the end."""
        self._config = config

    def announce(self, params: Mapping[str, Any]) -> None:
        """Makes room for the outcome among the hyperparameters that Lightning is about to write."""
        announce(self.logger, params, self.prefixed)

    def record(self, record: Record, key: str, step: int) -> None:
        """Adds the histograms of margin and confidence from their counts."""
        found = distributions(record)
        for name, distribution in found.items():
            rows, middles = distribution.rows, distribution.middles
            self.logger.experiment.add_histogram_raw(
                self.prefixed(key.format(name)),
                min=distribution.edges[0],
                max=distribution.edges[-1],
                num=sum(rows),
                sum=sum(count * value for count, value in zip(rows, middles, strict=True)),
                sum_squares=sum(count * value**2 for count, value in zip(rows, middles, strict=True)),
                bucket_limits=list(distribution.edges[1:]),
                bucket_counts=list(rows),
                global_step=step,
            )
        if "accuracy" in record.values:
            self._charted[key.format("error_rate")] = 1 - record.values["accuracy"]
        if "margin" in found:
            for name, share in QUANTILES.items():
                self._charted[key.format(name)] = found["margin"].quantile(share)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Logs the numbers, with those that only the charts show; adds the charts at the first ones."""
        charted, self._charted = self._charted, {}
        super().scalars(charted | values, step)
        if charted and not self._has_charts:
            # Not before: the user's own layout is written when the training starts.
            self._has_charts = True
            add_charts(self.logger, self.prefixed)

    def event(self, event: Event, step: int) -> None:
        """Adds the count as a scalar and the message to the text tag `lossacc/events`."""
        super().event(event, step)
        headline = f"**{level_word(event)} · {event.stage} · epoch {event.epoch} · {event.status}**"
        self._text("lossacc/events", f"{headline} {event_words(event)}\n\n{_verbatim(event.message)}", step)

    def figure(self, image: Image, step: int) -> None:
        """Adds the figure to the image tag of its name, in the form that is legible on a card of the page."""
        # `add_figure` would import pyplot, which chooses a backend for the whole process, and draw once more.
        self.logger.experiment.add_image(self.prefixed(image.name), image.narrow_pixels, step, dataformats="HWC")

    def summary(self, text: str, step: int) -> None:
        """Adds the text, and the table of events, to the tag `lossacc/summary`."""
        table = f"Each report of each event:\n\n{self.table.markdown()}" if self.table.rows else ""
        self._text("lossacc/summary", f"{_verbatim(text)}\n\n{table}", step)

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Adds the outcome to the metrics of the run's hyperparameters."""
        write(self.logger, self._config, outcome, step, self.prefixed)

    def close(self) -> None:
        """Writes what the event file still holds back; the logger itself stays open."""
        if self._has_charts:
            # Once more, for a layout that the user wrote later than ours.
            add_charts(self.logger, self.prefixed)
        self.logger.experiment.flush()

    def _text(self, tag: str, text: str, step: int) -> None:
        self.logger.experiment.add_text(self.prefixed(tag), text, step)


def _verbatim(text: str) -> str:
    # Markdown shows indented lines as they are; a fence could be closed by what they hold.
    folded = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, LINE_LETTERS, subsequent_indent="  ", break_on_hyphens=False) or [""]
    ]
    return "\n".join(f"    {line}" for line in folded)
