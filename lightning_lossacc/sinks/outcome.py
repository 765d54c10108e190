"""What came out of a run, in a few numbers and words that runs can be filtered and sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_lossacc.curves import Curves, best, event_words
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History

# Quantity and the sign that makes less of it better.
BEST = {"nll": 1, "accuracy": -1, "refinement_nll": 1}
LAST = ("nll", "accuracy", "refinement_nll", "temperature", "overconfidence")
NUMBERS = (
    "num_warnings",
    *(f"last_{key}" for key in LAST),
    *(name for key in BEST for name in (f"best_{key}", f"best_{key}_epoch")),
)


def outcome(history: History, events: Sequence[Event], stage: str = "val", loader: int = 0) -> dict[str, float | str]:
    """The verdict on one stage and loader; empty without a complete evaluation.

    Keys: `verdict` (cause and name of the first warning that has not closed, else of the first, else "no event to warn
    of"; the cause comes first, since tables of runs cut off long words),
    `num_warnings` (how many opened), `last_<quantity>` of the last evaluation, and `best_<quantity>` with
    `best_<quantity>_epoch` of the lowest NLL, the highest accuracy and the lowest NLL after one temperature. What is
    not finite is left out.
    """
    curves = Curves.of(history, stage, loader)
    if not curves.records:
        return {}
    warnings = {event.id: event for event in events if event.level == "warning" and _is_of(event, stage, loader)}
    lasting = [event for event in warnings.values() if event.status != "closed"]
    told = next(iter([*lasting, *warnings.values()]), None)
    numbers: dict[str, float] = {"num_warnings": float(len(warnings))}
    for key in LAST:
        numbers[f"last_{key}"] = curves.records[-1].values.get(key, math.nan)
    for key, sign in BEST.items():
        values = curves.column(key)
        index = best(values, sign)
        if index is not None:
            numbers[f"best_{key}"] = values[index]
            numbers[f"best_{key}_epoch"] = float(curves.records[index].epoch)
    name, _, cause = event_words(told).partition(": ") if told is not None else ("no event to warn of", "", "")
    words = f"{cause}: {name}" if cause else name
    return {"verdict": words} | {key: value for key, value in numbers.items() if math.isfinite(value)}


def _is_of(event: Event, stage: str, loader: int) -> bool:
    return (event.stage, event.loader) == (stage, loader)
