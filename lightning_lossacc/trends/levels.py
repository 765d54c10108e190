"""How does the level now stand against the level around one given evaluation?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from lightning_lossacc.trends.noise import (
    LARGEST_CORRELATION,
    MIN_EVALUATIONS,
    Array,
    Differences,
    finite,
    variance_of_mean,
)

Kind = Literal["up", "down", "flat", "not-down", "not-up", "undecided"]

# Normal values: variance of the middle 5 of 7, 3 of 5 and 1 of 3, over that of the mean.
TRIMMED_VARIANCE = {7: 1.09, 5: 1.14, 3: 1.35, 1: 1.0}
SMALL_SAMPLE = 6.0  # Jitter is inflated by 1 + 6 / n, because it is itself estimated.
# Less than in the scan for a rise, whose quantile is strict.
DISCOUNT = 0.3
# Standard errors added to the autocorrelation. At 0 the 99 % intervals covered 72 to 96 % in AR(0.8) noise and 92 to
# 99 % in AR(0.5), at 1.6 see `benchmarks/bench_trends.py`; the price is 2 x the width at 12 values and 1.35 x at 100.
CAUTION = 1.6


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
    reference window on (of the last 20 values at least), `v` the variance of such a mean in an AR(1)
    series with the autocorrelation `phi + 1.6 sqrt((1 - phi^2) / n)`: a bound above the estimate
    `phi` from `n` values, since a few values do not show how far neighbours move together. Nothing is
    spent over evaluations: ask once. Below 8 finite values the interval is infinite and the verdict
    `undecided`.

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
    series, deviations, positions, scale = finite(values, errors, alpha)
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
        differences = Differences(series)
        noise, correlation = differences.noise(start, count, (step,), DISCOUNT)
        used = count - start
        likely = min(correlation + CAUTION * math.sqrt((1 - correlation**2) / used), LARGEST_CORRELATION)
        local = differences.local(start, count)
        noise = max(noise, local * math.sqrt(6 / (6 - 8 * likely + 2 * likely**2)))
        noise *= 1 + SMALL_SAMPLE / used
        variance = 2 * TRIMMED_VARIANCE[width] * variance_of_mean(width, round(likely, 2))
        sampling = math.hypot(deviations[-1], deviations[center])
        half = NormalDist().inv_cdf(1 - alpha) * max(noise * math.sqrt(variance), sampling)
    change, half = change * scale, half * scale
    low, high = change - half, change + half
    return Verdict(_kind(low, change, high, margin), change, low, high, margin, half)


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
