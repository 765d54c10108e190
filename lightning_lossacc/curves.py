"""What stands where in the picture: columns over epochs, the range of an axis, rows of names.

Plain numbers only, so that the choices that decide how a run looks are tested without drawing it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record


@dataclass(frozen=True, slots=True)
class Curves:
    """One stage and loader as columns.

    Attributes:
        records: oldest first; of a step that a resumed run evaluated again only the later one.
        x: the epoch of each; several evaluations of one epoch stand at equal distances from it to
            the next.
    """

    records: tuple[Record, ...] = ()
    x: tuple[float, ...] = ()

    @classmethod
    def of(cls, history: History, stage: str, loader: int) -> Curves:
        """The complete records of one stage and loader."""
        series = history.series(stage, loader)
        latest = {(record.epoch, record.global_step): record for record in series}
        records = tuple(latest[key] for key in sorted(latest))
        most = max(Counter(record.epoch for record in records).values(), default=1)
        seen: Counter[int] = Counter()
        x = []
        for record in records:
            x.append(record.epoch + seen[record.epoch] / most)
            seen[record.epoch] += 1
        return cls(records, tuple(x))

    def column(self, key: str) -> list[float]:
        """One scalar, NaN where a record lacks it or it is not finite."""
        values = (record.values.get(key, math.nan) for record in self.records)
        return [value if math.isfinite(value) else math.nan for value in values]

    def place(self, epoch: int, global_step: int) -> float:
        """x of the evaluation at a step; the epoch itself if it is not among the records."""
        for record, x in zip(self.records, self.x, strict=True):
            if (record.epoch, record.global_step) == (epoch, global_step):
                return x
        return float(epoch)


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends of the values that an axis shows, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of_loss(cls, nll: list[float], refined: list[float], training: list[float]) -> Range:
        """Nine in ten values and every rise after the minimum, unless it is a blow-up.

        A blow-up is a rise to more than 20 times the range that nine in ten values span and more
        than twice the minimum. A range over a factor of 30 becomes logarithmic.
        """
        values = sorted(finite(nll + refined)) or sorted(finite(training))
        if not values:
            return cls(0.0, 1.0)
        low, top = values[0], values[-1]
        high = values[math.ceil(0.9 * len(values)) - 1]
        clean = finite(nll) or values
        rise = max(clean[clean.index(min(clean)) :])
        if rise <= low + max(20 * (high - low), abs(low)):
            high = max(high, rise)
        if top - low <= 2.5 * (high - low):
            high = top
        if high > 0 and low < high / 30:
            return cls(max(low, high * 1e-4), high, log=True)
        trained = min(finite(training), default=low)
        # The training loss may double the length of the axis; more would flatten what matters.
        if high - low >= 0.5 * (high - trained):
            low = min(low, trained)
        # Less than a tenth of the loss would show noise as if it were news.
        return cls._of_length(low, high, 0.1 * abs(high))

    @classmethod
    def of_accuracy(cls, percent: list[float]) -> Range:
        """The upper nine in ten values, over 4 percentage points at least: flat must look flat."""
        values = sorted(finite(percent))
        if not values:
            return cls(0.0, 100.0)
        low, high = values[len(values) // 10], values[-1]
        if high - values[0] <= 2.5 * max(high - low, 4.0):
            low = values[0]
        return cls._of_length(low, high, 4.0)

    @classmethod
    def _of_length(cls, low: float, high: float, least: float) -> Range:
        air = max(least - (high - low), 0.0) / 2
        return cls(low - air, high + air)

    def limits(self, below: float, above: float) -> tuple[float, float]:
        """Axis limits with air, as shares of the range."""
        if self.log:
            span = math.log10(self.high / self.low)
            return self.low * 10 ** (-below * span), self.high * 10 ** (above * span)
        # All zero: any length will do.
        span = self.high - self.low or 1.0
        return self.low - below * span, self.high + above * span


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line and its name above the panels; rows count upwards from 0."""

    x: float
    text: str
    is_event: bool
    row: int
    leftwards: bool


def marks_of(events: Sequence[Event], curves: Curves) -> list[tuple[float, str, bool]]:
    """(x, text, is an event): each event where it opened, warnings first, then each reference."""
    opened: dict[str, Event] = {}
    for event in events:
        # What is normal at the start of a training would only hide what matters.
        if event.level == "warning" or event.event.startswith(("loss-up", "loss-down")):
            opened.setdefault(event.id, event)
    closed = {event.id: event.epoch for event in events if event.status == "closed"}
    order = sorted(opened.values(), key=lambda event: (event.level != "warning", event.global_step))
    marks = []
    for event in order:
        end = f" to {closed[event.id]}" if closed.get(event.id, event.epoch) != event.epoch else ""
        text = f"epoch {event.epoch}{end} · {event_words(event)}"
        marks.append((curves.place(event.epoch, event.global_step), text, True))
    references = dict.fromkeys((event.reference_epoch, event.reference_step) for event in order)
    for epoch, step in references:
        marks.append((curves.place(epoch, step), f"reference · epoch {epoch}", False))
    return marks


def layout(
    marks: list[tuple[float, str, bool]],
    span: tuple[float, float],
    width: float,
    margin: float,
    letter: float,
    max_rows: int,
) -> list[Mark]:
    """Puts each name into the lowest row in which it touches no other; the rest is left out.

    Args:
        marks: what `marks_of` returns.
        span: the values of x at the left and right end of the panel.
        width: width of the panel, in inches.
        margin: room to the right of the panel, in inches.
        letter: width of a letter, in inches.
        max_rows: rows to fill.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in range(max_rows)]
    placed: list[Mark] = []
    for x, text, is_event in marks:
        at = width * (x - span[0]) / (span[1] - span[0])
        length = letter * (len(text) + 2)
        leftwards = at + length > width + margin
        start, end = (at - length, at) if leftwards else (at, at + length)
        for row, others in enumerate(taken):
            if all(end < left or start > right for left, right in others):
                others.append((start, end))
                placed.append(Mark(x, text, is_event, row, leftwards))
                break
    return placed


def spread(places: list[tuple[float, float]]) -> list[float]:
    """Middles of labels on the interval 0 to 1, pushed apart until none touches its neighbour.

    Args:
        places: (wished middle, height) of each label, both as shares, by rising middle.
    """
    middles: list[float] = []
    floor = 0.0
    for middle, height in places:
        middles.append(max(middle, floor + height / 2))
        floor = middles[-1] + height / 2
    ceiling = 1.0
    for index in reversed(range(len(places))):
        height = places[index][1]
        middles[index] = min(middles[index], ceiling - height / 2)
        ceiling = middles[index] - height / 2
    return middles


def event_words(event: Event) -> str:
    """An event's name as it stands on screen: "loss up, accuracy flat: over-confidence"."""
    name = re.sub(r"^(loss-(?:up|down))-accuracy-", r"\1, accuracy ", event.event)
    name = name.replace("-", " ").replace("non ", "non-")
    return f"{name}: {event.cause}" if event.causes else name


def finite(values: Sequence[float]) -> list[float]:
    """The finite values."""
    return [value for value in values if math.isfinite(value)]


def best(values: Sequence[float], sign: int = 1) -> int | None:
    """Index of the first smallest finite value; of the largest with sign -1; None without any."""
    order = [(sign * value, index) for index, value in enumerate(values) if math.isfinite(value)]
    return min(order)[1] if order else None


def last(values: Sequence[float]) -> int | None:
    """Index of the last finite value; None without any."""
    return max((index for index, value in enumerate(values) if math.isfinite(value)), default=None)
