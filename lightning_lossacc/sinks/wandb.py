"""Weights & Biases: a table of events, the picture, the summary, and what a sweep can filter by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lightning_lossacc.curves import event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import picture, pixels
from lightning_lossacc.history import History
from lightning_lossacc.sinks.generic import GenericSink

COLUMNS = ("epoch", "step", "stage", "loader", "level", "status", "event", "generalises", "message")
# A table is sent whole with each event.
MAX_ROWS = 200


class WandbSink(GenericSink):
    """A `WandbLogger` of either Lightning package, online or offline.

    Everything goes through the logger's own methods, which log `trainer/global_step` as a field and
    never pass `step=`: W&B drops what is logged with a step lower than an earlier one.
    """

    def __init__(self, logger: Any, earlier: Iterable[Event] = ()) -> None:
        earlier = tuple(earlier)
        super().__init__(logger, earlier)
        self._rows = deque((_row(event) for event in earlier), maxlen=MAX_ROWS)

    def event(self, event: Event, step: int) -> None:
        """Logs the count, the table `lossacc/event_table` and the summary keys.

        The summary gets `lossacc/events` (how many have opened in all stages) and
        `lossacc/last_event` (its name and its cause).
        """
        self._rows.append(_row(event))
        super().event(event, step)
        rows = [list(row) for row in self._rows]
        self.logger.log_table("lossacc/event_table", list(COLUMNS), rows, step=step)
        total = sum(len(opened) for opened in self._opened.values())
        self.logger.experiment.summary.update(
            {
                self.prefixed("lossacc/events"): total,
                self.prefixed("lossacc/last_event"): event_words(event),
            }
        )

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
        """Logs the picture as the image `figure_name`."""
        image = pixels(picture(history, events, stage=stage, loader=loader))
        self.logger.log_image(figure_name, [image], step)

    def summary(self, text: str, step: int) -> None:
        """Logs the text as the panel `lossacc/summary`."""
        import wandb

        page = wandb.Html(f"<pre>{escape(text)}</pre>", inject=False)
        self.logger.log_metrics({"lossacc/summary": page}, step)


def _row(event: Event) -> tuple[Any, ...]:
    return (
        event.epoch,
        event.global_step,
        event.stage,
        event.loader,
        event.level,
        event.status,
        event_words(event),
        event.generalises,
        event.message,
    )
