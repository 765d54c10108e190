"""What stands in a report, and in which order? Plain texts and tables, before any HTML.

Verdict, picture and checkpoints of each stage and loader first; then each event with its evidence, attribution, other
causes and remedies; then the other figures, the table by epoch, the worst items, the configuration and the references.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lightning_lossacc import attribution
from lightning_lossacc.curves import Curves, event_counts, event_words, level_word
from lightning_lossacc.diagnosis.catalogue import EVENTS, RULES, summary_of
from lightning_lossacc.diagnosis.event import Cause, Event
from lightning_lossacc.diagnosis.message import STATUS, place
from lightning_lossacc.history import History, Record
from lightning_lossacc.report.references import METHODS, REFERENCES, cited
from lightning_lossacc.report.tables import (
    MAX_ROWS,
    Table,
    before_and_after,
    by_epoch,
    checkpoints,
    newest,
    number,
    parts,
    worst_items,
)

# Stages and loaders that are shown; a run has more only by mistake.
MAX_STREAMS = 8
MAX_EVENTS = 20


@dataclass(frozen=True, slots=True)
class EventBlock:
    """One event with all of its reports.

    Attributes:
        identity: unique within the page.
        title, level, status, where: its heading.
        told: what happened and what the cause means, one sentence each.
        timeline: when it was reported.
        tables: reference and now, and parts of the change.
        evidence, against: sentences for and against the first cause.
        identities: further ways in which the change adds up, one sentence each.
        others: the other causes.
        remedies: what to do, most specific first, with gains.
        holds: whether it holds on new data.
        message: the text as the terminal and the loggers showed it.
    """

    identity: str
    title: str
    level: str
    status: str
    where: str
    told: tuple[str, ...]
    timeline: str
    tables: tuple[Table, ...]
    evidence: tuple[str, ...]
    against: tuple[str, ...]
    identities: tuple[str, ...]
    others: tuple[Cause, ...]
    remedies: tuple[str, ...]
    holds: str
    message: str


@dataclass(frozen=True, slots=True)
class Stream:
    """One stage and loader.

    Attributes:
        stage, loader, name: which.
        verdict: two sentences.
        warns: whether a warning stands open.
        checkpoints: best by loss, accuracy and refined NLL.
        by_epoch, worst: the long tables.
    """

    stage: str
    loader: int
    name: str
    verdict: tuple[str, str]
    warns: bool
    checkpoints: Table | None
    by_epoch: Table | None
    worst: Table | None


@dataclass(frozen=True, slots=True)
class Content:
    """A whole report.

    Attributes:
        title: name of the run.
        streams: the one that is judged first.
        events: newest warnings first, then notes.
        counts: how many of each, those that are left out among them.
        hidden_events: how many are left out.
        notes: what was done to a log to read it, and what it cannot say.
        configuration: name and value of each setting and fact.
        methods, references: quantity with short form, and full references.
        measured: whether logits were seen.
    """

    title: str
    streams: tuple[Stream, ...]
    events: tuple[EventBlock, ...]
    counts: str = ""
    hidden_events: int = 0
    notes: tuple[str, ...] = ()
    configuration: tuple[tuple[str, str], ...] = ()
    methods: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()
    measured: bool = field(default=False)


def content(
    history: History,
    events: Sequence[Event],
    title: str,
    configuration: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Content:
    """Everything that a report says, as text.

    Args:
        history, events: of one run.
        title: name of the run.
        configuration: settings, in plain values.
        notes: further sentences about the log.
    """
    known = _order(history)
    rows = max(MAX_ROWS // max(len(known), 1), 20)
    streams = tuple(_stream(history, events, stage, loader, rows) for stage, loader in known)
    reports: dict[str, list[Event]] = {}
    for event in events:
        reports.setdefault(event.id, []).append(event)
    blocks = sorted(reports.values(), key=lambda own: (_is_over(own), own[-1].level != "warning", -own[-1].global_step))
    shown = tuple(_block(f"event-{place}", own) for place, own in enumerate(blocks[:MAX_EVENTS], start=1))
    measured = any("nll" in record.values for record in history)
    methods = tuple(METHODS.items()) if measured else ()
    texts = [text for block in shown for text in (*block.remedies, *block.evidence)] + [short for _, short in methods]
    return Content(
        title=title,
        streams=streams,
        events=shown,
        counts=event_counts(events),
        hidden_events=len(blocks) - len(shown),
        notes=tuple(notes),
        configuration=tuple(_facts(history)) + tuple((key, str(value)) for key, value in (configuration or {}).items()),
        methods=tuple((what, REFERENCES[short]) for what, short in methods),
        references=tuple(full for full in cited(texts) if full not in {REFERENCES[short] for _, short in methods}),
        measured=measured,
    )


def _order(history: History) -> list[tuple[str, int]]:
    """Stages and loaders that are judged, validation first; training only where there is nothing else."""
    rank = {"val": 0, "test": 1, "validate": 2}
    known = [stream for stream in history.streams() if stream[0] in rank and (stream[1] >= 0 or stream[0] == "val")]
    # The union of several loaders comes after them.
    known.sort(key=lambda stream: (rank[stream[0]], stream[1] < 0, stream[1]))
    return (known or [stream for stream in history.streams() if stream[0] == "train"])[:MAX_STREAMS]


def _stream(history: History, events: Sequence[Event], stage: str, loader: int, rows: int) -> Stream:
    curves = Curves.of(history, stage, loader)
    own = [event for event in events if (event.stage, event.loader) == (stage, loader)]
    return Stream(
        stage=stage,
        loader=loader,
        name=place(stage, loader) if loader >= 0 else f"{stage}, all data loaders",
        verdict=_verdict(curves, own),
        warns=bool(_open_warnings(own)),
        checkpoints=checkpoints(curves),
        by_epoch=by_epoch(history, curves, rows),
        worst=worst_items(newest(curves)),
    )


def _verdict(curves: Curves, events: Sequence[Event]) -> tuple[str, str]:
    """What happened, and what to do about it; one sentence each."""
    warnings = _open_warnings(events)
    if warnings:
        event = warnings[0]
        cause = "Unknown cause" if event.cause == "unknown" else _capital(event.cause)
        first = f"{cause}: {_moved(event)}{f'; {len(warnings) - 1} more below' if len(warnings) > 1 else ''}."
        return first, f"First thing to do: {event.remedies[0]}." if event.remedies else summary_of_cause(event.cause)
    name, losses = curves.loss()
    table = checkpoints(curves)
    if table is None or not any(map(math.isfinite, losses)):
        return "Nothing was measured that could be judged.", "A complete evaluation with a finite loss is needed."
    lowest = table.rows[0]
    count = len(curves.records)
    first = f"No event to warn of in {count} evaluation{'s' if count > 1 else ''}"
    closed = len({event.id for event in events if event.level == "warning"})
    first += f" ({closed} came and went)." if closed else "."
    last = losses[-1] if math.isfinite(losses[-1]) else math.nan
    return first, f"The lowest {name} is {lowest[3]} at epoch {lowest[1]}, the last one {number(last)}."


def _open_warnings(events: Sequence[Event]) -> list[Event]:
    """The last report of each warning that has not closed, the newest first."""
    latest = {event.id: event for event in events}
    lasting = [event for event in latest.values() if event.level == "warning" and event.status != "closed"]
    return sorted(lasting, key=lambda event: -event.global_step)


def _moved(event: Event) -> str:
    """What happened since when, with the numbers that the event knows."""
    happened = EVENTS.get(event.event, event_words(event))
    table = before_and_after(event)
    if table is None or event.reference_epoch == event.epoch:
        return f"at epoch {event.epoch} {happened}"
    words = [f"{name.partition(' (')[0]} {before} → {now}{_unit(name)}" for name, before, now, _ in table.rows[:2]]
    return f"since epoch {event.reference_epoch} {happened} ({', '.join(words)} at epoch {event.epoch})"


def _unit(name: str) -> str:
    return " %" if "%" in name else " nats" if "nats" in name else ""


def _is_over(reports: Sequence[Event]) -> bool:
    return reports[-1].status == "closed"


def _block(identity: str, reports: Sequence[Event]) -> EventBlock:
    # A closing report names no remedies: what was said before it still tells what happened.
    event = next((report for report in reversed(reports) if report.status != "closed"), reports[-1])
    newest_report = reports[-1]
    cause = event.causes[0] if event.causes else Cause("unknown", math.nan)
    needed = event.evidence.get("items_needed_to_show")
    holds = "Holds on new data: shown" if event.generalises == "shown" else "Holds on new data: not shown"
    if event.generalises != "shown" and isinstance(needed, int | float) and math.isfinite(needed):
        holds += f"; about {needed:.0f} items would show a change of this size"
    moved = before_and_after(event) if event.reference_epoch != event.epoch else None
    told = [_capital(EVENTS[event.event]) + "." if event.event in EVENTS else "", summary_of_cause(cause.cause)]
    return EventBlock(
        identity=identity,
        title=_capital(event_words(event)),
        level=level_word(event),
        status=newest_report.status,
        where=place(event.stage, event.loader),
        told=tuple(sentence for sentence in told if sentence),
        timeline=_timeline(reports),
        tables=tuple(table for table in (moved, parts(event.attribution)) if table),
        evidence=cause.evidence,
        against=cause.against,
        identities=tuple(attribution.sentences(event.attribution)),
        others=event.causes[1:],
        remedies=event.remedies,
        holds=holds,
        message=event.message,
    )


def _timeline(reports: Sequence[Event]) -> str:
    """When the event was reported: "opened at epoch 36, doubled at epochs 60 and 141"."""
    epochs: dict[str, list[str]] = {}
    for report in reports:
        epochs.setdefault(STATUS.get(report.status, report.status), []).append(str(report.epoch))
    return ", ".join(
        f"{status} at epoch {found[0]}"
        if len(found) == 1
        else f"{status} at epochs {', '.join(found[:-1])} and {found[-1]}"
        for status, found in epochs.items()
    )


def summary_of_cause(cause: str) -> str:
    """What a cause means in one sentence; empty for an unknown one."""
    return summary_of(cause) if cause in RULES else ""


def _facts(history: History) -> list[tuple[str, str]]:
    """What the records themselves tell about the run."""
    if not history.records:
        return []
    first, last = history.records[0], history.records[-1]
    facts = []
    if first.time > 0:
        facts = [("first evaluation", _when(first)), ("last evaluation", _when(last))]
    for stage, loader in history.streams():
        series = history.series(stage, loader, complete=False)
        size = f", {series[-1].num_rows} rows in {series[-1].num_items} items" if series[-1].num_rows else ""
        facts.append((f"evaluations, {place(stage, loader)}", f"{len(series)}{size}"))
    arrays = next((record.arrays for record in reversed(history.records) if record.arrays), {})
    excluded = {name: rows for name, rows in (arrays.get("excluded") or {}).items() if rows}
    if excluded:
        facts.append(("rows left out or tied", ", ".join(f"{name} {rows}" for name, rows in excluded.items())))
    if arrays.get("loss_terms"):
        facts.append(("the loss has as well", str(arrays["loss_terms"])))
    logged = {key: value for record in history for key, value in record.logged.items()}
    if logged:
        facts.append(("logged by the module", ", ".join(f"{key} {number(value)}" for key, value in logged.items())))
    return facts


def _when(record: Record) -> str:
    try:
        return datetime.fromtimestamp(record.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return "unknown"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
