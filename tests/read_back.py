"""Reads what loggers wrote, with each logger's own reader or by its documented format."""

from __future__ import annotations

import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lightning_lossacc.quantities import CORE

# What every logger of a training must hold: (stage, quantity).
COLUMNS = [("val", key) for key in CORE] + [("train", "nll"), ("train", "accuracy"), ("train", "overconfidence")]
# MLflow's database layer warns of its own use, and leaves connections to the garbage collector.
STORE_NOISE = [
    pytest.mark.filterwarnings("ignore:.*noload.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def copies(name: str) -> tuple[type, type]:
    """The same logger class of both Lightning packages, which are unrelated types."""
    import lightning.pytorch.loggers
    import pytorch_lightning.loggers

    return getattr(lightning.pytorch.loggers, name), getattr(pytorch_lightning.loggers, name)


def mlflow_store(folder: Path) -> Path:
    """An empty MLflow store; making its tables takes seconds, so that it is made once and copied."""
    mlflow = pytest.importorskip("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


def mlflow_logger(folder: Path, empty_store: Path, package: int = 0, **options: Any) -> Any:
    """A logger of either Lightning package whose store, a copy, and artifacts are in a folder."""
    store = folder / "mlflow.db"
    if not store.exists():
        shutil.copy(empty_store, store)
    options |= {"tracking_uri": f"sqlite:///{store}", "artifact_location": str(folder / "artifacts")}
    return copies("MLFlowLogger")[package](**options)


def tensorboard(path: Path | str) -> Any:
    """TensorBoard's accumulator over a run, with every value instead of a sample."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"tensors": 0, "scalars": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(path), size_guidance=sizes).Reload()


def texts(board: Any, tag: str) -> list[tuple[int, str]]:
    """(step, text) of a text tag."""
    found = board.Tensors(f"{tag}/text_summary")
    return [(item.step, item.tensor_proto.string_val[0].decode()) for item in found]


@dataclass
class WandbRun:
    """An offline W&B run: logged rows, and the last value of each key of the summary and the configuration."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[Any] = field(default_factory=list)
    alerts: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> WandbRun:
        """The one run below a folder."""
        (path,) = folder.rglob("run-*.wandb")
        run = cls()
        for made in _wandb_records(path):
            if made.HasField("history"):
                run.rows.append(dict(_decoded(item) for item in made.history.item))
            if made.HasField("summary"):
                run.summary |= dict(_decoded(item) for item in made.summary.update)
            if made.HasField("config"):
                run.config |= dict(_decoded(item) for item in made.config.update)
            if made.HasField("metric"):
                run.metrics.append(made.metric)
            if made.HasField("alert"):
                run.alerts.append(made.alert)
        return run

    def column(self, key: str) -> list[tuple[int, Any]]:
        """(trainer/global_step, value) wherever a key was logged."""
        return [(row["trainer/global_step"], row[key]) for row in self.rows if key in row]


def _wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: LevelDB's log, 32 KiB blocks of (crc, length, kind, data)."""
    from wandb.proto.wandb_internal_pb2 import Record

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
            made = Record()
            made.ParseFromString(whole)
            yield made
            whole = b""


def _decoded(item: Any) -> tuple[str, Any]:
    """(slash-joined key, value) of one item of a W&B record."""
    return "/".join(item.nested_key) or item.key, json.loads(item.value_json)


@dataclass
class CometRun:
    """The archive of an offline Comet experiment."""

    messages: list[dict[str, Any]]
    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> CometRun:
        """The one archive in a folder."""
        (path,) = folder.glob("*.zip")
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        lines = files["messages.json"].decode().splitlines()
        return cls([json.loads(line) | {"raw": line} for line in lines if line.strip()], files)

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        """What was sent in messages of one kind, in order."""
        return [message["payload"] for message in self.messages if message["type"] == kind]

    def uploads(self, kind: str) -> list[tuple[dict[str, Any], bytes]]:
        """(what was said about it, content) of every uploaded file of one kind."""
        sent = [payload for payload in self.payloads("file_upload") if payload["upload_type"] == kind]
        return [(payload["additional_params"], self.files[Path(payload["file_path"]).name]) for payload in sent]
