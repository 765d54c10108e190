"""What is said at the start and at the end of a run, from plain numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from lightning_lossacc import trends
from lightning_lossacc.attribution import accuracy_spread, interval
from lightning_lossacc.curves import event_counts
from lightning_lossacc.diagnosis.changes import loss_rise, practical_floor
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.message import headline, place
from lightning_lossacc.history import History, Record

# Evaluations for which a rise must last to be promised.
LASTING = 10
UNTOLD = 0.2  # of accuracy: a wider band tells nothing, and early learning counts as jitter in it
# Notes that are listed at the end; they may come and go many times.
MAX_NOTES = 5
EXCLUDED = {
    "ignored": "rows to be ignored",
    "invalid": "rows with a target out of range",
    "non_finite": "rows with NaN or infinite logits",
    "unsupported": "rows with soft targets",
}
BEST = (("loss", "nll", 1), ("accuracy", "accuracy", -1), ("refined NLL", "refinement_nll", 1))


def opening(record: Record, source: str, unpaired: str) -> str:
    """After the first evaluation: what was captured, what it can resolve, and how the logged loss is made up."""
    values = record.values
    lines = [f"lossacc · {place(record.stage, record.loader)} · captured from {source}"]
    spread = accuracy_spread(values["accuracy_standard_error"], record.num_items)
    loss_low, loss_high = interval(0.0, values["nll_standard_error"])
    size = f"{record.num_rows} rows"
    if record.num_items != record.num_rows:
        size += f" in {record.num_items} items"
    classes = len(record.arrays["classes"]["class"])
    lines.append(
        f"{classes}{'+' if -1 in record.arrays['classes']['class'] else ''} classes, {size}: one row is "
        f"{100 / max(record.num_rows, 1):.2g} pp; as of this evaluation, accuracy on new data of this size is known to "
        f"±{100 * spread:.1f} pp and NLL to ±{(loss_high - loss_low) / 2:.3f} nats (99 %)"
    )
    excluded = {name: rows for name, rows in record.arrays["excluded"].items() if rows and name != "ties"}
    if excluded:
        lines.append("left out: " + ", ".join(f"{rows} {EXCLUDED[name]}" for name, rows in excluded.items()))
    if unpaired:
        lines.append(f"rows are not paired between evaluations: {unpaired}; changes get no cause")
    loss = _logged_loss(record)
    if loss is not None and abs(loss[1] - values["nll"]) > 1e-3 * max(1.0, abs(values["nll"])):
        lines.append(
            f"your {loss[0]} {loss[1]:.4f} = NLL {values['nll']:.4f} {loss[1] - values['nll']:+.4f} "
            f"({record.arrays.get('loss_terms') or 'other terms, or another average'}); events are about the NLL"
        )
    return "\n".join(lines)


def closing(history: History, events: Sequence[Event], margin: float, files: str | None, report: bool = False) -> str:
    """At the end of a run: events or none and what would have been seen, and the checkpoint best by each measure.

    Args:
        history, events: of the run.
        margin: largest change of accuracy called flat.
        files: directory of the run's own files, None without one.
        report: whether `report.html` is among them.
    """
    blocks = []
    for stage, loader in history.streams():
        series = history.measured(stage, loader)
        if stage != "val" or loader < 0 or not series:
            continue
        own = [event for event in events if (event.stage, event.loader) == (stage, loader)]
        left_out = len(history.series(stage, loader, complete=False)) - len(series)
        blocks.append(_stream(series, own, margin, left_out))
    if not blocks:
        blocks.append(
            "lossacc · no complete validation was measured, so that nothing can be said about loss and accuracy"
        )
        blocks += [f"  {headline(event)}" for event in {event.id: event for event in events}.values()]
    if files is not None:
        names = (*["report.html"] * report, "history.jsonl", *["events.jsonl"] * bool(events), "lossacc.png")
        blocks.append(f"files: {_short(files)} ({', '.join(names)})")
    return "\n".join(blocks)


def _short(path: str) -> str:
    """A path as seen from the working folder, where that is shorter."""
    try:
        return min(os.path.relpath(path), path, key=len)
    except (OSError, ValueError):
        # Another drive, or a working folder that is gone.
        return path


def snapshot(record: Record) -> str:
    """One evaluation outside of training (validate, test)."""
    values = record.values
    shown = ("nll", "accuracy", "balanced_accuracy", "refinement_nll", "temperature", "overconfidence", "ece")
    numbers = " · ".join(f"{key} {values[key]:.4f}" for key in shown if key in values)
    return f"lossacc · {place(record.stage, record.loader)} · {record.num_rows} rows · {numbers}"


def _stream(series: Sequence[Record], events: Sequence[Event], margin: float, left_out: int) -> str:
    stage = place(series[0].stage, series[0].loader)
    warnings = {event.id: event for event in events if event.level == "warning"}
    last = {event.id: event for event in events}
    notes = [event for event in last.values() if event.id not in warnings]
    lines = [
        f"lossacc · {stage} · {len(series)} evaluation{'s' if len(series) > 1 else ''} of {series[-1].num_rows} rows · "
        + event_counts(events)
    ]
    if left_out:
        lines[0] += f" · {left_out} more evaluations were interrupted, or had no row that could be counted"
    lines += [f"  {headline(event)}" for event in warnings.values()]
    lines += [f"  note: {headline(event)}" for event in notes[:MAX_NOTES]]
    if len(notes) > MAX_NOTES:
        lines.append(f"  and {len(notes) - MAX_NOTES} more notes")
    if not warnings:
        lines.append(f"  {_resolvable(series, margin)}")
    lines.append(
        f"  {'best by':<12}{'epoch':>6}{'step':>8}{'NLL':>11}{'accuracy':>10}{'balanced':>10}{'refined NLL':>13}"
        f"{'T':>7}{'overconf.':>11}"
    )
    chosen = {name: _best(series, key, sign) for name, key, sign in BEST} | {"last": series[-1]}
    for name, record in chosen.items():
        if record is None:
            continue
        value = record.values
        lines.append(
            f"  {name:<12}{record.epoch:>6}{record.global_step:>8}{value['nll']:>11.4f}"
            f"{100 * value['accuracy']:>8.2f} %{100 * value.get('balanced_accuracy', math.nan):>8.2f} %"
            f"{value.get('refinement_nll', math.nan):>13.4f}"
            f"{value.get('temperature', math.nan):>7.2f}{100 * value['overconfidence']:>+8.2f} pp"
        )
    return "\n".join(lines)


def _resolvable(series: Sequence[Record], margin: float) -> str:
    losses = [record.values["nll"] for record in series]
    accuracies = [record.values["accuracy"] for record in series]
    lowest = min(range(len(losses)), key=losses.__getitem__)
    floor = practical_floor(losses[lowest])
    if len(series) < trends.MIN_EVALUATIONS:
        return (
            f"fewer than {trends.MIN_EVALUATIONS} evaluations: only changes beyond paired sampling error could be seen"
        )
    accuracy = trends.compare(accuracies, lowest, margin).resolvable
    rise = _seen_rise(losses, floor)
    text = f"a rise of the NLL by {rise:.3f} nats for {LASTING} evaluations would have been seen; "
    if not math.isfinite(rise):
        text = ""
    if accuracy == 0:
        return f"{text}accuracy never moved"
    if accuracy > UNTOLD:
        return f"{text}accuracy moved too much, or for too few evaluations, to be called flat or not"
    return f"{text}accuracy is called flat or not beyond ±{100 * accuracy:.1f} pp of jitter"


def _seen_rise(losses: Sequence[float], floor: float) -> float:
    """Smallest lasting rise above the lowest level that the detector finds at the end of this series, tried out."""
    lowest = sorted(losses)[: max(1, len(losses) // 10)]
    recent = losses[-LASTING:]
    jitter = [value - sum(recent) / len(recent) for value in recent]
    rise = floor
    while rise < 100 * floor:
        lifted = [lowest[-1] + rise + jitter[place % len(jitter)] for place in range(LASTING)]
        if loss_rise([*losses, *lifted]) is not None:
            return rise
        rise *= 1.1
    return math.inf


def _best(series: Sequence[Record], key: str, sign: int) -> Record | None:
    known = [record for record in series if math.isfinite(record.values.get(key, math.nan))]
    return min(known, key=lambda record: sign * record.values[key]) if known else None


def _logged_loss(record: Record) -> tuple[str, float] | None:
    """The user's loss of this loader; Lightning ends its name with the loader's number if there are several."""
    losses = {key: value for key, value in record.logged.items() if "loss" in key.lower()}
    own = [key for key in losses if "/dataloader_idx_" not in key or key.endswith(f"/dataloader_idx_{record.loader}")]
    return (own[0], losses[own[0]]) if own else None
