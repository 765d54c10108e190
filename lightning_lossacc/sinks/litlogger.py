"""LitLogger: figures, the texts of events and the report as files, the verdict as metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.images import Image


class LitSink(GenericSink):
    """A `LitLogger` of either Lightning package. A key keeps its kind, so that none is shared with a curve."""

    shows_figures: ClassVar[bool] = True

    def start(self, config: dict[str, Any]) -> None:
        """Adds the settings to the metadata."""
        self._metadata(config)

    def event(self, event: Event, step: int) -> None:
        """Logs the count, the message as a text of the series `lossacc/<stage>/messages`, and the metadata."""
        from litlogger import Text

        super().event(event, step)
        words = event_words(event)
        text = Text(event.message, description=f"{event.level}, {event.status}: {words}")
        self.logger.experiment[self.prefixed(f"lossacc/{event.stage}/messages")].append(text, step=step)
        self._metadata({"last_event": words})

    def figure(self, image: Image, step: int) -> None:
        """Logs the figure as an image of the series of its name."""
        from litlogger import Image as Picture

        picture = Picture(image.pixels, description=image.caption)
        self.logger.experiment[self.prefixed(f"figures/{image.name}")].append(picture, step=step)

    def summary(self, text: str, step: int) -> None:
        """Puts the text in the place of the one before."""
        from litlogger import Text

        self.logger.experiment[self.prefixed("lossacc/summary.txt")] = Text(text)

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Adds the verdict to the metadata."""
        self._metadata(outcome)

    def report(self, path: Path, step: int) -> None:
        """Puts the report in the place of the one before."""
        from litlogger import File

        self.logger.experiment[self.prefixed("lossacc/report.html")] = File(str(path))

    def _metadata(self, values: dict[str, Any]) -> None:
        self.logger.log_metadata({f"lossacc.{key}": str(value) for key, value in values.items()})
