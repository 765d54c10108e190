"""What will more epochs bring? An extrapolation of one series, said only where it would have been right in the past.

A learning curve may bend at any time, so that no model of it is trusted for its own interval. Three plain ones (the
level, a damped trend, a power law) vote; the interval comes from their errors at earlier evaluations of the same run
(rolling origin, as in conformal prediction: Vovk et al. 2005; Tashman 2000), and if its past 90 % intervals did not
cover at least 85 % of what came, nothing is said. Training is assumed to go on as it did: a new learning rate, or the
end of a schedule, is not foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lightning_lossacc import trends
from lightning_lossacc.history import Record

Array = NDArray[np.float64]

LEVEL = 0.90  # of the interval
LEAST_COVERAGE = 0.85
MIN_EVALUATIONS = 20
MIN_BACKTESTS = 10
MAX_BACKTESTS = 30
FIRST_ORIGIN = 8  # evaluations that the first past forecast has seen
WINDOW = 60  # evaluations that a forecast looks back on
# Errors over scale that are assumed before any was seen: half-normal quantiles, twice as wide.
_ASSUMED = (0.25, 0.64, 1.04, 1.48, 2.0, 2.6, 3.4)
_POWERS = (0.25, 0.5, 1.0, 2.0)
_RANGE = {"accuracy": (0.0, 1.0), "balanced_accuracy": (0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Where one quantity will be.

    Attributes:
        key: name of the quantity, in its own unit.
        value: the most probable value of a single evaluation.
        low, high: its 90 % interval.
        horizon: evaluations ahead.
        covered, backtests: how many of so many past forecasts of this run, made in the same way, held what came.
    """

    key: str
    value: float
    low: float
    high: float
    horizon: int
    covered: int
    backtests: int

    @property
    def coverage(self) -> float:
        """Share of the past forecasts whose interval held what came; at least 0.85."""
        return self.covered / self.backtests


def forecast(series: Sequence[Record], key: str, horizon: int = 10) -> Forecast | None:
    """Where one quantity will be some evaluations ahead.

    f is the median of the last level, of a damped trend (Gardner and McKenzie 1985) and of a power law a + b t^-c; s
    is the larger of the wander of the series and half the distance of the latter two. The interval is f ± q s, with q
    the 90 % quantile of |error| / s at the last 30 evaluations whose outcome is known.

    Args:
        series: comparable evaluations, oldest first, evenly spaced.
        key: a quantity of `Record.values`; evaluations without it are left out.
        horizon: evaluations ahead.

    Returns:
        None below 20 evaluations or 10 backtests, or if fewer than 85 % of the backtests were covered.

    Raises:
        ValueError: if `horizon` is not positive.
    """
    if horizon < 1:
        raise ValueError(f"Expected `horizon` to be at least 1, but got {horizon}.")
    values = np.array([record.values.get(key, math.nan) for record in series], dtype=np.float64)
    values = values[np.isfinite(values)]
    count = len(values)
    if count < MIN_EVALUATIONS or count - horizon - FIRST_ORIGIN + 1 < MIN_BACKTESTS:
        return None
    # Only what the newest scores and the reported backtests need, which are scored by those before them.
    first = max(FIRST_ORIGIN, count - 2 * horizon - 2 * MAX_BACKTESTS)
    middles, scales = zip(
        *(_middle(values[:origin], horizon) for origin in range(first, count - horizon + 1)), strict=True
    )
    outcomes = values[first + horizon - 1 :]
    scores = np.abs(outcomes - np.array(middles)) / np.array(scales)
    # The outcome of a forecast is known `horizon` evaluations later.
    held = [
        score <= _quantile(scores[: max(0, place + 1 - horizon)])
        for place, score in list(enumerate(scores))[-MAX_BACKTESTS:]
    ]
    covered = int(sum(held))
    if covered < LEAST_COVERAGE * len(held):
        return None
    middle, scale = _middle(values, horizon)
    half = _quantile(scores) * scale
    least, most = _RANGE.get(key, (0.0 if values.min() >= 0 else -math.inf, math.inf))
    value, low, high = (min(max(bound, least), most) for bound in (middle, middle - half, middle + half))
    return Forecast(key, value, low, high, horizon, covered, len(held))


def _middle(values: Array, horizon: int) -> tuple[float, float]:
    """Median of three extrapolations, and the scale of its error."""
    values = values[-WINDOW:]
    level = float(np.median(values[-5:]))
    damped, power = _damped_trend(values, horizon), _power_law(values, horizon)
    scale = max(_wander(values, horizon), abs(damped - power) / 2, 1e-9 * (1 + abs(level)))
    return sorted((level, damped, power))[1], scale


def _wander(values: Array, horizon: int) -> float:
    """Standard deviation around the trend: the largest over lags up to the horizon, by second differences."""
    found = 0.0
    for lag in (1, 2, 4, 8, 16):
        if lag > 1 and (lag > horizon or 4 * lag > len(values)):
            break
        recent = values[-(30 + 2 * lag) :]
        differences = np.abs(recent[2 * lag :] - 2 * recent[lag:-lag] + recent[: -2 * lag])
        found = max(found, float(np.quantile(differences, trends.QUANTILE)) / trends.NORMAL_DIFFERENCE)
    return found


def _damped_trend(values: Array, horizon: int, smooth: float = 0.3, slope: float = 0.15, damping: float = 0.9) -> float:
    """Exponential smoothing with a trend that fades, from the first values' mean on."""
    level, trend = float(values[:3].mean()), 0.0
    for value in values[3:].tolist():
        before = level
        level = smooth * value + (1 - smooth) * (level + damping * trend)
        trend = slope * (level - before) + (1 - slope) * damping * trend
    return level + trend * damping * (1 - damping**horizon) / (1 - damping)


def _power_law(values: Array, horizon: int) -> float:
    """a + b t^-c by least squares over the last two thirds, with the best of four powers."""
    count = len(values)
    fits = [
        (float(np.square(residual @ values[count // 3 :]).sum()), float(weights @ values[count // 3 :]))
        for residual, weights in _projections(count, horizon)
    ]
    return min(fits)[1]


@cache
def _projections(count: int, horizon: int) -> list[tuple[Array, Array]]:
    """For each power, the matrix that gives the residuals of the fit and the weights of its extrapolation."""
    times = np.arange(count // 3, count, dtype=np.float64) + 1
    found = []
    for power in _POWERS:
        design = np.stack((np.ones_like(times), times**-power), axis=1)
        solve = np.linalg.pinv(design)
        ahead = np.array([1.0, (count + horizon) ** -power])
        found.append((np.eye(len(times)) - design @ solve, ahead @ solve))
    return found


def _quantile(scores: Array) -> float:
    """The score that 90 % of new ones stay below, from the newest known ones and the assumed ones."""
    known = np.sort(np.concatenate((scores[-MAX_BACKTESTS:], _ASSUMED)))
    place = math.ceil(LEVEL * (len(known) + 1)) - 1
    return float(known[min(place, len(known) - 1)])
