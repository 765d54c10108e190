"""An offline Comet experiment holds numbers, histograms, table, figure, texts, report and verdict: read back from its
archive. LitLogger writes to its own server only: its media are the real ones, its experiment is a dictionary."""

from __future__ import annotations

import csv
import io
import json

import pytest

from lightning_lossacc.sinks import Reporter, find_sinks
from tests.made_up import MESSAGE, event, spread_record, tell_all
from tests.read_back import CometRun, copies


@pytest.fixture(scope="module", params=[0, 1], ids=["lightning", "pytorch_lightning"])
def told(request, tmp_path_factory):
    """An experiment that was told everything once, and a second event."""
    folder = tmp_path_factory.mktemp("comet")
    (folder / "report.html").write_text("<html>why</html>")
    quiet = dict.fromkeys(["log_code", "log_git_metadata", "log_git_patch", "log_env_details"], False)
    with pytest.MonkeyPatch.context() as patch:
        pytest.importorskip("comet_ml")
        # Lightning's own `online=False` switches the experiment off.
        patch.setenv("COMET_START_ONLINE", "0")
        patch.setenv("COMET_LOGGING_CONSOLE", "ERROR")
        logger = copies("CometLogger")[request.param](
            offline_directory=str(folder), workspace="w", project="p", prefix="net", auto_output_logging=False, **quiet
        )
        reporter = Reporter(find_sinks([logger], [event(100, stage="test")], alert=True), warn=pytest.fail)
        tell_all(reporter, folder / "report.html")
        reporter.event(event(400, "spike", "unknown", level="info"), 400)
        logger.experiment.end()
    return CometRun.of(folder)


def others(run):
    return {payload["key"]: payload["value"] for payload in run.payloads("log_other")}


def test_numbers(told):
    sent = [payload["metric"] for payload in told.payloads("metric_msg")]
    found = [
        (item["metricName"], item["step"], item["metricValue"]) for item in sent if "lossacc" in item["metricName"]
    ]
    assert found == [
        ("net_lossacc/val/nll", 300, 0.5),
        ("net_lossacc/val/events", 300, 1.0),
        ("net_lossacc/val/events", 400, 2.0),
    ]


def test_histograms_hold_every_row(told):
    from comet_ml import Histogram

    found = {about["fileName"]: json.loads(content) for about, content in told.uploads("histogram3d")}
    assert list(found) == ["net_lossacc/val/margin", "net_lossacc/val/confidence"]
    histogram = Histogram.from_json(found["net_lossacc/val/margin"], verbose=False)
    assert sum(histogram.counts) == 100
    # Bins of its own, a tenth of the value wide, from the middles of ours.
    assert [int(count) for count in histogram.counts if count] == [1, 9, 30, 55, 5]


def test_table_figure_page_and_report(told):
    assets = {about["fileName"]: content for about, content in told.uploads("asset")}
    assert assets["lossacc_report.html"] == b"<html>why</html>"
    rows = list(csv.DictReader(io.StringIO(assets["lossacc_events.csv"].decode(), newline="")))
    assert [row["step"] for row in rows] == ["100", "300", "400"] and rows[1]["message"] == MESSAGE
    replaced = [about["overwrite"] for about, _ in told.uploads("asset") if about["fileName"] == "lossacc_events.csv"]
    assert replaced == [True, True]
    ((about, content),) = told.uploads("visualization")
    assert about["figName"] == "net_lossacc" and about["step"] == 300 and content.startswith(b"\x89PNG")
    assert [payload["html"] for payload in told.payloads("html")] == ["<pre>done\n→ &lt;ok&gt;</pre>"]


def test_settings_verdict_and_tag(told):
    found = others(told)
    assert found["lossacc/accuracy_margin"] == 0.01 and found["lossacc/events"] == 3
    assert found["lossacc/verdict"] == "over-confidence: loss up, accuracy flat"
    tags = json.loads(told.files["experiment.json"])["tags"]
    assert "lossacc: warning" in tags


class Series(list):
    def append(self, value, step=None):
        super().append((step, value))


class Experiment(dict):
    """Keeps what LitLogger's experiment would send; like it, it holds a key to its first kind."""

    def __missing__(self, key):
        self[key] = Series()
        return self[key]

    def __setitem__(self, key, value):
        assert key not in self or type(self[key]) is type(value), f"{key} changes its kind"
        super().__setitem__(key, value)


@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_litlogger_gets_media_series_and_metadata(tmp_path, monkeypatch, package):
    litlogger = pytest.importorskip("litlogger")
    logger = copies("LitLogger")[package](root_dir=str(tmp_path), name="run")
    logger._experiment = kept = Experiment()
    report = tmp_path / "report.html"
    report.write_text("<html>why</html>")
    reporter = Reporter(find_sinks([logger]), warn=pytest.fail)
    tell_all(reporter, report)
    reporter.event(event(400), 400)
    assert kept["lossacc/val/nll"] == [(300, 0.5)] and kept["lossacc/val/events"] == [(300, 1.0), (400, 2.0)]
    (step, text), _ = kept["lossacc/val/messages"]
    assert step == 300 and isinstance(text, litlogger.Text)
    with open(text._get_upload_path(), encoding="utf-8") as file:
        assert file.read() == MESSAGE
    ((step, picture),) = kept["figures/lossacc"]
    assert step == 300 and isinstance(picture, litlogger.Image) and "0.5000" in picture.description
    with open(picture._get_upload_path(), "rb") as file:
        assert file.read(4) == b"\x89PNG"
    assert isinstance(kept["lossacc/report.html"], litlogger.File) and kept["lossacc/report.html"].path == str(report)
    assert kept["lossacc.verdict"] == "over-confidence: loss up, accuracy flat"
    assert kept["lossacc.accuracy_margin"] == "0.01" and spread_record().num_rows == 100
