"""Situations in plain numbers for the tests of causes: a healthy classifier, and what differs from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_lossacc.diagnosis import Diagnosis
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import Evidence
from lightning_lossacc.history import History, Record
from lightning_lossacc.trends import Verdict

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """What changes in a healthy classifier of 10 classes, 1000 items: numbers of the evaluation, its reference, the
    paired comparison, training, and the series."""

    values: Numbers = field(default_factory=dict)
    before: Numbers = field(default_factory=dict)
    arrays: Numbers = field(default_factory=dict)
    before_arrays: Numbers = field(default_factory=dict)
    logged: Numbers = field(default_factory=dict)
    context: Numbers = field(default_factory=dict)
    first: Numbers = field(default_factory=dict)  # of the context of the first evaluation
    paired: Numbers | None = field(default_factory=dict)
    accuracy: str = "flat"
    accuracy_change: float = 0.0
    train: tuple[float, ...] = ()
    probe: Numbers | None = None
    memory: Numbers | None = None
    details: Numbers = field(default_factory=dict)
    items: int = 1000
    static: bool = False
    scalars: bool = False

    def but(self, **changes: Any) -> Situation:
        """The same situation with other numbers in one of its parts."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, change in changes.items():
            old = fields[name]
            fields[name] = {**old, **change} if isinstance(change, dict) and isinstance(old, dict) else change
        return Situation(**fields)

    def evidence(self) -> Evidence:
        """The evidence that a rule gets."""
        reference = self._record(0, {"temperature": 1.1} | self.before, self.before_arrays)
        middle = self._record(1, self.values, self.arrays)
        current = self._record(2, self.values, self.arrays)
        paired = None
        if self.paired is not None and not self.static:
            change = self.paired.get("nll_change", 0.1)
            paired = {
                "items": self.items,
                "nll_change": change,
                "nll_change_error": abs(change) / 10,
                "nll_change_winsorised": change,
                "refinement_change": 0.0,
                "refinement_change_error": 0.003,
                "groups": [],
                "worst": [],
            } | self.paired
        series = [reference, middle, current]
        if self.train:
            series = [
                self._record(
                    place,
                    self.values,
                    self.arrays,
                    {"train_nll": loss, **self.context, **({} if place else self.first)},
                )
                for place, loss in enumerate(self.train)
            ]
            series[0] = reference if not self.static else series[0]
            current = series[-1]
        probe = []
        if self.probe is not None:
            arrays = {"memory": self.memory} if self.memory else {}
            probe = [self._record(2, self.probe, arrays)] * 3
        verdict = Verdict(self.accuracy, self.accuracy_change, -0.01, 0.01, 0.01, 0.01)  # type: ignore[arg-type]
        start = current if self.static else reference
        return Evidence(start, current, verdict, paired, series, (), probe, self.details)

    def _record(self, epoch: int, changes: Numbers, arrays: Numbers, context: Numbers | None = None) -> Record:
        values = {
            "nll": 0.5,
            "nll_standard_error": 0.02,
            "accuracy": 0.9,
            "accuracy_standard_error": 0.01,
            "balanced_accuracy": 0.9,
            "top_k_accuracy": 0.99,
            "refinement_nll": 0.45,
            "temperature": 1.3,
            "temperature_at_edge": 0.0,
            "temperature_gain": 0.05,
            "confidence": 0.92,
            "confidence_wrong": 0.7,
            "margin_p05": -1.0,
            "majority_rate": 0.1,
            "predicted_majority_rate": 0.12,
        } | changes
        table = {"class": list(range(10)), "rows": [100] * 10, "predicted": [100] * 10, "correct": [90] * 10}
        logged = self.logged
        if self.scalars:
            logged = {"loss": values["nll"], "accuracy": values["accuracy"]}
            values = {}
        known = {"num_classes": 10.0} | self.context | (context or {})
        cells = {"rows": [[50, 50], [0, 900]], "nll": [[75.0, 100.0], [0.0, 40.0]]}
        full = {} if self.scalars else {"classes": table, "cells": cells} | arrays
        return Record("val", 0, epoch, epoch * 10, 0.0, True, self.items, self.items, values, full, logged, {}, known)


def reported(records: Iterable[Record]) -> list[Event]:
    """All reports on these records, in their order."""
    diagnosis, history, seen = Diagnosis(), History(), []
    for record in records:
        history.append(record)
        seen += diagnosis.examine(history)
    return seen


def exchanged(rows: int) -> list[list[int]]:
    """Confusion table (10, 10): 800 rows of eight classes are found, so many of two other classes go to each other."""
    table = [[100 * (place == other) for other in range(10)] for place in range(10)]
    table[3], table[5] = ([rows * (place == other) for place in range(10)] for other in (5, 3))
    return table


def classes(rows: list[int], predicted: list[int], correct: list[int]) -> Numbers:
    return {"classes": {"class": list(range(len(rows))), "rows": rows, "predicted": predicted, "correct": correct}}


RISE = Situation(values={"nll": 0.6, "temperature": 1.8})
FALL = Situation(paired={"nll_change": -0.1}, values={"nll": 0.4})
# Of ln 10 - 0.45 nats 0.6 are gone, a tenth of a rise by six.
EXPLODED = RISE.but(values={"nll": 6.5}, paired={"nll_change": 6.0, "refinement_change": 0.6})
DOUBT = FALL.but(accuracy="down", accuracy_change=-0.03, before={"temperature": 2.0})
STATE = Situation(static=True)
PRIOR = math.log(10)
TAIL = {"share": 0.03, "loss": 0.1, "score": 60.0, "temperature": 1.2}
TAILED = RISE.but(arrays={"tail": TAIL}, paired={"tail_change": 0.09})
COLLAPSED = STATE.but(
    before={"predicted_majority_rate": 1.0},
    values={"accuracy": 0.95, "balanced_accuracy": 0.5, "predicted_majority_rate": 1.0, "majority_rate": 0.95},
    arrays=classes([950, 50], [1000, 0], [950, 0]),
)
SWAPPED = [[5, 95], [90, 10]]
MEMORY = {"memorised_share": 0.1, "items": 500, "suspects": [{"index": 3, "target": 1, "predicted": 7}]}
DUPLICATED = STATE.but(arrays={"duplicates": 0.3}, probe={"nll": 0.4})
SHIFTED = STATE.but(
    arrays={
        "train_classes": [400, 67, 67, 67, 67, 67, 67, 66, 66, 66],
        "fits": {"bias_gain": 0.1, "bias_gain_error": 0.01},
    }
)
# Half of the training rows are of either class, of these one in six; the loss is more than twice that of training.
APART = STATE.but(
    arrays=classes([200, 1000], [200, 1000], [200, 1000]) | {"train_classes": [500, 500]},
    values={"nll": 0.5},
    probe={"nll": 0.2},
)
# A loss with weights since the reference: rows go to the rare class.
WEIGHTED = RISE.but(
    accuracy="down",
    accuracy_change=-0.06,
    before={"balanced_accuracy": 0.6},
    values={"nll": 0.6, "temperature": 1.1, "balanced_accuracy": 0.7},
    before_arrays=classes([800, 200], [950, 50], [790, 40]),
    arrays=classes([800, 200], [750, 250], [680, 130]),
    paired={"refinement_change": 0.1, "refinement_change_error": 0.03},
)
UNREST = STATE.but(train=(1.0, 0.4, 0.9, 0.5, 1.1, 0.6, 1.2, 0.7), context={"update_ratio": 0.05, "learning_rate": 0.1})
LEARNT = (1.0, 0.01, 0.02, 0.01, 0.02, 0.01, 0.02, 0.01)
# Nothing is left to lose in training, but validation swings with every step.
SWUNG = UNREST.but(train=LEARNT, context={"update_ratio": 0.012}, details={"swing": 0.2})
# Training swings by a fifth and does not rise, validation by 40 % of its 0.5 nats.
MIXED_UP = UNREST.but(
    train=(1.0, 0.8, 1.0, 0.8, 1.0, 0.8, 1.0, 0.8), context={"update_ratio": 6e-3}, details={"swing": 0.2}
)
DIED = STATE.but(
    context={"dead_units": 1.0, "update_ratio": 1e-4}, first={"dead_units": 0.2, "update_ratio": 0.05}, train=(2.3,) * 4
)
LOST = STATE.but(
    values={"nll": math.nan, "refinement_nll": math.nan},
    context={"update_ratio": 1e-4},
    first={"update_ratio": 0.3},
    train=(2.3,) * 3,
)
STILL = STATE.but(
    values={"nll": 2.31, "refinement_nll": 2.30},
    context={"update_ratio": 1e-6, "learning_rate": 0.1},
    first={"update_ratio": 0.05},
    train=(2.3,) * 4,
)
SLOW = STATE.but(
    values={"refinement_nll": 2.2, "nll": 2.3}, context={"update_ratio": 1e-6, "learning_rate": 1e-7}, train=(2.3,) * 4
)
TIGHT = STATE.but(
    values={"nll": 1.5, "refinement_nll": 1.2, "temperature": 0.5},
    context={"penalty": 0.5, "weight_decay": 0.1},
    probe={"nll": 1.45},
)
LIMIT = STATE.but(
    values={"nll": 1.0, "refinement_nll": 0.98, "temperature": 1.05}, probe={"nll": 0.95}, details={"plateau": 15.0}
)
FLAT_OUT = STATE.but(
    values={"nll": 2.31, "refinement_nll": 2.30, "accuracy": 0.11, "balanced_accuracy": 0.1},
    arrays=classes([100] * 10, [100] * 10, [11] * 10),
    probe={"accuracy": 0.12},
)
REPORTED = Event(
    id="loss-up/val/0/10",
    event="loss-up-accuracy-flat",
    level="warning",
    status="open",
    stage="val",
    loader=0,
    epoch=1,
    global_step=10,
    reference_epoch=0,
    reference_step=0,
    onset_epoch=1,
    num_rows=1000,
    num_items=1000,
    causes=(),
    generalises="shown",
)
UNLIKE = FLAT_OUT.but(
    train=(2.0, 0.5, 0.2, 0.1),
    arrays={"train_classes": [100] * 10},
    probe={"accuracy": 0.95},
    first={"train_accuracy": 0.35},
    context={"train_accuracy": 0.95},
)
SCALARS = Situation(scalars=True, paired=None, static=True, train=(0.1,) * 6, values={"nll": 0.1, "accuracy": 0.6})

# Without a probe: 75 % of the training rows are right in the next epoch, where 90 % of the validation rows were.
BEHIND = RISE.but(
    paired={"refinement_change": 0.09},
    values={"accuracy": 0.7},
    before={"accuracy": 0.9},
    context={"train_accuracy": 0.76, "train_rows": 1000.0, "dropout": 0.0},
)
DRIFTED = STATE.but(
    train=(0.1,) * 4, context={"batch_norm_layers": 2.0, "batch_norm_drift": 0.8, "train_accuracy": 0.98}
)
# Units of a layer that is not dead, after updates of 30 %.
KILLED = DIED.but(context={"dead_units": 0.7}, first={"dead_units": 0.3, "update_ratio": 0.3})
# Every answer about as good, and logits four times as large as those of the training loss.
DIVIDED = STATE.but(
    context={"train_nll": 0.3, "train_accuracy": 0.72, "batch_norm_layers": 0.0},
    probe={"nll": 1.0, "accuracy": 0.7, "temperature": 4.0, "refinement_nll": 0.31},
)
SPLIT = STATE.but(context={"train_nll": 0.3, "train_accuracy": 0.95}, probe={"nll": 1.0, "accuracy": 0.7})
