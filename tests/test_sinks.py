"""Which place gets which sink, and what those without pictures get: CSV, and a logger with `log_metrics` alone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lightning_lossacc.sinks import (
    CometSink,
    CsvSink,
    GenericSink,
    LitSink,
    MLFlowSink,
    Reporter,
    TensorBoardSink,
    WandbSink,
    find_sinks,
)
from lightning_lossacc.sinks.distributions import Distribution, distributions
from lightning_lossacc.sinks.event_table import MAX_ROWS, EventTable
from lightning_lossacc.sinks.outcome import BEST, outcome
from tests.made_up import HISTORY, MESSAGE, MetricsOnly, event, record, spread_record, tell_all
from tests.read_back import copies


@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_sinks_are_found_for_all_loggers_by_class_name(tmp_path, package):
    names = ("TensorBoardLogger", "CSVLogger", "WandbLogger", "MLFlowLogger")
    tensorboard, table, wandb, mlflow = (copies(name)[package] for name in names)
    derived = type("MyLogger", (tensorboard,), {})
    loggers = [
        table(tmp_path),
        tensorboard(tmp_path),
        derived(tmp_path),
        wandb(save_dir=tmp_path, offline=True),
        # Those create a store or a run when they are made; a name is all that decides.
        mlflow.__new__(mlflow),
        type("CometLogger", (MetricsOnly,), {})(),
        type("LitLogger", (MetricsOnly,), {})(),
        type("AimLogger", (MetricsOnly,), {})(),
        MetricsOnly(),
    ]
    kinds = [type(sink) for sink in find_sinks(loggers)]
    assert kinds == [
        CsvSink,
        TensorBoardSink,
        TensorBoardSink,
        WandbSink,
        MLFlowSink,
        CometSink,
        LitSink,
        GenericSink,
        GenericSink,
    ]
    assert not any(Path(tmp_path).rglob("*.wandb")), "finding a sink must not start a run"


def test_what_cannot_log_gets_no_sink():
    dummies = [
        __import__(f"{package}.loggers.logger", fromlist=["DummyLogger"]).DummyLogger()
        for package in ("lightning.pytorch", "pytorch_lightning")
    ]
    junk = [None, 3, "logger", object(), type("Holder", (), {"log_metrics": 3})()]
    assert find_sinks([*dummies, *junk]) == []


def test_unknown_logger_gets_numbers_and_a_count_for_each_stage():
    logger = MetricsOnly()
    reporter = Reporter(find_sinks([logger], [event(100)]), warn=pytest.fail)
    tell_all(reporter)
    reporter.event(event(300, status="doubled"), 400)
    reporter.event(event(500, stage="test"), 500)
    assert logger.calls == [
        ({"lossacc/val/nll": 0.5}, 300),
        ({"lossacc/val/events": 2.0}, 300),
        ({"lossacc/val/events": 2.0}, 400),
        ({"lossacc/test/events": 1.0}, 500),
    ]


def test_nothing_is_drawn_for_those_who_show_no_pictures(monkeypatch):
    """Nor is anything drawn without any place, as in a Trainer without loggers and files."""
    monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", lambda *a, **b: pytest.fail("drawn"))
    tell_all(Reporter(find_sinks([MetricsOnly()]), warn=pytest.fail))
    tell_all(Reporter([], warn=pytest.fail))


@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_csv_gets_numbers_and_a_table_of_events(tmp_path, package):
    logger = copies("CSVLogger")[package](tmp_path, prefix="net")
    reporter = Reporter(find_sinks([logger], [event(100, stage="test")]), warn=pytest.fail)
    tell_all(reporter)
    reporter.event(event(400), 400)
    logger.save()
    folder = Path(logger.log_dir)
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = [(row["step"], row["net-lossacc/val/events"]) for row in rows]
    assert ("300", "1.0") in counts and ("400", "2.0") in counts
    assert rows[0]["net-lossacc/val/nll"] == "0.5"
    with open(folder / "lossacc_events.csv", newline="", encoding="utf-8") as file:
        events = list(csv.DictReader(file))
    assert [(row["step"], row["stage"]) for row in events] == [("100", "test"), ("300", "val"), ("400", "val")]
    assert events[1]["event"] == "loss up, accuracy flat: over-confidence" and events[1]["message"] == MESSAGE
    assert sorted(path.name for path in folder.iterdir()) == ["lossacc_events.csv", "metrics.csv"]


def test_the_table_of_events_keeps_the_newest():
    table = EventTable(event(100 * step) for step in range(1, MAX_ROWS + 1))
    table.add(event(100_000))
    assert len(table.rows) == MAX_ROWS == 200
    assert [table.rows[0][1], table.rows[-1][1]] == [200, 100_000]


def test_the_table_in_markdown_cannot_be_broken_by_its_cells():
    made = EventTable([event(300, cause="a|b\nc")]).markdown().splitlines()
    assert len(made) == 3 and {line.replace("\\|", "").count("|") for line in made} == {9}
    assert EventTable().markdown() == "no event"


def test_distributions_are_the_counts_of_the_record_without_empty_ends():
    """All rows, at their place; edges one more than bins; the two bins beyond ±64 are finite."""
    found = distributions(spread_record())
    margin, confidence = found["margin"], found["confidence"]
    assert sum(margin.rows) == sum(confidence.rows) == 100
    assert len(margin.edges) == len(margin.rows) + 1 == 131
    assert -70 < margin.edges[0] < -64.0 and margin.edges[1] == pytest.approx(-64)
    assert margin.edges[-2] == pytest.approx(64) and 64 < margin.edges[-1] < 70
    assert confidence.rows == (20, 0, 30, 0, 0, 0, 0, 50)
    assert confidence.edges == tuple(index / 15 for index in range(7, 16))
    assert distributions(record()) == {}


@pytest.mark.parametrize(("share", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 3.0), (1.0, 4.0)])
def test_quantiles_lie_linear_within_a_bin(share, value):
    assert Distribution((0.0, 1.0, 2.0, 4.0), (50, 0, 50)).quantile(share) == pytest.approx(value)


def test_the_outcome_says_what_lasts_and_where_each_measure_was_best():
    closed = event(100, "plateau", cause="unknown")
    events = [closed, event(200), event(300, "plateau", "unknown", id=closed.id, status="closed")]
    history = HISTORY
    found = outcome(history, events)
    assert found["verdict"] == "over-confidence: loss up, accuracy flat" and found["num_warnings"] == 2
    assert found["last_nll"] == found["best_nll"] == 0.5 and found["best_nll_epoch"] == 0
    # What no record holds, and what is not finite, is left out.
    assert not any("refinement" in key or "temperature" in key for key in found) and "refinement_nll" in BEST
    assert outcome(history, [])["verdict"] == "no event to warn of"
    assert outcome(history, [], stage="test") == {}
