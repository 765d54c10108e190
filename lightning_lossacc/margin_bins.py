"""Where do the bins of the margin histogram lie? Plain numbers, for those who fill it and for those who read it."""

from __future__ import annotations

import math

MARGIN_BINS = 128
MARGIN_LIMIT = 64.0


def margin_edges() -> list[float]:
    """Edges of the margin histogram: 129 numbers from -64 to 64, evenly spaced in asinh (fine near zero).

    The histogram has two more bins, for what lies below and above them.
    """
    limit = math.asinh(MARGIN_LIMIT)
    return [math.sinh(limit * (2 * index / MARGIN_BINS - 1)) for index in range(MARGIN_BINS + 1)]
