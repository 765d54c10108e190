"""Events in what one evaluation, or a whole run so far, looks like: no change is needed to see them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from lightning_lossacc.diagnosis.changes import Opening, Stream, practical_floor
from lightning_lossacc.diagnosis.confidence import KEPT_SHARE, STATIC_SHARE
from lightning_lossacc.diagnosis.data import (
    COLLAPSED,
    TINY_SET,
    class_imbalance,
    is_left_behind,
    is_renamed,
    knows_classes,
    unlearned_spread,
)
from lightning_lossacc.diagnosis.dead import is_clamped, killed_share, silent_share
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import accuracy_of, loss_of
from lightning_lossacc.diagnosis.measurement import (
    loss_mismatch,
    train_eval_mismatch,
    validation_mismatch,
    wrong_accuracy,
)
from lightning_lossacc.diagnosis.optimisation import DEAD_SHARE, DIED_SHARE, RULING_DROPOUT, RULING_PENALTY
from lightning_lossacc.diagnosis.sets import leakage, prior_shift
from lightning_lossacc.floors import constant_confidence_nll
from lightning_lossacc.history import Record

# A state that is normal at the start of a training is a warning when it has lasted so long and the loss stands still.
LASTING = 10
# Fewer evaluations do not show that nothing is learned; an accuracy that is always the same needs fewer.
STUCK_EVALUATIONS = 10
CONSTANT_EVALUATIONS = 5
HIDDEN_EVALUATIONS = 6
SHARES_EVALUATIONS = 3
HIGH_NATS = 0.05
RULED_SHARE = 1 / 3  # of that share where a dropout of 0.8 and more, or a penalty, keeps the logits small
USUAL_SMOOTHING = 0.1  # Szegedy et al. 2016
GROWN = 0.95  # of the logarithm of the temperature in the middle of the run
DEAD_EVALUATIONS = 3
LEFT_SHARE = 0.8  # of the entropy of the labels


def class_share(stream: Stream, known: Event | None) -> Opening | None:
    """Accuracy is the share of one class, which nearly all rows are given to."""

    def holds(record: Record) -> bool:
        if not record.values.get("predicted_majority_rate", 0.0) >= COLLAPSED:
            return False
        # A checkpoint keeps no class table of earlier records; then only the most frequent class can be compared with.
        table, share = record.arrays.get("classes"), record.values.get("majority_rate", math.nan)
        if table is not None:
            share = table["rows"][max(range(len(table["rows"])), key=table["predicted"].__getitem__)] / record.num_rows
        spread = 2.58 * record.values.get("accuracy_standard_error", 0.0) + 1 / record.num_rows
        return share < 1 and abs(record.values["accuracy"] - share) <= spread

    return _state("accuracy-equals-class-share", stream, holds, LASTING)


def shares_differ(stream: Stream, known: Event | None) -> Opening | None:
    """Classes occur in other shares than in training, to the loss of validation."""

    def holds(record: Record) -> bool:
        return prior_shift(replace(stream.state, reference=record, current=record)) is not None

    if "train_classes" not in stream.series[-1].arrays:
        return None
    return _state("class-shares-differ", stream, holds, SHARES_EVALUATIONS)


def hidden_classes(stream: Stream, known: Event | None) -> Opening | None:
    """Frequent classes carry the accuracy, and rare ones are mostly missed."""

    # A collapse has a name of its own; what was missed while it lasted counts.
    if not stream.series[-1].values.get("predicted_majority_rate", 1.0) < COLLAPSED:
        return None

    def holds(record: Record) -> bool:
        if "classes" not in record.arrays:
            return record.values["accuracy"] - record.values.get("balanced_accuracy", math.nan) >= 0.15
        return class_imbalance(replace(stream.state, reference=record, current=record)) is not None

    return _state("accuracy-hides-classes", stream, holds, HIDDEN_EVALUATIONS)


def few_items(stream: Stream, known: Event | None) -> Opening | None:
    """So few items that one of them moves everything."""
    newest = stream.series[-1]
    if not newest.num_items < TINY_SET or len(stream.series) < 3 or "nll" not in newest.values:
        return None
    return Opening("few-items", stream.state, newest.epoch)


def loss_high(stream: Stream, known: Event | None) -> Opening | None:
    """The loss of one evaluation is far above what the same answers cost with fitting confidence."""
    series = stream.series
    if series[-1].arrays.get("looks_like") == "probabilities":
        return Opening("loss-high-for-accuracy", stream.state, series[-1].epoch)

    # What comes and goes at its limit is one event.
    share, nats = (KEPT_SHARE, HIGH_NATS / 2) if known else (STATIC_SHARE, HIGH_NATS)

    def holds(record: Record) -> bool:
        loss = loss_of(record)
        if "nll" not in record.values:
            num_classes, error = record.context.get("num_classes"), 1 - accuracy_of(record)
            known = num_classes is not None and 0 <= error <= 1
            return known and loss - constant_confidence_nll(error, int(num_classes)) >= share * loss
        fits = record.arrays.get("fits", {})
        bias = max(fits.get("bias_gain", 0.0) - 3 * fits.get("bias_gain_error", math.inf), 0.0)
        excess = loss - record.values.get("refinement_nll", math.nan) + bias
        high = excess >= share * loss * (RULED_SHARE if _is_ruled(record) else 1.0) and excess >= nats
        return high or is_renamed(record) or bias >= 0.1 * loss > 0.005

    found = _state("loss-high-for-accuracy", stream, holds, 2 if is_renamed(series[-1]) else None)
    growing = _grows_confident(series) and not settled(stream.losses)
    if found is None or not (growing or found.evidence.is_smoothed(USUAL_SMOOTHING)):
        return found
    return replace(found, evidence=replace(found.evidence, details={"expected": 1.0}))


def stuck(stream: Stream, known: Event | None) -> Opening | None:
    """Accuracy never rose above chance, or does not move at all."""
    series, accuracies = stream.series, stream.accuracies
    recent = [value for value in accuracies[-CONSTANT_EVALUATIONS:] if math.isfinite(value)]
    if len(recent) < CONSTANT_EVALUATIONS:
        return None
    constant = len(set(accuracies)) == 1 and accuracies[-1] < 0.999
    current = series[-1]
    is_log = "nll" not in current.values
    # Training rows that were told apart at first sight leave no doubt about the network.
    certain = (constant and is_log) or is_left_behind(stream.state)
    if len(series) < STUCK_EVALUATIONS and not certain:
        return None
    if not is_log:
        evidence = stream.state
        prior = evidence.label_entropy
        refined = min(record.values.get("refinement_nll", math.nan) for record in series)
        spread = unlearned_spread(current, prior)
        chance = current.values.get("majority_rate", math.nan) + 2.58 * current.values["accuracy_standard_error"]
        if not (refined >= prior - spread and median(recent) <= chance) or knows_classes(current):
            return None
    else:
        losses = stream.losses
        first, last = (median(part) for part in (losses[:CONSTANT_EVALUATIONS], losses[-CONSTANT_EVALUATIONS:]))
        unmoved = abs(last - first) < 0.02 * abs(first)
        finite = [value for value in accuracies if math.isfinite(value)]
        pinned = max(finite) - min(finite) <= 0.005 and finite[-1] < 0.99
        if not (constant or (unmoved and pinned)):
            return None
        evidence = stream.state
    return Opening("accuracy-stuck", evidence, series[0].epoch, lasting=certain or is_log or settled(stream.losses))


def logged_differs(stream: Stream, known: Event | None) -> Opening | None:
    """A loss or an accuracy that the user logs is not that of the captured logits."""
    evidence = stream.state
    if wrong_accuracy(evidence) is None and loss_mismatch(evidence) is None:
        return None
    return Opening("logged-differs", evidence, stream.series[-1].epoch)


def better_than_train(stream: Stream, known: Event | None) -> Opening | None:
    """Validation rows are the same as training rows."""
    if leakage(stream.state) is None:
        return None
    return Opening("val-better-than-train", stream.state, stream.series[-1].epoch)


def behind_first_sight(stream: Stream, known: Event | None) -> Opening | None:
    """These rows come nowhere near what training rows were at first sight, though accuracy moves."""
    # An average of weights that starts with the run needs some evaluations to forget its start.
    if len(stream.series) < LASTING or validation_mismatch(stream.state) is None:
        return None
    return Opening("behind-first-sight", stream.state, stream.series[0].epoch)


def train_eval_gap(stream: Stream, known: Event | None) -> Opening | None:
    """Training rows score far worse in eval mode than in train mode."""
    last = stream.series[-1]
    evidence = stream.state
    if train_eval_mismatch(evidence) is None:
        return None
    return Opening("train-eval-gap", evidence, last.epoch)


def little_learnt(stream: Stream, known: Event | None) -> Opening | None:
    """Most of the entropy of the labels is left after ten evaluations, on training rows as well."""
    evidence, series = stream.state, stream.series
    left = LEFT_SHARE * evidence.label_entropy
    if len(series) < STUCK_EVALUATIONS or not evidence.train_nll > left:
        return None
    # Of more classes than the table lists the entropy is not known.
    if -1 in series[-1].arrays.get("classes", {}).get("class", ()):
        return None
    # A collapse has a name of its own.
    if series[-1].values.get("predicted_majority_rate", 1.0) >= COLLAPSED:
        return None
    if not all(record.values.get("refinement_nll", 0.0) > left for record in series):
        return None
    return Opening("little-learnt", replace(evidence, details={"little_learnt": 1.0}), series[0].epoch)


def dead_layer(stream: Stream, known: Event | None) -> Opening | None:
    """Hardly a unit of some layer has answered any input for some evaluations, or many were killed by huge updates."""
    # With every unit of the network dead nothing can come back; one layer may.
    whole = [record.context.get("dead_units_total", 0.0) >= 1.0 for record in stream.series[-DEAD_EVALUATIONS:]]
    enough = DEAD_EVALUATIONS if all(whole) else LASTING
    series = stream.series[-enough:]
    shares = [silent_share(record) for record in series]
    if len(shares) < enough:
        return None
    killed = killed_share(stream.series, LASTING) >= DIED_SHARE
    if not (all(share >= DEAD_SHARE for share in shares) or killed or is_clamped(stream.series)):
        return None
    evidence = replace(stream.state, details={"dead_evaluations": float(len(series))})
    return Opening("dead-layer", evidence, series[0].epoch)


def not_finite(stream: Stream, known: Event | None) -> Opening | None:
    """Rows of the newest evaluation have NaN or infinite logits, or its loss is not a number."""
    newest = stream.newest
    rows = newest.arrays.get("excluded", {}).get("non_finite", 0)
    measured = newest.num_rows > 0 or "loss" in newest.logged
    if not rows and (not measured or math.isfinite(loss_of(newest))):
        return None
    series = [*(record for record in stream.series if record is not newest), newest]
    other = Stream(series, newest, stream.train, stream.train_probe, stream.accuracy_margin)
    return Opening("non-finite", other.evidence(newest), newest.epoch)


def settled(losses: list[float]) -> bool:
    """Whether the loss no longer falls: between the halves of its last third (of 10 evaluations at least) it fell by
    less than half the practical floor.
    """
    recent = losses[-max(LASTING, len(losses) // 3) :]
    if len(recent) < LASTING or recent[-1] < recent[-4] - practical_floor(recent[-4]):
        return False
    before, after = median(recent[: len(recent) // 2]), median(recent[len(recent) // 2 :])
    return after > before - practical_floor(after) / 2


def _state(event: str, stream: Stream, holds: Callable[[Record], bool], enough: int | None = None) -> Opening | None:
    """A state of the newest record; it lasts if it held for `enough` evaluations, or without that number for some in
    which the loss did not fall.
    """
    series = stream.series
    held = 0
    for record in reversed(series):
        if not holds(record):
            break
        held += 1
    if not held:
        return None
    outside_fit = series[-1].stage in ("validate", "test")
    lasting = outside_fit or (held >= LASTING and (settled(stream.losses) or _stays_miscalibrated(series)))
    if enough is not None:
        lasting = outside_fit or held >= enough
    return Opening(event, stream.state, series[-held].epoch, lasting=lasting)


def _is_ruled(record: Record) -> bool:
    """Whether a dropout or a penalty keeps the logits small."""
    rules = record.context.get("dropout", 0.0) >= RULING_DROPOUT
    rules = rules or record.context.get("penalty", 0.0) >= RULING_PENALTY * loss_of(record)
    return rules and record.values.get("temperature", 1.0) < 0.8


def _grows_confident(series: list[Record]) -> bool:
    """Whether a best temperature below 1 has come nearer to 1 since the middle of the run: such a training has merely
    not ended.
    """
    middle = len(series) // 2
    before, now = (
        [record.values.get("temperature", math.nan) for record in part]
        for part in (series[max(middle - 2, 0) : middle + 3], series[-5:])
    )
    first, last = (median(map(math.log, values)) for values in (before, now))
    return first < 0 and last > GROWN * first


def _stays_miscalibrated(series: list[Record]) -> bool:
    """Whether the best temperature stays as far from 1 as it was over the last evaluations, and the loss stays too."""
    last = series[-LASTING:]
    half = len(last) // 2
    if loss_of(last[-1]) < 0.6 * loss_of(last[0]):
        return False
    if any(record.values.get("temperature_at_edge") for record in last):
        # There the temperature seems to stay whatever it does; what it saves tells.
        saved = [loss_of(record) - record.values.get("refinement_nll", math.nan) for record in last]
        return median(saved[half:]) > 0.85 * median(saved[:half]) > HIGH_NATS
    distances = [abs(math.log(record.values.get("temperature", 1.0))) for record in last]
    return median(distances[half:]) > 0.93 * median(distances[:half]) > 0.3
