"""One word about a whole run, from its loss and accuracy alone: diverging, stuck, unstable, healthy or undecided.

Asked in this order, the first yes decides:

1. `unstable`: the loss is not finite at the end, blows up at the end, or swings again and again so far that the swings
   are a good part of all that was learned.
2. `stuck`: accuracy is pinned to one value.
3. `diverging`: the loss has risen and is still up (`trends.find_rise`; below 8 evaluations a rise of a fifth at least).
4. `stuck`: neither loss nor accuracy got better, and the loss is no smaller than that of a constant answer.
5. `diverging`: accuracy has fallen and is still down.
6. `healthy`: shown that the loss is not up and accuracy not down.
7. `undecided`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from lightning_lossacc import trends
from lightning_lossacc.rises import ABSOLUTE_FLOOR, MIN_EVALUATIONS, RELATIVE_FLOOR, excluded_rise, whole_rise

Kind = Literal["diverging", "stuck", "unstable", "healthy", "undecided"]

ACCURACY_MARGIN = 0.01
BLOW_UP = 3.0  # last loss over the largest one since the lowest
PINNED_SHARE = 0.8  # of all evaluations with exactly the same accuracy
PINNED_EVALUATIONS = 5
PERFECT = 0.995
LEARNED_IN_TRAINING = 0.1
# A swing goes up or down by this factor of the loss, this part of the first loss (but at most of twice the median) and
# so many nats; or by this part of what was learned in accuracy, and so far.
SWING_FACTOR = 1.5
SWING_SHARE = 0.4
SWING_NATS = 0.2
SWING_ACCURACY = 0.1
MIN_SWINGS, SWING_RATE = 3, 0.15
LEARNED_LOSS, LEARNED_ACCURACY = 0.05, 0.02


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
    size = val_size or _granularity(accuracy)
    found = (
        _blow_up(loss)
        or _swings(loss, accuracy, size)
        or _pinned(accuracy, size, train_accuracies)
        or _rise(loss)
        or _pinned(accuracy, size)
        or _nothing_learned(loss, accuracy, num_classes)
        or _fall(loss, accuracy, size)
        or _healthy(loss, accuracy, size)
    )
    return found or RunVerdict("undecided", _undecided(loss, accuracy))


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
                f"accuracy swings {legs} times between {_percent(min(later))} and {_percent(max(later))} in the last "
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


def _pinned(accuracy: list[float], size: int | None, train: Sequence[float] = ()) -> RunVerdict | None:
    """One value of accuracy in nearly all evaluations, none much better, and none on the training data either."""
    if len(accuracy) < PINNED_EVALUATIONS:
        return None
    common = max(set(accuracy), key=accuracy.count)
    share = accuracy.count(common) / len(accuracy)
    if share < PINNED_SHARE or common >= PERFECT or max(accuracy) > common + max(ACCURACY_MARGIN, _row_noise(size)):
        return None
    known = [value for value in train if math.isfinite(value)]
    if known and median(known[-3:]) > common + LEARNED_IN_TRAINING:
        # The training data are being learned, so that the loss is asked first.
        return None
    many = f"{accuracy.count(common)} of {len(accuracy)} evaluations"
    return RunVerdict("stuck", f"accuracy is {_percent(common)} in {many}", "accuracy-stuck")


def _rise(loss: list[float]) -> RunVerdict | None:
    rise = whole_rise(loss)
    if rise is None:
        return None
    reason = f"the loss is up by {rise.change:.4g} from {loss[rise.reference]:.4g} ({_now(loss)})"
    return RunVerdict("diverging", reason, "loss-up", rise.reference, rise.onset)


def _nothing_learned(loss: list[float], accuracy: list[float], num_classes: int | None) -> RunVerdict | None:
    """No gain of loss or accuracy since the start, and predictions that a constant answer equals."""
    if len(accuracy) < PINNED_EVALUATIONS or len(loss) < PINNED_EVALUATIONS:
        return None
    width = max(len(accuracy) // 5, 2)
    start, end = median(accuracy[:2]), median(accuracy[-width:])
    level, lowest = median(loss[-width:]), min(loss)
    gained = end - min(start, accuracy[0]) > max(LEARNED_ACCURACY, end / 10)
    unmoved = abs(loss[0] - level) < LEARNED_LOSS * abs(loss[0])
    if (not gained or unmoved) and _is_chance(level, end, num_classes):
        known = "" if num_classes is None else f" (ln {num_classes} = {math.log(num_classes):.4g})"
        return RunVerdict(
            "stuck", f"loss {level:.4g}{known} and accuracy {_percent(end)}: no better than chance", "accuracy-stuck"
        )
    fell = loss[0] - level > LEARNED_LOSS * abs(loss[0])
    if gained or fell or level > 1.25 * lowest:
        return None
    if level < constant_loss(1 - end, num_classes):
        return None
    return RunVerdict(
        "stuck",
        f"neither loss ({loss[0]:.4g} → {level:.4g}) nor accuracy ({_percent(start)} → {_percent(end)}) got better, "
        "and a constant answer would be as good",
        "accuracy-stuck",
    )


def _is_chance(level: float, accuracy: float, num_classes: int | None) -> bool:
    """Whether loss and accuracy are those of a guess among C classes; C is the nearest one if it is not known."""
    classes = num_classes or round(math.exp(min(level, 12.0)))
    if classes < 2:
        return False
    known = num_classes is not None
    # Of many classes the nearest C always fits the loss, so accuracy alone decides; the more it has to be near 1 / C.
    tolerance = 0.02 if known or classes < 20 else 0.01
    near = abs(level - math.log(classes)) <= tolerance * math.log(classes)
    return near and accuracy <= (1.5 if known or classes < 20 else 1.2) / classes


def constant_loss(error: float, num_classes: int | None = None) -> float:
    """NLL of an answer that is right in `1 - error` of the rows and always equally confident, nats.

    `h(e) + e ln(C - 1)` with the binary entropy `h`; without C its smallest value, that of two classes.
    """
    if not 0 < error < 1:
        return 0.0 if error <= 0 else math.log(max((num_classes or 2) - 1, 1))
    entropy = -error * math.log(error) - (1 - error) * math.log(1 - error)
    return entropy + error * math.log(max((num_classes or 2) - 1, 1))


def _fall(loss: list[float], accuracy: list[float], size: int | None) -> RunVerdict | None:
    """Accuracy is down, lastingly."""
    if len(accuracy) < trends.MIN_EVALUATIONS:
        return None
    rise = whole_rise([1 - value for value in accuracy], absolute_floor=max(ACCURACY_MARGIN, _row_noise(size)))
    if rise is None:
        return None
    fell = len(loss) == len(accuracy) and loss[rise.reference] - loss[-1] > ABSOLUTE_FLOOR
    change = f"{_percent(rise.change)} from {_percent(accuracy[rise.reference])}"
    event = "loss-down-accuracy-down" if fell else ""
    return RunVerdict(
        "diverging", f"accuracy is down by {change}, the loss is not up", event, rise.reference, rise.onset
    )


def _healthy(loss: list[float], accuracy: list[float], size: int | None) -> RunVerdict | None:
    """Shown that the loss is not up and accuracy not down."""
    if not loss or not accuracy:
        return None
    if min(len(loss), len(accuracy)) < trends.MIN_EVALUATIONS:
        lowest, best = min(loss), max(accuracy)
        fell = loss[0] - loss[-1] > LEARNED_LOSS * abs(loss[0])
        if fell and loss[-1] <= 1.02 * lowest and accuracy[-1] >= best - ACCURACY_MARGIN:
            return RunVerdict("healthy", f"loss at its lowest ({_now(loss)}), accuracy at its best")
        return None
    floor = max(RELATIVE_FLOOR * abs(min(loss)), ABSOLUTE_FLOOR)
    not_up = excluded_rise(loss, floor)
    not_down = excluded_rise([1 - value for value in accuracy], max(ACCURACY_MARGIN, _row_noise(size)))
    if not_up is None or not_down is None:
        return None
    return RunVerdict(
        "healthy",
        f"loss not up by more than {not_up:.2g} ({_now(loss)}), accuracy not down by more than {_percent(not_down)} "
        f"({_percent(accuracy[-1])})",
    )


def _row_noise(size: int | None) -> float:
    """Share of two rows, the least that an accuracy can move and still mean something."""
    return 2 / size if size else 0.0


def _granularity(accuracy: list[float]) -> int | None:
    """Rows of a small validation set, read off accuracies that are all multiples of 1 / n (n up to 400)."""
    distinct = sorted(set(accuracy))
    if len(distinct) < 3:
        return None
    for size in range(3, 401):
        if all(abs(value * size - round(value * size)) < 1e-4 * size**0.5 for value in distinct):
            return size
    return None


def _undecided(loss: list[float], accuracy: list[float]) -> str:
    if not loss:
        return "without a loss nothing can be said about its trend"
    if not accuracy:
        return f"loss not up, but no accuracy was logged ({_now(loss)})"
    return f"neither a rise of the loss nor its absence is shown ({_now(loss)})"


def _now(loss: list[float]) -> str:
    return f"now {loss[-1]:.4g}, lowest {min(loss):.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
