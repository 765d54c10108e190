"""Up, down, flat, not down, not up or undecided: what one series did, with jitter as the noise.

`find_rise`: has the level risen above an earlier one, and is it still there? The data pick the
reference (the lowest level so far), so the threshold pays for every candidate looked at. `compare`:
how does the level now stand against the level around one given evaluation? Nothing is picked, so
one interval does. `benchmarks/bench_trends.py` simulates the rates of false alarms and of misses.

Jitter is estimated with second differences `y[i] - 2 y[i+k] + y[i+2k]`, which are blind to a trend,
at several lags `k`: a series that wanders (an autoregression, say) has larger ones at larger lags.
Values that are not finite are left out; indexes count positions of the list that was given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["up", "down", "flat", "not-down", "not-up", "undecided"]

MIN_EVALUATIONS = 8  # Fewer say next to nothing about jitter.
# Evaluations averaged for a level: narrow ones see a fast rise soon, wide ones a small rise at all.
WIDTHS = (1, 3, 7, 15, 31)
# Half of a running median of five: it takes three outliers in five evaluations to pass it.
HALF_MEDIAN = 2
# A mean over `w` such medians of white noise varies about like a mean over `w + 2` values.
MEDIAN_GAIN = 2
LAGS = (1, 2, 3, 4, 6, 8, 12, 16)
# Of the absolute differences, the quantile turned into a standard deviation. At the median rises of
# 0.2 sd an evaluation were found 2 evaluations later; higher up, the steep start of a run gets in.
QUANTILE = 0.7
# That quantile of the absolute second difference of white noise with standard deviation 1.
NORMAL_DIFFERENCE = NormalDist().inv_cdf(0.5 + QUANTILE / 2) * math.sqrt(6)
# The largest estimate over lags is taken, each lowered by so many of its relative standard errors:
# long lags leave few independent differences. Less in `compare`, whose quantile is not strict: with
# 0.6 its intervals missed twice as often in AR(0.8) noise.
SCAN_DISCOUNT = 0.6
COMPARE_DISCOUNT = 0.3
SMALL_SAMPLE = 6.0  # Jitter is inflated by 1 + 6 / n, because it is itself estimated.
EXCURSION_FACTOR = 1.25
NOISE_WINDOW = 400  # Bounds the time of a decision.
# Identical values at the end count once, unless there are more repeats than this (a dead network).
MAX_REPEATS = 4
# Normal values: variance of the middle 5 of 7, 3 of 5 and 1 of 3, over that of the mean.
TRIMMED_VARIANCE = {7: 1.09, 5: 1.14, 3: 1.35, 1: 1.0}


@dataclass(frozen=True, slots=True)
class Shift:
    """A level that rose above an earlier one, beyond jitter and the floor, and is still there.

    Attributes:
        reference: index of the lowest running median of three in the lower level.
        onset: first index from which the running median stayed above the lower level by more than
            a noise band: `2 noise`, or half the rise if that is less.
        change: current level minus lower level, in units of the series; positive.
        noise: jitter used: standard deviation of one evaluation, inflated for the small sample.
        threshold: what `change` had to exceed: the largest of the jitter bound, the practical floor
            and 1.25 times the largest earlier excursion that went away again.
        width: evaluations (running medians) averaged for each of both levels.
    """

    reference: int
    onset: int
    change: float
    noise: float
    threshold: float
    width: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The level now against the level around a reference.

    Attributes:
        kind: `up` / `down` if the interval excludes 0 and `|change| >= margin`; else `flat` if it
            lies inside `(-margin, margin)` (two one-sided tests, Schuirmann 1987), even if it
            excludes 0; else `not-down` if `low > -margin`; else `not-up` if `high < margin`; else
            `undecided`.
        change: level now minus level at the reference, in units of the series; NaN without values.
        low, high: interval of the change at level `1 - 2 alpha`; infinite if jitter is not known.
        margin: the largest change that counts as none.
        resolvable: half the interval: the smallest change that could have been told from none.
    """

    kind: Kind
    change: float
    low: float
    high: float
    margin: float
    resolvable: float


def find_rise(
    values: Sequence[float],
    *,
    relative_floor: float = 0.05,
    absolute_floor: float = 0.01,
    alpha: float = 0.01,
    errors: Sequence[float] | None = None,
) -> Shift | None:
    """A rise that is still there, seen at the last point and at the one before.

    For a width `w`, `A(t)` is the mean of the last `w` running medians of five, and `R` the lowest
    `A(s)`, `s <= t - w`. The level has risen at `t` if for some width `d = A(t) - R` exceeds

    * `z sigma sqrt(2 v)`: `sigma` is the jitter near the lower level; `v` the variance of a mean
      over `w + 2` values of an AR(1) series of variance 1 with the autocorrelation that the
      differences show; `z = Phi^-1(1 - p)` with `p = 6 alpha / (pi t)^2 / (5 max(1, t / w))`, so
      that `alpha` is spent over evaluations, widths and disjoint references;
    * `max(relative_floor |R|, absolute_floor)`;
    * 1.25 times the largest earlier excursion of `A` above its minimum that went away again;

    and if more than half of its medians, and for `w <= 3` the newest value, lie above `d / 2`. A
    fall is the rise of the negated series. Exact repeats of a value at the end count once; from
    five repeats on they are a level, if that one value alone is beyond jitter.

    Args:
        values: one value an evaluation, oldest first.
        relative_floor: smallest rise that matters, as a fraction of `|R|`.
        absolute_floor: smallest rise that matters, in units of the series.
        alpha: nominal level for a whole run, in (0, 0.5).
        errors: standard error of each value that averaging does not reduce (a finite validation
            set; NaN if unknown); None for a statement about this validation set.

    Returns:
        The shift with the largest ratio of change to threshold, or None; None below 8 values.

    Raises:
        ValueError: if `alpha` or a floor is out of range or `errors` has another length.
    """
    if not relative_floor >= 0 <= absolute_floor:
        floors = (relative_floor, absolute_floor)
        raise ValueError(f"Expected both floors to be 0 or more, but got {floors}.")
    series, deviations, positions, scale = _finite(values, errors, alpha)
    different = np.flatnonzero(series != series[-1:])
    repeats = len(series) - 2 - (int(different[-1]) if len(different) else -1)
    series = series[: len(series) - max(repeats, 0)]
    last = len(series) - 1
    if last + 1 < MIN_EVALUATIONS:
        return None
    scan = _Scan(series, deviations, (relative_floor, absolute_floor / scale), alpha)
    found = scan.rise(last, 1, frozen=True) if repeats > MAX_REPEATS else None
    if found is None:
        rises = [rise for width in scan.averages if (rise := scan.rise(last, width))]
        found = max(rises, key=lambda rise: rise.change / rise.threshold, default=None)
        if found is None or not any(scan.rise(last - 1, width) for width in scan.averages):
            return None
    sizes = (size * scale for size in (found.change, found.noise, found.threshold))
    reference, onset = positions[[found.reference, found.onset]].tolist()
    return Shift(reference, onset, *sizes, found.width)


def compare(
    values: Sequence[float],
    reference: int,
    margin: float,
    *,
    alpha: float = 0.01,
    errors: Sequence[float] | None = None,
) -> Verdict:
    """The level at the end of a series against its level around `reference`.

    Both levels are means of `w` values without the lowest and the highest (from `w` = 3 on): of the
    last `w`, and of `w` centred on the reference. `w` is the largest of 7, 5, 3, 1 for which the
    centred window fits and the two do not overlap. The interval is `change -+ Phi^-1(1 - alpha) s`
    with `s = max(sigma sqrt(2 v), hypot(e_now, e_reference))`: `sigma` is the jitter from the
    reference window on (of the last 20 values at least), `v` the variance of such a mean under the
    autocorrelation of the series. Nothing is spent over evaluations: ask once. Below 8 finite
    values the interval is infinite and the verdict `undecided`.

    Args:
        values: one value an evaluation, oldest first.
        reference: index into `values`; where not finite, the nearest earlier finite one stands in.
        margin: the largest change that counts as none, in units of the series.
        alpha: level of each of both one-sided tests, in (0, 0.5).
        errors: as for `find_rise`.

    Raises:
        ValueError: if `reference` is no index, or `margin`, `alpha` or `errors` is out of range.
    """
    if not 0 <= reference < len(values):
        raise ValueError(f"Expected `reference` to be in [0, {len(values)}), but got {reference}.")
    if not margin >= 0:
        raise ValueError(f"Expected `margin` to be 0 or more, but got {margin}; it is a size.")
    series, deviations, positions, scale = _finite(values, errors, alpha)
    count = len(series)
    if count == 0:
        return Verdict("undecided", math.nan, -math.inf, math.inf, margin, math.inf)
    center = max(int(np.searchsorted(positions, reference, side="right")) - 1, 0)
    width = next((w for w in TRIMMED_VARIANCE if w // 2 <= center < count - w - w // 2), 1)
    first = center - width // 2
    before, now = _trimmed_mean(series[first : first + width]), _trimmed_mean(series[-width:])
    change, half = now - before, math.inf
    if count >= MIN_EVALUATIONS:
        start = max(min(first, count - 20), 0)
        side = (series[center + 1 :] - (before + now) / 2) * change <= 0
        step = center + 1 + int(np.count_nonzero(side))
        noise, correlation = _Differences(series).noise(start, count, step, COMPARE_DISCOUNT)
        noise *= 1 + SMALL_SAMPLE / (count - start)
        variance = 2 * TRIMMED_VARIANCE[width] * _variance_of_mean(width, correlation)
        sampling = math.hypot(deviations[-1], deviations[center])
        half = NormalDist().inv_cdf(1 - alpha) * max(noise * math.sqrt(variance), sampling)
    change, half = change * scale, half * scale
    low, high = change - half, change + half
    return Verdict(_kind(low, change, high, margin), change, low, high, margin, half)


def jitter(values: Sequence[float]) -> float | None:
    """Robust standard deviation of one evaluation around its trend; None below 8 finite values.

    `q / (Phi^-1(0.85) sqrt(6))` with the 0.7-quantile `q` of the absolute second differences, or
    the rounding error if that is larger, in units of the series. Blind to a linear trend and 10 %
    outliers; of a series that wanders, only what moves between neighbours is measured.
    """
    series, _, _, scale = _finite(values)
    if len(series) < MIN_EVALUATIONS:
        return None
    differences = _Differences(series)
    return max(_deviation(differences.by_lag[1]), differences.rounding) * scale


class _Scan:
    """Running medians and their averages, from which the rise at any end of a series is read."""

    def __init__(self, series: Array, errors: Array, floors: tuple[float, float], alpha: float) -> None:
        self.series, self.errors, self.floors, self.alpha = series, errors, floors, alpha
        self.differences = _Differences(series)
        self.medians = _running_median(series)
        self.averages: dict[int, Array] = {}
        self.excursions: dict[int, Array] = {}
        sums = np.concatenate(([0.0], np.cumsum(self.medians)))
        for width in WIDTHS:
            if len(self.medians) < 2 * width:
                break
            average = (sums[width:] - sums[:-width]) / width
            rises = average[width:] - np.minimum.accumulate(average)[:-width]
            self.averages[width] = average
            self.excursions[width] = np.maximum.accumulate(rises)

    def rise(self, last: int, width: int, frozen: bool = False) -> Shift | None:
        """The rise at `width` if the series ends at `last`; to that value alone if `frozen`."""
        end = last - HALF_MEDIAN - (width - 1)
        if end < width:
            return None
        average = self.averages[width]
        low = int(np.argmin(average[: end - width + 1]))
        level = float(average[low])
        newest = float(self.series[last]) - level
        change = newest if frozen else float(average[end]) - level
        floor = max(self.floors[0] * abs(level), self.floors[1])
        recent = np.count_nonzero(self.medians[end : end + width] - level > change / 2)
        lasting = frozen or (2 * recent > width and (width > 3 or newest > change / 2))
        if not (change > floor and lasting):
            return None
        above = average[low : end + 1] - level
        excursion = 0.0 if frozen else EXCURSION_FACTOR * self._recovered(width, low, above)
        # Jitter is measured since the series came within `change` of the lower level: a bend
        # further up is no jitter, and one inside cannot hide the change that it is part of. Nor
        # is the step itself: differences that straddle it are left out.
        start = int(np.argmax(self.medians[: last - 1] <= level + change))
        start = max(min(start, last + 1 - MIN_EVALUATIONS), last + 1 - NOISE_WINDOW, 0)
        step = low + int(np.flatnonzero(above <= change / 2)[-1]) + width - 1
        noise, correlation = self.differences.noise(start, last + 1, max(step, start))
        noise *= 1 + SMALL_SAMPLE / (last + 1 - start)
        variance = 2 * _variance_of_mean(width + MEDIAN_GAIN, correlation)
        deviation = noise * math.sqrt(1 + variance / 2 if frozen else variance)
        sampling = math.hypot(self.errors[last], self.errors[low + width // 2])
        bound = _quantile(last + 1, width, self.alpha) * max(deviation, sampling)
        threshold = max(bound, floor, excursion)
        if not change > threshold:
            return None
        first = max(low - HALF_MEDIAN - 1, 0)
        threes = sliding_window_view(self.series, 3)[first : low + width + HALF_MEDIAN - 1]
        reference = first + 1 + int(np.argmin(np.sort(threes, axis=1)[:, 1]))
        band = level + min(change / 2, 2 * noise)
        below = np.flatnonzero(self.medians[low : last - 1] <= band)
        onset = min(low + 1 + (int(below[-1]) if len(below) else 0), last)
        return Shift(reference, max(onset, reference + 1), change, noise, threshold, width)

    def _recovered(self, width: int, low: int, above: Array) -> float:
        """The largest excursion that went away: before the lowest level, or halved again since."""
        before = float(self.excursions[width][low - width]) if low >= width else 0.0
        lowest_after = np.minimum.accumulate(above[::-1])[::-1]
        return max(before, float(np.max(above, where=lowest_after < above / 2, initial=0.0)))


class _Differences:
    """Absolute second differences at several lags, shared by all questions about jitter."""

    def __init__(self, series: Array) -> None:
        self.by_lag = {
            lag: np.abs(series[2 * lag :] - 2 * series[lag:-lag] + series[: -2 * lag])
            for lag in LAGS
            if len(series) > 2 * lag
        }
        gaps = np.diff(np.sort(series))
        gaps = gaps[gaps > 0]
        rounded = 0 < len(gaps) < len(series) - 1  # Values that repeat may hide their jitter.
        self.rounding = float(gaps.min()) / math.sqrt(12) if rounded else 0.0

    def noise(self, start: int, stop: int, step: int, discount: float = SCAN_DISCOUNT) -> tuple[float, float]:
        """Standard deviation and lag-1 autocorrelation of `series[start:stop]` around its trend.

        Differences of lag 2 and more that straddle `step` are left out. In an AR(1) series a
        difference has variance `sigma^2 (6 - 8 phi + 2 phi^2)` at lag 1 and `6 sigma^2` at a long
        lag; both give `phi`, clipped to [0, 0.95] and rounded to 0.01.
        """
        estimates: list[float] = []
        for lag in LAGS:
            if stop - start <= 2 * lag:
                break
            differences = self.by_lag[lag][start : stop - 2 * lag]
            if lag > 1:
                kept = differences[: max(step - 2 * lag - start, 0)], differences[step - start :]
                differences = np.concatenate(kept)
                if len(differences) < max(6, 1.5 * lag):
                    continue
            error = math.sqrt(lag / len(differences)) if lag > 1 else 0.0
            estimates.append(_deviation(differences) * (1 - discount * error))
        longest = max(estimates)
        ratio = (estimates[0] / longest) ** 2 if longest > 0 else 1.0
        return max(longest, self.rounding), round(min(2 - math.sqrt(1 + 3 * ratio), 0.95), 2)


def _running_median(series: Array) -> Array:
    """Median of five values, stored at the centre; the first two of the first three and four."""
    medians = np.empty(len(series) - HALF_MEDIAN)
    medians[0] = np.sort(series[:3])[1]
    medians[1] = np.sort(series[:4])[1:3].mean()
    windows = sliding_window_view(series, 2 * HALF_MEDIAN + 1)
    medians[2:] = np.sort(windows, axis=1)[:, HALF_MEDIAN]
    return medians


def _deviation(differences: Array) -> float:
    """Standard deviation of white noise with the same quantile of absolute differences."""
    rank = int(QUANTILE * len(differences))
    return float(np.partition(differences, rank)[rank]) / NORMAL_DIFFERENCE


@lru_cache(maxsize=4096)
def _variance_of_mean(width: int, correlation: float) -> float:
    """Variance of the mean of `width` neighbours of an AR(1) series of variance 1."""
    lags = np.arange(1, width)
    return (1 + 2 * float(((1 - lags / width) * correlation**lags).sum())) / width


@lru_cache(maxsize=4096)
def _quantile(count: int, width: int, alpha: float) -> float:
    """Normal quantile of the level left for one width at evaluation `count`."""
    spent = 6 * alpha / (math.pi * count) ** 2 / (len(WIDTHS) * max(1.0, count / width))
    return -NormalDist().inv_cdf(max(spent, 1e-300))


def _trimmed_mean(window: Array) -> float:
    return float(np.sort(window)[1:-1].mean() if len(window) >= 3 else window.mean())


def _kind(low: float, change: float, high: float, margin: float) -> Kind:
    if low > 0 and change >= margin:
        return "up"
    if high < 0 and change <= -margin:
        return "down"
    if low > -margin:
        return "flat" if high < margin else "not-down"
    return "not-up" if high < margin else "undecided"


def _finite(
    values: Sequence[float], errors: Sequence[float] | None = None, alpha: float = 0.01
) -> tuple[Array, Array, NDArray[np.intp], float]:
    """Finite values over a power of two (exact, about 1), errors alike (0 for NaN), indexes."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"Expected `alpha` to be in (0, 0.5), but got {alpha}; 0.01 is usual.")
    if errors is not None and len(errors) != len(values):
        raise ValueError(f"Expected `errors` to have {len(values)} entries, but got {len(errors)}.")
    series = np.asarray(values, dtype=np.float64)
    deviations = np.abs(np.asarray(np.zeros(len(series)) if errors is None else errors, np.float64))
    positions = np.flatnonzero(np.isfinite(series))
    series = series[positions]
    deviations = np.where(np.isnan(deviations), 0.0, deviations)[positions]
    exponent = math.frexp(float(np.max(np.abs(series), initial=0.0)))[1]
    scale = 2.0 ** min(max(exponent, -900), 900)
    with np.errstate(over="ignore"):
        return series / scale, deviations / scale, positions, scale
