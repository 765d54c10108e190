"""From records to events: when loss and accuracy part, over which interval, and for which cause.

Decisions are online (a record is judged by what came before it), depend on plain numbers that are equal on every rank,
and say nothing twice. An event opens when the loss has moved beyond the jitter between evaluations and beyond the
practical floor: a statement about this validation set. Whether it holds on new data is a second field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from lightning_lossacc import trends
from lightning_lossacc.attribution import attribution, interval
from lightning_lossacc.diagnosis.confidence import confidence_growth, mixed, over_confidence, scale_growth
from lightning_lossacc.diagnosis.event import Cause, Event, Level, Status
from lightning_lossacc.diagnosis.evidence import Evidence
from lightning_lossacc.diagnosis.generalisation import overfitting
from lightning_lossacc.diagnosis.message import compose
from lightning_lossacc.history import History, Record, to_json
from lightning_lossacc.remedies import remedies

RELATIVE_FLOOR = 0.05  # of the reference NLL
ABSOLUTE_FLOOR = 0.01  # nats
ACCURACY_MARGIN = 0.01  # at most this, and at most 10 % of the reference error
ALPHA = 0.01
INFO_CAUSES = ("confidence-growth", "scale-growth")
# A condition that comes and goes at its limit is one event: it must be gone for so many evaluations to close, and as
# many must pass before another of its kind opens.
PATIENCE = 5
# Of fewer items a single one decides every number.
MIN_ITEMS = 10


class Diagnosis:
    """Judges one record after another and keeps what is open.

    Args:
        accuracy_margin: largest change of accuracy that still counts as flat; a tenth of the reference error rate
            if that is less.
    """

    def __init__(self, accuracy_margin: float = ACCURACY_MARGIN) -> None:
        self.accuracy_margin = accuracy_margin
        # By stage, loader and direction: the last report of the open event, and the change that it named.
        self.open: dict[str, tuple[Event, float]] = {}
        # Likewise: for how many evaluations an open event has been gone, or a closed one must still stay away.
        self.waiting: dict[str, int] = {}

    def examine(self, history: History, stage: str = "val", loader: int = 0) -> list[Event]:
        """Events of the newest record of one stage and loader: opened, doubled or closed by it."""
        series = history.measured(stage, loader)
        # Another number of rows is another validation set, which is not compared.
        series = [record for record in series if record.num_rows == series[-1].num_rows]
        if len(series) < 2 or series[-1].num_items < MIN_ITEMS:
            return []
        found = []
        for direction, judge in (
            ("loss-up", self._loss_up),
            ("accuracy-down", self._accuracy_down),
            ("loss-down", self._loss_down),
        ):
            event = self._report(f"{stage}/{loader}/{direction}", judge, series)
            if event is not None:
                found.append(event)
        return found

    def state(self) -> str:
        """Open events as one line of JSON."""
        reports = {key: [event.to_json(), change] for key, (event, change) in self.open.items()}
        return to_json({"open": reports, "waiting": self.waiting})

    def load_state(self, state: str) -> None:
        """The inverse of `state`."""
        saved = json.loads(state)
        self.open = {key: (Event.from_json(line), change) for key, (line, change) in saved["open"].items()}
        self.waiting = saved["waiting"]

    def margin(self, reference: Record) -> float:
        """Largest change of accuracy that counts as flat, for one reference."""
        return min(self.accuracy_margin, 0.1 * (1 - reference.values["accuracy"])) or self.accuracy_margin

    def _report(
        self, key: str, judge: Callable[[list[Record], bool], tuple[str, Evidence, int] | None], series: list[Record]
    ) -> Event | None:
        known = self.open.get(key)
        if known is None and self.waiting.get(key, 0) > 0:
            self.waiting[key] -= 1
            return None
        verdict = judge(series, known is not None)
        if verdict is None:
            if known is None:
                return None
            self.waiting[key] = self.waiting.get(key, 0) + 1
            if self.waiting[key] < PATIENCE:
                return None
            del self.open[key]
            return _closed(known[0], series[-1])
        self.waiting[key] = 0
        name, evidence, onset = verdict
        change = abs(evidence.full_nll_change)
        if known is not None and change < 2 * known[1]:
            return None
        status: Status = "open" if known is None else "doubled"
        event = self._event(name, evidence, onset, status, series, None if known is None else known[0].id)
        self.open[key] = (event, change)
        return event

    def _loss_up(self, series: list[Record], is_open: bool) -> tuple[str, Evidence, int] | None:
        current = series[-1]
        losses = [record.values["nll"] for record in series]
        reference = _reference(series, "nll") or series[min(range(len(losses)), key=losses.__getitem__)]
        floor = practical_floor(reference.values["nll"])
        change = current.values["nll"] - reference.values["nll"]
        paired = current.paired.get("nll")
        onset = series.index(reference) + 1
        if is_open:
            if change < floor / 2:
                return None
        elif len(series) >= trends.MIN_EVALUATIONS:
            shift = loss_rise(losses)
            if shift is None or change < floor:
                return None
            onset = shift.onset
        elif paired is None or change < floor or not _shown(paired, len(series)):
            return None
        evidence = self._evidence(series, reference, paired)
        kind = evidence.accuracy.kind
        words = kind if kind in ("flat", "not-down", "up", "down") else "undecided"
        return f"loss-up-accuracy-{words}", evidence, series[min(onset, len(series) - 1)].epoch

    def _accuracy_down(self, series: list[Record], is_open: bool) -> tuple[str, Evidence, int] | None:
        errors = [1 - record.values["accuracy"] for record in series]
        reference = _reference(series, "accuracy") or series[min(range(len(errors)), key=errors.__getitem__)]
        margin = self.margin(reference)
        if is_open:
            if reference.values["accuracy"] - series[-1].values["accuracy"] < margin / 2:
                return None
            onset = series.index(reference) + 1
        else:
            shift = trends.find_rise(errors, relative_floor=0.0, absolute_floor=margin, alpha=ALPHA)
            if shift is None:
                return None
            onset = shift.onset
        evidence = self._evidence(series, reference, series[-1].paired.get("accuracy"))
        loss = self._loss_verdict(series, reference)
        if loss.kind != "down" or (evidence.accuracy.kind != "down" and not is_open):
            return None
        return "loss-down-accuracy-down", evidence, series[min(onset, len(series) - 1)].epoch

    def _loss_down(self, series: list[Record], is_open: bool) -> tuple[str, Evidence, int] | None:
        accuracies = [record.values["accuracy"] for record in series]
        best = max(range(len(series)), key=accuracies.__getitem__)
        reference = _reference(series, "accuracy") or series[best]
        if len(series) < trends.MIN_EVALUATIONS:
            return None
        evidence = self._evidence(series, reference, series[-1].paired.get("accuracy"))
        if self._loss_verdict(series, reference).kind != "down" or evidence.accuracy.kind != "flat":
            return None
        # The level of several evaluations may have fallen while the last one, which the message shows, has not.
        paired = evidence.paired
        certain = paired is None or interval(paired["nll_change"], paired["nll_change_error"])[1] < 0
        if not is_open and (-evidence.full_nll_change < practical_floor(reference.values["nll"]) or not certain):
            return None
        return "loss-down-accuracy-flat", evidence, reference.epoch

    def _loss_verdict(self, series: list[Record], reference: Record) -> trends.Verdict:
        losses = [record.values["nll"] for record in series]
        return trends.compare(losses, series.index(reference), practical_floor(reference.values["nll"]), alpha=ALPHA)

    def _evidence(self, series: list[Record], reference: Record, paired: dict[str, Any] | None) -> Evidence:
        place, margin = series.index(reference), self.margin(reference)
        accuracy = trends.compare([record.values["accuracy"] for record in series], place, margin, alpha=ALPHA)
        if accuracy.kind == "flat" and "balanced_accuracy" in reference.values:
            balanced = [record.values.get("balanced_accuracy", math.nan) for record in series]
            if trends.compare(balanced, place, margin, alpha=ALPHA).kind == "down":
                # Rare classes were lost while frequent ones hide it: that is not flat.
                accuracy = trends.Verdict(
                    "undecided", accuracy.change, accuracy.low, accuracy.high, accuracy.margin, accuracy.resolvable
                )
        return Evidence(reference, series[-1], accuracy, paired)

    def _event(
        self,
        name: str,
        evidence: Evidence,
        onset_epoch: int,
        status: Status,
        series: list[Record],
        identity: str | None,
    ) -> Event:
        current, reference = evidence.current, evidence.reference
        causes = find_causes(name, evidence)
        level: Level = "info" if causes[0].cause in INFO_CAUSES else "warning"
        with_refinement = [record for record in series if math.isfinite(record.values.get("refinement_nll", math.nan))]
        best = min(with_refinement or [reference], key=lambda record: record.values.get("refinement_nll", math.nan))
        holds = evidence.paired is not None and _shown(evidence.paired, len(series))
        event = Event(
            id=identity or f"{name}/{current.stage}/{current.loader}/{current.global_step}",
            event=name,
            level=level,
            status=status,
            stage=current.stage,
            loader=current.loader,
            epoch=current.epoch,
            global_step=current.global_step,
            reference_epoch=reference.epoch,
            reference_step=reference.global_step,
            onset_epoch=onset_epoch,
            num_rows=current.num_rows,
            num_items=current.num_items,
            causes=causes,
            generalises="shown" if holds else "not-shown",
            evidence=_numbers(evidence, len(series)),
            attribution={} if evidence.paired is None else attribution(evidence.paired, evidence.full_nll_change),
        )
        advice = remedies(event.cause, current, best)
        event = event.with_text(advice, "")
        return event.with_text(advice, compose(event, evidence, best.epoch))


def find_causes(name: str, evidence: Evidence) -> tuple[Cause, ...]:
    """Causes of an event in the order of decision, benign ones first; `unknown` with the reason if none is shown."""
    if name.startswith("loss-up"):
        rules = (scale_growth, over_confidence, overfitting, mixed)
    elif name == "loss-down-accuracy-flat":
        rules = (confidence_growth,)
    else:
        rules = ()
    found = [cause for cause in (rule(evidence) for rule in rules) if cause is not None]
    if found:
        return tuple(found)
    return (Cause("unknown", math.nan, evidence=(_why_unknown(evidence),)),)


def _why_unknown(evidence: Evidence) -> str:
    if evidence.paired is None:
        return "not enough evidence: rows could not be paired with the reference"
    if evidence.at_edge:
        return "the best temperature lies outside the grid, so the loss after one temperature is not known"
    change, low, high = evidence.refinement_change
    return f"the change after one temperature, {change:+.4f} ({low:+.4f} … {high:+.4f}), fits more than one cause"


def _reference(series: list[Record], name: str) -> Record | None:
    """The evaluation that the probe compared the newest record with, if it is in the series."""
    paired = series[-1].paired.get(name)
    if paired is None:
        return None
    place = (paired["reference_epoch"], paired["reference_step"])
    return next((record for record in series[:-1] if (record.epoch, record.global_step) == place), None)


def practical_floor(nll: float) -> float:
    """Smallest change from a reference NLL that matters in practice, nats."""
    return max(RELATIVE_FLOOR * nll, ABSOLUTE_FLOOR)


def loss_rise(losses: list[float]) -> trends.Shift | None:
    """The rise of an NLL that opens an event, by the trend alone."""
    return trends.find_rise(losses, relative_floor=RELATIVE_FLOOR, absolute_floor=ABSOLUTE_FLOOR, alpha=ALPHA)


def required_z(evaluations: int) -> float:
    """Quantile that a paired difference must beat when the best of all earlier evaluations is the reference.

    The level of evaluation t is 6 alpha / (pi^2 t^2), spent over evaluations so that they add up to alpha, divided by
    the t candidates for the reference and by two sides. Plain Bonferroni over evaluations is off by a factor of 25.
    """
    level = 6 * ALPHA / (math.pi**2 * evaluations**2) / evaluations / 2
    return -NormalDist().inv_cdf(level)


def _shown(paired: dict[str, Any], evaluations: int) -> bool:
    return abs(paired["nll_change"]) > required_z(evaluations) * paired["nll_change_error"]


def _numbers(evidence: Evidence, evaluations: int) -> dict[str, Any]:
    """The numbers behind a message, by name."""
    accuracy = evidence.accuracy
    numbers: dict[str, Any] = {
        "nll_before": evidence.reference.values["nll"],
        "nll_after": evidence.current.values["nll"],
        "nll_change": evidence.full_nll_change,
        "accuracy_before": evidence.reference.values["accuracy"],
        "accuracy_after": evidence.current.values["accuracy"],
        "accuracy_change": accuracy.change,
        "accuracy_interval": [accuracy.low, accuracy.high],
        "accuracy_margin": accuracy.margin,
        "accuracy_verdict": accuracy.kind,
        "accuracy_resolvable": accuracy.resolvable,
        "temperature_before": evidence.reference.values.get("temperature", math.nan),
        "temperature_after": evidence.temperature,
        "evaluations": evaluations,
    }
    if evidence.paired is not None:
        error = evidence.paired["nll_change_error"]
        change = evidence.nll_change
        needed = required_z(evaluations)
        numbers |= {
            "probe_items": evidence.paired["items"],
            "probe_nll_change": change,
            "probe_nll_change_error": error,
            "probe_nll_change_winsorised": evidence.paired["nll_change_winsorised"],
            "refinement_change": list(evidence.refinement_change),
            "required_z": needed,
            "z": change / error if error else math.inf,
            "items_needed_to_show": math.ceil(evidence.paired["items"] * (needed * error / change) ** 2)
            if change
            else 0,
        }
    return numbers


def _closed(event: Event, current: Record) -> Event:
    """The report that an open event has gone."""
    fields = json.loads(event.to_json())
    fields |= {
        "status": "closed",
        "epoch": current.epoch,
        "global_step": current.global_step,
        "remedies": [],
        "message": (
            f"closed: {event.cause} · {event.stage} · at epoch {current.epoch} · NLL {current.values['nll']:.4f}, "
            f"accuracy {100 * current.values['accuracy']:.1f} % · it was reported since epoch {event.epoch}"
        ),
    }
    return Event.from_json(to_json(fields))
