"""Has a series that is over risen, and is it still up? Or is it shown that it has not?

`trends.find_rise` answers while a run goes on, after each evaluation, and pays for it with large thresholds. Here the
question is asked once, at the end, so that smaller and slower rises can be told from noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean, median

from lightning_lossacc import trends

RELATIVE_FLOOR = 0.05  # of the lowest loss: smaller changes matter to nobody
ABSOLUTE_FLOOR = 0.01  # nats
MIN_EVALUATIONS = 3
# A short series has no jitter to compare with: a rise must be this large, and the last value the highest since.
SHORT_RISE = 0.2
RISE_ERRORS = 3.0  # standard errors between two levels that were picked
# What is smaller than this many jitters is not called a change.
JITTERS = 1.5
# Jitter of this share of the level: anything could hide in it.
MAX_JITTER = 0.35
ONE_SIDED = -NormalDist().inv_cdf(0.05)


@dataclass(frozen=True, slots=True)
class Rise:
    """A loss that ends above its lowest level.

    Attributes:
        reference: index of the lowest value in the lowest level.
        onset: first index from which the loss stayed above that level by a quarter of the change.
        change: level at the end minus lowest level, in units of the series.
    """

    reference: int
    onset: int
    change: float


def whole_rise(
    values: Sequence[float], relative_floor: float = RELATIVE_FLOOR, absolute_floor: float = ABSOLUTE_FLOOR
) -> Rise | None:
    """A rise over a whole series that is still there at its end, or None.

    From 8 values on: what `trends.find_rise` finds, or else, because nothing is decided online here and the question is
    asked once, a mean over the last `w = n / 5` values (3 to 31) above the lowest mean of `w` by more than 3 standard
    errors and the floors. Both are still there in the last three values. Below 8
    values jitter is unknown: the last value is the highest since the lowest, each step goes up, two of them at least,
    and the rise is a fifth.

    Args:
        values: the series, oldest first.
        relative_floor: smallest rise that matters, over the lowest level.
        absolute_floor: the same in units of the series.
    """
    series = [value for value in values if math.isfinite(value)]
    if len(series) < MIN_EVALUATIONS:
        return None
    if len(series) < trends.MIN_EVALUATIONS:
        lowest = min(range(len(series)), key=series.__getitem__)
        since, change = series[lowest:], series[-1] - series[lowest]
        steady = len(since) >= MIN_EVALUATIONS and all(after >= before for before, after in pairwise(since))
        large = change >= max(SHORT_RISE * abs(series[lowest]), 2 * absolute_floor)
        return Rise(lowest, lowest + 1, change) if steady and large else None
    shift = trends.find_rise(series, relative_floor=relative_floor, absolute_floor=absolute_floor)
    if shift is not None:
        # The scan looks at running medians, which lag behind a loss that has just come back.
        back = median(series[-3:]) < series[shift.reference] + shift.change / 2
        return None if back else Rise(shift.reference, shift.onset, shift.change)
    width = min(max(len(series) // 5, 3), 31)
    levels = [fmean(series[place : place + width]) for place in range(len(series) - width + 1)]
    earlier = levels[: len(levels) - width]
    best = min(range(len(earlier)), key=earlier.__getitem__)
    change = levels[-1] - levels[best]
    error = _level_error(series, width)
    floor = max(relative_floor * abs(levels[best]), absolute_floor)
    if change <= max(RISE_ERRORS * error, floor):
        return None
    if median(series[-3:]) < levels[best] + change / 2:
        return None
    reference = min(range(best, best + width), key=series.__getitem__)
    low = [place for place in range(best, len(series)) if series[place] <= levels[best] + change / 4]
    return Rise(reference, min(max([*low, reference]) + 1, len(series) - 1), change)


def _level_error(series: list[float], width: int) -> float:
    """Standard error of the difference of two means over `width` values, for noise that may wander (AR(1)).

    The autocorrelation is that whose second differences at lags 1 and 4 have the ratio of those of the series:
    variance `6 - 8 phi^k + 2 phi^(2 k)` at lag `k`.
    """
    jitter = trends.jitter(series) or 0.0
    apart = [trends.jitter(series[start::4]) for start in range(4)]
    spread = fmean(value for value in apart if value is not None) if None not in apart else jitter
    if not spread > jitter > 0:
        return jitter * math.sqrt(2 / width)
    wanted = (spread / jitter) ** 2
    for step in range(20):
        phi = 0.05 * step
        near, far = (6 - 8 * phi**lag + 2 * phi ** (2 * lag) for lag in (1, 4))
        if far / near >= wanted:
            break
    deviation = jitter * math.sqrt(6 / near)
    return deviation * math.sqrt(2 / width * (1 + phi) / (1 - phi))


def excluded_rise(values: list[float], floor: float) -> float | None:
    """The change since the best level that is excluded at 5 %, if the margin or 1.5 jitters are larger than it."""
    count = len(values)
    width = min(max(count // 5, 3), 31)
    jitter = trends.jitter(values) or 0.0
    levels = [fmean(values[place : place + width]) for place in range(count - width + 1)]
    level = max(abs(min(levels)), floor)
    if jitter > MAX_JITTER * level:
        return None
    best = min(levels[: count - 2 * width + 1], default=levels[0])
    upper = levels[-1] - best + ONE_SIDED * jitter * math.sqrt(2 / width)
    margin = max(floor, JITTERS * jitter)
    return max(upper, 0.0) if upper < margin else None
