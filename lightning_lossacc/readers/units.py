"""Percent or fraction? Decided for a column as a whole, by most of its values; what can be neither is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_lossacc.readers.columns import PERCENT_WORDS, words_of

# An accuracy above this is a percentage: rounding and smoothing leave a fraction below it.
MAX_FRACTION = 1.5
MAX_PERCENT = 101.0
# At most this share of a column are strays; with more impossible values it is no accuracy.
MAX_STRAY = 0.1
# What is so far above all fractions of a column is no percentage among them, but a stray.
STRAY_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Unit:
    """How the accuracies of one column are to be read.

    Attributes:
        is_percent: whether they are percentages.
        largest: what is above it, or below 0, is left out.
        strays: how many finite values that are.
    """

    is_percent: bool
    largest: float
    strays: int


def unit_of(name: str, values: Iterable[float], has_sign: bool) -> Unit | None:
    """The unit of an accuracy, or None if it holds too many values that no accuracy has.

    Args:
        name: of the column; it may say percent.
        values: all its values; what is not finite does not count.
        has_sign: whether they were written with a percent sign.
    """
    finite = [value for value in values if math.isfinite(value)]
    possible = [value for value in finite if 0 <= value <= MAX_PERCENT]
    impossible = len(finite) - len(possible)
    if impossible > MAX_STRAY * len(finite):
        return None
    # A name that says percent may stand over fractions, but those never pass 1.
    limit = 1.0 if set(words_of(name)) & PERCENT_WORDS else MAX_FRACTION
    above = [value for value in possible if value > limit]
    below = [value for value in possible if value <= limit]
    few = len(above) <= MAX_STRAY * len(possible)
    are_strays = few and min(above, default=0.0) > STRAY_FACTOR * max(below, default=0.0)
    if has_sign or (above and not are_strays):
        return Unit(True, MAX_PERCENT, impossible)
    return Unit(False, limit, impossible + len(above))
