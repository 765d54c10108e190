"""Does a run answer like a constant? From its loss and accuracy alone, and only where something shows it.

A constant answer repeats one accuracy, or, if it jitters between the shares of classes, is right in about 1 / C of the
rows at a loss of about ln C. A run that merely did not get better shows neither: it may have begun well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from lightning_lossacc.floors import constant_confidence_nll

ACCURACY_MARGIN = 0.01
PINNED_SHARE = 0.8  # of all evaluations with exactly the same accuracy
PINNED_EVALUATIONS = 5
PERFECT = 0.995
LEARNED_IN_TRAINING = 0.1
LEARNED_LOSS, LEARNED_ACCURACY = 0.05, 0.02
# A class has at most C ** 0.3 times its fair share, more for more classes; what is right more often knows something.
CHANCE_POWER = 0.7
# Loss of a guess over ln C: it may be a little more sure than it ought to be.
CHANCE_LOSS = (0.98, 1.1)


def stuck_reason(
    loss: list[float],
    accuracy: list[float],
    train: Sequence[float] = (),
    num_classes: int | None = None,
    size: int | None = None,
) -> str | None:
    """The numbers that show a constant answer, or None."""
    return pinned(accuracy, train, size or granularity(accuracy)) or at_chance(loss, accuracy, train, num_classes)


def pinned(accuracy: list[float], train: Sequence[float] = (), size: int | None = None) -> str | None:
    """One value of accuracy in nearly all evaluations, none much better, and none on the training data either."""
    if len(accuracy) < PINNED_EVALUATIONS:
        return None
    common = max(set(accuracy), key=accuracy.count)
    share = accuracy.count(common) / len(accuracy)
    if share < PINNED_SHARE or common >= PERFECT or max(accuracy) > common + max(ACCURACY_MARGIN, row_noise(size)):
        return None
    if _in_training(train) > common + LEARNED_IN_TRAINING:
        return None
    return f"accuracy is {percent(common)} in {accuracy.count(common)} of {len(accuracy)} evaluations"


def at_chance(
    loss: list[float], accuracy: list[float], train: Sequence[float] = (), num_classes: int | None = None
) -> str | None:
    """Loss and accuracy of a guess among C classes, and no gain of one of them since the start."""
    if min(len(accuracy), len(loss)) < PINNED_EVALUATIONS:
        return None
    start, end, level = _levels(loss, accuracy)
    # Twice as often right, or with half of the errors gone, training has learned what is no guess any more.
    if _in_training(train) > max(min(2 * end, (1 + end) / 2), end + LEARNED_IN_TRAINING):
        return None
    gained = _has_gained(accuracy, start, end)
    unmoved = abs(loss[0] - level) < LEARNED_LOSS * abs(loss[0])
    if (not gained or unmoved) and _is_chance(level, end, num_classes):
        known = "" if num_classes is None else f" (ln {num_classes} = {math.log(num_classes):.4g})"
        return f"loss {level:.4g}{known} and accuracy {percent(end)}: no better than chance"
    if gained or _has_moved(loss, level):
        return None
    classes = num_classes or math.exp(min(level, 12.0))
    low, high = CHANCE_LOSS
    if classes < 2 or not low * math.log(classes) <= level <= high * math.log(classes):
        return None
    if end > classes**-CHANCE_POWER or level < constant_confidence_nll(1 - end, num_classes or 2):
        return None
    return f"{_unchanged(loss, accuracy)}, and a guess would be as good"


def not_better(loss: list[float], accuracy: list[float], num_classes: int | None = None) -> str | None:
    """Nothing was gained or lost, and these numbers do not tell whether a constant answer would do as well."""
    if min(len(accuracy), len(loss)) < PINNED_EVALUATIONS:
        return None
    start, end, level = _levels(loss, accuracy)
    if _has_gained(accuracy, start, end) or _has_moved(loss, level) or end >= PERFECT or end < start - LEARNED_ACCURACY:
        return None
    if level < constant_confidence_nll(1 - end, num_classes or 2):
        return None
    return f"{_unchanged(loss, accuracy)}; whether a constant answer would be as good is not shown"


def row_noise(size: int | None) -> float:
    """Share of two rows, the least that an accuracy can move and still mean something."""
    return 2 / size if size else 0.0


def granularity(accuracy: list[float]) -> int | None:
    """Rows of a small validation set, read off accuracies that are all multiples of 1 / n (n up to 400)."""
    distinct = sorted(set(accuracy))
    if len(distinct) < 3:
        return None
    for size in range(3, 401):
        if all(abs(value * size - round(value * size)) < 1e-4 * size**0.5 for value in distinct):
            return size
    return None


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _levels(loss: list[float], accuracy: list[float]) -> tuple[float, float, float]:
    """Accuracy at the start and at the end, and the loss at the end."""
    width = max(len(accuracy) // 5, 2)
    return median(accuracy[:2]), median(accuracy[-width:]), median(loss[-width:])


def _has_gained(accuracy: list[float], start: float, end: float) -> bool:
    """More accuracy than at the start, by much or step by step."""
    steady = all(after >= before for before, after in pairwise(accuracy))
    if steady and accuracy[-1] - accuracy[0] > LEARNED_ACCURACY:
        return True
    return end - min(start, accuracy[0]) > max(LEARNED_ACCURACY, end / 10)


def _has_moved(loss: list[float], level: float) -> bool:
    return loss[0] - level > LEARNED_LOSS * abs(loss[0]) or level > 1.25 * min(loss)


def _is_chance(level: float, accuracy: float, num_classes: int | None) -> bool:
    """Whether loss and accuracy are those of a guess among C classes; C is the nearest one if it is not known."""
    classes = num_classes or round(math.exp(min(level, 12.0)))
    if classes < 2:
        return False
    known = num_classes is not None
    # Of many classes the nearest C always fits the loss, so accuracy alone decides; the more it has to be near 1 / C.
    tolerance = 0.02 if known or classes < 20 else 0.01
    near = abs(level - math.log(classes)) <= tolerance * math.log(classes)
    highest = (1.5 if known or classes < 20 else 1.2) / classes
    return near and accuracy <= min(highest, classes**-CHANCE_POWER)


def _in_training(train: Sequence[float]) -> float:
    """Accuracy on the training data at the end, -inf if it is not known."""
    known = [value for value in train if math.isfinite(value)]
    return median(known[-3:]) if known else -math.inf


def _unchanged(loss: list[float], accuracy: list[float]) -> str:
    start, end, level = _levels(loss, accuracy)
    return (
        f"neither loss ({loss[0]:.4g} → {level:.4g}) nor accuracy ({percent(start)} → {percent(end)}) got better "
        "since the first evaluations"
    )
