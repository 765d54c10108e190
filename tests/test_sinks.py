"""Every place gets what it can show, by its own means: read back from what real loggers wrote.

TensorBoard event files, an offline W&B run, CSV, and a logger with `log_metrics` and no more."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path

import pytest

from lightning_lossacc.sinks import (
    GenericSink,
    Reporter,
    TensorBoardSink,
    WandbSink,
    find_sinks,
)
from tests.made_up import MESSAGE, MetricsOnly, event, tell_all


def copies(name):
    """The same logger class of both Lightning packages, which are unrelated types."""
    lightning = pytest.importorskip("lightning.pytorch.loggers")
    legacy = pytest.importorskip("pytorch_lightning.loggers")
    return getattr(lightning, name), getattr(legacy, name)


@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_sinks_are_found_for_all_loggers_by_class_name(tmp_path, package):
    tensorboard, table, wandb = (copies(name)[package] for name in ("TensorBoardLogger", "CSVLogger", "WandbLogger"))
    derived = type("MyLogger", (tensorboard,), {})
    loggers = [
        table(tmp_path),
        tensorboard(tmp_path),
        derived(tmp_path),
        wandb(save_dir=tmp_path, offline=True),
        MetricsOnly(),
    ]
    kinds = [type(sink) for sink in find_sinks(loggers)]
    assert kinds == [GenericSink, TensorBoardSink, TensorBoardSink, WandbSink, GenericSink]
    assert not any(Path(tmp_path).rglob("*.wandb")), "finding a sink must not start a run"


def test_what_cannot_log_gets_no_sink():
    dummies = [
        __import__(f"{package}.loggers.logger", fromlist=["DummyLogger"]).DummyLogger()
        for package in ("lightning.pytorch", "pytorch_lightning")
    ]
    junk = [None, 3, "logger", object(), type("Holder", (), {"log_metrics": 3})()]
    assert find_sinks([*dummies, *junk]) == []


def tensorboard_of(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    return accumulator.Reload()


@pytest.mark.parametrize("prefix", ["", "net"])
@pytest.mark.parametrize("package", [0, 1], ids=["lightning", "pytorch_lightning"])
def test_tensorboard_holds_numbers_text_and_picture(tmp_path, package, prefix):
    logger = copies("TensorBoardLogger")[package](tmp_path, prefix=prefix)
    tell_all(Reporter(find_sinks([logger]), warn=pytest.fail))
    board = tensorboard_of(logger.log_dir)
    start = f"{prefix}-" if prefix else ""
    assert [(s.step, s.value) for s in board.Scalars(f"{start}lossacc/val/nll")] == [(300, 0.5)]
    assert [(s.step, s.value) for s in board.Scalars(f"{start}lossacc/val/events")] == [(300, 1.0)]
    (image,) = board.Images(f"{start}lossacc")
    assert image.step == 300 and image.width == 900 and image.height > 400
    (found,) = board.Tensors(f"{start}lossacc/events/text_summary")
    text = found.tensor_proto.string_val[0].decode()
    assert found.step == 300 and "loss up, accuracy flat: over-confidence" in text
    assert text.endswith("\n".join(f"    {line}" for line in MESSAGE.splitlines()))
    (found,) = board.Tensors(f"{start}lossacc/summary/text_summary")
    assert found.tensor_proto.string_val[0].decode() == "    done\n    → <ok>"


# The HTML cleaner inside tensorboard warns about itself.
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_tensorboard_shows_a_message_as_it_is(tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    logger = copies("TensorBoardLogger")[0](tmp_path)
    Reporter(find_sinks([logger]), warn=pytest.fail).event(event(300), 1)
    logger.experiment.flush()
    (found,) = tensorboard_of(logger.log_dir).Tensors("lossacc/events/text_summary")
    page = markdown_to_safe_html(found.tensor_proto.string_val[0])
    shown = page.partition("<pre><code>")[2].partition("</code></pre>")[0]
    assert shown.strip() == MESSAGE.replace("<b>", "&lt;b&gt;")


def wandb_records(path):
    """Records of an offline run: LevelDB's log, 32 KiB blocks of (crc, length, kind, data)."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    data, whole = path.read_bytes(), b""
    assert data[:4] == b":W&B"
    at = 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        # 1 is a whole record; 2, 3 and 4 are its first, middle and last part.
        if kind in (1, 4):
            made = WandbRecord()
            made.ParseFromString(whole)
            yield made
            whole = b""


def test_wandb_offline_run_holds_numbers_table_picture_and_summary(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb = pytest.importorskip("wandb")
    logger = copies("WandbLogger")[0](save_dir=tmp_path, offline=True, prefix="net")
    try:
        reporter = Reporter(find_sinks([logger], [event(100, stage="test")]), warn=pytest.fail)
        logger.log_metrics({"user": 1.0}, step=900)
        tell_all(reporter)
        reporter.event(event(400), 400)
    finally:
        wandb.teardown()
    (path,) = tmp_path.rglob("run-*.wandb")
    rows, summary = [], {}
    for made in wandb_records(path):
        if made.HasField("history"):
            rows.append(dict(decoded(item) for item in made.history.item))
        if made.HasField("summary"):
            summary |= dict(decoded(item) for item in made.summary.update)

    def logged(key):
        return [(row["trainer/global_step"], row[key]) for row in rows if key in row]

    # Lower steps after a higher one are kept: nothing was logged with `step=`.
    assert logged("net-user") == [(900, 1.0)]
    assert logged("net-lossacc/val/nll") == [(300, 0.5)]
    assert logged("net-lossacc/val/events") == [(300, 1.0), (400, 2.0)]
    assert logged("net-lossacc/event_table/nrows") == [(300, 2), (400, 3)]
    assert logged("net-lossacc/width") == [(300, 900)]
    assert logged("net-lossacc/summary/_type") == [(301, "html-file")]
    assert summary["net-lossacc/events"] == 3
    assert summary["net-lossacc/last_event"] == "loss up, accuracy flat: over-confidence"
    files = [file for file in tmp_path.rglob("media/**/*") if file.is_file()]
    tables = [json.loads(file.read_text()) for file in files if file.name.endswith(".table.json")]
    longest = max(tables, key=lambda table: len(table["data"]))
    assert longest["data"][1][longest["columns"].index("message")] == MESSAGE
    (page,) = (file.read_text() for file in files if file.suffix == ".html")
    assert page == "<pre>done\n→ &lt;ok&gt;</pre>"


def decoded(item):
    """(slash-joined key, value) of one item of a W&B record."""
    return "/".join(item.nested_key) or item.key, json.loads(item.value_json)


def test_csv_gets_numbers_and_a_count_of_events(tmp_path):
    logger = copies("CSVLogger")[0](tmp_path, prefix="net")
    reporter = Reporter(find_sinks([logger]), warn=pytest.fail)
    tell_all(reporter)
    reporter.event(event(400), 400)
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = [(row["step"], row["net-lossacc/val/events"]) for row in rows]
    assert ("300", "1.0") in counts and ("400", "2.0") in counts
    assert rows[0]["net-lossacc/val/nll"] == "0.5"


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
