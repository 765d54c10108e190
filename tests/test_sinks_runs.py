"""What befalls runs: a database that dies, a resume, two processes, an archive: no curve has a gap or a step twice."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CometLogger, CSVLogger, TensorBoardLogger
from torch import Tensor

from lightning_lossacc import History, LossAccuracyMonitor
from tests.modules import QUIET, Memory, Plain, loader, safely, trainer
from tests.read_back import COLUMNS, STORE_NOISE, CometRun, mlflow_logger, mlflow_store, tensorboard, texts

pytestmark = [*QUIET, *STORE_NOISE]
EPOCHS = 12


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlflow_store(tmp_path_factory.mktemp("store"))


class Silent(Plain):
    """Logs nothing of its own: Lightning lets a logger's error end the training."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss("train", batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss("val", batch)


class Break(Callback):
    """Takes MLflow's table of numbers away at one moment, or at the end the room for its artifacts."""

    def __init__(self, folder: Path, epoch: int) -> None:
        self.folder, self.epoch = folder, epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            with sqlite3.connect(self.folder / "mlflow.db") as connection:
                connection.execute("ALTER TABLE metrics RENAME TO lost")
            connection.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epoch == EPOCHS:
            shutil.rmtree(self.folder / "artifacts")
            (self.folder / "artifacts").write_text("")


# The first evaluation, one in the middle, the end.
@pytest.mark.parametrize("epoch", [0, 6, EPOCHS])
def test_a_database_that_dies_takes_nothing_with_it(tmp_path: Path, empty_store: Path, epoch: int) -> None:
    board, table = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")
    dying = mlflow_logger(tmp_path, empty_store)
    watch = LossAccuracyMonitor(verbose=False, report=False)
    seed_everything(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(tmp_path, Break(tmp_path, epoch), watch, logger=[board, dying, table], max_epochs=EPOCHS)
        fit.fit(Silent(drop=0.1), loader(), loader(seed=2))
    ((message),) = [str(w.message) for w in caught if "lossacc" in str(w.message)]
    assert message.startswith("lossacc could not write to MLFlowLogger: ") and "events.jsonl" in message
    assert fit.current_epoch == EPOCHS
    nll = [record.values["nll"] for record in watch.history.series("val")]
    found = [item.value for item in tensorboard(board.log_dir).Scalars("lossacc/val/nll")]
    assert found == pytest.approx(nll, rel=1e-6) and len(nll) == EPOCHS
    with open(Path(table.log_dir) / "metrics.csv", newline="") as file:
        assert [float(row["lossacc/val/nll"]) for row in csv.DictReader(file) if row["lossacc/val/nll"]] == nll
    events = (Path(board.log_dir) / "lossacc" / "events.jsonl").read_text().splitlines()
    assert len(events) == len(watch.events) > 0
    assert len(texts(tensorboard(board.log_dir), "lossacc/summary")) == 1


def test_a_resumed_run_continues_the_same_curves(tmp_path: Path) -> None:
    """One folder, one layout, no step twice, and the count of events goes on."""
    whole = None
    for epochs in (6, EPOCHS):
        board = TensorBoardLogger(tmp_path, name="board", version="one")
        watch = LossAccuracyMonitor(verbose=False)
        seed_everything(3)
        fit = trainer(tmp_path, watch, logger=board, max_epochs=epochs, enable_checkpointing=True)
        fit.fit(Plain(drop=0.1), loader(), loader(seed=2), **safely(whole))
        whole = tmp_path / "whole.ckpt"
        fit.save_checkpoint(whole)
        board.experiment.close()
    found = tensorboard(board.log_dir)
    for stage, key in COLUMNS:
        records = watch.history.series(stage)
        items = found.Scalars(f"lossacc/{stage}/{key}")
        assert [item.step for item in items] == [record.global_step - 1 for record in records]
        assert [item.value for item in items] == pytest.approx([record.values[key] for record in records], rel=1e-6)
    assert len(watch.history.series("val")) == EPOCHS
    counts = [item.value for item in found.Scalars("lossacc/val/events")]
    assert counts == sorted(counts) and counts[-1] == len({event.id for event in watch.events})
    told = texts(found, "lossacc/events")
    assert len(told) == len(watch.events) and len(found.Tensors("custom_scalars__config__")) == 1
    folders = [path.name for path in Path(board.log_dir).iterdir() if path.is_dir()]
    assert sorted(folders) == ["checkpoints", "lossacc"]


class Stop(Callback):
    """What a user's Ctrl-C, or a fault of the user's, looks like."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 3:
            raise self.error("stop")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_an_interrupted_run_leaves_a_report_that_is_up_to_date(tmp_path: Path, error: type[BaseException]) -> None:
    """Without a word to any logger, which could hold up the end."""
    logger, watch = Memory(), LossAccuracyMonitor(verbose=False)
    fit = trainer(tmp_path, watch, Stop(error), logger=logger, max_epochs=EPOCHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((error, SystemExit)):
            fit.fit(Plain(drop=0.1), loader(), loader(seed=2))
    (report,) = tmp_path.rglob("report.html")
    last = watch.history.series("val")[-1]
    assert last.epoch == 2 and f"{last.values['nll']:.4f}" in report.read_text(encoding="utf-8")
    assert len(History.read(report.with_name("history.jsonl"))) == len(watch.history)
    steps = [step for metrics, step in logger.rows if "lossacc/train/nll" in metrics or "lossacc/val/nll" in metrics]
    assert max(steps) == last.global_step - 1 and not report.with_name("summary.txt").exists()


class Once(LightningModule):
    """Two classes by one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(5, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def of_two(path: Path) -> None:
    """What each of two processes runs."""
    from lightning.pytorch.strategies import DDPStrategy

    loggers = [TensorBoardLogger(path, name="board", version="one"), CSVLogger(path, name="table", version="one")]
    strategy = DDPStrategy(process_group_backend="gloo")
    watch = LossAccuracyMonitor(verbose=False)
    fit = trainer(path, watch, logger=loggers, max_epochs=3, devices=2, strategy=strategy)
    fit.fit(Once(), loader(), loader(seed=2))
    watch.history.write(path / f"history-{fit.global_rank}.jsonl")


def test_two_processes_write_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.test_sinks_runs", str(tmp_path)]
    ranks = [subprocess.Popen(command, env=shared | {"LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (History.read(tmp_path / f"history-{rank}.jsonl") for rank in range(2))
    columns = [history.column("nll") for history in (first, second)]
    assert columns[0] == columns[1] and len(columns[0]) == 3
    folder = tmp_path / "board" / "one"
    board = tensorboard(folder)
    assert [item.value for item in board.Scalars("lossacc/val/nll")] == pytest.approx(columns[0], rel=1e-6)
    shown = [item.step for item in board.Images("lossacc")]
    assert shown and shown == sorted(set(shown)) and len(board.Histograms("lossacc/val/margin")) == 3
    assert len(list(folder.glob("*tfevents*"))) == 1
    lines = (folder / "lossacc" / "history.jsonl").read_text().splitlines()
    assert len(lines) == len(first)
    with open(tmp_path / "table" / "one" / "metrics.csv", newline="") as file:
        assert [float(row["lossacc/val/nll"]) for row in csv.DictReader(file) if row["lossacc/val/nll"]] == columns[0]


def test_comet_holds_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run of its own: Comet takes over what MLflow is given in the same process."""
    pytest.importorskip("comet_ml")
    # Lightning's own `online=False` switches the experiment off.
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    monkeypatch.setenv("COMET_LOGGING_CONSOLE", "ERROR")
    quiet = dict.fromkeys(["log_code", "log_git_metadata", "log_git_patch", "log_env_details"], False)
    comet = CometLogger(offline_directory=str(tmp_path), workspace="w", project="p", **quiet)
    watch = LossAccuracyMonitor(verbose=False)
    trainer(tmp_path, watch, logger=comet, max_epochs=4).fit(Plain(drop=0.1), loader(), loader(seed=2))
    comet.experiment.end()
    run = CometRun.of(tmp_path)
    sent = [payload["metric"] for payload in run.payloads("metric_msg")]
    for stage, key in COLUMNS:
        found = [(i["step"], float(i["metricValue"])) for i in sent if i["metricName"] == f"lossacc/{stage}/{key}"]
        assert found == [(record.global_step - 1, record.values[key]) for record in watch.history.series(stage)]
    files = {path.name: path.read_bytes() for path in (tmp_path / "lossacc").iterdir()}
    shown = {about["figName"].replace("/", "_") + ".png": data for about, data in run.uploads("visualization")}
    assert shown == {name: data for name, data in files.items() if name.endswith(".png")} and len(shown) >= 3
    assets = {about.get("fileName"): data for about, data in run.uploads("asset")}
    assert assets["lossacc_report.html"] == files["report.html"]


if __name__ == "__main__":
    of_two(Path(sys.argv[1]))
