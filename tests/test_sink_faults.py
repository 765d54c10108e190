"""No place where results go can stop a training or lose what was said.

Injected: loggers that raise, at three points; directories that cannot be made or vanish; a full
disk; half-written lines; warnings as errors; numbers and words that strict JSON has no room for."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import warnings
from pathlib import Path

import pytest

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History
from lightning_lossacc.sinks import FileSink, Reporter, find_sinks
from lightning_lossacc.sinks.files import MAX_WAITING
from tests.made_up import HISTORY, MESSAGE, MetricsOnly, event, record, spread_record, tell_all


def keep(place, made):
    """Hands a record to a sink or a reporter."""
    place.record(made, "lossacc/val/{}", made.global_step)


class Unheard(BaseException):
    """No Exception, like the cancellation of a task."""


class Dying(MetricsOnly):
    """Raises from its n-th call on."""

    def __init__(self, first, error):
        super().__init__()
        self.first, self.error, self.tried = first, error, 0

    def log_metrics(self, metrics, step):
        self.tried += 1
        if self.tried >= self.first:
            raise self.error
        super().log_metrics(metrics, step)


FAULTS = [
    ConnectionError("host is\ngone"),
    TimeoutError(),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("no"),
    Unheard("x" * 10_000),
]


# The first event, one in the middle, the last.
@pytest.mark.parametrize("first", [1, 4, 8])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_dead_logger_gives_one_warning_and_the_others_get_everything(tmp_path, fault, first):
    before, dead, after = MetricsOnly(), Dying(first, fault), MetricsOnly()
    said = []
    sinks = [FileSink(tmp_path, said.append), *find_sinks([before, dead, after])]
    reporter = Reporter(sinks, said.append)
    for step in range(8):
        reporter.event(event(step), step)
    assert len(before.calls) == len(after.calls) == 8
    assert dead.tried == 8 and len(dead.calls) == first - 1
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 8
    (warning,) = said
    assert warning.startswith(f"lossacc could not write to Dying: {type(fault).__name__}")
    assert warning.endswith(f"training goes on, events are in {tmp_path / 'events.jsonl'}")
    assert "\n" not in warning and len(warning) < 1000


def test_each_dead_logger_has_its_own_warning_and_memory_is_named_without_a_file():
    said = []
    loggers = [Dying(1, ValueError("a")), MetricsOnly(), Dying(1, ValueError("b"))]
    reporter = Reporter(find_sinks(loggers), said.append)
    for _ in range(3):
        reporter.event(event(), 1)
    tail = "training goes on, events are in memory"
    assert said == [f"lossacc could not write to Dying: ValueError: {x}; {tail}" for x in "ab"]


class Broken:
    """A sink whose every method raises."""

    name = "broken"
    shows_figures = True

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def fail(*arguments, **options):
            raise self.error

        return fail


def test_no_method_of_a_sink_can_raise():
    said = []
    tell_all(Reporter([Broken(Unheard("no"))], said.append))
    assert len(said) == 1


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_what_the_user_asks_for_passes_through(signal):
    with pytest.raises(signal):
        Reporter([Broken(signal())], pytest.fail).event(event(), 1)


def test_warnings_as_errors_do_not_end_a_training(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        sinks = [Broken(ValueError("no")), FileSink(tmp_path / "file")]
        tell_all(Reporter(sinks))
    said = sorted(r.message.split(":")[0] for r in caplog.records)
    places = [str(tmp_path / "file"), "broken"]
    assert said == [f"lossacc could not write to {place}" for place in places]


def test_missing_matplotlib_is_said_once_and_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lossacc.sinks.reporter.find_spec", lambda name: None)
    said = []
    reporter = Reporter([FileSink(tmp_path)], said.append)
    tell_all(reporter)
    tell_all(reporter)
    assert said == ["lossacc draws no picture: matplotlib is not installed."]
    assert (tmp_path / "events.jsonl").exists() and not (tmp_path / "lossacc.png").exists()


def test_files_hold_history_events_picture_and_summary(tmp_path):
    place = tmp_path / "run" / "lossacc"
    tell_all(Reporter([FileSink(place)], pytest.fail))
    assert sorted(path.name for path in place.iterdir()) == [
        "events.jsonl",
        "history.jsonl",
        "lossacc.png",
        "summary.txt",
    ]
    (read,) = History.read(place / "history.jsonl")
    assert read == spread_record(2)
    (line,) = (place / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert Event.from_json(line).message == MESSAGE
    assert (place / "summary.txt").read_text(encoding="utf-8") == "done\n→ <ok>\n"
    assert (place / "lossacc.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_strict_json_whatever_the_numbers_and_words(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    sink = FileSink(tmp_path)
    keep(sink, record(0, nll=math.nan, accuracy=math.inf))
    message = "\u2028 line\r\n\x00 \ud83d\ude00 好".encode("utf-16", "surrogatepass").decode("utf-16")
    sink.event(event(message=message + "x" * 10_000), 1)
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["values"] == {"nll": None, "accuracy": None}
    (line,) = (tmp_path / "events.jsonl").read_bytes().splitlines()
    read = json.loads(line, parse_constant=refuse)
    assert read["message"] == message + "x" * 10_000 and read["evidence"] == {"nll": None}


def test_lines_wait_for_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    sink = FileSink(tmp_path / "file" / "lossacc", said.append)
    reporter = Reporter([sink], said.append)
    for epoch in range(3):
        keep(reporter, record(epoch))
        reporter.event(event(epoch), epoch)
        reporter.figures(["lossacc"], HISTORY, [], epoch)
        reporter.summary("text", epoch)
    assert len(said) == 1 and "training goes on" in said[0] and sink.num_waiting == 6
    (tmp_path / "file").unlink()
    reporter.close()
    assert [r.epoch for r in History.read(sink.history_path)] == [0, 1, 2]
    assert len(sink.events_path.read_text().splitlines()) == 3
    assert len(said) == 1 and sink.num_waiting == 0


def test_waiting_lines_are_bounded(tmp_path):
    (tmp_path / "file").write_text("")
    sink = FileSink(tmp_path / "file", warn=lambda message: None)
    for epoch in range(MAX_WAITING + 50):
        keep(sink, record(epoch))
    assert sink.num_waiting == MAX_WAITING == 2000
    (tmp_path / "file").unlink()
    keep(sink, record(MAX_WAITING + 50))
    assert [r.epoch for r in History.read(sink.history_path)] == list(range(51, MAX_WAITING + 51))


def test_directory_deleted_in_mid_run_is_made_again(tmp_path):
    sink = FileSink(tmp_path / "run", pytest.fail)
    keep(sink, record(0))
    sink.history_path.unlink()
    (tmp_path / "run").rmdir()
    tell_all(Reporter([sink], pytest.fail))
    assert len(list((tmp_path / "run").iterdir())) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_keeps_the_lines(tmp_path):
    said = []
    sink = FileSink(tmp_path, said.append)
    sink.history_path.symlink_to("/dev/full")
    keep(sink, record(0))
    keep(sink, record(1))
    sink.history_path.unlink()
    keep(sink, record(2))
    assert [r.epoch for r in History.read(sink.history_path)] == [0, 1, 2]
    assert len(said) == 1 and "No space left" in said[0]


class Short(io.FileIO):
    """A disk with room for 30 more bytes."""

    def write(self, data):
        return super().write(data[:30])


def test_half_written_line_is_cut_and_written_again_once(tmp_path, monkeypatch):
    said = []
    sink = FileSink(tmp_path, said.append)
    keep(sink, record(0))
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode, buffering: Short(path, "a+"))
        keep(sink, record(1))
    assert len(sink.history_path.read_bytes().splitlines()[-1]) == 30 and len(said) == 1
    keep(sink, record(2))
    assert [r.epoch for r in History.read(sink.history_path)] == [0, 1, 2]


# What a crash can leave behind: nothing, a whole line, one without its end, and a half.
@pytest.mark.parametrize(
    ("left", "epochs"),
    [
        ("", [5]),
        ("{line}\n", [0, 5]),
        ("{line}", [0, 5]),
        ("{line}\n{half}", [0, 5]),
        ("{half}", [5]),
    ],
)
def test_resumed_run_appends_after_a_crash(tmp_path, left, epochs):
    line = record(0, nll=0.5).to_json()
    sink = FileSink(tmp_path, pytest.fail)
    sink.history_path.write_text(left.format(line=line, half=line[: len(line) // 2]))
    keep(sink, record(5))
    assert [r.epoch for r in History.read(sink.history_path)] == epochs
    assert sink.history_path.read_bytes().endswith(b"\n")


def test_failed_picture_leaves_the_old_one_and_no_draft(tmp_path, monkeypatch):
    said = []
    sink = FileSink(tmp_path, said.append)
    reporter = Reporter([sink], pytest.fail)
    reporter.figures(["lossacc"], HISTORY, [], 1, loader=0)
    before = (tmp_path / "lossacc.png").read_bytes()

    def fail(path, data):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    reporter.figures(["lossacc"], HISTORY, [event(300)], 2)
    assert [path.name for path in tmp_path.iterdir()] == ["lossacc.png"]
    assert (tmp_path / "lossacc.png").read_bytes() == before and len(said) == 1


class Gallery(MetricsOnly):
    """Keeps the images that it is shown."""

    name, shows_figures = "gallery", True

    def __init__(self):
        super().__init__()
        self.images = []

    def figure(self, image, step):
        self.images.append((image, step))


def test_a_figure_is_drawn_once_for_all(monkeypatch):
    drawn = []
    first, second = Gallery(), Gallery()
    monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", lambda name, *a, **b: drawn.append(name) or name)
    Reporter([first, second], pytest.fail).figures(["lossacc", "lossacc/margin"], HISTORY, [], 7)
    assert drawn == ["lossacc", "lossacc/margin"]
    assert first.images == second.images == [("lossacc", 7), ("lossacc/margin", 7)]


def test_a_figure_that_fails_is_said_once_and_the_others_are_drawn(monkeypatch):
    def fail(name, *arguments, **options):
        if name == "lossacc/margin":
            raise ZeroDivisionError("no rows")
        return None if name == "lossacc/classes" else name

    monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", fail)
    said, shown = [], Gallery()
    reporter = Reporter([shown], said.append)
    for step in range(2):
        reporter.figures(["lossacc/margin", "lossacc/classes", "lossacc"], HISTORY, [], step)
    assert said == ["lossacc could not draw lossacc/margin: ZeroDivisionError: no rows; training goes on."]
    assert shown.images == [("lossacc", 0), ("lossacc", 1)], "a figure that has nothing to show is left out"


def test_a_logger_that_takes_long_to_fail_is_left_alone_for_a_while(monkeypatch):
    """A server that is down costs at most a twentieth of the time, and the end is tried all the same."""
    now = [0.0]

    class Slow(Dying):
        def log_metrics(self, metrics, step):
            now[0] += 2.0
            super().log_metrics(metrics, step)

    monkeypatch.setattr("lightning_lossacc.sinks.reporter.time.monotonic", lambda: now[0])
    slow, alive, said = Slow(1, TimeoutError()), MetricsOnly(), []
    reporter = Reporter(find_sinks([slow, alive]), said.append)
    for step in range(100):
        now[0] += 1.0
        reporter.event(event(step), step)
    assert len(alive.calls) == 100 and len(said) == 1
    assert 2 * slow.tried <= 0.06 * now[0] and slow.tried >= 3
    closed = []
    monkeypatch.setattr("lightning_lossacc.sinks.generic.GenericSink.close", lambda sink: closed.append(sink))
    reporter.close()
    assert len(closed) == 2
