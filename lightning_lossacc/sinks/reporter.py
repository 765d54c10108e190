"""Hands everything to every place, and keeps the faults of each place to itself."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.figures import FIGURES
from lightning_lossacc.history import History, Record
from lightning_lossacc.sinks.files import FileSink, tell
from lightning_lossacc.sinks.images import Image, image
from lightning_lossacc.sinks.report import ReportSink

# A place that took long to fail is left alone for so many times as long: a dead server costs at most 5 %.
REST, LONG_SECONDS = 20, 0.05
ALL_FIGURES = tuple(FIGURES)


class Sink(Protocol):
    """One place where results go. A method does nothing where the place cannot show its content.

    Attributes:
        name: what a warning calls it.
        shows_figures: whether `figure` does anything.
    """

    name: str
    shows_figures: bool

    def start(self, config: dict[str, Any]) -> None:
        """Settings of the monitor, in plain values; once, before everything else."""

    def record(self, record: Record, key: str, step: int) -> None:
        """A whole evaluation; `key.format(name)` is the log key of its number `name`."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by log key."""

    def event(self, event: Event, step: int) -> None:
        """An event, each time it is reported (opened, doubled, revised, closed)."""

    def figure(self, image: Image, step: int) -> None:
        """A figure; a later one of the same name is its next state."""

    def summary(self, text: str, step: int) -> None:
        """What is said at the end of a run."""

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """The verdict in numbers and words, see `outcome`; once, at the end of a run."""

    def report(self, path: Path, step: int) -> None:
        """The report as an HTML file; once, at the end of a run."""

    def close(self) -> None:
        """Sends what is held back; what the Trainer owns stays open."""


class Reporter:
    """Hands everything to every sink; a sink that raises gives one warning and stops nothing.

    The others still get everything. A sink that failed is tried again, silently; if it took long to fail, not before 20
    times as long have passed, so that a server that is down cannot hold up a training, and once more at the end. Only
    `KeyboardInterrupt` and `SystemExit` pass through: they are the user's. The Trainer is not held.

    Args:
        sinks: the places, in the order in which they are served; the local file first is wise.
        warn: takes one warning for each sink that fails.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = warnings.warn) -> None:
        self.sinks = tuple(sinks)
        self._warn = warn
        self._failed: set[int] = set()
        self._rests_until: dict[int, float] = {}
        self._undrawn: set[str] = set()

    def start(self, config: dict[str, Any]) -> None:
        """Hands the settings to every sink."""
        self._each(lambda sink: sink.start(config))

    def record(self, record: Record, key: str, step: int) -> None:
        """Hands an evaluation to every sink."""
        self._each(lambda sink: sink.record(record, key, step))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Hands numbers to every sink."""
        self._each(lambda sink: sink.scalars(values, step))

    def event(self, event: Event, step: int) -> None:
        """Hands an event to every sink."""
        self._each(lambda sink: sink.event(event, step))

    def figures(
        self,
        figure_names: Sequence[str],
        history: History,
        events: Sequence[Event],
        step: int,
        *,
        stage: str = "val",
        loader: int = 0,
    ) -> None:
        """Draws each figure once and hands it to every sink that shows any; a figure that fails is said once."""
        if not any(sink.shows_figures for sink in self.sinks):
            return
        if find_spec("matplotlib") is None:
            self._say_undrawn("", "lossacc draws no picture: matplotlib is not installed.")
            return
        for name in figure_names:
            try:
                drawn = image(name, history, events, stage=stage, loader=loader)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self._say_undrawn(name, f"lossacc could not draw {name}: {reason[:300]}; training goes on.")
                continue
            if drawn is not None:
                self._show(drawn, step)

    def summary(self, text: str, step: int) -> None:
        """Hands the text of the end to every sink."""
        self._each(lambda sink: sink.summary(text, step))

    def outcome(self, outcome: dict[str, float | str], step: int) -> None:
        """Hands the verdict to every sink."""
        self._each(lambda sink: sink.outcome(outcome, step))

    def report(self, path: Path, step: int) -> None:
        """Hands the report to every sink."""
        self._each(lambda sink: sink.report(path, step))

    def save_files(self) -> None:
        """Brings the run's own files up to date; contacts no logger."""
        self._each(lambda sink: sink.close() if isinstance(sink, FileSink | ReportSink) else None)

    def close(self) -> None:
        """Closes every sink."""
        self._rests_until.clear()
        self._each(lambda sink: sink.close())

    def _show(self, image: Image, step: int) -> None:
        self._each(lambda sink: sink.figure(image, step))

    def _each(self, action: Callable[[Sink], object]) -> None:
        for index, sink in enumerate(self.sinks):
            start = time.monotonic()
            if start < self._rests_until.get(index, start):
                continue
            try:
                action(sink)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                now = time.monotonic()
                if now - start > LONG_SECONDS:
                    self._rests_until[index] = now + REST * (now - start)
                if index not in self._failed:
                    self._failed.add(index)
                    self._report(sink, error)

    def _say_undrawn(self, figure_name: str, text: str) -> None:
        if figure_name not in self._undrawn:
            self._undrawn.add(figure_name)
            tell(self._warn, text)

    def _report(self, sink: Sink, error: BaseException) -> None:
        files = [other for other in self.sinks if isinstance(other, FileSink) and other is not sink]
        if isinstance(sink, ReportSink) and isinstance(error, OSError) and any(other.has_warned for other in files):
            # The same directory, of which has been warned already.
            return
        paths = (str(other.events_path) for other in files if not other.num_waiting)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tell(
            self._warn,
            f"lossacc could not write to {sink.name}: {reason[:300]}; training goes on, "
            f"events are in {next(paths, 'memory')}",
        )
