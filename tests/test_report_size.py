"""The page stays small for runs of any length, with any number of loaders and events."""

from __future__ import annotations

from dataclasses import replace

from lightning_lossacc import report
from lightning_lossacc.history import History
from tests.made_up_run import full_record
from tests.page import read
from tests.test_report import EVENT, EVENTS, REMEDIES

RECORDS = [full_record(epoch) for epoch in range(40)]
LONG = History(replace(RECORDS[min(epoch // 250, 39)], epoch=epoch, global_step=100 * epoch) for epoch in range(10_000))


def test_page_stays_below_500_kb():
    """10 000 evaluations, and four loaders of 1 500 with many long events."""
    html = report.render(LONG, EVENTS)
    assert len(html.encode()) < 500_000 and "of 10000 evaluations: evenly spaced ones and the best." in html
    many = History(
        replace(RECORDS[min(epoch // 38, 39)], loader=loader, epoch=epoch, global_step=100 * epoch)
        for epoch in range(1500)
        for loader in range(4)
    )
    events = [replace(EVENT, id=str(index), remedies=REMEDIES * 8, loader=index % 4) for index in range(60)]
    html = report.render(many, events)
    assert len(html.encode()) < 500_000 and "40 more events are in events.jsonl." in html
    assert not read(html).problems
