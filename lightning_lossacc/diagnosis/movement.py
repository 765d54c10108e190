"""Events in how a loss moves by itself: standing still, swinging, jumping."""

from __future__ import annotations

from statistics import median

from lightning_lossacc.diagnosis.changes import Opening, Stream, practical_floor
from lightning_lossacc.diagnosis.states import LASTING


def plateau(stream: Stream, is_open: bool) -> Opening | None:
    """The loss has stood still for some time, within the practical floor, and most of it is still there.

    The halves of the last third of the evaluations (10 or more) differ by less than half the floor.
    """
    losses = stream.losses
    width = max(LASTING, len(losses) // 3)
    recent = losses[-width:]
    if len(recent) < width:
        return None
    before, after = median(recent[: width // 2]), median(recent[width // 2 :])
    if abs(after - before) > practical_floor(after) / 2:
        return None
    details = {"plateau": float(width), "plateau_change": after - before}
    newest = stream.series[-1]
    return Opening("plateau", stream.evidence(newest, details=details), stream.series[-width].epoch)
