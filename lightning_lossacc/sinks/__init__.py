"""Where results go: one file a logger, one protocol (`Sink`), and a `Reporter` that no sink can break."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.sinks.comet import CometSink
from lightning_lossacc.sinks.csv import CsvSink
from lightning_lossacc.sinks.files import FileSink, tell
from lightning_lossacc.sinks.generic import GenericSink
from lightning_lossacc.sinks.litlogger import LitSink
from lightning_lossacc.sinks.mlflow import MLFlowSink
from lightning_lossacc.sinks.reporter import ALL_FIGURES, Reporter, Sink
from lightning_lossacc.sinks.tensorboard import TensorBoardSink
from lightning_lossacc.sinks.wandb import WandbSink

__all__ = [
    "ALL_FIGURES",
    "CometSink",
    "CsvSink",
    "FileSink",
    "GenericSink",
    "LitSink",
    "MLFlowSink",
    "Reporter",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "find_sinks",
    "tell",
]

_BY_CLASS_NAME: dict[str, type[GenericSink]] = {
    "TensorBoardLogger": TensorBoardSink,
    "WandbLogger": WandbSink,
    "MLFlowLogger": MLFlowSink,
    "CometLogger": CometSink,
    "LitLogger": LitSink,
    "CSVLogger": CsvSink,
}


def find_sinks(loggers: Iterable[Any], earlier: Iterable[Event] = (), alert: bool = False) -> list[Sink]:
    """One sink for every logger that can log.

    The class is told by the names in its method resolution order, because `lightning.pytorch` and `pytorch_lightning`
    hold two unrelated copies of each logger. Every other object with `log_metrics` gets numbers. Nothing is created or
    contacted yet.

    Args:
        loggers: `trainer.loggers`, all of them.
        earlier: events that this run reported before it was resumed.
        alert: whether loggers that can (W&B, Comet) send a message to people when a warning opens.
    """
    earlier = tuple(earlier)
    sinks: list[Sink] = []
    for logger in loggers:
        names = [cls.__name__ for cls in type(logger).__mro__]
        if "DummyLogger" in names or not callable(getattr(logger, "log_metrics", None)):
            continue
        kind = next((_BY_CLASS_NAME[name] for name in names if name in _BY_CLASS_NAME), GenericSink)
        sinks.append(kind(logger, earlier, alert))
    return sinks
