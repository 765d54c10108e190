"""Which units, and which classes, answer nothing any more, from the records of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_lossacc.diagnosis.data import knows_classes
from lightning_lossacc.history import Record

BURST_RATIO = 0.2  # of the weights' size: updates that only steps which are far too long bring
CLAMPED_SHARE, CLAMPED_EVALUATIONS = 0.1, 10


def died_share(series: Sequence[Record], count: int) -> float:
    """Share of the units of the worst layer that died in training and have been dead for so many evaluations."""
    shares = [share for share in map(silent_share, series) if share == share]
    return min(shares[-count:]) - min(shares) if len(shares) > count else 0.0


def killed_share(series: Sequence[Record], count: int) -> float:
    """`died_share` where updates were as large as only steps that are far too long are; else 0."""
    highest = max((record.context.get("update_ratio", 0.0) for record in series), default=0.0)
    return died_share(series, count) if highest >= BURST_RATIO else 0.0


def is_clamped(series: Sequence[Record]) -> bool:
    """Whether for some evaluations the largest logit of many rows has belonged to several classes, exactly, and the
    network tells rows apart: the last layer is cut off.
    """
    last = series[-CLAMPED_EVALUATIONS:]
    # Of many classes half precision makes some logits equal; a cut leaves some of a few with nothing.
    table = series[-1].arrays.get("classes", {})
    never = [
        not predicted and rows
        for predicted, rows in zip(table.get("predicted", ()), table.get("rows", ()), strict=True)
    ]
    if -1 in table.get("class", (-1,)) or not any(never):
        return False
    ties = [record.arrays.get("excluded", {}).get("ties", 0) for record in last]
    return len(last) == CLAMPED_EVALUATIONS and all(
        count >= CLAMPED_SHARE * record.num_rows and knows_classes(record)
        for count, record in zip(ties, last, strict=True)
    )


def silent_share(record: Record) -> float:
    """Share of dead or saturated units in the worst layer at one evaluation; NaN if unknown."""
    shares = [record.context[key] for key in ("dead_units", "saturated_units") if key in record.context]
    return max(shares, default=math.nan)
