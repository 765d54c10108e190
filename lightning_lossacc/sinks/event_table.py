"""The events of a run as a table, for every logger that shows tables."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable
from typing import Any

from lightning_lossacc.curves import event_words, level_word
from lightning_lossacc.diagnosis.event import Event

COLUMNS = ("epoch", "step", "stage", "loader", "level", "status", "event", "generalises", "message")
# Most loggers get the table whole with each event.
MAX_ROWS = 200


class EventTable:
    """The newest 200 reports of events, oldest first.

    Args:
        earlier: events that an earlier part of a resumed run has reported.
    """

    def __init__(self, earlier: Iterable[Event] = ()) -> None:
        self._rows = deque((row(event) for event in earlier), maxlen=MAX_ROWS)

    def add(self, event: Event) -> None:
        """Adds a report; the oldest one goes where there is no room."""
        self._rows.append(row(event))

    @property
    def rows(self) -> list[list[Any]]:
        """One list for each report, in the order of `COLUMNS`."""
        return [list(cells) for cells in self._rows]

    def csv(self) -> str:
        """The table with a line of headings, as spreadsheets read it."""
        text = io.StringIO()
        csv.writer(text).writerows([COLUMNS, *self._rows])
        return text.getvalue()

    def markdown(self) -> str:
        """The table in Markdown, without the messages; "no event" if it is empty."""
        if not self._rows:
            return "no event"
        lines = [COLUMNS[:-1], ("---",) * (len(COLUMNS) - 1), *(cells[:-1] for cells in self._rows)]
        return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def row(event: Event) -> tuple[Any, ...]:
    """One report in the order of `COLUMNS`."""
    return (
        event.epoch,
        event.global_step,
        event.stage,
        event.loader,
        level_word(event),
        event.status,
        event_words(event),
        event.generalises,
        event.message,
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
