"""How did weights and losses move, up to an evaluation: steadily, in a leap, or not at all?"""

from __future__ import annotations

import itertools
import math
from statistics import median

from lightning_lossacc.diagnosis.evidence import Evidence, loss_of

# Leaps of the norm of the weights, after it was steady. In 480 healthy trainings it grew by up to 60 % in one
# evaluation, while the loss of six doubled in one, where it was small.
BURST_NORM, STEADY_NORM, STILL_HIGH, BURST_EVALUATIONS = 1.2, 1.1, 1.5, 12
GREW = 1.05  # times the norm at the reference
CAME_DOWN = 0.9  # of its first level; a loss that exploded before the first evaluation stays where it is
STOPPED_RATIO = 1e-5  # no weight moves by more in a hundred steps than by a thousandth
EVEN_EVALUATIONS = 10


def came_suddenly(evidence: Evidence) -> bool:
    """Whether the loss rose although neither the penalty's factor nor the dropout is another one than it was at the
    reference, and the weights have grown since.
    """
    if evidence.is_static or not evidence.nll_change > 0:
        return False
    before, now = (
        [record.context.get(key, 0.0) for key in ("weight_decay", "dropout")]
        for record in (evidence.reference, evidence.current)
    )
    norms = [record.context.get("weight_norm", math.nan) for record in (evidence.reference, evidence.current)]
    return before == now and norms[1] > GREW * norms[0]


def burst(evidence: Evidence) -> tuple[str, str] | None:
    """That steady weights leapt within one evaluation, and the loss with them, in words."""
    # What leapt before an interval is not the reason for it, nor is what has come back.
    start = -1 if evidence.is_static else evidence.reference.global_step
    series, now = evidence.series[-BURST_EVALUATIONS:], loss_of(evidence.current)
    for earlier, before, after in zip(series, series[1:], series[2:], strict=False):
        norms = [record.context.get("weight_norm", math.nan) for record in (earlier, before, after)]
        train = [record.context.get("train_nll", math.nan) for record in (before, after)]
        losses = [loss_of(before), loss_of(after)]
        if before.epoch < 2 or not (norms[2] > BURST_NORM * norms[1] and norms[1] < STEADY_NORM * norms[0]):
            continue
        if after.global_step <= start or not now > STILL_HIGH * losses[0]:
            continue
        if losses[1] > 2 * losses[0] and train[1] > 2 * train[0]:
            return (
                f"between steps {before.global_step} and {after.global_step} (epoch {after.epoch}) the norm of the "
                f"weights leapt from {norms[1]:.3g} to {norms[2]:.3g}, and the loss from {losses[0]:.3g} to "
                f"{losses[1]:.3g}",
                f"the loss of training steps {train[0]:.3g} → {train[1]:.3g}",
            )
    return None


def shrunk(evidence: Evidence) -> bool:
    """Whether weight decay has shrunk the weights to less than a third of what they were."""
    norms = evidence.context_column("weight_norm")
    return evidence.context("weight_decay") >= 1e-3 and len(norms) >= 3 and norms[-1] < max(norms) / 3


def stopped(evidence: Evidence) -> tuple[str, str] | None:
    """That a schedule ended long ago, in words: for ten evaluations and half of the run nothing has moved."""
    ratios = [record.context.get("update_ratio", math.nan) for record in evidence.series]
    count = max(EVEN_EVALUATIONS, len(ratios) // 2)
    rates = evidence.context_column("learning_rate")
    if len(ratios) < count or not rates or not rates[-1] <= 1e-3 * max(rates):
        return None
    if not all(ratio < STOPPED_RATIO for ratio in ratios[-count:]):
        return None
    return (
        f"for {count} evaluations an update has moved the weights by at most {100 * max(ratios[-count:]):.2g} % of "
        "their size (usual: 0.1 %)",
        f"learning rate {max(rates):.3g} → {rates[-1]:.3g} in {len(rates)} evaluations: a schedule of epochs that is "
        "stepped for each batch ends so",
    )


def came_down(evidence: Evidence) -> bool:
    """Whether the loss has been highest at the first evaluation and is lowest now, by a tenth, in training as well."""
    losses, train = [loss_of(record) for record in evidence.series], evidence.train_losses
    falls = [
        values[0] >= max(values) and values[-1] <= min(min(values), CAME_DOWN * values[0])
        for values in (losses, train)
        if len(values) > 1
    ]
    return len(losses) > 1 and all(falls)


def falls_evenly(evidence: Evidence) -> bool:
    """Whether the loss fell as fast in the last half of the run as in the first, at one rate: learning has not slowed
    down yet.
    """
    losses = [loss_of(record) for record in evidence.series]
    rates = evidence.context_column("learning_rate")
    if len(losses) < EVEN_EVALUATIONS or not rates or max(rates) > 3 * min(rates):
        return False
    first, middle, last = losses[0], losses[len(losses) // 2], losses[-1]
    return last < middle < first and middle - last > 0.75 * (first - middle) * (len(losses) - 1 - len(losses) // 2) / (
        len(losses) // 2
    )


def relative_swing(losses: list[float]) -> float:
    """Median size of the swings over the level: half the absolute second difference, which a smooth fall has not."""
    steps = [second - first for first, second in itertools.pairwise(losses)]
    turns = [abs(second - first) / 2 for first, second in itertools.pairwise(steps)]
    return median(turns) / median(losses) if turns and median(losses) > 0 else 0.0
