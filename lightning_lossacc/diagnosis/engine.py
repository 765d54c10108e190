"""From records to events: what holds at the newest evaluation, for which cause, and what is new about it.

Decisions are online (a record is judged by what came before it), depend on plain numbers that are equal on every rank,
and say nothing twice. An event opens when the loss has moved beyond the jitter between evaluations and beyond the
practical floor: a statement about this validation set. Whether it holds on new data is a second field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from lightning_lossacc import trends
from lightning_lossacc.attribution import attribution
from lightning_lossacc.diagnosis import changes, movement, states
from lightning_lossacc.diagnosis.catalogue import (
    INFO_CAUSES,
    INFO_EVENTS,
    NEEDS_CAUSE,
    find_causes,
    follows,
    heading_of,
    supersedes,
)
from lightning_lossacc.diagnosis.changes import ACCURACY_MARGIN, Opening, Stream, required_z, shown
from lightning_lossacc.diagnosis.event import Cause, Event, Level, Status
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.diagnosis.message import closed, compose
from lightning_lossacc.history import History, Record, to_json
from lightning_lossacc.outlook import outlook
from lightning_lossacc.remedies import remedies

# A condition that comes and goes at its limit is one event: it must be gone for so many evaluations to close, and as
# many must pass before another of its kind opens.
PATIENCE = 5
# Another first cause must hold for so many evaluations to be reported.
REVISION = 3
# The shares of confidence and generalisation shift slowly from one name to another.
SLOW_REVISION = 5
# Percent of a rise; an interval that is no wider tells confidence from the rest.
NARROW_SHARE = 25
# Of fewer items a single one decides every number.
MIN_ITEMS = 10

# Of the newest record, and the open event of this kind as it was last reported.
Judge = Callable[[Stream, Event | None], Opening | None]
CHANGES: dict[str, Judge] = {
    "loss-up": changes.loss_up,
    "accuracy-down": changes.accuracy_down,
    "loss-down": changes.loss_down,
}
STATES: dict[str, Judge] = {
    "non-finite": states.not_finite,
    "logged-differs": states.logged_differs,
    "val-better-than-train": states.better_than_train,
    "train-eval-gap": states.train_eval_gap,
    "accuracy-stuck": states.stuck,
    "behind-first-sight": states.behind_first_sight,
    "little-learnt": states.little_learnt,
    "few-items": states.few_items,
    "accuracy-equals-class-share": states.class_share,
    "accuracy-hides-classes": states.hidden_classes,
    "class-shares-differ": states.shares_differ,
    "loss-high-for-accuracy": states.loss_high,
    "plateau": movement.plateau,
    "oscillation": movement.oscillation,
    "spike": movement.spike,
    "dead-layer": states.dead_layer,
}
# "What if we train more epochs?" is asked of these.
FORECAST = ("loss-down-accuracy-flat", "plateau")
# Seen in one evaluation, so in validate and test as well.
SINGLE = ("non-finite", "accuracy-equals-class-share", "accuracy-hides-classes", "loss-high-for-accuracy")


class Diagnosis:
    """Judges one record after another and keeps what is open.

    Args:
        accuracy_margin: largest change of accuracy that still counts as flat; less where a tenth of the reference error
            rate and the standard error of the accuracy are both less.
    """

    def __init__(self, accuracy_margin: float = ACCURACY_MARGIN) -> None:
        self.accuracy_margin = accuracy_margin
        # By stage, loader and kind: the last report of the open event, and the change that it named.
        self.open: dict[str, tuple[Event, float]] = {}
        # Likewise: for how many evaluations an open event has been gone, or a closed one must still stay away.
        self.waiting: dict[str, int] = {}
        # Likewise: another first cause than the reported one, and for how many evaluations it has held.
        self.revised: dict[str, tuple[str, int]] = {}
        # Likewise: the step of the lowest loss when an event was closed.
        self.over: dict[str, int] = {}

    def examine(self, history: History, stage: str = "val", loader: int = 0) -> list[Event]:
        """Events of the newest record of one stage and loader: opened, revised, doubled or closed by it."""
        records = history.series(stage, loader)
        if not records:
            return []
        newest = records[-1]
        # Another number of rows is another validation set, which is not compared.
        rows = _rows(newest)
        series = [record for record in records if _rows(record) == rows and math.isfinite(loss_of(record))]
        train, probe = history.series("train"), history.series("train_probe")
        since = self.over.get(f"{stage}/{loader}/loss-up", -1)
        stream = Stream(series, newest, train, probe, self.accuracy_margin, since)
        is_fit = stage not in ("validate", "test")
        judges = CHANGES | STATES if is_fit else {name: STATES[name] for name in SINGLE}
        found = []
        for name, judge in judges.items():
            if name != "non-finite" and (not series or series[-1] is not newest or self._is_too_small(newest)):
                continue
            if name in CHANGES and len(series) < 2:
                continue
            event = self._report(f"{stage}/{loader}/", name, judge, stream)
            if event is not None:
                found.append(event)
        return found

    def state(self) -> str:
        """Open events as one line of JSON."""
        reports = {key: [event.to_json(), change] for key, (event, change) in self.open.items()}
        return to_json({"open": reports, "waiting": self.waiting, "revised": self.revised, "over": self.over})

    def load_state(self, state: str) -> None:
        """The inverse of `state`."""
        saved = json.loads(state)
        self.open = {
            key: (Event.from_json(line), math.nan if change is None else change)
            for key, (line, change) in saved["open"].items()
        }
        self.waiting = saved["waiting"]
        self.revised = {key: (cause, count) for key, (cause, count) in saved["revised"].items()}
        self.over = saved.get("over", {})  # checkpoints of earlier versions know none

    def margin(self, reference: Record) -> float:
        """Largest change of accuracy that counts as flat, for one reference."""
        return Stream([], reference, accuracy_margin=self.accuracy_margin).margin(reference)

    @staticmethod
    def _is_too_small(record: Record) -> bool:
        return 0 < record.num_items < MIN_ITEMS

    def _report(self, place: str, name: str, judge: Judge, stream: Stream) -> Event | None:
        key = place + name
        known = self.open.get(key)
        if known is None and self.waiting.get(key, 0) > 0:
            self.waiting[key] -= 1
            return None
        opening = judge(stream, None if known is None else known[0])
        causes = () if opening is None else find_causes(opening.event, opening.evidence)
        if opening is not None and not causes and opening.event in NEEDS_CAUSE:
            opening = None
        if opening is None:
            if known is None:
                return None
            # A new lowest loss takes back at once what was said of the first evaluations; later, patience is needed.
            is_early = name == "loss-up" and known[0].evidence.get("evaluations", 0) < trends.MIN_EVALUATIONS
            return self._gone(key, known[0], stream, is_early and stream.losses[-1] <= min(stream.losses))
        self.waiting[key] = 0
        causes = causes or (Cause("unknown", math.nan, evidence=(_why_unknown(opening),)),)
        # A ceiling is no alarm, unless next to nothing was learnt below it.
        benign = causes[0].cause in INFO_CAUSES and opening.event != "little-learnt"
        is_info = benign or opening.event in INFO_EVENTS or not opening.lasting
        is_info = is_info or (causes[0].cause == "unknown" and opening.event == "oscillation")
        # Confidence that still grows is that of a training which has not ended; that of smoothed labels is meant.
        is_info = is_info or (causes[0].cause == "under-confidence" and "expected" in opening.evidence.details)
        level: Level = "info" if is_info else "warning"
        if known is None:
            if name in STATES and self._is_said(place, name, causes[0].cause):
                return None
            if self._is_consequence(place, name, causes[0].cause):
                return None
            return self._keep(key, self._event(opening, causes, level, "open", None), opening)
        before, size = known
        if opening.size >= 2 * size:
            causes = _keep_first(opening.event, causes, before)
            return self._keep(key, self._event(opening, causes, level, "doubled", before.id), opening)
        louder = (before.level, level) == ("info", "warning") and not self._is_said(place, name, causes[0].cause)
        louder = louder and not self._is_consequence(place, name, causes[0].cause)
        if self._is_revised(key, before, opening.event, causes[0].cause) or louder:
            if before.level == "info" and level == "warning" and not louder:
                return None
            return self._keep(key, self._event(opening, causes, level, "revised", before.id), opening)
        return None

    def _keep(self, key: str, event: Event, opening: Opening) -> Event:
        self.open[key] = (event, opening.size)
        self.revised.pop(key, None)
        return event

    def _gone(self, key: str, event: Event, stream: Stream, at_once: bool) -> Event | None:
        self.waiting[key] = self.waiting.get(key, 0) + 1
        if self.waiting[key] < PATIENCE and not at_once:
            return None
        del self.open[key]
        self.revised.pop(key, None)
        if stream.series:
            self.over[key] = min(stream.series, key=loss_of).global_step
        return closed(event, stream.newest)

    def _is_revised(self, key: str, event: Event, name: str, cause: str) -> bool:
        """Whether another first cause, or another verdict on the accuracy, has held long enough to be news."""
        renamed = name != event.event and not name.endswith("undecided")
        other = cause not in (event.cause, "unknown") and supersedes(name, cause, event.cause)
        if not (renamed or other):
            self.revised.pop(key, None)
            return False
        news = f"{name} {cause}" if other else name
        last, count = self.revised.get(key, ("", 0))
        count = count + 1 if last == news else 1
        self.revised[key] = (news, count)
        slow = other and heading_of(cause) in ("confidence", "generalisation")
        return count >= (SLOW_REVISION if slow else REVISION)

    def _is_said(self, place: str, name: str, cause: str) -> bool:
        """Whether an open warning of the same stream names this cause first, or a rise its temperature."""
        rise = self.open.get(place + "loss-up")
        if name == "loss-high-for-accuracy" and rise is not None and rise[0].level == "warning":
            return True
        warnings = [
            event for key, (event, _) in self.open.items() if key.startswith(place) and event.level == "warning"
        ]
        # Dead units tell nothing new where they already stand among the causes.
        known = {item.cause for event in warnings for item in event.causes} if name == "dead-layer" else set()
        return cause in known | {event.cause for event in warnings}

    def _is_consequence(self, place: str, name: str, cause: str) -> bool:
        """Whether an open warning of the same stream names what this one is a mere consequence of.

        What changes in time under one mode of evaluation, which may be meant, is not.
        """
        return any(
            follows(cause, event.cause) and not (name in CHANGES and event.cause == "train-eval-mismatch")
            for key, (event, _) in self.open.items()
            if key.startswith(place) and event.level == "warning"
        )

    def _event(
        self, opening: Opening, causes: tuple[Cause, ...], level: Level, status: Status, identity: str | None
    ) -> Event:
        evidence = opening.evidence
        current, reference, series = evidence.current, evidence.reference, evidence.series
        best = min(
            (record for record in series if math.isfinite(record.values.get("refinement_nll", math.nan))),
            key=lambda record: record.values["refinement_nll"],
            default=reference,
        )
        holds = evidence.paired is not None and shown(evidence.paired, len(series))
        ahead = outlook(series) if opening.event in FORECAST and "nll" in current.values else None
        numbers = _numbers(evidence) | ({} if ahead is None else ahead.numbers())
        event = Event(
            id=identity or f"{opening.event}/{current.stage}/{current.loader}/{current.global_step}",
            event=opening.event,
            level=level,
            status=status,
            stage=current.stage,
            loader=current.loader,
            epoch=current.epoch,
            global_step=current.global_step,
            reference_epoch=reference.epoch,
            reference_step=reference.global_step,
            onset_epoch=opening.onset_epoch,
            num_rows=current.num_rows,
            num_items=current.num_items,
            causes=causes,
            generalises="shown" if holds else "not-shown",
            evidence=numbers,
            attribution={}
            if evidence.is_static
            else attribution(evidence.paired, evidence.full_nll_change, reference, current),
        )
        advice = remedies(event.cause, current, best, (*series, *evidence.train_probe))
        event = event.with_text(advice, "")
        return event.with_text(advice, compose(event, evidence, best.epoch, "" if ahead is None else ahead.sentence))


def _rows(record: Record) -> int:
    """Rows of an evaluation, those among them that were not finite."""
    return record.num_rows + record.arrays.get("excluded", {}).get("non_finite", 0)


def _keep_first(name: str, causes: tuple[Cause, ...], before: Event) -> tuple[Cause, ...]:
    """The causes with the reported one first, if it still holds or what was found now is its mere consequence: another
    one needs to last to take its place.
    """
    kept = next((cause for cause in causes if cause.cause == before.cause), None)
    stays = not supersedes(name, causes[0].cause, before.cause) or follows(before.cause, causes[0].cause)
    if kept is None and before.cause != "unknown" and stays:
        kept = before.causes[0]
    if kept is None:
        return causes
    return (kept, *(cause for cause in causes if cause is not kept and cause.cause != "unknown"))


def _why_unknown(opening: Opening) -> str:
    evidence = opening.evidence
    if evidence.is_static:
        return "nothing that was measured tells why"
    if "nll" not in evidence.current.values:
        return "not enough evidence: a log of loss and accuracy does not tell confidence from ranking"
    if evidence.paired is None:
        return "not enough evidence: rows could not be paired with the reference"
    if evidence.at_edge:
        return "the best temperature lies outside the grid, so the loss after one temperature is not known"
    _, low, high = evidence.refinement_change
    least, most = sorted(evidence.refinement_share[1:])
    known = f"{low:+.4f} … {high:+.4f} of {evidence.nll_change:+.4f} nats are left after one temperature"
    if not (least > 0 or most < 1):
        return f"{known}, which fits more than one cause"
    least, most = (100 * min(max(share, 0.0), 1.0) for share in (least, most))
    ending = "too wide to name a cause" if most - least > NARROW_SHARE else "nothing else that was measured tells why"
    part = f"{100 - most:.0f} … {100 - least:.0f} %"
    if most < 1 or least > 99:
        part = "all" if most < 1 else "none"
    return f"{known}, so {part} of it is confidence: {ending}"


def _numbers(evidence: Evidence) -> dict[str, Any]:
    """The numbers behind a message, by name."""
    accuracy = evidence.accuracy
    numbers: dict[str, Any] = {
        "nll_before": loss_of(evidence.reference),
        "nll_after": loss_of(evidence.current),
        "nll_change": evidence.full_nll_change,
        "accuracy_before": accuracy_of(evidence.reference),
        "accuracy_after": accuracy_of(evidence.current),
        "accuracy_change": accuracy.change,
        "accuracy_interval": [accuracy.low, accuracy.high],
        "accuracy_margin": accuracy.margin,
        "accuracy_verdict": accuracy.kind,
        "accuracy_resolvable": accuracy.resolvable,
        "temperature_before": evidence.reference.values.get("temperature", math.nan),
        "temperature_after": evidence.temperature,
        "evaluations": len(evidence.series),
        **evidence.details,
    }
    if math.isfinite(evidence.train_nll):
        numbers |= {"train_nll": evidence.train_nll, "train_accuracy": evidence.train_accuracy}
    if evidence.paired is not None:
        error, change = evidence.paired["nll_change_error"], evidence.nll_change
        needed = required_z(len(evidence.series))
        numbers |= {
            "probe_items": evidence.paired["items"],
            "probe_nll_change": change,
            "probe_nll_change_error": error,
            "probe_nll_change_winsorised": evidence.paired["nll_change_winsorised"],
            "refinement_change": list(evidence.refinement_change),
            "required_z": needed,
            "z": evidence.nll_score,
            "items_needed_to_show": math.ceil(evidence.paired["items"] * (needed * error / change) ** 2)
            if change
            else 0,
        }
    return numbers
