"""The diagnosis of runs that are over: each log replayed evaluation by evaluation, and one verdict a run.

The engine is that of a live run (`Diagnosis.examine`); what it can say depends on what was logged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lightning_lossacc.diagnosis.catalogue import find_causes
from lightning_lossacc.diagnosis.changes import Stream
from lightning_lossacc.diagnosis.engine import Diagnosis
from lightning_lossacc.diagnosis.event import Cause, Event
from lightning_lossacc.diagnosis.message import compose
from lightning_lossacc.history import History, Record, to_json
from lightning_lossacc.readers import (
    Columns,
    Run,
    Sharpening,
    Source,
    UnreadableError,
    cannot_say,
    loss_and_accuracy,
    read_runs,
)
from lightning_lossacc.remedies import remedies
from lightning_lossacc.stuck import stuck_reason
from lightning_lossacc.verdict import RunVerdict, judge
from lightning_lossacc.workers import spread

# At so many evaluations of a run, spread evenly, the monitor's decisions are replayed; more would take minutes.
JUDGED = 500
# So many evaluations with the same numbers in two kinds of log are one run.
MIN_DIGEST = 3
# The worst first.
VERDICTS = ("diverging", "stuck", "unstable", "undecided", "healthy")
TROUBLE = VERDICTS[:3]


@dataclass(frozen=True, slots=True)
class Scanned:
    """One run, judged.

    Attributes:
        run: its name.
        format: of the log that was read.
        matched: column names by role; `not_judged` names those of other loaders and stages.
        verdict: `diverging`, `stuck`, `unstable`, `healthy` or `undecided`.
        reason: the numbers that decided it, in one sentence.
        events: the last report of each event, oldest first.
        opened: the epoch in which each of them was reported first.
        evaluations: how many were judged.
        epochs: the first and the last epoch, as the log counts.
        last: loss and accuracy of the last evaluation; NaN where there is none.
        notes: what was done to the log to read it.
        cannot_say: what the log leaves no room for.
        digest: series of the losses and accuracies in five digits, by which one run in two logs is recognised.
    """

    run: str
    format: str
    matched: dict[str, str]
    verdict: str
    reason: str
    events: tuple[Event, ...]
    opened: tuple[int, ...]
    evaluations: int
    epochs: tuple[int, int]
    last: tuple[float, float]
    notes: tuple[str, ...]
    cannot_say: tuple[str, ...]
    digest: tuple[str, ...]

    @property
    def warns(self) -> bool:
        """Whether something is wrong: a warning that still stands at the end, or a verdict of trouble."""
        still = any(event.level == "warning" and event.status != "closed" for event in self.events)
        return still or self.verdict in TROUBLE

    @property
    def repeats_epochs(self) -> bool:
        """Whether some epochs were evaluated more than once, so that an epoch does not say when."""
        return self.evaluations > self.epochs[1] - self.epochs[0] + 1

    def to_json(self) -> str:
        """One line: run, matched, verdict, events; then what explains them."""
        events = []
        for event, opened in zip(self.events, self.opened, strict=True):
            events.append({**json.loads(event.to_json()), "opened_epoch": opened})
        return to_json(
            {
                "run": self.run,
                "matched": self.matched,
                "verdict": self.verdict,
                "events": events,
                "reason": self.reason,
                "evaluations": self.evaluations,
                "epochs": list(self.epochs),
                "loss": self.last[0],
                "accuracy": self.last[1],
                "format": self.format,
                "notes": list(self.notes),
                "cannot_say": list(self.cannot_say),
            }
        )


@dataclass(frozen=True, slots=True)
class Unread:
    """A log from which nothing could be read, and why."""

    run: str
    reason: str
    certain: bool = True


def scan(
    sources: Sequence[Source],
    given: Columns | None = None,
    sharpening: Sharpening | None = None,
    advance: Callable[[], object] | None = None,
    workers: int | None = None,
) -> Iterator[Scanned | Unread]:
    """Reads and judges logs, in their order; a run that two kinds of log hold comes once.

    Args:
        sources: logs, from `find_sources`.
        given: columns that the user named.
        sharpening: what is known beside the logs.
        advance: called once after each log.
        workers: processes; by default one a core, none of their own for a handful of logs.
    """
    look = partial(scan_source, given=given, sharpening=sharpening)
    known: dict[tuple[str, ...], str] = {}
    # Of two logs of one run our own tells more, so it comes first and the other one is left out.
    sources = sorted(sources, key=lambda source: source.format != "history")
    for found in spread(look, sources, workers):
        if advance is not None:
            advance()
        for result in found:
            long_enough = isinstance(result, Scanned) and len(result.digest) >= MIN_DIGEST
            if not (long_enough and known.setdefault(result.digest, result.format) != result.format):
                yield result


def scan_source(
    source: Source, given: Columns | None = None, sharpening: Sharpening | None = None
) -> list[Scanned | Unread]:
    """The runs of one log, judged."""
    try:
        runs = read_runs(source, given, sharpening)
    except UnreadableError as error:
        return [Unread(source.name, str(error), source.certain)]
    except OSError as error:
        return [Unread(source.name, error.strerror or str(error), source.certain)]
    except Exception as error:
        # One log of thousands must not end the scan of the others.
        return [Unread(source.name, _named(error))]
    results: list[Scanned | Unread] = []
    for run in runs:
        try:
            results.append(_judged(run, source.format, sharpening or Sharpening()))
        except Exception as error:
            results.append(Unread(run.name, _named(error)))
    return results


def replay(history: History, stage: str = "val", loader: int = 0) -> list[Event]:
    """Every report that a monitor would have given while these evaluations came in.

    Of a long log only every k-th evaluation is judged, each from all that came before it, and so is the last one.
    """
    diagnosis, seen = Diagnosis(), History()
    reports: list[Event] = []
    own = len(history.series(stage, loader, complete=False))
    every, count = max(1, math.ceil(own / JUDGED)), 0
    for record in history:
        seen.append(record)
        if (record.stage, record.loader) == (stage, loader):
            count += 1
            if count % every == 0 or count == own:
                reports += diagnosis.examine(seen, stage, loader)
    return reports


def _judged(run: Run, log_format: str, sharpening: Sharpening) -> Scanned:
    loader = min((loader for stage, loader in run.history.streams() if stage == run.stage), default=0)
    records = run.history.series(run.stage, loader)
    pairs = [loss_and_accuracy(record) for record in records]
    events: dict[str, Event] = {}
    opened: dict[str, int] = {}
    for event in replay(run.history, run.stage, loader):
        opened.setdefault(event.id, event.epoch)
        events[event.id] = event
    for identity in [event.id for event in events.values() if _is_refuted(event, records, pairs)]:
        del events[identity], opened[identity]
    verdict = _agreed(_verdict(run, records, pairs, sharpening), events.values())
    late = _late_event(verdict, records, events.values())
    if late is not None:
        events[late.id], opened[late.id] = late, late.epoch
    return Scanned(
        run=run.name,
        format=log_format,
        matched=run.matched,
        verdict=verdict.kind,
        reason=verdict.reason,
        events=tuple(events.values()),
        opened=tuple(opened[identity] for identity in events),
        evaluations=len(records),
        epochs=(records[0].epoch, records[-1].epoch) if records else (0, 0),
        last=pairs[-1] if pairs else (math.nan, math.nan),
        notes=run.notes,
        cannot_say=tuple(cannot_say(run)),
        digest=tuple(f"{loss:.5g}/{accuracy:.5g}" for loss, accuracy in pairs),
    )


def _verdict(run: Run, records: list[Record], pairs: list[tuple[float, float]], sharpening: Sharpening) -> RunVerdict:
    """The verdict from the numbers alone."""
    losses, accuracies = [loss for loss, _ in pairs], [accuracy for _, accuracy in pairs]
    during, classes = _training_accuracies(records), _num_classes(records)
    sizes = [record.num_rows for record in records if record.num_rows]
    blown_up = bool(records) and "loss" in run.matched and _ends_not_finite(records, losses)
    found = judge(losses, accuracies, during, classes, sharpening.val_size or (sizes[-1] if sizes else None), blown_up)
    if run.stage == "train" and found.kind in ("healthy", "diverging"):
        return RunVerdict("undecided", f"only training values were logged: {found.reason}")
    return found


def _ends_not_finite(records: list[Record], losses: list[float]) -> bool:
    last = records[-1]
    return ("loss" in last.logged or "nll" in last.values) and not math.isfinite(losses[-1])


def _training_accuracies(records: list[Record]) -> list[float]:
    return [record.context.get("train_accuracy", math.nan) for record in records]


def _num_classes(records: list[Record]) -> int | None:
    return next((int(record.context["num_classes"]) for record in records if "num_classes" in record.context), None)


def _is_refuted(event: Event, records: list[Record], pairs: list[tuple[float, float]]) -> bool:
    """Whether a live monitor's "stuck", which knew less than the whole run, finds nothing in it that shows it."""
    if event.event != "accuracy-stuck" or event.status == "closed" or "nll" in records[-1].values:
        return False
    losses, accuracies = ([value for value in series if math.isfinite(value)] for series in zip(*pairs, strict=True))
    size = records[-1].num_rows or None
    return stuck_reason(losses, accuracies, _training_accuracies(records), _num_classes(records), size) is None


def _named(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {str(error).strip() or 'no text'}".split("\n")[0]


def _agreed(verdict: RunVerdict, events: Iterable[Event]) -> RunVerdict:
    """A verdict that no open event contradicts."""
    still = [event for event in events if event.status != "closed"]
    parted = [event for event in still if event.event.startswith("loss-up") or event.event == "loss-down-accuracy-down"]
    stuck = [event for event in still if event.event in ("accuracy-stuck", "accuracy-equals-class-share")]
    if verdict.kind in ("healthy", "undecided"):
        if parted:
            return RunVerdict("diverging", _headline(parted[-1]))
        if any(event.level == "warning" for event in stuck):
            return RunVerdict("stuck", _headline(stuck[-1]))
    return verdict


def _late_event(verdict: RunVerdict, records: list[Record], events: Iterable[Event]) -> Event | None:
    """The event that a verdict stands on, if the replay has none: seen in the whole run, at its end, alone."""
    series = [record for record in records if math.isfinite(loss_and_accuracy(record)[0])]
    still = {event.event for event in events if event.status != "closed"}
    if not verdict.event or not series or any(name.startswith(verdict.event) for name in still):
        return None
    reference = series[-1] if verdict.event == "accuracy-stuck" else series[min(verdict.reference, len(series) - 1)]
    newest = records[-1]
    stream = Stream(series, newest)
    evidence = stream.evidence(reference)
    name = verdict.event
    if name == "loss-up":
        kind = evidence.accuracy.kind
        name += f"-accuracy-{kind if kind in ('flat', 'not-down', 'up', 'down') else 'undecided'}"
    causes = find_causes(name, evidence) or (
        Cause("unknown", math.nan, evidence=("a log of loss and accuracy does not tell why",)),
    )
    event = Event(
        id=f"{name}/{newest.stage}/{newest.loader}/{newest.global_step}",
        event=name,
        level="warning",
        status="open",
        stage=newest.stage,
        loader=newest.loader,
        epoch=newest.epoch,
        global_step=newest.global_step,
        reference_epoch=reference.epoch,
        reference_step=reference.global_step,
        onset_epoch=series[min(verdict.onset, len(series) - 1)].epoch,
        num_rows=newest.num_rows,
        num_items=newest.num_items,
        causes=causes,
        generalises="not-shown",
        evidence={"decided_by": "the whole run, at its end", "reason": verdict.reason},
    )
    event = event.with_text(remedies(event.cause, series[-1], reference), "")
    return event.with_text(event.remedies, compose(event, evidence, reference.epoch))


def _headline(event: Event) -> str:
    return event.message.split("\n")[0]
