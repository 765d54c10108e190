"""A browser, a run that has an event, and a TensorBoard that shows it, each made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record
from tests.browser import driver

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The event of the digits opens at epoch 36 and is reported again at epoch 60, when it has doubled.
EPOCHS = 62
# The user's own custom scalars, which must stay.
OWN_CATEGORY, OWN_CHART = "my own charts", "my validation loss"


@dataclass(frozen=True, slots=True)
class Run:
    """A training that is over.

    Attributes:
        log_dir: the folder of its TensorBoard logger.
        history: its evaluations.
        events: its events, as reported.
    """

    log_dir: Path
    history: History
    events: list[Event]

    @property
    def files(self) -> Path:
        """The folder of the monitor's own files."""
        return self.log_dir / "lossacc"

    @property
    def last(self) -> Record:
        """Its last evaluation."""
        return self.history.series()[-1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Training takes longer than the limit of most tests on a busy machine, and the first test pays for it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))
            # Lightning asks torch for a type by its former name.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*LeafSpec.*"))


@pytest.fixture(scope="package")
def chromium() -> str:
    """Path of the browser; where there is none, tests are skipped on a developer's machine and fail under CI."""
    path = driver.find_browser()
    if path is None:
        reason = f"no browser: none of {', '.join(driver.NAMES)} is on the path (Debian: apt-get install chromium)"
        if driver.is_required():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="package")
def opened(chromium: str) -> Iterator[Browser]:
    """The browser."""
    with driver.browser(chromium) as found:
        yield found


@pytest.fixture(scope="package")
def run(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits demo, shortened, with TensorBoard as its logger and a layout of the user's own."""
    import torch
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.loggers import TensorBoardLogger

    from lightning_lossacc import LossAccuracyMonitor, demo

    class Silent(demo.Classifier):
        """Has no hyperparameters: TensorBoard shows those that a run writes first, and no later ones."""

        def save_hyperparameters(self, *arguments: Any, **options: Any) -> None:
            """Nothing."""

    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    logger = TensorBoardLogger(tmp_path_factory.mktemp("board"), name="digits", version=0, default_hp_metric=False)
    logger.experiment.add_custom_scalars({OWN_CATEGORY: {OWN_CHART: ["Multiline", ["^val_loss$"]]}})
    monitor = LossAccuracyMonitor()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=logger,
        callbacks=[monitor],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Silent(64, 10, (256,), activation="tanh", learning_rate=0.003)
    trainer.fit(model, datamodule=demo.Digits(num_train=250, seed=0))
    assert monitor.events, "the run has no event to show"
    return Run(Path(logger.log_dir), monitor.history, list(monitor.events))


@pytest.fixture(scope="package")
def board(run: Run) -> Iterator[str]:
    """Origin of a TensorBoard server that shows the run."""
    with driver.tensorboard(run.log_dir.parent) as origin:
        yield origin


@pytest.fixture(scope="package")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: `BROWSER_SHOTS` keeps them."""
    kept = os.environ.get("BROWSER_SHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
