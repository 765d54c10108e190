"""A rise from the lowest value on, almost without a step back: the only kind that few evaluations can show."""

from __future__ import annotations

import math

import numpy as np

from lightning_lossacc.trends.noise import Array
from lightning_lossacc.trends.shift import Shift

# How many times the floor the rise must be, by evaluations past the lowest one; once from 6 on.
MULTIPLES = {2: 6.0, 3: 4.0, 4: 2.5, 5: 1.5}
# Evaluations past the lowest one that are needed, by the largest number of evaluations for which they do. Beyond,
# jitter is known and the scan decides: in AR(0.8) noise longer series climb by chance.
NEEDED = {5: 2, 9: 3, 19: 4, 23: 6}
BACK = 0.1  # Steps back after the lowest value, together: at most this share of the rise.
AGAINST = 4.0  # The rise over the largest step up before the lowest value, or back after it.
UNEVEN, SMOOTH = 0.2, 8  # Distance from a straight line over the rise, up to so many evaluations.
FEWEST_WITHOUT_FLOOR = 5
ERRORS = 3.0  # Standard errors of the difference.


def climb(series: Array, errors: Array, floors: tuple[float, float]) -> Shift | None:
    """A rise that goes on since the lowest value, 3 to 23 values; the jitter need not be known.

    With `k` evaluations past the lowest value, `k >= 2` (3 from 6 values on, 4 from 10, 6 from 20), the
    last value must lie above the lowest by more than `max(relative |lowest|, absolute)` times 6, 4, 2.5
    and 1.5 for `k` = 2 to 5, and once from 6 on; by 4 times the largest step up before the lowest value
    (since the series came within two changes of it) or back after it; and by 3 standard errors. Steps
    back make up at most 10 % of the change, and for `k < 8` no value is further than 20 % of it from a
    straight line. Of exchangeable values `k` rise from the lowest one on with probability `1 / k!`.

    Args:
        series: finite values, oldest first, without repeats at the end.
        errors: standard error of each value.
        floors: relative and absolute.
    """
    count = len(series)
    needed = next((past for most, past in NEEDED.items() if count <= most), None)
    if count < 3 or needed is None:
        return None
    low = count - 1 - int(series[::-1].argmin())
    past = count - 1 - low
    if past < needed or (past < FEWEST_WITHOUT_FLOOR and not any(floors)):
        return None
    level, change = float(series[low]), float(series[-1] - series[low])
    floor = max(floors[0] * abs(level), floors[1]) * MULTIPLES.get(past, 1.0)
    steps = np.diff(series)
    back = -np.minimum(steps[low:], 0.0)
    if not change > floor or back.sum() > BACK * change:
        return None
    from_line = series[low:] - np.linspace(level, level + change, past + 1)
    if past < SMOOTH and np.abs(from_line - np.median(from_line)).max() > UNEVEN * change:
        return None
    near = int(np.argmax(series <= level + 2 * change))
    against = max(float(np.max(steps[near:low], initial=0.0)), float(back.max()))
    threshold = max(floor, AGAINST * against, ERRORS * math.hypot(errors[-1], errors[low]))
    if not change > threshold:
        return None
    return Shift(low, low + 1, change, against, threshold, 1)
