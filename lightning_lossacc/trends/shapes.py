"""Does a series swing, stand still, or hold a single outlier?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightning_lossacc.trends.noise import Array, finite

SHORTEST_OSCILLATION, LONGEST_OSCILLATION = 8, 20
SHORTEST_PLATEAU, LONGEST_PLATEAU = 10, 30
# Of white noise two of three inner points are turning points; a lasting swing has at least about half.
TURNING_SHARE = 0.5
SPIKE_SIGMAS = 8.0
SURROUNDINGS = 7
SEARCHED = 10  # Newest evaluations among which a spike is looked for; bounds the time.
# Swings that must be large: more than half, since every single spike makes two.
LARGE_SHARE = 2 / 3
FEWEST_SWINGS = 5


@dataclass(frozen=True, slots=True)
class Oscillation:
    """A level that keeps swinging up and down over the last evaluations.

    Attributes:
        amplitude: half the typical swing, in units of the series: half of the median of the absolute
            differences between successive turning points.
        turning_share: turning points over inner points, in [0, 1]; 2/3 is expected of white noise.
        window: evaluations looked at.
        level: median of the window.
    """

    amplitude: float
    turning_share: float
    window: int
    level: float


@dataclass(frozen=True, slots=True)
class Plateau:
    """A level that has not moved by more than a margin, shown by its interval.

    Attributes:
        window: evaluations at the end over which nothing happened.
        change: Theil-Sen slope times `window - 1`, in units of the series.
        low, high: interval of the change at level `1 - 2 alpha` (two one-sided tests).
        margin: largest change that counts as none.
    """

    window: int
    change: float
    low: float
    high: float
    margin: float


@dataclass(frozen=True, slots=True)
class Spike:
    """One or two evaluations far above their surroundings, which returned.

    Attributes:
        index: position of the highest value.
        height: that value minus the median of its surroundings, in units of the series; positive.
        length: evaluations that stand out, 1 or 2.
        noise: standard deviation of the surroundings around their trend.
    """

    index: int
    height: float
    length: int
    noise: float


def find_oscillation(
    values: Sequence[float],
    *,
    relative_floor: float = 0.1,
    absolute_floor: float = 0.01,
    errors: Sequence[float] | None = None,
) -> Oscillation | None:
    """A swing that is large against the level, over the last 8 to 20 finite values.

    A turning point is an inner point above or below both neighbours after a line (Theil-Sen) was
    taken off; equal neighbours are none. Found if, over the longest window of 20 down to 8 values that shows it,
    turning points make up at least half of the inner points, the swing `2 amplitude` is at least
    `max(relative_floor |median|, absolute_floor)`, 5 times the median standard error where known,
    and at least as large as the change along the line over the window. Two of three swings must be as
    large, in the older and in the newer half (a swing that dies away is not reported, nor a spike).

    Args:
        values: one value an evaluation, oldest first.
        relative_floor: smallest swing from low to high that matters, as a fraction of the level.
        absolute_floor: smallest swing that matters, in units of the series.
        errors: standard error of each value (a small validation set swings by itself); NaN if unknown.

    Raises:
        ValueError: if a floor is negative or `errors` has another length.
    """
    if not relative_floor >= 0 <= absolute_floor:
        floors = (relative_floor, absolute_floor)
        raise ValueError(f"Expected both floors to be 0 or more, but got {floors}.")
    series, deviations, _, scale = finite(values, errors)
    for window in range(min(LONGEST_OSCILLATION, len(series)), SHORTEST_OSCILLATION - 1, -1):
        part = series[-window:]
        level = float(np.median(part))
        slope, _ = _theil_sen(part)
        swings, share = _swings(part - slope * np.arange(window))
        if share < TURNING_SHARE or len(swings) < FEWEST_SWINGS:
            continue
        swing = float(np.median(swings))
        half = len(swings) // 2
        lasting = min(float(np.quantile(part, 1 - LARGE_SHARE)) for part in (swings[:half], swings[half:]))
        sampling = 5.0 * float(np.median(deviations[-window:]))
        needed = max(relative_floor * abs(level), absolute_floor / scale, sampling, abs(slope) * (window - 1))
        if swing > 0 and lasting >= needed:
            return Oscillation(swing / 2 * scale, share, window, level * scale)
    return None


def find_plateau(
    values: Sequence[float],
    margin: float,
    *,
    alpha: float = 0.01,
    shortest: int = SHORTEST_PLATEAU,
    longest: int = LONGEST_PLATEAU,
) -> Plateau | None:
    """The longest window at the end, 10 to 30 values, over which any change lies inside the margin.

    The change is the Theil-Sen slope times `window - 1`; its interval is that of Sen (1968): ranks of
    the sorted slopes at `-+ Phi^-1(1 - alpha) sd(S)` with Kendall's `var(S) = n (n-1) (2n+5) / 18`,
    widened by `sqrt((1+r)/(1-r))` for the lag-1 autocorrelation `r` of the residuals where positive.

    Args:
        values: one value an evaluation, oldest first.
        margin: the largest change over the window that counts as none, in units of the series.
        alpha: level of each of both one-sided tests, in (0, 0.5).
        shortest: fewest evaluations that make a plateau, at least 4.
        longest: most evaluations looked at.

    Raises:
        ValueError: if `margin` or `alpha` is out of range or not 4 <= `shortest` <= `longest`.
    """
    if not margin >= 0:
        raise ValueError(f"Expected `margin` to be 0 or more, but got {margin}; it is a size.")
    if not 4 <= shortest <= longest:
        raise ValueError(f"Expected 4 <= `shortest` <= `longest`, but got {shortest} and {longest}.")
    series, _, _, scale = finite(values, alpha=alpha)
    for window in range(min(longest, len(series)), shortest - 1, -1):
        part = series[-window:]
        slope, slopes = _theil_sen(part)
        residuals = part - slope * np.arange(window)
        residuals = residuals - np.median(residuals)
        power = float((residuals**2).sum())
        correlation = float((residuals[1:] * residuals[:-1]).sum()) / power if power > 0 else 0.0
        # The estimate is biased towards 0 by about (1 + 3 r) / n (Kendall 1954).
        correlation = min(max(correlation + (1 + 3 * correlation) / window, 0.0), 0.9)
        spread = math.sqrt(window * (window - 1) * (2 * window + 5) / 18 * (1 + correlation) / (1 - correlation))
        reach = NormalDist().inv_cdf(1 - alpha) * spread
        first = math.floor((len(slopes) - reach) / 2)
        if first < 0:
            continue
        low, high = (float(slopes[place]) * (window - 1) * scale for place in (first, len(slopes) - 1 - first))
        if -margin < low and high < margin:
            return Plateau(window, slope * (window - 1) * scale, low, high, margin)
    return None


def find_spike(values: Sequence[float], *, relative_floor: float = 0.05, absolute_floor: float = 0.01) -> Spike | None:
    """The newest spike of the last 10 values: one or two high above their surroundings, which returned.

    Surroundings are up to 7 finite values before and up to 7 after, at least 4 before and 2 after. A
    spike is more than `8 sigma` and `max(relative_floor |median|, absolute_floor)` above the highest
    of the surroundings' two levels (medians before and after), where `sigma` is the larger of the
    jitter of both sides and `1.4826` times their median absolute deviation from their median.

    Raises:
        ValueError: if a floor is negative.
    """
    if not relative_floor >= 0 <= absolute_floor:
        floors = (relative_floor, absolute_floor)
        raise ValueError(f"Expected both floors to be 0 or more, but got {floors}.")
    series, _, positions, scale = finite(values)
    count = len(series)
    for end in range(count - 3, max(count - 3 - SEARCHED, 3), -1):
        for length in (1, 2):
            start = end - length + 1
            if start < 4 or series[start : end + 1].min() <= series[end + 1 : end + 3].max():
                continue
            before = series[max(start - SURROUNDINGS, 0) : start]
            after = series[end + 1 : end + 1 + SURROUNDINGS]
            level = max(float(np.median(before)), float(np.median(after)))
            height = float(series[start : end + 1].min()) - level
            if not height > max(relative_floor * abs(level), absolute_floor / scale):
                continue
            around = np.concatenate((before - np.median(before), after - np.median(after)))
            noise = 1.4826 * float(np.median(np.abs(around)))
            moves = np.abs(np.concatenate((np.diff(before), np.diff(after))))
            noise = max(noise, float(np.quantile(moves, 0.7)) / (math.sqrt(2) * 1.0364))
            if height > SPIKE_SIGMAS * noise and height > 2 * float(np.abs(around).max()):
                place = start + int(np.argmax(series[start : end + 1]))
                peak = float(series[place]) - level
                return Spike(int(positions[place]), peak * scale, length, noise * scale)
    return None


def _theil_sen(part: Array) -> tuple[float, Array]:
    """Median of the slopes between all pairs, and these slopes in order (Theil 1950, Sen 1968)."""
    first, second = np.triu_indices(len(part), 1)
    slopes = np.sort((part[second] - part[first]) / (second - first))
    return float(np.median(slopes)), slopes


def _swings(part: Array) -> tuple[Array, float]:
    """Absolute differences between successive turning points, and their share of the inner points."""
    steps = np.diff(part)
    turning = np.flatnonzero(steps[1:] * steps[:-1] < 0) + 1
    return np.abs(np.diff(part[turning])), len(turning) / (len(part) - 2)
