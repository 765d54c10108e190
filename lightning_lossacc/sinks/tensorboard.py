"""TensorBoard: events and summary as text, the picture as an image."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import picture, pixels
from lightning_lossacc.history import History
from lightning_lossacc.sinks.generic import GenericSink


class TensorBoardSink(GenericSink):
    """A `TensorBoardLogger` of either Lightning package."""

    def event(self, event: Event, step: int) -> None:
        """Adds the count as a scalar and the message to the text tag `lossacc/events`."""
        super().event(event, step)
        headline = f"**{event.level} · {event.stage} · epoch {event.epoch} · {event.status}**"
        text = f"{headline} {event_words(event)}\n\n{_verbatim(event.message)}"
        self.logger.experiment.add_text(self.prefixed("lossacc/events"), text, step)

    def picture(
        self,
        figure_name: str,
        history: History,
        events: Sequence[Event],
        step: int,
        *,
        stage: str = "val",
        loader: int = 0,
    ) -> None:
        """Adds the picture to the image tag `figure_name`."""
        # `add_figure` would import pyplot, which chooses a backend for the whole process.
        image = pixels(picture(history, events, stage=stage, loader=loader))
        tag = self.prefixed(figure_name)
        self.logger.experiment.add_image(tag, image, step, dataformats="HWC")

    def summary(self, text: str, step: int) -> None:
        """Adds the text to the tag `lossacc/summary`."""
        tag = self.prefixed("lossacc/summary")
        self.logger.experiment.add_text(tag, _verbatim(text), step)

    def close(self) -> None:
        """Writes what the event file still holds back; the logger itself stays open."""
        self.logger.experiment.flush()


def _verbatim(text: str) -> str:
    # Markdown shows indented lines as they are; a fence could be closed by what they hold.
    return "\n".join(f"    {line}" for line in text.splitlines())
