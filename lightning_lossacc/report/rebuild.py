"""A report about a run that is over: from our own files, or from any training log that `lossacc scan` can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.readers import NOT_JUDGED, Run, Source, UnreadableError, cannot_say, find_sources, read_runs
from lightning_lossacc.report import FILE_NAME, write
from lightning_lossacc.scan import Scanned, replay, scan_source

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of one log: the report's path, or why there is none."""

    name: str
    path: Path | None
    problem: str = ""


def rebuild(paths: Sequence[str | Path], output: str | Path | None = None) -> list[Rebuilt]:
    """Writes a report for every run below the paths, in place of one that is there.

    Args:
        paths: logs, or folders that are searched for logs.
        output: the file, if there is one run; else each report stands beside its log, as `report.html` in a folder of
            our own or of TensorBoard, and as `<log>-report.html` beside any other file.

    Raises:
        ValueError: if `output` is given for several runs.
    """
    sources, missing = find_sources(paths)
    results = [Rebuilt(path, None, reason) for path, reason in missing]
    read: list[tuple[Source, list[Run]]] = []
    for source in sources:
        try:
            read.append((source, read_runs(source)))
        except UnreadableError as error:
            # A JSON file that is no log is nobody's fault.
            results += [Rebuilt(source.name, None, str(error))] if source.certain else []
        except OSError as error:
            results.append(Rebuilt(source.name, None, error.strerror or str(error)))
    if output is not None and sum(len(runs) for _, runs in read) > 1:
        names = ", ".join(run.name for _, runs in read for run in runs)
        raise ValueError(f"Expected one run for one output file, but got {names}; leave the output out.")
    for source, runs in read:
        try:
            results += _reports(source, runs, output)
        except Exception as error:
            # One log that holds what nobody foresaw must not cost the reports of the others.
            results.append(Rebuilt(source.name, None, f"{type(error).__name__}: {error}"))
    return results


def _reports(source: Source, runs: Sequence[Run], output: str | Path | None) -> list[Rebuilt]:
    own = read_events(source.path.with_name(EVENTS_FILE)) if source.format == "history" else []
    judged = {} if own else {found.run: found for found in scan_source(source) if isinstance(found, Scanned)}
    results = []
    for place, run in enumerate(runs):
        path = _place(source, place) if output is None else Path(output)
        found = judged.get(run.name)
        events = own or _replayed(run, found)
        notes = [f"Not said here: {what}." for what in cannot_say(run)] + [f"{note}." for note in run.notes]
        if found is not None:
            notes.insert(0, f"Judged afterwards, from the log alone: {found.verdict}, {found.reason}.")
        settings = {f"column of {role}": column for role, column in run.matched.items() if role != NOT_JUDGED}
        settings["log"] = source.path
        try:
            write(path, run.history, events, title=run.name, configuration=settings, notes=notes)
        except OSError as error:
            results.append(Rebuilt(run.name, None, f"{path}: {error.strerror or error}"))
        else:
            results.append(Rebuilt(run.name, path))
    return results


def _replayed(run: Run, found: Scanned | None) -> list[Event]:
    """Every report that a monitor would have given, and what is seen in the whole run alone."""
    streams = [(stage, loader) for stage, loader in run.history.streams() if stage == run.stage and loader >= 0]
    events = [event for stage, loader in streams for event in replay(run.history, stage, loader)]
    if found is not None and found.format != "history":
        # What the whole run refutes is not reported.
        events = [event for event in events if event.id in {kept.id for kept in found.events}]
    known = {event.id for event in events}
    return events + [event for event in (found.events if found is not None else ()) if event.id not in known]


def read_events(path: Path) -> list[Event]:
    """The events of a run; a line that a crash cut off, or that cannot be read, is left out."""
    events = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            events.append(Event.from_json(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return events


def _place(source: Source, number: int) -> Path:
    """Where the report of the n-th run of a log stands, from 0."""
    suffix = f"-{number + 1}" if number else ""
    stem, ending = FILE_NAME.split(".")
    if source.path.is_dir():
        return source.path / f"{stem}{suffix}.{ending}"
    if source.format == "history":
        return source.path.with_name(FILE_NAME)
    return source.path.with_name(f"{source.path.stem}-{stem}{suffix}.{ending}")
