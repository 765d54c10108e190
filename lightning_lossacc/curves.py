"""What stands where in the picture: columns over epochs, the range of an axis, rows of names.

Plain numbers only, so that the choices that decide how a run looks are tested without drawing it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record

# Control characters but line ends and tabs, signs that turn the direction of the text, and halves of signs.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


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

    def loss(self) -> tuple[str, list[float]]:
        """Name and values of the loss: the measured NLL, or the loss of a log that holds nothing else."""
        return ("NLL", self.column("nll")) if self._measured() else ("loss", self._logged("loss"))

    def accuracy(self) -> list[float]:
        """Accuracy in [0, 1], measured or, where nothing was measured, as it was logged."""
        return self.column("accuracy") if self._measured("accuracy") else self._logged("accuracy")

    def context(self, key: str) -> list[float]:
        """One number of the training up to each evaluation, NaN where it is not known."""
        values = (record.context.get(key, math.nan) for record in self.records)
        return [value if math.isfinite(value) else math.nan for value in values]

    def _measured(self, key: str = "nll") -> bool:
        return any(key in record.values for record in self.records)

    def _logged(self, key: str) -> list[float]:
        values = (record.logged.get(key, math.nan) for record in self.records)
        return [value if math.isfinite(value) else math.nan for value in values]

    def thinned(self, limit: int) -> Curves:
        """At most so many evaluations, evenly spaced, the first and the last among them."""
        count = len(self.records)
        if count <= limit:
            return self
        chosen = [round(place * (count - 1) / (limit - 1)) for place in range(limit)]
        return Curves(tuple(self.records[index] for index in chosen), tuple(self.x[index] for index in chosen))

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
    # A later report may name another cause, which then is the better one.
    named = {event.id: event for event in events if event.status != "closed"}
    order = sorted(opened.values(), key=lambda event: (event.level != "warning", event.global_step))
    marks = []
    for event in order:
        end = f" to {closed[event.id]}" if closed.get(event.id, event.epoch) != event.epoch else ""
        text = f"epoch {event.epoch}{end} · {event_words(named.get(event.id, event))}"
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


def compared(curves: Curves, events: Sequence[Event], stage: str, loader: int) -> tuple[Record | None, Record] | None:
    """The evaluation that the newest one is compared with, and the newest one; None without any.

    It is the reference of the newest event that has not closed, or else the evaluation with the lowest loss; if that is
    the newest one itself, the first one, and None if there is only one.
    """
    if not curves.records:
        return None
    newest = curves.records[-1]
    last_report = {event.id: event for event in events if (event.stage, event.loader) == (stage, loader)}
    places = {(record.epoch, record.global_step): record for record in curves.records[:-1]}
    for event in sorted(last_report.values(), key=lambda event: event.global_step, reverse=True):
        found = places.get((event.reference_epoch, event.reference_step))
        if event.status != "closed" and found is not None:
            return found, newest
    lowest = best(curves.loss()[1])
    if lowest is not None and lowest < len(curves.records) - 1:
        return curves.records[lowest], newest
    return (curves.records[0] if len(curves.records) > 1 else None), newest


def event_words(event: Event) -> str:
    """An event's name as it stands on screen: "loss up, accuracy flat: over-confidence"."""
    name = re.sub(r"^(loss-(?:up|down))-accuracy-", r"\1, accuracy ", event.event)
    name = name.replace("-", " ").replace("non ", "non-")
    return plain(f"{name}: {event.cause}" if event.causes else name)


def event_counts(events: Iterable[Event]) -> str:
    """How many events there are, each counted once: "1 warning, 2 notes"; a note is an event of level `info`."""
    levels = [level_word(event) for event in {event.id: event for event in events}.values()]
    warnings, notes = levels.count("warning"), levels.count("note")
    told = f"{warnings or 'no'} warning{'s' if warnings > 1 else ''}"
    return f"{told}, {notes} note{'s' if notes > 1 else ''}" if notes else told


def level_word(event: Event) -> str:
    """What an event is to a reader: a "warning" or a "note"."""
    return "note" if event.level == "info" else event.level


def plain(text: str) -> str:
    """A name without control characters and halves of signs, which no drawing and no page can show."""
    return _UNSHOWN.sub("\ufffd", text)


def finite(values: Sequence[float]) -> list[float]:
    """The finite values."""
    return [value for value in values if math.isfinite(value)]


def envelope(values: Sequence[float], limit: int) -> list[int]:
    """Places of at most about so many values between which a line looks the same: ends, extremes and gaps of pieces.

    Args:
        values: NaN where the line has a gap.
        limit: values to keep; all if there are no more.
    """
    if len(values) <= limit:
        return list(range(len(values)))
    pieces = max(limit // 5, 1)
    kept: set[int] = set()
    for piece in range(pieces):
        places = range(piece * len(values) // pieces, (piece + 1) * len(values) // pieces)
        known = [place for place in places if math.isfinite(values[place])]
        gaps = [place for place in places if not math.isfinite(values[place])]
        kept |= set(gaps[:1])
        if known:
            kept |= {known[0], known[-1], min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
    return sorted(kept)


def best(values: Sequence[float], sign: int = 1) -> int | None:
    """Index of the first smallest finite value; of the largest with sign -1; None without any."""
    order = [(sign * value, index) for index, value in enumerate(values) if math.isfinite(value)]
    return min(order)[1] if order else None


def last(values: Sequence[float]) -> int | None:
    """Index of the last finite value; None without any."""
    return max((index for index, value in enumerate(values) if math.isfinite(value)), default=None)
