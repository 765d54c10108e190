"""Has the level of a series risen above an earlier one, and is it still there?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lightning_lossacc.trends.climb import BACK, climb
from lightning_lossacc.trends.jump import MEDIAN_GAIN, is_step, may_go_back, may_restart
from lightning_lossacc.trends.noise import MIN_EVALUATIONS, Array, Differences, finite, variance_of_mean
from lightning_lossacc.trends.shift import Shift

# Evaluations averaged for a level: narrow ones see a fast rise soon, wide ones a small rise at all.
WIDTHS = (1, 2, 3, 5, 7, 11, 15, 21, 31)
# The lower level is as wide, or about a third: an early minimum is narrow.
PAIRS = tuple(
    (width, other)
    for width in WIDTHS
    for other in dict.fromkeys((width, max(size for size in WIDTHS if size <= max(1, width // 3))))
)
# Half of a running median of five: it takes three outliers in five evaluations to pass it.
HALF_MEDIAN = 2
# Jitter is inflated by 1 + 3 / n ((1 + phi) / (1 - phi))^1.6, because it is itself estimated: neighbours that move
# together are fewer values.
SMALL_SAMPLE = 3.0
CORRELATED_SAMPLE = 1.6
LARGEST_INFLATION = 2.5
# Fast rises are large and need no sharp bound; noise that wanders moves narrow levels most.
NARROW, NARROW_FACTOR = 7, 1.25
# Up to 64 evaluations the tail beyond the bound is 0.04 alpha, afterwards it falls with the 8th power. Evaluations,
# widths and references hang together so closely that Bonferroni over them would be 100 times stricter at 64; these two
# numbers were set by simulated rates.
TAIL, TAIL_COUNT, TAIL_POWER = 0.04, 64, 8
# Jitter is measured since the series came within this many changes of the lower level.
NEAR = 1.5
# Median step between running medians; a fall of so many is sudden.
DROP = 6.0
CLEAR = 20.0  # Changes of so many movements between neighbours are no wandering noise: AR(0.8) reaches about 13.
TURN_COUNT = 64  # Up to so many evaluations the turn at the lower level counts as one more step.
# A run becomes quieter (a lower learning rate) or noisier: the jitter of all is scaled by the ratio of the movements
# between neighbours of the last evaluations to those of all, of the last 12 if they are less than half.
RECENT = ((12, 0.5), (30, math.inf))
EXCURSION_FACTOR = 1.25
NOISE_WINDOW = 400  # Bounds the time of a decision.
# Identical values at the end count once, unless there are more repeats than this (a dead network).
MAX_REPEATS = 4
# Of the bound by jitter, added to the floor where a rise may be the jump of a warm restart: the lowest of many levels
# is too low by chance. Without it every fifth of 1000-evaluation runs whose restarts add 4 % had a rise of 5 %.
JUMP_MARGIN = 0.575


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A level over `width` medians that lies `change` above the lowest one over `other` medians, at `low`."""

    width: int
    other: int
    low: int
    level: float
    change: float

    def clearness(self) -> float:
        """Change over its standard deviation in white noise of variance 1."""
        return self.change / math.sqrt(1 / (self.width + MEDIAN_GAIN) + 1 / (self.other + MEDIAN_GAIN))


def find_rise(
    values: Sequence[float],
    *,
    relative_floor: float = 0.05,
    absolute_floor: float = 0.01,
    alpha: float = 0.01,
    errors: Sequence[float] | None = None,
    learning_rates: Sequence[float] | None = None,
) -> Shift | None:
    """A rise that is still there: seen at the last point and at the one before, or climbed without a step back.

    For a width `w`, `A_w(t)` is the mean of the last `w` running medians of five, and `R` the lowest
    `A_v(s)`, `s <= t - w`, with `v = w` or about `w / 3`. From 8 values on the level has risen at `t` if for
    some pair `d = A_w(t) - R` exceeds

    * `z sigma sqrt(V_w + V_v)`: `sigma` is the jitter near the lower level, scaled to that of the last
      evaluations; `V` the variance of a mean over `w + 2` (`v + 2`) values of an AR(1) series of variance 1
      with the autocorrelation that the differences show; `z = Phi^-1(1 - p)` with
      `p = 0.04 alpha min(1, 64 / t)^8 / max(1, t / v)`, set by simulation;
    * `max(relative_floor |R|, absolute_floor)`, plus 0.575 `z sigma sqrt(V_w + V_v)` where a warm restart is not
      excluded and one step fits the values since the lower level about as well as a straight line;
    * 1.25 times the largest earlier excursion of `A` above its minimum that went away again;

    if more than half of its medians, and for `w <= 3` the newest value, lie above `d / 2`, and if it is
    no sudden jump that may be a warm restart: a jump that stays below the highest of the first three
    values and does not rise further must last for 8 evaluations, or 3/8 of those before it, or, if
    a comparable one went away, as many as lie between the two, without falling back. From 3 to
    23 values see also `climb`. A fall is the rise of the negated series. Exact repeats of a value at
    the end count once; from five repeats on they are a level, if that one value alone is beyond jitter.

    Args:
        values: one value an evaluation, oldest first.
        relative_floor: smallest rise that matters, as a fraction of `|R|`.
        absolute_floor: smallest rise that matters, in units of the series.
        alpha: nominal level for a whole run, in (0, 0.5).
        errors: standard error of each value that averaging does not reduce (a finite validation
            set; NaN if unknown); None for a statement about this validation set.
        learning_rates: at each evaluation, NaN or None if unknown: a jump at a learning rate more than
            1.5 times that of the reference is a restart (a small one too if the rate jumped), any other need not last.

    Returns:
        The shift with the largest ratio of change to threshold, or None; None below 3 values.

    Raises:
        ValueError: if `alpha` or a floor is out of range or `errors` or `learning_rates` has another length.
    """
    if not relative_floor >= 0 <= absolute_floor:
        floors = (relative_floor, absolute_floor)
        raise ValueError(f"Expected both floors to be 0 or more, but got {floors}.")
    series, deviations, positions, scale = finite(values, errors, alpha)
    rates = None
    if learning_rates is not None:
        if len(learning_rates) != len(values):
            raise ValueError(f"Expected `learning_rates` to have {len(values)} entries, but got {len(learning_rates)}.")
        rates = np.asarray(learning_rates, dtype=np.float64)[positions]
    different = np.flatnonzero(series != series[-1:])
    repeats = len(series) - 2 - (int(different[-1]) if len(different) else -1)
    series = series[: len(series) - max(repeats, 0)]
    floors = relative_floor, absolute_floor / scale
    found = None
    if len(series) >= MIN_EVALUATIONS:
        found = _Scan(series, deviations, floors, alpha, rates).decide(repeats > MAX_REPEATS)
    if found is None:
        fast = climb(series, deviations, floors)
        if fast is None:
            return None
        found = fast
    sizes = (size * scale for size in (found.change, found.noise, found.threshold))
    reference, onset = positions[[found.reference, found.onset]].tolist()
    return Shift(reference, onset, *sizes, found.width)


def first_rise(
    values: Sequence[float], *, relative_floor: float = 0.05, absolute_floor: float = 0.01, alpha: float = 0.01
) -> tuple[int, Shift] | None:
    """The smallest number of evaluations at which `find_rise` finds a rise, and what it finds; None if it never does.

    Far faster than a question for every evaluation: those at which the floors rule a rise out are left out at once.

    Raises:
        ValueError: as `find_rise` does.
    """
    floors = {"relative_floor": relative_floor, "absolute_floor": absolute_floor, "alpha": alpha}
    series, _, positions, scale = finite(values, alpha=alpha)
    for count in _possible(series, relative_floor, absolute_floor / scale):
        stop = int(positions[count - 1]) + 1
        found = find_rise(values[:stop], **floors)
        if found is not None:
            return stop, found
    return None


def _possible(series: Array, relative: float, absolute: float) -> list[int]:
    """Numbers of evaluations at which neither a climb nor a level nor a dead network is ruled out."""
    count = len(series)
    possible = np.zeros(count, dtype=bool)
    if count > MAX_REPEATS + 1:
        windows = sliding_window_view(series, MAX_REPEATS + 2)
        possible[MAX_REPEATS + 1 :] = (windows == windows[:, -1:]).all(axis=1)
    lowest = np.minimum.accumulate(series)
    places = np.arange(count)
    low = np.maximum.accumulate(np.where(series == lowest, places, 0))
    moved = np.cumsum(np.abs(np.diff(series, prepend=series[:1])))
    change = series - lowest
    rounding = 1e-9 * np.maximum.accumulate(np.abs(series))
    # Steps up less steps down are the change, and steps down at most a share `BACK` of it.
    straight = moved - moved[low] <= (1 + 2 * BACK) * change + rounding * (1 + places)
    above = change > np.maximum(relative * np.abs(lowest), absolute) - rounding
    possible |= above & straight & (places - low >= 2)
    if count >= MIN_EVALUATIONS:
        averages = _averages(_running_median(series))
        for width, other in PAIRS:
            if width not in averages:
                break
            level = np.minimum.accumulate(averages[other])[: len(averages[width]) - other]
            change = averages[width][other:] - level
            ends = np.flatnonzero(change > np.maximum(relative * np.abs(level), absolute) - 1e-9 * np.abs(level))
            possible[ends + other + HALF_MEDIAN + width - 1] = True
    return (np.flatnonzero(possible) + 1).tolist()


class _Scan:
    """Running medians and their averages, from which the rise at any end of a series is read."""

    def __init__(
        self, series: Array, errors: Array, floors: tuple[float, float], alpha: float, rates: Array | None
    ) -> None:
        self.series, self.errors, self.floors, self.alpha, self.rates = series, errors, floors, alpha, rates
        self.medians = _running_median(series)
        self.averages = _averages(self.medians)

    def decide(self, frozen: bool) -> Shift | None:
        """The rise at the end that was there one evaluation before; one to a repeated value if `frozen`."""
        last = len(self.series) - 1
        if frozen and (candidate := self.repeated(last)) and (found := self.rise(last, [candidate], True)):
            return found
        now, before = self.candidates(last), self.candidates(last - 1)
        # The floors rule most evaluations out before any jitter is measured.
        if not now or not before:
            return None
        found = self.rise(last, now)
        return found if found is not None and self.rise(last - 1, before) is not None else None

    def repeated(self, last: int) -> _Candidate | None:
        low = int(self.medians[: last - HALF_MEDIAN].argmin())
        level = float(self.medians[low])
        change = float(self.series[last]) - level
        return _Candidate(1, 1, low, level, change) if change > self.floor(level) else None

    def floor(self, level: float) -> float:
        return max(self.floors[0] * abs(level), self.floors[1])

    def candidates(self, last: int) -> list[_Candidate]:
        """Levels at `last` that lie above an earlier one by more than the floor and are lasting."""
        found = []
        newest = float(self.series[last])
        for width, other in PAIRS:
            end = last - HALF_MEDIAN - (width - 1)
            if width not in self.averages or end < other:
                continue
            before = self.averages[other]
            low = int(before[: end - other + 1].argmin())
            level = float(before[low])
            change = float(self.averages[width][end]) - level
            if not change > self.floor(level):
                continue
            recent = np.count_nonzero(self.medians[end : end + width] - level > change / 2)
            if 2 * recent > width and (width > 3 or newest - level > change / 2):
                found.append(_Candidate(width, other, low, level, change))
        return found

    def rise(self, last: int, candidates: list[_Candidate], frozen: bool = False) -> Shift | None:
        """The clearest of the candidates beyond its threshold, unless it is a jump that may go back."""
        noise, correlation = self.noise(max(candidates, key=_Candidate.clearness), last)
        best: tuple[float, _Candidate, float] | None = None
        for candidate in candidates:
            widths = candidate.width + MEDIAN_GAIN, candidate.other + MEDIAN_GAIN
            variance = sum(variance_of_mean(width, correlation) for width in widths)
            if frozen:
                variance = 1 + variance / 2
            narrow = NARROW_FACTOR if candidate.width < NARROW and not frozen else 1.0
            sampling = math.hypot(self.errors[last], self.errors[candidate.low + candidate.other // 2])
            quantile = _quantile(last + 1, candidate.other, self.alpha)
            chance = quantile * noise * math.sqrt(variance)
            threshold = max(narrow * chance, quantile * sampling, self.floor(candidate.level))
            if not candidate.change > threshold:
                continue
            if not frozen:
                wider, since = self.floor(candidate.level) + JUMP_MARGIN * chance, self.series[candidate.low : last + 1]
                if (
                    wider > threshold
                    and may_restart(self.rates, candidate.low, last)
                    and is_step(since, noise, last + 1)
                ):
                    threshold = wider
                threshold = max(threshold, EXCURSION_FACTOR * self.recovered(candidate, last))
            ratio = candidate.change / threshold
            if ratio > 1 and (best is None or ratio > best[0]):
                best = ratio, candidate, threshold
        if best is None:
            return None
        found = self.shift(best[1], noise, best[2], last)
        if frozen:
            return found
        series = self.series[: last + 1]
        return None if may_go_back(series, self.medians[: last - 1], self.averages, self.rates, found) else found

    def noise(self, candidate: _Candidate, last: int) -> tuple[float, float]:
        """Jitter, inflated for the small sample, and autocorrelation, since the series came near the lower level.

        And since a sudden fall before it (a drop of the learning rate). A bend further up is no jitter, and one inside
        cannot hide the change that it is part of. Nor is the step, or in short series the turn:
        differences that straddle one are left out.
        """
        differences = self.differences
        start = int(np.argmax(self.medians[: last - 1] <= candidate.level + NEAR * candidate.change))
        moves = np.diff(self.medians[start : last - 1])
        falls = -moves[: max(candidate.low - start, 0)]
        if len(falls) and falls.max() > max(DROP * float(np.median(np.abs(moves))), 1.2 * candidate.change):
            start += int(falls.argmax()) + 1
        start = max(min(start, last + 1 - MIN_EVALUATIONS), last + 1 - NOISE_WINDOW, 0)
        above = self.medians[candidate.low : last - HALF_MEDIAN + 1] - candidate.level
        below = np.flatnonzero(above <= candidate.change / 2)
        step = max(candidate.low + (int(below[-1]) if len(below) else 0), start)
        # Left out in long series, the turns of wandering noise would be: 20 % false alarms at 300 values, not 9 %.
        clear = candidate.change > CLEAR * differences.local(start, last + 1)
        breaks = (max(candidate.low, start), step) if last < TURN_COUNT or clear else (step,)
        noise, correlation = differences.noise(start, last + 1, breaks)
        first, everywhere = start, differences.local(start, last + 1)
        for span, most in RECENT:
            near = min(candidate.low - HALF_MEDIAN, last + 1 - span)
            if near > start and everywhere > 0 and (ratio := differences.local(near, last + 1) / everywhere) < most:
                noise, first = noise * ratio, near
                break
        together = ((1 + correlation) / (1 - correlation)) ** CORRELATED_SAMPLE
        inflation = min(1 + SMALL_SAMPLE / (last + 1 - first) * together, LARGEST_INFLATION)
        return noise * inflation, correlation

    @cached_property
    def differences(self) -> Differences:
        return Differences(self.series)

    def recovered(self, candidate: _Candidate, last: int) -> float:
        """The largest excursion that went away: before the lowest level, or halved again since."""
        largest = 0.0
        # A wide mean sees less of a short excursion than of a long one of the same height: width 3 as well.
        for width in {candidate.width, min(candidate.width, 3)}:
            average = self.averages[width][: last - HALF_MEDIAN - width + 2]
            earlier = average[: max(candidate.low - width + 1, 0)]
            if len(earlier) > width:
                rises = earlier[width:] - np.minimum.accumulate(earlier)[:-width]
                largest = max(largest, float(rises.max()))
            above = average[candidate.low :] - candidate.level
            lowest_after = np.minimum.accumulate(above[::-1])[::-1]
            largest = max(largest, float(np.max(above, where=lowest_after < above / 2, initial=0.0)))
        return largest

    def shift(self, candidate: _Candidate, noise: float, threshold: float, last: int) -> Shift:
        low, level, change = candidate.low, candidate.level, candidate.change
        first = max(low - HALF_MEDIAN - 1, 0)
        threes = sliding_window_view(self.series, 3)[first : low + candidate.other + HALF_MEDIAN - 1]
        reference = first + 1 + int(np.argmin(np.sort(threes, axis=1)[:, 1]))
        below = np.flatnonzero(self.medians[low : last - 1] <= level + min(change / 2, 2 * noise))
        onset = min(low + 1 + (int(below[-1]) if len(below) else 0), last)
        return Shift(reference, max(onset, reference + 1), change, noise, threshold, candidate.width)


def _averages(medians: Array) -> dict[int, Array]:
    """Means of `width` neighbouring medians, by width, where two such means fit side by side."""
    sums = np.concatenate(([0.0], np.cumsum(medians)))
    return {width: (sums[width:] - sums[:-width]) / width for width in WIDTHS if len(medians) >= 2 * width}


def _running_median(series: Array) -> Array:
    """Median of five values, stored at the centre; the first two of the first three and four."""
    medians = np.empty(len(series) - HALF_MEDIAN)
    medians[0] = np.sort(series[:3])[1]
    medians[1] = np.sort(series[:4])[1:3].mean()
    windows = sliding_window_view(series, 2 * HALF_MEDIAN + 1)
    medians[2:] = np.sort(windows, axis=1)[:, HALF_MEDIAN]
    return medians


@lru_cache(maxsize=4096)
def _quantile(count: int, width: int, alpha: float) -> float:
    """Normal quantile for one width of the reference at evaluation `count`."""
    spent = TAIL * alpha * min(1.0, TAIL_COUNT / count) ** TAIL_POWER / max(1.0, count / width)
    return -NormalDist().inv_cdf(max(spent, 1e-300))
