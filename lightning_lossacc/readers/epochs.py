"""In which epoch was each evaluation?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lightning_lossacc.readers.columns import Columns


def epochs_of(columns: Columns, evaluations: Sequence[dict[str, float]], notes: list[str]) -> list[int]:
    """The epoch of each evaluation as the log counts, or its position where no epoch was logged.

    Args:
        columns: names of the columns.
        evaluations: cells of each, oldest first.
        notes: takes a sentence if they had to be counted.
    """
    for name in (columns.epoch, columns.step):
        values = [cells.get(name or "", math.nan) for cells in evaluations]
        if not all(math.isfinite(value) for value in values):
            continue
        gaps = sorted(b - a for a, b in pairwise(values))
        middle = gaps[len(gaps) // 2] if gaps else 1.0
        if name == columns.epoch:
            # 0.99, 1.98, 2.97 are the ends of epochs 1, 2, 3; 0.25, 0.5, 0.75 lie inside the first.
            return [round(value) if middle > 0.9 else math.floor(value) for value in values]
        if middle == 1:
            return [int(value) for value in values]
    notes.append("no epoch was logged: evaluations are counted from 0")
    return list(range(len(evaluations)))
