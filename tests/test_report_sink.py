"""The report while training goes on: seldom enough to cost nothing, whole at any moment, and always there at the end;
a place that cannot be written to stops nothing."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_lossacc.history import History
from lightning_lossacc.sinks import report as sink_room
from lightning_lossacc.sinks.report import PAUSE, ReportSink
from lightning_lossacc.sinks.reporter import Reporter
from tests.made_up import event, record
from tests.modules import QUIET, Plain, loader, monitor, trainer
from tests.page import read

pytestmark = QUIET


class Clock:
    """Time that goes on only when something takes it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(sink_room, "time", made)
    return made


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[dict[str, Any]]:
    """Calls of `write`, each of which takes a second."""
    calls: list[dict[str, Any]] = []

    def write(path: Path, history: History, events: Any, **options: Any) -> None:
        clock.now += 1.0
        calls.append({"path": path, "evaluations": len(history), "events": list(events), "at": clock.now, **options})

    monkeypatch.setattr(sink_room, "write", write)
    return calls


def make(history: History, events: list[Any], **options: Any) -> ReportSink:
    return ReportSink("run", lambda: (history, events), **options)


def test_report_takes_at_most_one_percent_of_the_time(written: list[dict[str, Any]], clock: Clock) -> None:
    """A thousand evaluations of 2 s, each report 1 s: one after 30 s, then one in 100 s."""
    history = History()
    sink = make(history, [])
    for epoch in range(1000):
        history.append(record(epoch, nll=0.5))
        sink.record(history.records[-1], "lossacc/val/{}", epoch)
        sink.scalars({}, epoch)
        sink.event(event(300), epoch)
        clock.now += 2.0
    assert len(written) == pytest.approx(2000 / 101, abs=1)
    assert written[0]["at"] >= 1000 + PAUSE and len(written) / (clock.now - 1000) <= 0.01
    assert all(not one["finished"] for one in written)


def test_report_is_written_at_most_every_thirty_seconds(
    written: list[dict[str, Any]], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing takes no time."""
    monkeypatch.setattr(sink_room, "SHARE", 0.0)
    sink = make(History(), [])
    for _ in range(600):
        sink.scalars({}, 0)
        clock.now += 1.0
    gaps = [later["at"] - earlier["at"] for earlier, later in itertools.pairwise(written)]
    assert len(written) > 10 and min(gaps) >= 30 and PAUSE == 30


def test_last_report_is_written_at_the_end_and_tells_the_settings(written: list[dict[str, Any]]) -> None:
    """With everything that was measured until then, once."""
    history, events = History([record(0, nll=0.5)]), [event(300)]
    sink = make(history, events, title="a run")
    sink.start({"probe_items": 5})
    sink.record(history.records[0], "lossacc/val/{}", 0)
    sink.summary("the end", 1)
    sink.close()
    (last,) = written
    assert last["finished"] and last["evaluations"] == 1 and last["events"] == events
    assert last["configuration"] == {"probe_items": 5} and last["title"] == "a run"
    assert last["path"] == Path("run/report.html")


def test_interrupted_run_gets_what_no_report_held_yet(written: list[dict[str, Any]]) -> None:
    sink = make(History([record(0, nll=0.5)]), [])
    sink.close()
    assert not written, "nothing new, nothing to write"
    sink.record(record(0, nll=0.5), "lossacc/val/{}", 0)
    sink.close()
    assert len(written) == 1 and not written[0]["finished"]


def test_evaluations_after_the_end_are_written_at_once_and_training_on_is_not(
    written: list[dict[str, Any]], clock: Clock
) -> None:
    """`trainer.test` after `trainer.fit` belongs into the report; another fit has the pause again."""
    sink = make(History(), [])
    sink.summary("the end", 1)
    sink.record(record(0, stage="test", nll=0.5), "lossacc/test/{}", 0)
    sink.scalars({}, 1)
    assert [one["finished"] for one in written] == [True, True]
    sink.record(record(1, stage="train", nll=0.5), "lossacc/train/{}", 0)
    sink.scalars({}, 2)
    assert len(written) == 2
    clock.now += 200.0
    sink.scalars({}, 3)
    assert not written[2]["finished"]


def test_report_follows_the_history_of_the_run(written: list[dict[str, Any]]) -> None:
    """A run may begin anew, with another history, without a new sink."""
    current = {"history": History(), "events": []}
    sink = ReportSink("run", lambda: (current["history"], current["events"]), pause=0.0)
    sink.scalars({}, 0)
    current["history"] = History([record(0, nll=0.5), record(1, nll=0.4)])
    sink.scalars({}, 0)
    assert [one["evaluations"] for one in written] == [0, 2]


def test_place_that_cannot_be_written_gives_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    warnings: list[str] = []
    history = History([record(0, nll=0.5)])
    sink = ReportSink(tmp_path / "file" / "run", lambda: (history, []), pause=0.0)
    reporter = Reporter([sink], warnings.append)
    for step in range(3):
        reporter.scalars({"lossacc/val/nll": 0.5}, step)
    reporter.summary("done", 3)
    reporter.close()
    assert len(warnings) == 1 and "lossacc could not write to report: NotADirectoryError" in warnings[0]


def test_report_that_fails_to_be_made_never_stops_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Whatever breaks inside of it."""

    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the template is broken")

    monkeypatch.setattr("lightning_lossacc.report._template", fails)
    monkeypatch.setattr("lightning_lossacc.report.draw", lambda *arguments, **options: None)
    monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", lambda *arguments, **options: None)
    watch = monitor(dirpath=None)
    trainer(tmp_path, watch).fit(Plain(), loader(), loader())
    assert len(watch.history.series("val")) == 2
    ours = [str(one.message) for one in recwarn.list if "lossacc" in str(one.message)]
    assert len(ours) == 1 and "the template is broken" in ours[0]


def test_fit_leaves_a_whole_report_with_its_numbers(tmp_path: Path) -> None:
    """The checkpoint table holds the last NLL of the monitor's own history; nothing of a draft is left."""
    watch = monitor(dirpath=None)
    trainer(tmp_path, watch).fit(Plain(), loader(), loader())
    folder = tmp_path / "lossacc"
    found = read((folder / "report.html").read_text(encoding="utf-8"))
    assert not found.problems
    last = watch.history.series("val")[-1].values["nll"]
    assert f"{last:.4f}" in [element.text for element in found.all("td")]
    assert str(tmp_path) in found.all("title")[0].text and "accuracy_margin" in found.text
    assert not list(folder.glob(".draft*"))


def test_validation_alone_has_a_report_and_no_files_means_none(tmp_path: Path) -> None:
    trainer(tmp_path / "one", monitor(dirpath=None)).validate(Plain(), loader(), verbose=False)
    assert "</html>" in (tmp_path / "one" / "lossacc" / "report.html").read_text(encoding="utf-8")
    trainer(tmp_path / "two", monitor(dirpath=False)).fit(Plain(), loader(), loader())
    assert not list((tmp_path / "two").rglob("report.html"))


ENDLESS = """
import sys
from pathlib import Path
import lightning_lossacc.voice
from tests.modules import Plain, loader, monitor, trainer

lightning_lossacc.voice.PAUSE = 0.0  # a report with every evaluation
trainer(Path(sys.argv[1]), monitor(dirpath=None), max_epochs=100_000).fit(Plain(), loader(), loader())
"""


def test_killed_training_leaves_a_whole_report(tmp_path: Path) -> None:
    """A process that writes reports without a pause is killed at moments that nothing chose."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-W", "ignore", "-c", ENDLESS, str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    path = tmp_path / "run" / "lossacc" / "report.html"
    try:
        seen: set[int] = set()
        end = time.monotonic() + 120
        while len(seen) < 4:
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            if path.exists():
                seen.add(path.stat().st_mtime_ns)
                html = path.read_text(encoding="utf-8")
                assert html.rstrip().endswith("</html>"), "half a page was seen while it was written"
            time.sleep(0.03)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        log.close()
    found = read(path.read_text(encoding="utf-8"))
    assert not found.problems and "The run goes on, or ended without a last word" in found.text
    assert found.all("svg") and found.all("table")
    assert len(History.read(path.with_name("history.jsonl")).series()) >= 2
