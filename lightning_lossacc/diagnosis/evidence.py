"""`Evidence`: everything that the causes of one event are decided from, as plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from lightning_lossacc.attribution import interval
from lightning_lossacc.floors import label_entropy
from lightning_lossacc.history import Record
from lightning_lossacc.trends import Verdict


def loss_of(record: Record) -> float:
    """NLL of an evaluation (nats); in a log of scalars the logged loss, which may have other terms; NaN if unknown."""
    return record.values.get("nll", record.logged.get("loss", math.nan))


def accuracy_of(record: Record) -> float:
    """Accuracy in [0, 1] of an evaluation, or as it was logged; NaN if unknown."""
    return record.values.get("accuracy", record.logged.get("accuracy", math.nan))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One evaluation, its reference, and what led from one to the other.

    Attributes:
        reference, current: the two evaluations; the same one where an event is about a state.
        accuracy: verdict on the accuracy over the same interval.
        paired: comparison on the probe, or None where rows could not be paired.
        series: comparable evaluations of the stream up to the current one, oldest first.
        train: records of the training epochs so far.
        train_probe: evaluations of fixed training rows in eval mode so far; empty without `train_probe=`.
        details: numbers of the event's own test, by name.
    """

    reference: Record
    current: Record
    accuracy: Verdict
    paired: dict[str, Any] | None
    series: Sequence[Record] = ()
    train: Sequence[Record] = ()
    train_probe: Sequence[Record] = ()
    details: dict[str, float] = field(default_factory=dict)

    @property
    def is_static(self) -> bool:
        """Whether the event is about a state, so that nothing changed."""
        return self.reference is self.current

    @property
    def nll_change(self) -> float:
        """Change of the NLL (nats): the probe's where there is one, else that of the whole evaluation."""
        return self.full_nll_change if self.paired is None else self.paired["nll_change"]

    @property
    def full_nll_change(self) -> float:
        """Change of the NLL over all rows, nats."""
        return loss_of(self.current) - loss_of(self.reference)

    @property
    def nll_score(self) -> float:
        """Paired change of the NLL over its standard error; infinite without an error, NaN if not paired."""
        if self.paired is None:
            return math.nan
        error = self.paired["nll_change_error"]
        return self.paired["nll_change"] / error if error else math.inf

    @property
    def refinement_change(self) -> tuple[float, float, float]:
        """Paired change of the NLL after one temperature with its 99 % interval (nats); NaN if not measured."""
        if self.paired is None or "refinement_change" not in self.paired:
            return math.nan, math.nan, math.nan
        change = self.paired["refinement_change"]
        return change, *interval(change, self.paired["refinement_change_error"])

    @property
    def refinement_share(self) -> tuple[float, float, float]:
        """Share of the NLL change that is left after one temperature, with its 99 % interval; NaN if none changed."""
        change, low, high = self.refinement_change
        if not self.nll_change:
            return math.nan, math.nan, math.nan
        return change / self.nll_change, low / self.nll_change, high / self.nll_change

    @property
    def temperature(self) -> float:
        """Best temperature of the current evaluation."""
        return self.value("temperature")

    @property
    def at_edge(self) -> bool:
        """Whether the best temperature of either evaluation lies outside the grid, so that nothing is said about it."""
        return any(record.values.get("temperature_at_edge", 1.0) != 0.0 for record in (self.reference, self.current))

    @property
    def at_upper_bound(self) -> bool:
        """Whether only the current best temperature lies outside, above the grid: the loss after one temperature is
        smaller than measured then, and so is its change.
        """
        known = self.reference.values.get("temperature_at_edge", 1.0) == 0.0
        return known and self.value("temperature_at_edge") == 1.0 and self.temperature > 1

    @property
    def loss_terms(self) -> str:
        """What the loss has beside the NLL, in words: that of this evaluation, else that of the training steps."""
        records = [self.current, *self.train[-1:]]
        return next(filter(None, (str(record.arrays.get("loss_terms", "")) for record in records)), "")

    def is_smoothed(self, most: float = 1.0) -> bool:
        """Whether labels are smoothed, by a share of at most `most`, and enough to bring what one temperature saves.

        With a share `s` on the other classes a row that is surely right costs `-ln(1 - s)` nats; twice that is allowed.
        """
        found = re.search(r"smoothing ([0-9.e-]+)", self.loss_terms)
        share = float(found[1]) if found is not None else 0.0
        if not 0 < share < 1 or share > most:
            return False
        return self.value("nll") - self.value("refinement_nll") <= -2 * math.log1p(-share)

    @property
    def num_classes(self) -> int | None:
        """C, or None if it was neither measured nor told."""
        known = self.current.context.get("num_classes")
        if known is not None:
            return int(known)
        rows = self.class_rows
        return len(rows) if rows else None

    @property
    def class_rows(self) -> list[float]:
        """Rows of each class (of the 64 largest and the rest); empty if not measured."""
        return self.current.arrays.get("classes", {}).get("rows", [])

    @property
    def label_entropy(self) -> float:
        """Entropy of the class shares of this evaluation, nats; NaN if not measured."""
        rows = self.class_rows
        return label_entropy(rows) if rows else math.nan

    def value(self, key: str) -> float:
        """One quantity of the current evaluation; NaN if not measured."""
        return self.current.values.get(key, math.nan)

    def context(self, key: str) -> float:
        """One number of the training side at the current evaluation; NaN if unknown."""
        return self.current.context.get(key, math.nan)

    def difference(self, key: str) -> float:
        """Change of one quantity between the two evaluations."""
        return self.current.values.get(key, math.nan) - self.reference.values.get(key, math.nan)

    def column(self, key: str) -> list[float]:
        """Finite values of one quantity over the series, oldest first."""
        found = [record.values.get(key, math.nan) for record in self.series]
        return [value for value in found if math.isfinite(value)]

    def context_column(self, key: str) -> list[float]:
        """Finite values of one number of the training side over the series, oldest first."""
        found = [record.context.get(key, math.nan) for record in self.series]
        return [value for value in found if math.isfinite(value)]

    def _by_epoch(self, key: str) -> list[float]:
        """Finite values of one number of the training side, the last of each epoch."""
        last = {record.epoch: record.context.get(key, math.nan) for record in self.series}
        return [value for value in last.values() if math.isfinite(value)]

    def recent_context(self, key: str, count: int = 3) -> float:
        """Median of the last few values of one number of the training side; NaN if unknown."""
        values = self.context_column(key)[-count:]
        return median(values) if values else math.nan

    @property
    def train_losses(self) -> list[float]:
        """NLL of the training steps, one an epoch, oldest first; logged ones in scans.

        Within an epoch the mean of its steps so far falls by itself, so only its last evaluation counts.
        """
        for key in ("train_nll", "train_loss"):
            found = self._by_epoch(key)
            if found:
                return found
        return [value for record in self.train if math.isfinite(value := loss_of(record))]

    @property
    def train_accuracies(self) -> list[float]:
        """Accuracy of the training steps, likewise."""
        found = self._by_epoch("train_accuracy")
        return found or [value for record in self.train if math.isfinite(value := accuracy_of(record))]

    @property
    def train_accuracy(self) -> float:
        """Accuracy on training rows: of the probe in eval mode if there is one, else of the steps; NaN if unknown."""
        if self.train_probe:
            return accuracy_of(self.train_probe[-1])
        found = self.train_accuracies
        return found[-1] if found else math.nan

    @property
    def train_nll(self) -> float:
        """NLL on training rows: of the probe in eval mode if there is one, else of the steps; NaN if unknown."""
        if self.train_probe:
            return loss_of(self.train_probe[-1])
        found = self.train_losses
        return found[-1] if found else math.nan

    @property
    def training_rise(self) -> float:
        """By how much the loss of training rows rose since the reference, nats: of the steps of the epoch, or of the
        probe, whichever rose more; 0 if neither is known. From the evaluation after it, if that is lower: the mean over
        the steps of a first epoch is higher than the loss at its end.
        """
        begin = self.reference.global_step
        second = next((record for record in self.series if record.global_step > begin), self.current)
        probes = {record.global_step: loss_of(record) for record in self.train_probe}
        known = (
            [record.context.get("train_nll", math.nan) for record in (self.reference, second, self.current)],
            [probes.get(record.global_step, math.nan) for record in (self.reference, second, self.current)],
        )
        rises = [last - min(first, after if math.isfinite(after) else first) for first, after, last in known]
        return max((rise for rise in rises if math.isfinite(rise)), default=0.0)

    @property
    def train_doubt(self) -> tuple[str, ...]:
        """What speaks against a comparison of training steps with validation; empty with a train probe."""
        return () if self.train_probe else ("training rows were seen in train mode: augmentation is not excluded",)
