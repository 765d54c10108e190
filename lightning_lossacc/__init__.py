"""Why do loss and accuracy disagree? Metrics, a Lightning callback and a command line that answer with numbers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lossacc.callback import LossAccuracyMonitor as LossAccuracyMonitor
    from lightning_lossacc.diagnosis import Event as Event
    from lightning_lossacc.history import History as History
    from lightning_lossacc.history import Record as Record
    from lightning_lossacc.loss import CrossEntropyLoss as CrossEntropyLoss
    from lightning_lossacc.metrics import Accuracy as Accuracy
    from lightning_lossacc.metrics import LossAccuracy as LossAccuracy
    from lightning_lossacc.metrics import MeanMargin as MeanMargin
    from lightning_lossacc.metrics import MeanNLL as MeanNLL
    from lightning_lossacc.metrics import Overconfidence as Overconfidence
    from lightning_lossacc.metrics import RefinementNLL as RefinementNLL
    from lightning_lossacc.scaling import TemperatureScaling as TemperatureScaling

__version__ = "0.1.0"

# Resolved on first use (PEP 562): reading a log must not wait seconds for Lightning.
_ROOMS = {
    "LossAccuracyMonitor": "callback",
    "LossAccuracy": "metrics",
    "MeanNLL": "metrics",
    "Accuracy": "metrics",
    "MeanMargin": "metrics",
    "Overconfidence": "metrics",
    "RefinementNLL": "metrics",
    "CrossEntropyLoss": "loss",
    "TemperatureScaling": "scaling",
    "Event": "diagnosis",
    "Record": "history",
    "History": "history",
}

__all__ = [*_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
