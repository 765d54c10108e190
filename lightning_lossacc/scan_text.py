"""How scanned runs are shown in a terminal: one block a run, or one line a run in a table."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.readers import NOT_JUDGED
from lightning_lossacc.scan import VERDICTS, Scanned

# More runs than this are shown as a table.
MAX_BLOCKS = 8


def text(results: Sequence[Scanned], with_details: bool = False) -> str:
    """All runs: blocks for a few, a table for many (both `with_details`)."""
    parts = []
    if with_details or len(results) <= MAX_BLOCKS:
        parts = [block(result) for result in results]
    if len(results) > 1:
        parts.append(table(results))
    if len(results) > MAX_BLOCKS and not with_details:
        parts.append("--details shows the numbers, the events and what was matched for each run")
    return "\n\n".join(parts)


def block(result: Scanned) -> str:
    """Verdict first, then what decided it, the events, what was read and what cannot be said."""
    first, last = result.epochs
    lines = [
        f"{result.verdict} · {result.run}",
        f"  {result.reason}",
        f"  {result.evaluations} evaluations, epoch {first} … {last} · last: loss {_number(result.last[0])}, "
        f"accuracy {_share(result.last[1])}",
    ]
    for event in result.events:
        message = event.message.split("\n")
        lines.append(f"  {event.level}: {message[0]}")
        # Numbers and advice of what is still there; of what has gone the headline is enough.
        if event.status != "closed":
            lines += [f"    {line}" for line in message[1:]]
            if result.repeats_epochs:
                lines.append(f"    by steps: {_steps(event)}")
    read = {role: column for role, column in result.matched.items() if role != NOT_JUDGED}
    lines.append("  matched: " + ", ".join(f"{role} = {column}" for role, column in read.items()))
    lines += [f"  note: {note}" for note in result.notes]
    lines += [f"  cannot say {what}" for what in result.cannot_say]
    return "\n".join(lines)


def table(results: Sequence[Scanned]) -> str:
    """One line a run, the worst verdicts first, and how many there are of each.

    `since` is the epoch that the last one is compared with, the same number as in the blocks.
    """
    ordered = sorted(results, key=lambda result: VERDICTS.index(result.verdict))
    prefix = _common_folder([result.run for result in results])
    names = [result.run[len(prefix) :] or result.run for result in ordered]
    width = min(max([len(name) for name in names] + [3]), 60)
    lines = [f"{'verdict':<10} {'run':<{width}} {'evaluations':>11} {'loss':>9} {'accuracy':>8}  events"]
    for name, result in zip(names, ordered, strict=True):
        shown = name if len(name) <= width else "…" + name[-width + 1 :]
        still = [event for event in result.events if event.status != "closed"]
        events = ", ".join(f"{event.event} since {_since(event)}" for event in still) or "-"
        lines.append(
            f"{result.verdict:<10} {shown:<{width}} {result.evaluations:>11} {_number(result.last[0]):>9} "
            f"{_share(result.last[1]):>8}  {events}"
        )
    counts = Counter(result.verdict for result in results)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    where = f" in {prefix}" if prefix else ""
    return "\n".join([*lines, f"{len(results)} runs{where}: {summary}"])


def _since(event: Event) -> int:
    """The epoch that the event is compared with, as its text has it; where it has none, that in which it began."""
    return event.onset_epoch if event.reference_epoch == event.epoch else event.reference_epoch


def _steps(event: Event) -> str:
    """Where an event is in a run with several evaluations an epoch."""
    now = f"step {event.global_step}"
    return now if event.reference_step == event.global_step else f"step {event.reference_step} → {now}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def _common_folder(names: list[str]) -> str:
    folder = os.path.commonpath(names) if len({os.path.isabs(name) for name in names}) == 1 else ""
    if folder in names:
        folder = os.path.dirname(folder)
    return folder + os.sep if folder and folder != os.sep else ""
