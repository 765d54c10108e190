"""Events in what changed between two evaluations: when loss and accuracy part."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

from lightning_lossacc import trends
from lightning_lossacc.attribution import interval
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.floors import label_entropy
from lightning_lossacc.history import Record

RELATIVE_FLOOR = 0.05  # of the reference NLL
ABSOLUTE_FLOOR = 0.01  # nats
ACCURACY_MARGIN = 0.01  # at most this; else 10 % of the reference error, or its standard error if that is more
ALPHA = 0.01
# Evaluations in a row, and standard errors of each paired rise, that stand in for a trend.
PAIRED_EVALUATIONS, PAIRED_SCORE = 5, 3.5
# Update over weight. Before eight evaluations five of 344 healthy trainings rose twice and came back, at 0.5 … 8 %.
RESTLESS = 5e-3
# Of the reference loss; rows say nothing of the unrest of the optimiser, which brought 17 % in a healthy run.
EARLY_RISE = 0.2


@dataclass(frozen=True)
class Stream:
    """What is known of one stage and loader when a record is judged.

    Attributes:
        series: comparable records with a finite loss, oldest first; the newest one is judged.
        newest: the newest record, also where its loss is not finite.
        train: records of training epochs.
        train_probe: evaluations of the train probe.
        accuracy_margin: see `margin`.
        since_step: where the loss was lowest when a rise had come back; -1 if none has.
    """

    series: list[Record]
    newest: Record
    train: list[Record] = field(default_factory=list)
    train_probe: list[Record] = field(default_factory=list)
    accuracy_margin: float = ACCURACY_MARGIN
    since_step: int = -1

    @cached_property
    def losses(self) -> list[float]:
        """Loss of each record of the series."""
        return [loss_of(record) for record in self.series]

    @cached_property
    def accuracies(self) -> list[float]:
        """Accuracy of each record of the series; NaN where unknown."""
        return [accuracy_of(record) for record in self.series]

    def place(self, record: Record) -> int:
        """Index of a record of the series; by identity, since comparing records compares all their numbers."""
        return next(place for place, other in enumerate(self.series) if other is record)

    def margin(self, reference: Record) -> float:
        """Largest change of accuracy that counts as flat, for one reference."""
        error = 1 - accuracy_of(reference)
        # What is less than the standard error of the accuracy says nothing about new data. By its formula for items of
        # one row, since a checkpoint keeps no standard error of earlier evaluations.
        items = reference.num_items
        finest = max(0.1 * error, math.sqrt(max(error * (1 - error), 0.0) / items) if items > 0 else 0.0)
        return min(self.accuracy_margin, finest) or self.accuracy_margin

    @cached_property
    def state(self) -> Evidence:
        """Everything about the newest record as it is; asked by every judge of a state, so measured once."""
        return self.evidence(self.series[-1])

    def evidence(self, reference: Record, paired: dict[str, Any] | None = None) -> Evidence:
        """Everything about the newest record against a reference."""
        margin = self.margin(reference)
        return Evidence(
            reference,
            self.series[-1],
            self._accuracy_verdict(reference, margin),
            paired,
            self.series,
            self.train,
            self.train_probe,
        )

    def _accuracy_verdict(self, reference: Record, margin: float) -> trends.Verdict:
        place = self.place(reference)
        if not math.isfinite(accuracy_of(reference)):
            return trends.Verdict("undecided", math.nan, -math.inf, math.inf, margin, math.inf)
        accuracy = trends.compare(self.accuracies, place, margin, alpha=ALPHA)
        if accuracy.kind == "flat" and "balanced_accuracy" in reference.values:
            balanced = [record.values.get("balanced_accuracy", math.nan) for record in self.series]
            if trends.compare(balanced, place, margin, alpha=ALPHA).kind == "down":
                # Rare classes were lost while frequent ones hide it: that is not flat.
                return trends.Verdict(
                    "undecided", accuracy.change, accuracy.low, accuracy.high, accuracy.margin, accuracy.resolvable
                )
        return accuracy

    def loss_verdict(self, reference: Record) -> trends.Verdict:
        """Where the loss stands against a reference."""
        place = self.place(reference)
        return trends.compare(self.losses, place, practical_floor(loss_of(reference)), alpha=ALPHA)

    def reference(self, name: str) -> Record | None:
        """The evaluation that the probe compared the newest record with, if it is in the series."""
        paired = self.series[-1].paired.get(name)
        if paired is None:
            return None
        return self._at(paired["reference_epoch"], paired["reference_step"])

    def reported(self, event: Event) -> Record | None:
        """The evaluation that an event was reported against, if it is in the series."""
        return self._at(event.reference_epoch, event.reference_step)

    def _at(self, epoch: int, step: int) -> Record | None:
        return next(
            (record for record in self.series[:-1] if (record.epoch, record.global_step) == (epoch, step)), None
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """An event that holds at the newest record.

    Attributes:
        event: its name.
        evidence: what its causes are decided from.
        onset_epoch: first epoch of it.
        size: what is reported again when it has doubled; NaN for states.
        lasting: False while it may be no more than the ordinary start of a training: then it is `info`.
    """

    event: str
    evidence: Evidence
    onset_epoch: int
    size: float = math.nan
    lasting: bool = True


def loss_up(stream: Stream, known: Event | None) -> Opening | None:
    """The loss has risen above an earlier level, beyond jitter and the practical floor."""
    series, losses = stream.series, stream.losses
    current = series[-1]
    reference = stream.reference("nll") or series[min(range(len(losses)), key=losses.__getitem__)]
    floor = practical_floor(loss_of(reference))
    change = losses[-1] - loss_of(reference)
    paired = current.paired.get("nll")
    onset = stream.place(reference) + 1
    if known:
        if change < floor / 2 or _is_back(stream, known, change):
            return None
    elif len(series) < trends.MIN_EVALUATIONS and _is_restless(series):
        return None
    else:
        rates = [record.context.get("learning_rate", math.nan) for record in series]
        shift = loss_rise(losses, rates) or _rise_since(stream, rates)
        if shift is not None and change >= floor and not _may_be_a_start(stream, reference):
            onset = shift.onset
        elif not (_shown_early(series, reference, change, floor) or _shown_lasting(series, reference, floor)):
            return None
    evidence = stream.evidence(reference, paired)
    kind = evidence.accuracy.kind
    words = kind if kind in ("flat", "not-down", "up", "down") else "undecided"
    epoch = series[min(onset, len(series) - 1)].epoch
    return Opening(f"loss-up-accuracy-{words}", evidence, epoch, abs(evidence.full_nll_change))


def _is_back(stream: Stream, known: Event, change: float) -> bool:
    """Whether the loss is back at the level that a rise was reported against, and not up from a lower one by as much: a
    new lowest loss is no reference for what was said before it.
    """
    before, reported = stream.reported(known), known.evidence.get("nll_change")
    if before is None or (isinstance(reported, float) and change >= reported / 2):
        return False
    return stream.losses[-1] < loss_of(before) + practical_floor(loss_of(before)) / 2


def _rise_since(stream: Stream, rates: list[float]) -> trends.Shift | None:
    """A rise since the lowest loss at which the last one was over: that one and its end would count as jitter."""
    if stream.since_step < 0:
        return None
    start = next((place for place, record in enumerate(stream.series) if record.global_step >= stream.since_step), 0)
    shift = loss_rise(stream.losses[start:], rates[start:])
    return None if shift is None else replace(shift, reference=shift.reference + start, onset=shift.onset + start)


def _is_restless(series: list[Record]) -> bool:
    """Whether steps are so large that two high evaluations are their unrest; fine-tuning takes far smaller ones."""
    return any(record.context.get("update_ratio", 0.0) >= RESTLESS for record in series[-3:])


def _may_be_a_start(stream: Stream, reference: Record) -> bool:
    """Whether a rise within the first evaluations may be the unrest of a start: nothing was learned before it, it is
    small, or the training loss rises as well.
    """
    if len(stream.series) >= trends.MIN_EVALUATIONS:
        return False
    if stream.losses[-1] < (1 + EARLY_RISE) * loss_of(reference):
        return True
    return _training_rises(stream.series) or not _has_learned(stream.series, reference)


def _training_rises(series: list[Record]) -> bool:
    """Whether the training loss is a tenth above its lowest: then it is the optimiser, and not what was learnt."""
    train = [record.context.get("train_nll", record.context.get("train_loss", math.nan)) for record in series]
    train = [value for value in train if math.isfinite(value)]
    return len(train) > 2 and train[-1] > 1.1 * min(train)


def _has_learned(series: list[Record], reference: Record) -> bool:
    """Whether a tenth of the label entropy or more is gone after one temperature; true where that is not known."""
    # The newest record has the class table of all of them; a checkpoint keeps none of earlier ones.
    rows = series[-1].arrays.get("classes", {}).get("rows", [])
    return not rows or not reference.values.get("refinement_nll", math.nan) > 0.9 * label_entropy(rows)


def _shown_early(series: list[Record], reference: Record, change: float, floor: float) -> bool:
    """Before jitter can be told: a large paired rise at two evaluations, from a reference that had learned."""
    paired = series[-1].paired.get("nll")
    if not 4 <= len(series) < trends.MIN_EVALUATIONS or paired is None or change < EARLY_RISE * loss_of(reference):
        return False
    if series[-2] is reference or loss_of(series[-2]) < loss_of(reference) + floor:
        return False
    return not _training_rises(series) and _has_learned(series, reference) and shown(paired, len(series))


def _shown_lasting(series: list[Record], reference: Record, floor: float) -> bool:
    """A rise too restless for its trend to be sure: five evaluations in a row, each far above one reference and each
    shown row by row.
    """
    pairs = _lasting_pairs(series, reference, "nll")
    if not pairs or not _has_learned(series, reference):
        return False
    certain = all(paired["nll_change"] > PAIRED_SCORE * paired["nll_change_error"] for paired in pairs)
    return certain and all(loss_of(record) >= loss_of(reference) + 2 * floor for record in series[-len(pairs) :])


def _lasting_pairs(series: list[Record], reference: Record, name: str) -> list[dict[str, Any]]:
    """Comparisons of the last five evaluations with one reference; empty if one of them was compared with another."""
    last = series[-PAIRED_EVALUATIONS:]
    if len(series) < trends.MIN_EVALUATIONS or reference in last:
        return []
    place = (reference.epoch, reference.global_step)
    pairs = [record.paired.get(name) for record in last]
    same = all(paired and (paired["reference_epoch"], paired["reference_step"]) == place for paired in pairs)
    return pairs if same else []


def accuracy_down(stream: Stream, known: Event | None) -> Opening | None:
    """Accuracy has fallen while the loss fell as well."""
    series, accuracies = stream.series, stream.accuracies
    errors = [1 - value for value in accuracies]
    if not math.isfinite(errors[-1]):
        return None
    finite = [place for place, error in enumerate(errors) if math.isfinite(error)]
    reference = stream.reference("accuracy") or series[min(finite, key=errors.__getitem__)]
    margin = stream.margin(reference)
    onset = stream.place(reference) + 1
    both_fell = _both_fell(series, reference, margin)
    if known:
        highest = accuracy_of(stream.reported(known) or reference)
        if min(accuracy_of(reference), highest) - accuracies[-1] < margin / 2:
            return None
    elif not both_fell:
        shift = trends.find_rise(errors, relative_floor=0.0, absolute_floor=margin, alpha=ALPHA)
        if shift is None:
            return None
        onset = shift.onset
    evidence = stream.evidence(reference, series[-1].paired.get("accuracy"))
    # The level around a reference may lie above that evaluation itself; the report names the two evaluations.
    if evidence.full_nll_change >= 0:
        return None
    if both_fell:
        # By rows, where a trend of few or restless evaluations cannot be sure.
        change, error = (evidence.paired[key] for key in ("accuracy_change", "accuracy_change_error"))
        low, high = interval(change, error)
        verdict = replace(evidence.accuracy, kind="down", change=change, low=low, high=high)
        evidence = replace(evidence, accuracy=verdict)
    elif stream.loss_verdict(reference).kind != "down" or (evidence.accuracy.kind != "down" and not known):
        return None
    epoch = series[min(onset, len(series) - 1)].epoch
    return Opening("loss-down-accuracy-down", evidence, epoch, abs(evidence.full_nll_change))


def _both_fell(series: list[Record], reference: Record, margin: float) -> bool:
    """Five evaluations in a row whose accuracy and loss are below those of one reference, each shown row by row."""
    pairs, floor = _lasting_pairs(series, reference, "accuracy"), practical_floor(loss_of(reference))
    # As for a rise: far beyond its error, and twice what matters.
    return bool(pairs) and all(
        paired["nll_change"] < -max(PAIRED_SCORE * paired["nll_change_error"], 2 * floor)
        and paired["accuracy_change"] < -max(PAIRED_SCORE * paired["accuracy_change_error"], 2 * margin)
        for paired in pairs
    )


def loss_down(stream: Stream, known: Event | None) -> Opening | None:
    """The loss has fallen while accuracy stayed."""
    series, accuracies = stream.series, stream.accuracies
    finite = [place for place, value in enumerate(accuracies) if math.isfinite(value)]
    if len(series) < trends.MIN_EVALUATIONS or not finite:
        return None
    best = max(finite, key=accuracies.__getitem__)
    reference = stream.reference("accuracy") or series[best]
    evidence = stream.evidence(reference, series[-1].paired.get("accuracy"))
    falls = stream.loss_verdict(reference).kind == "down"
    if not (falls and evidence.accuracy.kind == "flat"):
        # The evaluation of the highest accuracy can be paired; but accuracy may have been as good long before it. Only
        # what came since then is looked at: the learning before it is no jitter.
        margin = min(2 * stream.margin(series[best]), stream.accuracy_margin)
        since = next(place for place in finite if accuracies[place] >= accuracies[best] - margin)
        reference = series[since]
        # The first of them was chosen for its height: the level that it began is that of the first few.
        middle = min(3, (len(series) - since) // 4)
        accuracy = trends.compare(accuracies[since:], middle, margin, alpha=ALPHA)
        loss = trends.compare(stream.losses[since:], 0, practical_floor(loss_of(reference)), alpha=ALPHA)
        # All of them lie within the margin below the best, so that no fall is enough; that it did not rise is seen.
        if accuracy.kind == "not-down" and abs(accuracy.change) <= margin:
            accuracy = replace(accuracy, kind="flat")
        evidence, falls = replace(stream.evidence(reference), accuracy=accuracy), loss.kind == "down"
    if not falls or evidence.accuracy.kind != "flat":
        return None
    # The level of several evaluations may have fallen while the last one, which the message shows, has not.
    paired = evidence.paired
    certain = paired is None or interval(paired["nll_change"], paired["nll_change_error"])[1] < 0
    if not known and (-evidence.full_nll_change < practical_floor(loss_of(reference)) or not certain):
        return None
    return Opening("loss-down-accuracy-flat", evidence, reference.epoch, abs(evidence.full_nll_change))


def practical_floor(loss: float) -> float:
    """Smallest change from a reference loss that matters in practice, nats."""
    return max(RELATIVE_FLOOR * loss, ABSOLUTE_FLOOR)


def loss_rise(losses: list[float], learning_rates: list[float] | None = None) -> trends.Shift | None:
    """The rise of a loss that opens an event, by the trend alone."""
    return trends.find_rise(
        losses,
        relative_floor=RELATIVE_FLOOR,
        absolute_floor=ABSOLUTE_FLOOR,
        alpha=ALPHA,
        learning_rates=learning_rates,
    )


def required_z(evaluations: int) -> float:
    """Quantile that a paired difference must beat when the best of all earlier evaluations is the reference.

    The level of evaluation t is 6 alpha / (pi^2 t^2), spent over evaluations so that they add up to alpha, divided by
    the t candidates for the reference and by two sides. Plain Bonferroni over evaluations is off by a factor of 25.
    """
    level = 6 * ALPHA / (math.pi**2 * evaluations**2) / evaluations / 2
    return -NormalDist().inv_cdf(level)


def shown(paired: dict[str, Any], evaluations: int) -> bool:
    """Whether a paired change holds on new data, for a reference that was chosen from so many evaluations."""
    return abs(paired["nll_change"]) > required_z(evaluations) * paired["nll_change_error"]
