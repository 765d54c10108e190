"""Is a rise one sudden step, and may it go back as the jump of a warm restart does?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lightning_lossacc.trends.noise import Array
from lightning_lossacc.trends.shift import Shift

# A mean over `w` running medians of five of white noise varies about like a mean over `w + 2` values.
MEDIAN_GAIN = 2
# A rise of which so many steps of the running median make up such a share is a jump, and a jump may be a warm restart:
# it must last for 8 evaluations or 3/8 of those before it (28 at most), and must not have fallen by 8 % of itself
# since, unless jitter explains that much. One that goes on rising need not wait.
FIRST_JUMP, JUMP_WAIT, WAIT_SHARE, LONGEST_WAIT, FALLING = (2, 0.7), 8, 0.375, 28, 0.08
STILL_RISING = 3.0  # Standard deviations of the difference of two means of white noise.
# Once a comparable jump went away (levels of these widths side by side, a share of this change and standard deviations
# apart) less of a jump counts as one, and it must last for as long as from that jump to this one: periods double often.
LATER_JUMP, JUMP_WIDTHS, COMPARABLE, JUMP_SIGMAS = (4, 0.4), (3, 7, 15), 0.4, 3.0
RESTARTED = 1.5  # Learning rate now over that at the reference.
# A step is out of the question if a line leaves so much less, in squares of the jitter, up to 64 evaluations; in
# proportion to their number afterwards, because more restarts have their chance to look like a line.
STEP_SLACK, SLACK_COUNT = 2.0, 64


def may_restart(rates: Array | None, reference: int, last: int) -> bool:
    """Whether a learning rate that was raised since `reference` is unknown or known; False if it is known not to be."""
    return rates is None or not rates[last] <= RESTARTED * rates[reference]


def is_step(values: Array, jitter: float, evaluations: int) -> bool:
    """Whether two constants, one after the other, fit the last `values` about as well as a straight line does.

    In least squares: the sum that the line leaves may be `2 jitter^2 max(1, evaluations / 64)` smaller.
    """
    count = len(values)
    if count < 3:
        return True
    centred = values - values.mean()
    places = np.arange(count) - (count - 1) / 2
    line = float(places @ centred) ** 2 / float(places @ places)
    before = np.arange(1, count)
    step = float((np.cumsum(centred)[:-1] ** 2 * count / (before * (count - before))).max())
    return step > line - STEP_SLACK * max(1.0, evaluations / SLACK_COUNT) * jitter**2


def may_go_back(
    series: Array, medians: Array, averages: Mapping[int, Array], rates: Array | None, found: Shift
) -> bool:
    """Whether the rise at the end of `series` is one sudden step that may return as that of a warm restart does.

    Args:
        series: values up to now.
        medians: their running medians of five.
        averages: means of neighbouring medians by width.
        rates: learning rates at the evaluations, NaN where unknown; None if all are.
        found: the rise.
    """
    last = len(series) - 1
    if not may_restart(rates, found.reference, last):
        return False
    seen = np.full(2, math.nan) if rates is None else rates[found.reference : last + 1]
    known = math.isfinite(seen[0]) and math.isfinite(seen[-1])
    earlier = _earlier_jump(averages, found)
    first = max(found.reference - 1, 0)
    recent = medians[first:]
    span, share = LATER_JUMP if earlier is not None or (seen[1:] > RESTARTED * seen[:-1]).any() else FIRST_JUMP
    span = min(span, len(recent) - 1)
    if span < 1:
        return False
    moves = recent[span:] - recent[:-span]
    start = int(moves.argmax())
    if moves[start] < share * found.change:
        return False
    place = first + 1 + start + int(np.diff(recent[start : start + span + 1]).argmax())
    after = series[place:]
    if np.median(after) >= series[:3].max():
        return False  # Worse than at the start: no restart.
    third = max(len(after) // 3, 1)
    risen = float(np.median(after[-third:]) - np.median(after[:third]))
    small, spread = FALLING * found.change, found.noise * math.sqrt(2 / third)
    if risen > max(small, STILL_RISING * spread):
        return False
    if known:
        return True
    wait = max(JUMP_WAIT, min(int(WAIT_SHARE * place), LONGEST_WAIT))
    if earlier is not None:
        return len(after) < max(wait, place - earlier) or -risen > small
    return len(after) < wait or -risen > max(small, spread)


def _earlier_jump(averages: Mapping[int, Array], found: Shift) -> int | None:
    """The last sudden step before the lowest level that was comparable. It went away: this level is the lowest."""
    places = []
    for width in JUMP_WIDTHS:
        if width not in averages:
            continue
        average = averages[width][: max(found.reference - width + 2, 0)]
        spread = found.noise * math.sqrt(2 / (width + MEDIAN_GAIN))
        needed = max(COMPARABLE * found.change, JUMP_SIGMAS * spread)
        places += (np.flatnonzero(average[width:] - average[:-width] > needed)[-1:] + width).tolist()
    return max(places, default=None)
