"""How much one evaluation moves by chance: jitter around a trend, and how far neighbours move together.

Jitter is estimated with second differences `y[i] - 2 y[i+k] + y[i+2k]`, which are blind to a trend,
at several lags `k`: a series that wanders (an autoregression, say) has larger ones at larger lags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_EVALUATIONS = 8  # Fewer say next to nothing about jitter.
LAGS = (1, 2, 3, 4, 6, 8, 12, 16)
# Of the absolute differences, the quantile turned into a standard deviation. At the median rises of
# 0.2 sd an evaluation were found 2 evaluations later; higher up, the steep start of a run gets in.
QUANTILE = 0.7
# That quantile of the absolute second difference of white noise with standard deviation 1.
NORMAL_DIFFERENCE = NormalDist().inv_cdf(0.5 + QUANTILE / 2) * math.sqrt(6)
# The largest estimate over lags is taken, each lowered by so many of its relative standard errors:
# long lags leave few independent differences.
DISCOUNT = 0.6
LARGEST_CORRELATION = 0.95


class Differences:
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

    def noise(self, start: int, stop: int, breaks: tuple[int, ...], discount: float = DISCOUNT) -> tuple[float, float]:
        """Standard deviation and lag-1 autocorrelation of `series[start:stop]` around its trend.

        Differences of lag 2 and more that straddle one of `breaks` are left out. In an AR(1) series a
        difference has variance `sigma^2 (6 - 8 phi + 2 phi^2)` at lag 1 and `6 sigma^2` at a long
        lag; both give `phi`, clipped to [0, 0.95] and rounded to 0.01.
        """
        estimates: list[float] = []
        for lag in LAGS:
            if stop - start <= 2 * lag:
                break
            differences = self.by_lag[lag][start : stop - 2 * lag]
            if lag > 1:
                first = np.arange(start, stop - 2 * lag)
                kept = np.ones(len(first), dtype=bool)
                for place in breaks:
                    kept &= (first + 2 * lag < place) | (first >= place)
                differences = differences[kept]
                if len(differences) < max(6, 1.5 * lag):
                    continue
            error = math.sqrt(lag / len(differences)) if lag > 1 else 0.0
            estimates.append(deviation(differences) * (1 - discount * error))
        longest = max(estimates)
        ratio = (estimates[0] / longest) ** 2 if longest > 0 else 1.0
        correlation = round(min(2 - math.sqrt(1 + 3 * ratio), LARGEST_CORRELATION), 2)
        return max(longest, self.rounding), correlation

    def local(self, start: int, stop: int) -> float:
        """Standard deviation between neighbours of `series[start:stop]`, white noise assumed."""
        return max(deviation(self.by_lag[1][start : stop - 2]), self.rounding)


def jitter(values: Sequence[float]) -> float | None:
    """Robust standard deviation of one evaluation around its trend; None below 8 finite values.

    `q / (Phi^-1(0.85) sqrt(6))` with the 0.7-quantile `q` of the absolute second differences, or
    the rounding error if that is larger, in units of the series. Blind to a linear trend and 10 %
    outliers; of a series that wanders, only what moves between neighbours is measured.
    """
    series, _, _, scale = finite(values)
    if len(series) < MIN_EVALUATIONS:
        return None
    return Differences(series).local(0, len(series)) * scale


def deviation(differences: Array) -> float:
    """Standard deviation of white noise with the same quantile of absolute second differences."""
    rank = int(QUANTILE * len(differences))
    return float(np.partition(differences, rank)[rank]) / NORMAL_DIFFERENCE


@lru_cache(maxsize=4096)
def variance_of_mean(width: int, correlation: float) -> float:
    """Variance of the mean of `width` neighbours of an AR(1) series of variance 1."""
    lags = np.arange(1, width)
    return (1 + 2 * float(((1 - lags / width) * correlation**lags).sum())) / width


def finite(
    values: Sequence[float], errors: Sequence[float] | None = None, alpha: float = 0.01
) -> tuple[Array, Array, NDArray[np.intp], float]:
    """Finite values over a power of two (exact, about 1), errors alike (0 for NaN), indexes, that power.

    Raises:
        ValueError: if `alpha` is not in (0, 0.5) or `errors` has another length.
    """
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
