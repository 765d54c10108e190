"""Made-up records and events for tests of what is done with them."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_lossacc.diagnosis.event import Cause, Event
from lightning_lossacc.history import History, Record
from lightning_lossacc.sinks.outcome import outcome

# Markdown and HTML of its own, a blank line, and signs outside ASCII.
MESSAGE = "over-confidence · val\nNLL 0.1406 → 0.1658\n| ``` <b> __x__ | # 好\n\nlast"


def record(epoch=0, step=None, stage="val", loader=0, complete=True, **values):
    """A record; without a step, 100 optimizer steps an epoch."""
    step = 100 * (epoch + 1) if step is None else step
    return Record(stage, loader, epoch, step, 0.0, complete, 1535, 1535, values)


def event(step=2100, name="loss-up-accuracy-flat", cause="over-confidence", **changes):
    """An event; its epoch follows from its step."""
    made = Event(
        id=f"{name}-val-0-{step}",
        event=name,
        level="warning",
        status="open",
        stage="val",
        loader=0,
        epoch=step // 100 - 1,
        global_step=step,
        reference_epoch=8,
        reference_step=900,
        onset_epoch=12,
        num_rows=1535,
        num_items=1535,
        causes=(Cause(cause, math.nan),),
        generalises="shown",
        evidence={"nll": math.nan},
        message=MESSAGE,
    )
    return replace(made, **changes)


HISTORY = History(record(epoch, nll=0.5, accuracy=0.8) for epoch in range(3))


class MetricsOnly:
    """A logger nobody has heard of."""

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step):
        self.calls.append((metrics, step))


def spread_record(epoch=0, **values):
    """A record with 100 rows in five margin bins and three confidence bins."""
    margins = [0] * 130
    margins[0], margins[60], margins[70], margins[80], margins[129] = 1, 9, 30, 55, 5
    confidence = {"edges": [index / 15 for index in range(16)], "rows": [0] * 7 + [20, 0, 30] + [0] * 4 + [50]}
    made = record(epoch, **{"nll": 0.5, "accuracy": 0.75, **values})
    return replace(made, num_rows=100, arrays={"margin_histogram": margins, "reliability": confidence})


def tell_all(reporter, report=None):
    """One call of each kind, in the order of a training."""
    reporter.start({"accuracy_margin": 0.01, "watch": 1})
    reporter.record(spread_record(2), "lossacc/val/{}", 300)
    reporter.scalars({"lossacc/val/nll": 0.5}, 300)
    reporter.event(event(300), 300)
    reporter.figures(["lossacc"], HISTORY, [event(300)], 300)
    reporter.summary("done\n→ <ok>", 301)
    reporter.outcome(outcome(HISTORY, [event(300)]), 301)
    if report is not None:
        reporter.report(report, 301)
    reporter.close()
