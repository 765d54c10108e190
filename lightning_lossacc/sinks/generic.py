"""Any logger with `log_metrics`: CSV, MLflow, Comet, and those nobody has heard of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History


class GenericSink:
    """Scalars through the logger's own `log_metrics`; an event becomes a step in a count.

    Args:
        logger: anything with `log_metrics(metrics, step)`.
        earlier: events that an earlier part of a resumed run has reported; they are counted and not
            sent again.
    """

    def __init__(self, logger: Any, earlier: Iterable[Event] = ()) -> None:
        self.logger = logger
        self.name = type(logger).__name__
        self._opened: dict[str, set[str]] = {}
        for event in earlier:
            self.num_opened(event)

    def num_opened(self, event: Event) -> int:
        """Events of this event's stage that have opened so far, this one included."""
        opened = self._opened.setdefault(event.stage, set())
        opened.add(event.id)
        return len(opened)

    def prefixed(self, key: str) -> str:
        """A key as the logger's own methods would write it, for calls that go past them."""
        prefix = getattr(self.logger, "_prefix", "")
        join = getattr(self.logger, "LOGGER_JOIN_CHAR", "-")
        return f"{prefix}{join}{key}" if prefix else key

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Sends numbers by name; the logger adds its prefix."""
        self.logger.log_metrics(values, step)

    def event(self, event: Event, step: int) -> None:
        """Logs `lossacc/<stage>/events`, the number of events opened so far."""
        self.scalars({f"lossacc/{event.stage}/events": float(self.num_opened(event))}, step)

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
        """Nothing: no picture can be sent through `log_metrics`."""

    def summary(self, text: str, step: int) -> None:
        """Nothing: no text can be sent through `log_metrics`."""

    def close(self) -> None:
        """Nothing: the logger belongs to the Trainer, which ends it."""
