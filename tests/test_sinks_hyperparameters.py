"""TensorBoard's page of hyperparameters gets the outcome once, beside the user's own, which stay as they are: read back
from the event files as the page does."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_lossacc import LossAccuracyMonitor
from lightning_lossacc.sinks import Reporter, find_sinks
from lightning_lossacc.sinks.outcome import NUMBERS, outcome
from tests.made_up import HISTORY, event, tell_all
from tests.modules import QUIET, Plain, loader, trainer
from tests.read_back import copies, tensorboard

pytestmark = QUIET


def logger_of(tmp_path, package=0, **options):
    return copies("TensorBoardLogger")[package](tmp_path, **options)


def reporter_of(logger):
    return Reporter(find_sinks([logger]), warn=pytest.fail)


def hyperparameters(folder):
    """Names of the hyperparameters and of the metrics that the HPARAMS page shows for a run."""
    from tensorboard.plugins.hparams.metadata import (
        EXPERIMENT_TAG,
        SESSION_START_INFO_TAG,
        parse_experiment_plugin_data,
        parse_session_start_info_plugin_data,
    )

    board = tensorboard(folder)
    content = {tag: board.SummaryMetadata(tag).plugin_data.content for tag in (EXPERIMENT_TAG, SESSION_START_INFO_TAG)}
    experiment = parse_experiment_plugin_data(content[EXPERIMENT_TAG])
    session = parse_session_start_info_plugin_data(content[SESSION_START_INFO_TAG])
    values = {name: value.string_value or value.number_value for name, value in session.hparams.items()}
    return values, [info.name.tag for info in experiment.metric_infos], board


@pytest.mark.parametrize("prefix", ["", "net"])
def test_the_outcome_stands_in_hyperparameters_once(tmp_path, prefix):
    for part in range(2):
        logger = logger_of(tmp_path, version="one", prefix=prefix)
        tell_all(reporter_of(logger))
        logger.experiment.close()
        values, metrics, board = hyperparameters(logger.log_dir)
        start = f"{prefix}-" if prefix else ""
        assert values == {
            "lossacc/accuracy_margin": 0.01,
            "lossacc/watch": 1,
            "lossacc/verdict": "over-confidence: loss up, accuracy flat",
        }
        found = outcome(HISTORY, [event(300)])
        numbers = {f"{start}lossacc/final/{key}": value for key, value in found.items() if key != "verdict"}
        assert metrics == list(numbers)
        # The last value of a metric is what the page shows; a resumed run adds one.
        for tag, value in numbers.items():
            assert [item.value for item in board.Scalars(tag)] == [pytest.approx(value)] * (part + 1)
    files = list(Path(logger.log_dir).glob("*tfevents*"))
    assert len(files) == 2 and sum(file.read_bytes().count(b"_hparams_/session_start_info") for file in files) == 1
    logger.save()
    assert "lossacc" not in (Path(logger.log_dir) / "hparams.yaml").read_text(), "it is read by load_from_checkpoint"


def test_the_users_hyperparameters_stay(tmp_path):
    logger = logger_of(tmp_path)
    logger.log_hyperparams({"rate": 0.5}, {"mine": 1.0})
    tell_all(reporter_of(logger))
    values, metrics, board = hyperparameters(logger.log_dir)
    assert values == {"rate": 0.5} and metrics == ["mine"]
    assert not [tag for tag in board.Tags()["scalars"] if "final" in tag]


class Tuned(Plain):
    """Saves its hyperparameters, as most modules do."""

    def __init__(self, drop=0.1, sizes=(16, 8), **options):
        super().__init__(drop=drop, **options)
        self.save_hyperparameters("drop", "sizes")


class Careful(Tuned):
    """Logs hyperparameters with metrics of its own when the fit begins."""

    def on_fit_start(self):
        self.logger.log_hyperparams({"mine": 1.0}, {"my_metric": 0.0})


class Late(Tuned):
    """Does so when the training begins, and has switched Lightning's placeholder off for it."""

    def on_train_start(self):
        self.logger.log_hyperparams({"mine": 1.0}, {"my_metric": 0.0})


def fitted(tmp_path, module, **options):
    logger, watch = logger_of(tmp_path, **options), LossAccuracyMonitor(verbose=False, dirpath=False)
    trainer(tmp_path, watch, logger=logger, max_epochs=3).fit(module, loader(), loader(seed=2))
    logger.experiment.close()
    return (*hyperparameters(logger.log_dir), watch, logger)


@pytest.mark.parametrize("prefix", ["", "net"])
def test_the_outcome_stands_beside_the_modules_hyperparameters(tmp_path, prefix):
    values, metrics, board, watch, logger = fitted(tmp_path, Tuned(), prefix=prefix)
    start = f"{prefix}-" if prefix else ""
    assert values == {"drop": 0.1, "sizes": "(16, 8)"}
    assert metrics == ["hp_metric", *(f"{start}lossacc/final/{name}" for name in NUMBERS)]
    found = outcome(watch.history, watch.events)
    assert len(found) == len(NUMBERS) + 1
    for name in NUMBERS:
        (item,) = board.Scalars(f"{start}lossacc/final/{name}")
        assert item.value == pytest.approx(found[name], rel=1e-6)
    assert "lossacc" not in (Path(logger.log_dir) / "hparams.yaml").read_text()


@pytest.mark.parametrize(("module", "options"), [(Careful, {}), (Late, {"default_hp_metric": False})])
def test_metrics_of_a_module_that_logs_its_own_are_not_hidden(tmp_path, module, options):
    values, metrics, board, *_ = fitted(tmp_path, module(), **options)
    assert values == {"mine": 1.0} and metrics == ["my_metric"]
    assert not [tag for tag in board.Tags()["scalars"] if "final" in tag]


def test_a_module_without_hyperparameters_shows_our_settings(tmp_path):
    values, metrics, *_ = fitted(tmp_path, Plain(drop=0.1))
    assert values["lossacc/accuracy_margin"] == 0.01 and "lossacc/verdict" in values
    assert metrics == [f"lossacc/final/{name}" for name in NUMBERS]
