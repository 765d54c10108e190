"""One word about a whole run, from its loss and accuracy alone: diverging, stuck, unstable, healthy or undecided.

Asked in this order, the first yes decides:

1. `unstable`: the loss is not finite at the end, blows up at the end, or swings again and again so far that the swings
   are a good part of all that was learned.
2. `stuck`: accuracy is pinned to one value.
3. `diverging`: the loss has risen and is still up (`trends.find_rise`; below 8 evaluations a rise of a fifth at least).
4. `stuck`: loss and accuracy are those of a guess among C classes, and one of them did not get better.
5. `undecided`: nothing changed since the start, and a constant answer may be as good.
6. `diverging`: accuracy has fallen and is still down.
7. `undecided`: the loss rose by much of itself, though by few nats.
8. `healthy`: shown that the loss is not up and accuracy not down.
9. `undecided`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from lightning_lossacc import trends
from lightning_lossacc.floors import is_no_nll
from lightning_lossacc.rises import ABSOLUTE_FLOOR, MIN_EVALUATIONS, RELATIVE_FLOOR, excluded_rise, whole_rise
from lightning_lossacc.stuck import (
    ACCURACY_MARGIN,
    LEARNED_LOSS,
    at_chance,
    granularity,
    not_better,
    percent,
    pinned,
    row_noise,
)

Kind = Literal["diverging", "stuck", "unstable", "healthy", "undecided"]

BLOW_UP = 3.0  # last loss over the largest one since the lowest
# A swing goes up or down by this factor of the loss, this part of the first loss (but at most of twice the median) and
# so many nats; or by this part of what was learned in accuracy, and so far.
SWING_FACTOR = 1.5
SWING_SHARE = 0.4
SWING_NATS = 0.2
SWING_ACCURACY = 0.1
MIN_SWINGS, SWING_RATE = 3, 0.15
# A rise by this share of the lowest loss is not called healthy, however few nats it has.
LARGE_RISE = 0.2


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """What a run is.

    Attributes:
        kind: the word.
        reason: the sentence with the numbers that decided it.
        event: name of the event (of `loss-up` without its verdict on the accuracy) that this is; "" if none.
        reference, onset: evaluations (of those with a finite loss) that it is compared with, and at which it began.
    """

    kind: Kind
    reason: str
    event: str = ""
    reference: int = 0
    onset: int = 0


def judge(
    losses: Sequence[float],
    accuracies: Sequence[float],
    train_accuracies: Sequence[float] = (),
    num_classes: int | None = None,
    val_size: int | None = None,
    has_blown_up: bool = False,
) -> RunVerdict:
    """The verdict on one run.

    Args:
        losses: validation loss of each evaluation (nats), oldest first; NaN where there is none.
        accuracies: accuracy in [0, 1] of the same evaluations; NaN where there is none.
        train_accuracies: accuracy on the training data at the same time, as far as known.
        num_classes: C, if known.
        val_size: rows of the validation set, if known.
        has_blown_up: whether the last loss was written as NaN or infinity, which `losses` cannot tell from missing.
    """
    loss = [value for value in losses if math.isfinite(value)]
    accuracy = [value for value in accuracies if math.isfinite(value)]
    if has_blown_up:
        return RunVerdict("unstable", "the loss is not finite at the end", "non-finite", 0, len(loss))
    if max(len(loss), len(accuracy)) < MIN_EVALUATIONS:
        return RunVerdict(
            "undecided", f"evaluations: {max(len(loss), len(accuracy))}, too few to say anything about a trend"
        )
    size = val_size or granularity(accuracy)
    # What is no NLL in nats has no scale of its own: then only shares of the loss count.
    nats = 0.0 if is_no_nll(losses, accuracies) else ABSOLUTE_FLOOR
    found = (
        _blow_up(loss)
        or _swings(loss, accuracy, size)
        or _stuck(pinned(accuracy, train_accuracies, size))
        or _rise(loss, nats)
        or _stuck(at_chance(loss, accuracy, train_accuracies, num_classes))
        or _undecided(not_better(loss, accuracy, num_classes))
        or _fall(loss, accuracy, size)
        or _undecided(_small_rise(loss))
        or _healthy(loss, accuracy, size, nats)
    )
    return found or RunVerdict("undecided", _not_shown(loss, accuracy))


def _blow_up(loss: list[float]) -> RunVerdict | None:
    """The last loss is far above all since the lowest one, or the run ends far above where it began."""
    if len(loss) < MIN_EVALUATIONS:
        return None
    lowest = min(range(len(loss)), key=loss.__getitem__)
    last, before = loss[-1], max(loss[lowest:-1], default=math.inf)
    if last > BLOW_UP * max(before, loss[0]) and last > BLOW_UP * max(loss[lowest], 0.1):
        return RunVerdict(
            "unstable",
            f"the last loss, {last:.4g}, is {last / before:.1f} times any since the lowest",
            "loss-up",
            lowest,
            len(loss) - 1,
        )
    tail = loss[-max(2, len(loss) // 5) :]
    if min(tail) > 10 * max(loss[0], 0.1):
        return RunVerdict(
            "unstable", f"the loss ends at {last:.4g}, it began at {loss[0]:.4g}", "loss-up", lowest, lowest + 1
        )
    return None


def _swings(loss: list[float], accuracy: list[float], size: int | None) -> RunVerdict | None:
    """Legs of a zigzag in the last two thirds that undo and redo a good part of what was learned."""
    lowest = min(range(len(loss)), key=loss.__getitem__, default=0)
    if len(loss) >= trends.MIN_EVALUATIONS:
        later = loss[len(loss) // 3 :]
        least = max(SWING_SHARE * min(loss[0], 2 * median(loss)), SWING_NATS)
        legs = _legs(later, lambda low: max((SWING_FACTOR - 1) * abs(low), least))
        if legs >= max(MIN_SWINGS, SWING_RATE * len(later)):
            return RunVerdict(
                "unstable",
                f"the loss swings {legs} times between {min(later):.4g} and {max(later):.4g} in the last {len(later)} "
                "evaluations",
                "oscillation",
                lowest,
                len(loss) // 3,
            )
    if len(accuracy) >= trends.MIN_EVALUATIONS:
        later = accuracy[len(accuracy) // 3 :]
        level = fmean(later)
        noise = math.sqrt(max(level * (1 - level), 0) / size) if size else 0.0
        amplitude = max(SWING_ACCURACY, SWING_SHARE * (max(accuracy) - accuracy[0]), 3 * noise)
        legs = _legs(later, lambda low: amplitude)
        if legs >= max(MIN_SWINGS, SWING_RATE * len(later)):
            return RunVerdict(
                "unstable",
                f"accuracy swings {legs} times between {percent(min(later))} and {percent(max(later))} in the last "
                f"{len(later)} evaluations",
                "oscillation",
                lowest,
                len(accuracy) // 3,
            )
    return None


def _legs(values: Sequence[float], size: Callable[[float], float]) -> int:
    """Ups and downs of at least `size(low)`, `low` being the lower end of the leg (zigzag)."""
    legs, high, low, direction = 0, values[0], values[0], 0
    for value in values[1:]:
        high, low = max(high, value), min(low, value)
        if direction >= 0 and high - value >= size(value):
            legs += 1
            direction, high, low = -1, value, value
        elif direction <= 0 and value - low >= size(low):
            legs += 1
            direction, high, low = 1, value, value
    return legs


def _stuck(reason: str | None) -> RunVerdict | None:
    return None if reason is None else RunVerdict("stuck", reason, "accuracy-stuck")


def _undecided(reason: str | None) -> RunVerdict | None:
    return None if reason is None else RunVerdict("undecided", reason)


def _rise(loss: list[float], nats: float) -> RunVerdict | None:
    rise = whole_rise(loss, absolute_floor=nats)
    if rise is None:
        return None
    reason = f"the loss is up by {rise.change:.4g} from {loss[rise.reference]:.4g} ({_now(loss)})"
    if nats == 0:
        reason += "; it is too small for an NLL in nats, so that only its share counts"
    return RunVerdict("diverging", reason, "loss-up", rise.reference, rise.onset)


def _fall(loss: list[float], accuracy: list[float], size: int | None) -> RunVerdict | None:
    """Accuracy is down, lastingly."""
    if len(accuracy) < trends.MIN_EVALUATIONS:
        return None
    rise = whole_rise([1 - value for value in accuracy], absolute_floor=max(ACCURACY_MARGIN, row_noise(size)))
    if rise is None:
        return None
    fell = len(loss) == len(accuracy) and loss[rise.reference] - loss[-1] > ABSOLUTE_FLOOR
    change = f"{percent(rise.change)} from {percent(accuracy[rise.reference])}"
    event = "loss-down-accuracy-down" if fell else ""
    return RunVerdict(
        "diverging", f"accuracy is down by {change}, the loss is not up", event, rise.reference, rise.onset
    )


def _small_rise(loss: list[float]) -> str | None:
    """A rise by a good share of the loss, though by few nats."""
    rise = whole_rise(loss, LARGE_RISE, 0.0)
    if rise is None:
        return None
    share = rise.change / max(abs(loss[rise.reference]), 1e-12)
    return f"the loss is up by {percent(share)}, though only by {rise.change:.2g} nats ({_now(loss)})"


def _healthy(loss: list[float], accuracy: list[float], size: int | None, nats: float) -> RunVerdict | None:
    """Shown that the loss is not up and accuracy not down."""
    if not loss or not accuracy:
        return None
    if min(len(loss), len(accuracy)) < trends.MIN_EVALUATIONS:
        lowest, best = min(loss), max(accuracy)
        fell = loss[0] - loss[-1] > LEARNED_LOSS * abs(loss[0])
        if fell and loss[-1] <= 1.02 * lowest and accuracy[-1] >= best - ACCURACY_MARGIN:
            return RunVerdict("healthy", f"loss at its lowest ({_now(loss)}), accuracy at its best")
        return None
    floor = max(RELATIVE_FLOOR * abs(min(loss)), nats)
    not_up = excluded_rise(loss, floor)
    not_down = excluded_rise([1 - value for value in accuracy], max(ACCURACY_MARGIN, row_noise(size)))
    if not_up is None or not_down is None:
        return None
    return RunVerdict(
        "healthy",
        f"loss not up by more than {not_up:.2g} ({_now(loss)}), accuracy not down by more than {percent(not_down)} "
        f"({percent(accuracy[-1])})",
    )


def _not_shown(loss: list[float], accuracy: list[float]) -> str:
    if not loss:
        return "without a loss nothing can be said about its trend"
    if not accuracy:
        return f"loss not up, but no accuracy was logged ({_now(loss)})"
    return f"neither a rise of the loss nor its absence is shown ({_now(loss)})"


def _now(loss: list[float]) -> str:
    return f"now {loss[-1]:.4g}, lowest {min(loss):.4g}"
