"""Where results go: one file a logger, one protocol, and a `Reporter` that no sink can break."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.sinks.files import FileSink, tell
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.tensorboard import TensorBoardSink
from lightning_lossacc.sinks.wandb import WandbSink

__all__ = [
    "FileSink",
    "GenericSink",
    "Reporter",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "find_sinks",
]

_BY_CLASS_NAME: dict[str, type[GenericSink]] = {
    "TensorBoardLogger": TensorBoardSink,
    "WandbLogger": WandbSink,
}


class Sink(Protocol):
    """One place where results go. A method does nothing where the place cannot show its content.

    Attributes:
        name: what a warning calls it.
    """

    name: str

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by log key."""

    def event(self, event: Event, step: int) -> None:
        """An event, each time it is reported (opened, doubled, closed)."""

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
        """The picture of one stage and loader under a name such as `"lossacc"`."""

    def summary(self, text: str, step: int) -> None:
        """What is said at the start and at the end of a run."""

    def close(self) -> None:
        """Sends what is held back; what the Trainer owns stays open."""


def find_sinks(loggers: Iterable[Any], earlier: Iterable[Event] = ()) -> list[Sink]:
    """One sink for every logger that can log.

    The class is told by the names in its method resolution order, because `lightning.pytorch` and
    `pytorch_lightning` hold two unrelated copies of each logger. Every other object with
    `log_metrics` gets numbers. Nothing is created or contacted yet.

    Args:
        loggers: `trainer.loggers`, all of them.
        earlier: events that this run reported before it was resumed.
    """
    earlier = tuple(earlier)
    sinks: list[Sink] = []
    for logger in loggers:
        names = [cls.__name__ for cls in type(logger).__mro__]
        if "DummyLogger" in names or not callable(getattr(logger, "log_metrics", None)):
            continue
        kind = next((_BY_CLASS_NAME[name] for name in names if name in _BY_CLASS_NAME), GenericSink)
        sinks.append(kind(logger, earlier))
    return sinks


class Reporter:
    """Hands everything to every sink; a sink that raises gives one warning and stops nothing.

    The others still get everything, and a sink that failed is tried again each time, silently. Only
    `KeyboardInterrupt` and `SystemExit` pass through: they are the user's. The Trainer is not held.

    Args:
        sinks: the places, in the order in which they are served; the local file first is wise.
        warn: takes one warning for each sink that fails.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None] = warnings.warn) -> None:
        self.sinks = tuple(sinks)
        self._warn = warn
        self._failed: set[int] = set()
        self._lacks_matplotlib = False

    def record(self, record: Record) -> None:
        """Hands an evaluation to the sinks that keep whole records."""
        self._each(lambda sink: sink.record(record) if isinstance(sink, FileSink) else None)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Hands numbers to every sink."""
        self._each(lambda sink: sink.scalars(values, step))

    def event(self, event: Event, step: int) -> None:
        """Hands an event to every sink."""
        self._each(lambda sink: sink.event(event, step))

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
        """Hands the picture to every sink; without matplotlib says so once and draws nothing."""
        if self._lacks_matplotlib:
            return
        if find_spec("matplotlib") is None:
            self._lacks_matplotlib = True
            tell(self._warn, "lossacc draws no picture: matplotlib is not installed.")
            return
        self._each(lambda sink: sink.picture(figure_name, history, events, step, stage=stage, loader=loader))

    def summary(self, text: str, step: int) -> None:
        """Hands the text of the start or the end to every sink."""
        self._each(lambda sink: sink.summary(text, step))

    def close(self) -> None:
        """Closes every sink."""
        self._each(lambda sink: sink.close())

    def _each(self, action: Callable[[Sink], object]) -> None:
        for index, sink in enumerate(self.sinks):
            try:
                action(sink)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if index not in self._failed:
                    self._failed.add(index)
                    self._report(sink, error)

    def _report(self, sink: Sink, error: BaseException) -> None:
        paths = (
            str(other.events_path)
            for other in self.sinks
            if isinstance(other, FileSink) and other is not sink and not other.num_waiting
        )
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        tell(
            self._warn,
            f"lossacc could not write to {sink.name}: {reason[:300]}; training goes on, "
            f"events are in {next(paths, 'memory')}",
        )
