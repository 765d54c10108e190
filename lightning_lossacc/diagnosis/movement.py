"""Events in how a loss moves by itself: standing still, swinging, jumping."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_lossacc import trends
from lightning_lossacc.diagnosis.changes import ABSOLUTE_FLOOR, Opening, Stream, practical_floor
from lightning_lossacc.diagnosis.event import Event

# Of the level, from low to high: less is ordinary jitter.
SWING = 0.15
# More evaluations than the longest shape looks at.
RECENT = 40
# It is not a claim by itself, since a plateau needs a cause to be reported.
PLATEAU_ALPHA = 0.1


def plateau(stream: Stream, known: Event | None) -> Opening | None:
    """The loss, or that after one temperature, has stood still for 10 evaluations, within the practical floor."""
    refined = [record.values.get("refinement_nll", math.nan) for record in stream.series[-RECENT:]]
    for losses in (stream.losses[-RECENT:], refined):
        if not all(map(math.isfinite, losses)):
            continue
        floor = practical_floor(losses[-1]) * (2 if known else 1)
        found = trends.find_plateau(losses, floor, alpha=PLATEAU_ALPHA)
        # A loss that rises while the other one stands is no plateau.
        if found is not None and stream.losses[-1] <= min(stream.losses[-found.window :]) + floor:
            break
    else:
        return None
    details = {"plateau": float(found.window), "plateau_change": found.change}
    if losses is refined:
        details["plateau_refined"] = 1.0
    onset = stream.series[-found.window].epoch
    return Opening("plateau", replace(stream.state, details=details), onset)


def oscillation(stream: Stream, known: Event | None) -> Opening | None:
    """The loss keeps swinging by a large part of its level, beyond what the size of the validation set brings."""
    errors = [record.values.get("nll_standard_error", 0.0) / 5 for record in stream.series[-RECENT:]]
    losses = stream.losses[-RECENT:]
    found = trends.find_oscillation(losses, relative_floor=SWING, absolute_floor=ABSOLUTE_FLOOR, errors=errors)
    if found is None:
        return None
    details = {"swing": 2 * found.amplitude, "swing_window": float(found.window)}
    onset = stream.series[-found.window].epoch
    return Opening("oscillation", replace(stream.state, details=details), onset)


def spike(stream: Stream, known: Event | None) -> Opening | None:
    """One or two evaluations stood far above their surroundings and came back."""
    found = trends.find_spike(stream.losses[-RECENT:])
    if found is None:
        return None
    epoch = stream.series[-RECENT:][found.index].epoch
    details = {"spike_epoch": float(epoch), "spike_height": found.height}
    return Opening("spike", replace(stream.state, details=details), epoch)
