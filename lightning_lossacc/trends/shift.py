"""What a rise is described by."""

from __future__ import annotations

from dataclasses import dataclass


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
