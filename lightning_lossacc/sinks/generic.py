"""Any logger with `log_metrics`: those nobody has heard of, and what all the others have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import Record
from lightning_lossacc.sinks.event_table import EventTable
from lightning_lossacc.sinks.images import Image


class GenericSink:
    """Scalars through the logger's own `log_metrics`; an event becomes a step in a count.

    Args:
        logger: anything with `log_metrics(metrics, step)`.
        earlier: events that an earlier part of a resumed run has reported; they are counted and not sent again.
        alert: whether events that open are sent to people, by loggers that can.
    """

    shows_figures: ClassVar[bool] = False

    def __init__(self, logger: Any, earlier: Iterable[Event] = (), alert: bool = False) -> None:
        earlier = tuple(earlier)
        self.logger = logger
        self.alert = alert
        self.name = type(logger).__name__
        self.table = EventTable(earlier)
        self._opened: dict[str, set[str]] = {}
        for event in earlier:
            self.num_opened(event)

    def num_opened(self, event: Event) -> int:
        """Events of this event's stage that have opened so far, this one included."""
        opened = self._opened.setdefault(event.stage, set())
        opened.add(event.id)
        return len(opened)

    @property
    def total_opened(self) -> int:
        """Events that have opened so far, in all stages."""
        return sum(len(opened) for opened in self._opened.values())

    def prefixed(self, key: str) -> str:
        """A key as the logger's own methods would write it, for calls that go past them."""
        prefix = getattr(self.logger, "_prefix", "")
        join = getattr(self.logger, "LOGGER_JOIN_CHAR", "-")
        return f"{prefix}{join}{key}" if prefix else key

    def start(self, config: dict[str, Any]) -> None:
        """Nothing: no settings can be sent through `log_metrics`."""

    def record(self, record: Record, key: str, step: int) -> None:
        """Nothing: `scalars` brings the numbers."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Sends numbers by name; the logger adds its prefix."""
        self.logger.log_metrics(values, step)

    def event(self, event: Event, step: int) -> None:
        """Logs `lossacc/<stage>/events`, the number of events opened so far."""
        self.table.add(event)
        self.scalars({f"lossacc/{event.stage}/events": float(self.num_opened(event))}, step)

    def figure(self, image: Image, step: int) -> None:
        """Nothing: no picture can be sent through `log_metrics`."""

    def summary(self, text: str, step: int) -> None:
        """Nothing: no text can be sent through `log_metrics`."""

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Nothing: a curve of one point tells less than the others do."""

    def report(self, path: Path, step: int) -> None:
        """Nothing: no file can be sent through `log_metrics`."""

    def close(self) -> None:
        """Nothing: the logger belongs to the Trainer, which ends it."""
