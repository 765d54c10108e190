"""Causes in what was learned: the answers themselves get worse on new data."""

from __future__ import annotations

from lightning_lossacc.diagnosis.confidence import OVERFITTING_SHARE
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence


def overfitting(evidence: Evidence) -> Cause | None:
    """The loss rose and no temperature takes it back: the ranking of the classes got worse.

    What it finds: the lower end of the 99 % interval of the change after one temperature is above 50 % of the rise.
    Why it matters: the model at the reference epoch is better, whatever is done to its probabilities.
    Evidence it needs: paired rows and the temperature grid.
    What to do: keep the checkpoint with the lowest loss after one temperature; regularise, augment, more data.
    When it is wrong: label noise that is being memorised looks the same from the validation side alone, and class-wise
    miscalibration is not repaired by one temperature.
    Reference: Berta et al. 2025; Prechelt 1998.
    """
    change, low, high = evidence.refinement_change
    share, lowest_share, _ = evidence.refinement_share
    if not lowest_share > OVERFITTING_SHARE:
        return None
    lines = [
        f"after one temperature the loss still rose by {change:.4f} nats ({low:+.4f} … {high:+.4f})",
    ]
    against = []
    if evidence.accuracy.kind == "down":
        lines.append(f"accuracy fell by {-100 * evidence.accuracy.change:.1f} pp")
    else:
        against.append(f"accuracy is {evidence.accuracy.kind}")
    if evidence.at_edge:
        against.append("the best temperature lies outside the grid, so that the rest is an upper bound")
    return Cause("overfitting", share=min(1.0, share), evidence=tuple(lines), against=tuple(against))
