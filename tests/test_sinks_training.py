"""A real training with real loggers: each holds what the history holds, number by number, under the Trainer's steps.

Proved here: TensorBoard, CSV, MLflow, offline W&B and an unknown logger at once; the figures and the report are the
same bytes everywhere; `plot` shows itself in a notebook.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_lossacc import LossAccuracyMonitor
from lightning_lossacc.curves import event_words
from lightning_lossacc.figures import FIGURES
from lightning_lossacc.sinks.distributions import distributions
from tests.modules import QUIET, Memory, Plain, loader, trainer
from tests.read_back import COLUMNS, STORE_NOISE, WandbRun, mlflow_logger, mlflow_store, tensorboard, texts

pytestmark = [*QUIET, *STORE_NOISE]
EPOCHS = 12


class Fitted:
    """A training that went to every logger."""

    def __init__(self, folder: Path, empty_store: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("WANDB_CONSOLE", "off")
        self.folder, self.memory = folder, Memory()
        self.board = TensorBoardLogger(folder, name="board")
        self.table = CSVLogger(folder, name="table")
        self.mlflow = mlflow_logger(folder, empty_store)
        wandb_logger = WandbLogger(save_dir=folder, offline=True)
        loggers = [self.board, wandb_logger, self.mlflow, self.table, self.memory]
        self.watch = LossAccuracyMonitor(verbose=False)
        seed_everything(3)
        with warnings.catch_warnings(record=True) as self.caught:
            warnings.simplefilter("always")
            trainer(folder, self.watch, logger=loggers, max_epochs=EPOCHS).fit(
                Plain(drop=0.1), loader(), loader(seed=2)
            )
        wandb_logger.experiment.finish()
        self.files = Path(self.board.log_dir) / "lossacc"

    def series(self, stage: str, key: str) -> list[tuple[int, float]]:
        """(step, value) as the history has them; Lightning's step of an epoch's last batch is one lower."""
        records = self.watch.history.series(stage)
        return [(record.global_step - 1, record.values[key]) for record in records]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    empty_store = mlflow_store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        made = Fitted(tmp_path_factory.mktemp("fitted"), empty_store, patch)
    assert len(made.watch.history.series("val")) == EPOCHS and any(e.level == "warning" for e in made.watch.events)
    return made


def test_nothing_is_said_about_us(fitted: Fitted) -> None:
    assert [str(w.message) for w in fitted.caught if "lossacc" in str(w.message)] == []


def test_tensorboard_holds_the_history(fitted: Fitted) -> None:
    board = tensorboard(fitted.board.log_dir)
    for stage, key in COLUMNS:
        found = [(item.step, item.value) for item in board.Scalars(f"lossacc/{stage}/{key}")]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in fitted.series(stage, key)]
    for stage in ("train", "val"):
        found = [item.value for item in board.Scalars(f"lossacc/{stage}/error_rate")]
        assert found == pytest.approx([1 - value for _, value in fitted.series(stage, "accuracy")], rel=1e-6)
        for name in ("margin", "confidence"):
            histograms = board.Histograms(f"lossacc/{stage}/{name}")
            for item, record in zip(histograms, fitted.watch.history.series(stage), strict=True):
                spread = distributions(record)[name]
                assert item.histogram_value.bucket == list(spread.rows) and sum(spread.rows) == record.num_rows
                assert item.histogram_value.bucket_limit == list(spread.edges[1:])
    median = [item.value for item in board.Scalars("lossacc/val/margin_p50")]
    low = [item.value for item in board.Scalars("lossacc/val/margin_p05")]
    # The quantile of the scalars and that of the histogram are one.
    assert low == pytest.approx([value for _, value in fitted.series("val", "margin_p05")], rel=1e-6)
    assert all(a < b for a, b in zip(low, median, strict=True))
    assert len(texts(board, "lossacc/events")) == len(fitted.watch.events)
    # The user's own curve stands at the same steps, so that both can be laid over each other.
    user = [item.step for item in board.Scalars("val_loss")]
    assert user == [item.step for item in board.Scalars("lossacc/val/nll")]
    trained = [item.step for item in board.Scalars("train_loss_epoch")]
    assert trained == [item.step for item in board.Scalars("lossacc/train/nll")]


def test_csv_holds_the_history(fitted: Fitted) -> None:
    with open(Path(fitted.table.log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for stage, key in COLUMNS:
        cells = [(int(row["step"]), row[f"lossacc/{stage}/{key}"]) for row in rows]
        found = [(step, float(cell)) for step, cell in cells if cell]
        assert found == fitted.series(stage, key)
    with open(Path(fitted.table.log_dir) / "lossacc_events.csv", newline="", encoding="utf-8") as file:
        told = [(int(row["epoch"]), row["status"], row["message"]) for row in csv.DictReader(file)]
    assert told == [(event.epoch, event.status, event.message) for event in fitted.watch.events]


def test_mlflow_holds_the_history(fitted: Fitted) -> None:
    client, run = fitted.mlflow.experiment, fitted.mlflow.run_id
    for stage, key in COLUMNS:
        found = [(item.step, item.value) for item in client.get_metric_history(run, f"lossacc/{stage}/{key}")]
        assert found == fitted.series(stage, key)
    verdict = client.get_run(run).data.tags["lossacc.verdict"]
    assert ": ".join(reversed(verdict.split(": "))) in {
        event_words(event) for event in fitted.watch.events if event.level == "warning"
    }


def test_wandb_holds_the_history(fitted: Fitted) -> None:
    run = WandbRun.of(fitted.folder)
    for stage, key in COLUMNS:
        assert run.column(f"lossacc/{stage}/{key}") == fitted.series(stage, key)
    histograms = run.column("lossacc/val/margin_histogram/values")
    for (_, rows), record in zip(histograms, fitted.watch.history.series("val"), strict=True):
        assert rows == list(distributions(record)["margin"].rows)
    assert run.column("lossacc/event_table/nrows")[-1][1] == len(fitted.watch.events)


def test_an_unknown_logger_gets_the_history(fitted: Fitted) -> None:
    for stage, key in COLUMNS:
        name = f"lossacc/{stage}/{key}"
        found = [(step, metrics[name]) for metrics, step in fitted.memory.rows if name in metrics]
        assert found == fitted.series(stage, key)


def test_figures_and_report_are_the_same_everywhere(fitted: Fitted) -> None:
    """Drawn once: the files and MLflow's artifacts are the same bytes, and the report is what W&B has as well."""
    artifacts = fitted.folder / "artifacts" / fitted.mlflow.run_id / "artifacts" / "lossacc"
    names = {name.replace("/", "_") + ".png" for name in FIGURES}
    drawn = {path.name: path.read_bytes() for path in fitted.files.glob("*.png")}
    assert set(drawn) <= names and {"lossacc.png", "lossacc_reliability.png", "lossacc_margin.png"} <= set(drawn)
    assert {path.name: path.read_bytes() for path in artifacts.glob("*.png")} == drawn
    board = tensorboard(fitted.board.log_dir)
    assert {tag.replace("/", "_") + ".png" for tag in board.Tags()["images"]} == set(drawn)
    report = (fitted.files / "report.html").read_bytes()
    assert report.count(b"<svg") and (artifacts / "report.html").read_bytes() == report
    pages = [path.read_bytes() for path in fitted.folder.rglob("media/html/lossacc/report_*.html")]
    assert pages == [report]


def test_plot_shows_itself_in_a_notebook(fitted: Fitted, tmp_path: Path) -> None:
    """A notebook asks an object for `_repr_png_`; without pyplot it knows no other way to show a figure."""
    figure = fitted.watch.plot()
    assert figure._repr_png_().startswith(b"\x89PNG") and len(figure.axes) >= 2
    dark = fitted.watch.plot(theme="dark", stage="train")
    assert dark.get_facecolor() != figure.get_facecolor()
    dark.savefig(tmp_path / "dark.svg")
    empty = LossAccuracyMonitor().plot()
    assert empty._repr_png_() != figure._repr_png_()
