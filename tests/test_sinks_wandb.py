"""An offline W&B run holds numbers, histograms, table, figure, texts, configuration, summary and alerts: read back from
its `.wandb` file and its media."""

from __future__ import annotations

import itertools
import json

import pytest

from lightning_lossacc.sinks import Reporter, find_sinks
from tests.made_up import MESSAGE, event, spread_record, tell_all
from tests.read_back import WandbRun, copies


@pytest.fixture(scope="module", params=[0, 1], ids=["lightning", "pytorch_lightning"])
def told(request, tmp_path_factory):
    """A run that was told everything once, a second event, and numbers of the user in between."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
            patch.setenv(f"WANDB_{name}", value)
        wandb = pytest.importorskip("wandb")
        logger = copies("WandbLogger")[request.param](save_dir=folder, offline=True, prefix="net")
        (folder / "report.html").write_text("<html><body>why → loss</body></html>", encoding="utf-8")
        try:
            reporter = Reporter(find_sinks([logger], [event(100, stage="test")], alert=True), warn=pytest.fail)
            logger.log_metrics({"user": 1.0}, step=900)
            tell_all(reporter, folder / "report.html")
            reporter.event(event(400, "spike", "unknown", level="info"), 400)
            reporter.event(event(300, status="doubled"), 500)
        finally:
            logger.experiment.finish()
            wandb.teardown()
    return WandbRun.of(folder), folder


def test_numbers_keep_their_steps_also_after_a_higher_one(told):
    """W&B drops what is logged with a lower `step=` than before: nothing of ours is."""
    run, _ = told
    assert run.column("net-user") == [(900, 1.0)]
    assert run.column("net-lossacc/val/nll") == [(300, 0.5)]
    assert run.column("net-lossacc/val/events") == [(300, 1.0), (400, 2.0), (500, 2.0)]
    steps = [row["_step"] for row in run.rows if "trainer/global_step" in row]
    assert steps[0] == 0 and all(later - step in (0, 1) for step, later in itertools.pairwise(steps))


def test_our_curves_have_the_trainers_step_as_their_axis(told):
    (metric,) = [metric for metric in told[0].metrics if metric.glob_name == "net-lossacc/*"]
    assert metric.step_metric == "trainer/global_step"


def test_histograms_hold_the_counts_as_they_are(told):
    run, _ = told
    arrays = spread_record().arrays
    ((step, rows),) = run.column("net-lossacc/val/margin_histogram/values")
    assert step == 300 and rows == arrays["margin_histogram"]
    ((_, edges),) = run.column("net-lossacc/val/margin_histogram/bins")
    assert len(edges) == len(rows) + 1 and edges == sorted(edges)
    ((_, rows),) = run.column("net-lossacc/val/confidence_histogram/values")
    assert rows == [20, 0, 30, 0, 0, 0, 0, 50]


def test_table_figure_and_pages(told):
    run, folder = told
    assert run.column("net-lossacc/event_table/nrows") == [(300, 2), (400, 3), (500, 4)]
    assert run.column("net-lossacc/width") == [(300, 900)]
    ((_, captions),) = run.column("net-lossacc/captions")
    assert "0.5000" in captions[0], "the caption says the numbers"
    assert run.column("net-lossacc/summary/_type") == run.column("net-lossacc/report/_type") == [(301, "html-file")]
    files = [file for file in folder.rglob("media/**/*") if file.is_file()]
    tables = [json.loads(file.read_text()) for file in files if file.name.endswith(".table.json")]
    longest = max(tables, key=lambda table: len(table["data"]))
    assert longest["data"][1][longest["columns"].index("message")] == MESSAGE
    pages = {file.name.split("_")[0]: file.read_text(encoding="utf-8") for file in files if file.suffix == ".html"}
    assert pages == {
        "summary": "<pre>done\n→ &lt;ok&gt;</pre>",
        "report": "<html><body>why → loss</body></html>",
    }


def test_runs_can_be_filtered_by_settings_and_outcome(told):
    run, _ = told
    assert run.config["lossacc"] == {"accuracy_margin": 0.01, "watch": 1}
    assert run.summary["net-lossacc/events"] == 3
    assert run.summary["net-lossacc/last_event"] == "loss up, accuracy flat: over-confidence"
    assert run.summary["net-lossacc/final/verdict"] == "over-confidence: loss up, accuracy flat"
    assert run.summary["net-lossacc/final/best_nll"] == 0.5


def test_one_alert_for_the_warning_that_opened(told):
    (alert,) = told[0].alerts
    assert alert.title == "val: loss up, accuracy flat: over-confidence" and alert.level == "WARN"
    assert alert.text == MESSAGE


def test_no_alert_unless_asked_for():
    said = []

    class WandbLogger:
        LOGGER_JOIN_CHAR = "-"
        experiment = type("Run", (), {"alert": said.append, "summary": {}})()

        def log_metrics(self, metrics, step):
            pass

        def log_table(self, *arguments, **options):
            pass

    (sink,) = find_sinks([WandbLogger()])
    sink.event(event(300), 300)
    assert type(sink).__name__ == "WandbSink" and said == []
