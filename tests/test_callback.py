"""The monitor measures what was shown, and training never notices.

Proved here: parameters, gradients, optimizer and random states are bitwise those of a run without it, also when
loggers, files or the user's own functions fail; every way to use a Trainer works and counts each row once; keys can be
monitored and never collide; values are those of a `LossAccuracy` metric fed by hand; one message where nothing can be
captured; off means off; files hold what memory holds; no tensor outlives its step.
"""

from __future__ import annotations

import copy
import csv
import functools
import gc
import json
import math
import pickle
import random
import re
import warnings
import weakref
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

from lightning_lossacc import History, LossAccuracy, LossAccuracyMonitor, loss_calls, quantities, stages, training
from lightning_lossacc.callback import callbacks_factory
from lightning_lossacc.capture import Capture
from lightning_lossacc.looks import Looks
from lightning_lossacc.probe import Probe
from lightning_lossacc.watchers import Watcher
from tests.modules import (
    NUM_CLASSES,
    QUIET,
    Custom,
    Failing,
    Manual,
    Memory,
    NoValidation,
    Plain,
    Shown,
    Twice,
    assert_identical,
    dataset,
    everything,
    loader,
    monitor,
    trainer,
)

pytestmark = [*QUIET, pytest.mark.usefixtures("pictures")]
CORE = set(quantities.CORE)


@pytest.fixture
def pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest and are drawn in one test only."""
    if not getattr(request, "param", False):
        monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", lambda *args, **options: None)


def ours(caught: list[warnings.WarningMessage]) -> list[str]:
    """Texts of warnings that speak of us."""
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "lossacc" in text.lower() or "No logits" in text]


# -- training is untouched ---------------------------------------------------------------------------------------------


def fit(make: Any, path: Path, *callbacks: Callback, compile_with: str | None = None, **options: Any) -> Any:
    """One seeded training; everything that it leaves behind, and the user's own logged numbers."""
    seed_everything(7, verbose=False)
    module = make()
    if compile_with is not None:
        torch._dynamo.reset()
        module.net.compile(backend=compile_with)
    run = trainer(path, *callbacks, **options)
    features, target = dataset(17, seed=2).tensors
    nan_rows = features.clone()
    nan_rows[3] = math.nan
    validation = DataLoader(TensorDataset(nan_rows, target), batch_size=8)
    run.fit(module, loader(41, shuffle=True), validation)
    logged = {key: value.clone() for key, value in run.callback_metrics.items() if not key.startswith("lossacc/")}
    return everything(module) | {"logged": logged}


# Where random numbers, graphs, precision or the order of steps could be disturbed.
HEALTHY = {
    "eager": {},
    "bf16 autocast": {"precision": "bf16-mixed"},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.5},
    "compiled, eager": {"compile_with": "eager"},
    "compiled, aot_eager": {"compile_with": "aot_eager"},
    "manual": {"make": Manual},
    "several losses": {"make": Twice},
    "smoothing and weights": {"make": lambda: Plain(smoothing=0.1, weighted=True)},
    "custom formula": {"make": Custom},
}


@pytest.mark.filterwarnings("ignore:No logits and targets were found")
@pytest.mark.parametrize("case", HEALTHY)
def test_training_is_bitwise_the_same(case: str, tmp_path: Path) -> None:
    options = {"make": Plain, "max_epochs": 2, **HEALTHY[case]}
    watch = monitor(dirpath=None)
    without, with_us = fit(path=tmp_path, **options), fit(options.pop("make"), tmp_path, watch, **options)
    assert_identical(without, with_us)
    assert watch.history.series("val") or case == "custom formula"


def _raise(*args: Any) -> None:
    raise RuntimeError("of the user")


@functools.cache
def undisturbed() -> Any:
    return fit(lambda: Plain(drop=0.1), Path("."), max_epochs=12)


CONNECTOR = "lightning.pytorch.trainer.connectors.callback_connector"

# Faults in what surrounds the measurement, from the first event to the end of the fit.
FAULTS = ("logger", "unwritable directory", "on_event", "diagnosis", "sampling", "statistics", "probe", "state_dict")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_do_not_reach_the_training(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"max_epochs": 12}
    without = undisturbed()
    arguments: dict[str, Any] = {"dirpath": tmp_path / "ours"}
    if fault == "logger":
        options["logger"] = [Memory("first"), Failing(), Memory("last")]
    elif fault == "unwritable directory":
        (tmp_path / "file").write_text("")
        arguments["dirpath"] = tmp_path / "file" / "below"
    elif fault == "on_event":
        arguments["on_event"] = _raise
    elif fault == "diagnosis":
        monkeypatch.setattr("lightning_lossacc.diagnosis.engine.Diagnosis.examine", _raise)
    elif fault == "sampling":
        monkeypatch.setattr(stages.Sampling, "of", _raise)
    elif fault == "statistics":
        monkeypatch.setattr("lightning_lossacc.kernels.row_statistics", _raise)
    elif fault == "probe":
        monkeypatch.setattr(Probe, "update", _raise)
    else:
        monkeypatch.setattr("lightning_lossacc.run.save_history", _raise)
        options |= {"enable_checkpointing": True}
    watch = monitor(**arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_us = fit(lambda: Plain(drop=0.1), tmp_path, watch, **options)
    assert_identical(without, with_us)
    messages = ours(caught)
    assert len(messages) == 1, messages
    names = {
        "logger": "could not write to Failing",
        "unwritable directory": "file/below",
        "on_event": "`on_event` raised RuntimeError: of the user",
        "statistics": "could not count a batch of",
        "probe": "could not count a batch of val",
    }
    assert names.get(fault, "failed in") in messages[0]
    if fault in ("logger", "on_event", "unwritable directory", "state_dict"):
        assert watch.events, "the faults must meet an event"
    if fault == "logger":
        assert len(options["logger"][2].column("lossacc/val/nll")) == 12
    if fault == "statistics":
        assert all(not record.complete for record in watch.history)


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_message_is_no_error_where_warnings_are(tmp_path: Path) -> None:
    trainer(tmp_path, monitor()).fit(Custom(), loader(), loader())


# -- every way to use a Trainer ----------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(dataset(21, seed=3))


# The usability list: options of the Trainer, and the number of validations that they lead to.
USES: dict[str, tuple[dict[str, Any], int]] = {
    "no logger": ({}, 2),
    "one logger": ({"logger": [Memory()]}, 2),
    "three loggers": ({"logger": [Memory("a"), Memory("b"), Memory("c")]}, 2),
    "fast_dev_run": ({"fast_dev_run": True}, 1),
    "fast_dev_run of 2": ({"fast_dev_run": 2}, 1),
    "barebones": ({"barebones": True}, 2),
    "no validation batches": ({"limit_val_batches": 0}, 0),
    "some validation batches": ({"limit_val_batches": 2}, 2),
    "four a epoch": ({"val_check_interval": 0.25}, 8),
    "every third epoch": ({"check_val_every_n_epoch": 3, "max_epochs": 6}, 2),
    "by steps": ({"val_check_interval": 6, "check_val_every_n_epoch": None, "max_epochs": 3}, 4),
    "accumulation": ({"accumulate_grad_batches": 4}, 2),
    "bf16-true": ({"precision": "bf16-true"}, 2),
    "64-true": ({"precision": "64-true"}, 2),
    "sanity steps": ({"num_sanity_val_steps": 2}, 2),
    "all as sanity steps": ({"num_sanity_val_steps": -1}, 2),
    "overfit": ({"overfit_batches": 2}, 2),
    "max_steps": ({"max_steps": 11, "max_epochs": -1}, 1),
}


@pytest.mark.filterwarnings("ignore:.*overfit_batches.*", "ignore:.*turned off.*", "ignore:.*Trainer.barebones.*")
@pytest.mark.parametrize("use", USES)
def test_every_use_counts_each_row_once_without_a_warning(use: str, tmp_path: Path) -> None:
    options, evaluations = USES[use]
    for memory in options.get("logger", []):
        memory.rows.clear()
    watch, shown = monitor(dirpath=tmp_path / "ours"), Shown()
    if "barebones" in options:
        # It refuses to be combined with other options.
        run = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, callbacks=[watch, shown], **options)
    else:
        run = trainer(tmp_path, watch, shown, **options)
    module = Plain()
    run.fit(module, loader(64, shuffle=use != "overfit"), loader(21, seed=3))
    records = watch.history.series("val", complete=False)
    assert [record.num_rows for record in records] == shown.rows
    assert len(records) == evaluations
    assert all(record.complete for record in records)
    assert all(record.num_items == record.num_rows for record in records)
    assert [len(record.paired) for record in records] == [0, *[2] * (len(records) - 1)][: len(records)]
    for memory in options.get("logger", []):
        column = [(metrics["lossacc/val/nll"], step) for metrics, step in memory.rows if "lossacc/val/nll" in metrics]
        assert [value for value, _ in column] == [record.values["nll"] for record in records]
        theirs = [step for metrics, step in memory.rows if "val_loss" in metrics]
        assert [step for _, step in column] == theirs
    if records:
        assert run.callback_metrics["lossacc/val/nll"] == pytest.approx(records[-1].values["nll"], abs=1e-6)
        assert {f"lossacc/val/{key}" for key in CORE} <= set(run.callback_metrics)
    train = watch.history.series("train", complete=False)
    assert [record.complete for record in train] == [True] * (len(train) - (use == "max_steps")) + [False] * (
        use == "max_steps"
    )
    assert run.callback_metrics["lossacc/train/nll"] == pytest.approx(train[-1].values["nll"], abs=1e-6)
    if use == "fast_dev_run":
        assert not (tmp_path / "ours").exists()


def test_a_module_without_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = monitor(verbose=True, dirpath=tmp_path / "ours")
    trainer(tmp_path, watch).fit(NoValidation(), loader())
    assert [(record.stage, record.num_rows) for record in watch.history] == [("train", 41)] * 2
    assert "no complete validation was measured" in capsys.readouterr().out


def test_iterable_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = monitor(verbose=True)
    stream = DataLoader(Stream(), batch_size=8)
    trainer(tmp_path, watch).fit(Plain(), stream, stream)
    assert [(record.num_rows, record.complete) for record in watch.history.series("val")] == [(21, True)] * 2
    assert all(not record.paired for record in watch.history)
    assert "rows are not paired between evaluations: the data set is iterable" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_one_evaluation_alone(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch, logger = monitor(verbose=True, dirpath=None), Memory()
    module = Plain()
    run = trainer(tmp_path, watch, logger=[logger])
    getattr(run, stage)(module, loader(21), verbose=False)
    (record,) = watch.history
    assert (record.stage, record.loader, record.num_rows, record.complete) == (stage, 0, 21, True)
    key = f"lossacc/{'val' if stage == 'validate' else 'test'}/nll"
    assert logger.column(key) == [record.values["nll"]]
    assert f"lossacc · {stage} · 21 rows · nll {record.values['nll']:.4f}" in capsys.readouterr().out
    assert len(History.read(tmp_path / "lossacc" / "history.jsonl")) == 1
    assert not watch.events


def union_of(module: Plain, sizes: tuple[int, ...]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The last evaluation by hand: each loader, and all rows."""
    batches, metrics = module.seen["val"], []
    batches = batches[-sum(math.ceil(size / 8) for size in sizes) :]
    everything_seen = LossAccuracy(num_classes=NUM_CLASSES)
    for size in sizes:
        metric = LossAccuracy(num_classes=NUM_CLASSES)
        for _ in range(math.ceil(size / 8)):
            logits, target = batches.pop(0)
            metric.update(logits, target)
            everything_seen.update(logits, target)
        metrics.append(metric.compute())
    return metrics, everything_seen.compute()


def test_two_validation_loaders(tmp_path: Path) -> None:
    watch, logger, module = monitor(), Memory(), Plain()
    run = trainer(tmp_path, watch, logger=[logger])
    run.fit(module, loader(), [loader(21, seed=3), loader(11, seed=4)])
    each, union = union_of(module, (21, 11))
    assert watch.history.streams() == [("val", 0), ("val", 1), ("val", -1), ("train", 0)]
    for index, expected in [(0, each[0]), (1, each[1]), (-1, union)]:
        record = watch.history.series("val", index)[-1]
        suffix = "" if index == -1 else f"/dataloader_idx_{index}"
        for key, value in expected.items():
            assert record.values[key] == pytest.approx(float(value), abs=1e-12, nan_ok=True), (index, key)
        assert {key: logger.column(f"lossacc/val/{key}{suffix}")[-1] for key in CORE} == {
            key: record.values[key] for key in CORE
        }
    keys = [key for metrics, _ in logger.rows for key in metrics if key.startswith("lossacc/")]
    assert len(keys) == len(set(keys)) * 2, "two epochs, each key once in each"
    paired = [watch.history.series("val", index)[-1].paired for index in (0, 1)]
    assert [pair["nll"]["rows"] for pair in paired] == [21, 11]


def test_no_union_of_loaders_that_differ(tmp_path: Path) -> None:
    class TwoSizes(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            logits = self.net(batch[0])
            F.cross_entropy(logits if dataloader_idx == 0 else logits[:, :3], batch[1] % 3)

    watch = monitor()
    run = trainer(tmp_path, watch)
    run.fit(TwoSizes(), loader(), [loader(21), loader(11)])
    assert watch.history.streams() == [("val", 0), ("val", 1), ("train", 0)]
    assert "lossacc/val/nll" not in run.callback_metrics
    assert "lossacc/val/nll/dataloader_idx_1" in run.callback_metrics


# Batches that come from several loaders at once: no loader has an order of its own any more.
@pytest.mark.parametrize(("mode", "batches"), [("max_size", 3), ("min_size", 2), ("max_size_cycle", 3)])
def test_combined_loaders_are_one_complete_stream(mode: str, batches: int, tmp_path: Path) -> None:
    class Both(Plain):
        def validation_step(self, batch: Any, *rest: Any) -> None:
            parts = [part for part in batch if part is not None]
            self.loss("val", [torch.cat(column) for column in zip(*parts, strict=True)])

    watch, module = monitor(), Both()
    combined = CombinedLoader([loader(24, seed=3), loader(16, seed=4)], mode)
    trainer(tmp_path, watch).fit(module, loader(), combined)
    records = watch.history.series("val", 0)
    shown = sum(len(target) for _, target in module.seen["val"][-batches:])
    assert [(record.num_rows, record.complete) for record in records] == [(shown, True)] * 2
    assert not records[-1].paired


def test_a_second_validation_set_does_not_meet_the_order_of_the_first(tmp_path: Path) -> None:
    watch, module = monitor(), Plain()
    run = trainer(tmp_path, watch)
    run.fit(module, loader(), loader(41, seed=3))
    run.validate(module, loader(9, seed=4), verbose=False)
    assert watch.history.records[-1].num_rows == watch.history.records[-1].num_items == 9


# Monitored keys exist whenever the user's own would.
@pytest.mark.parametrize("first", ["monitor", "others"])
@pytest.mark.parametrize("interval", [1.0, 0.25])
def test_early_stopping_and_checkpoints_in_any_order(first: str, interval: float, tmp_path: Path) -> None:
    watch, key = monitor(), "lossacc/val/refinement_nll"
    stopping = EarlyStopping(key, patience=1, min_delta=10.0, check_on_train_epoch_end=False)
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor=key, save_top_k=1)
    callbacks = [watch, stopping, checkpoint] if first == "monitor" else [checkpoint, stopping, watch]
    run = trainer(tmp_path, *callbacks, enable_checkpointing=True, max_epochs=9, val_check_interval=interval)
    run.fit(Plain(), loader(), loader(21, seed=3))
    column = watch.history.column("refinement_nll")
    assert stopping.stopped_epoch > 0 or interval < 1
    assert len(column) == (2 if interval == 1 else len(column)) and run.current_epoch < 9
    assert checkpoint.best_model_score == pytest.approx(min(column), abs=1e-6)


def test_quantities_all_logs_every_key(tmp_path: Path) -> None:
    logger = Memory()
    trainer(tmp_path, monitor(quantities="all"), logger=[logger]).fit(Plain(), loader(), loader())
    found = {key.removeprefix("lossacc/val/") for metrics, _ in logger.rows for key in metrics if "/val/" in key}
    assert found - {"events"} == set(quantities.KEYS)


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_are_those_of_a_metric_fed_by_hand(tmp_path: Path) -> None:
    watch, module = monitor(), Plain(smoothing=0.2, weighted=True)
    trainer(tmp_path, watch, max_epochs=3).fit(module, loader(41, shuffle=True), loader(21, seed=3))
    for stage, temperatures in (("train", ()), ("val", None)):
        options = {} if temperatures is None else {"temperatures": temperatures}
        records = watch.history.series(stage)
        assert len(records) == 3
        batches = iter(module.seen[stage])
        for record in records:
            metric = LossAccuracy(num_classes=NUM_CLASSES, **options)
            for _ in range(len(module.seen[stage]) // 3):
                metric.update(*next(batches))
            expected = {key: float(value) for key, value in metric.compute().items()}
            assert_identical(record.values, expected, stage, relative=1e-12)


class Pixels(Plain):
    """A class for each pixel, channels first, some to be ignored."""

    def loss(self, stage: str, batch: Any) -> Any:
        features, target = batch
        logits = torch.stack([features + level for level in range(NUM_CLASSES)], 1) * self.net[0].weight.mean()
        target = (target[:, None] + torch.arange(features.shape[1])) % (NUM_CLASSES + 1)
        target = torch.where(target == NUM_CLASSES, 255, target)
        self.seen[stage].append((logits.detach().clone(), target))
        return F.cross_entropy(logits, target, ignore_index=255)


class TwoClasses(Plain):
    """One logit a row, as a column."""

    def loss(self, stage: str, batch: Any) -> Any:
        logits, target = self.net(batch[0])[:, :1], (batch[1] > 1).float()[:, None]
        self.seen[stage].append((logits.detach().clone(), target))
        return F.binary_cross_entropy_with_logits(logits, target)


# The other shapes that a loss takes: pixels with ignored ones, and one logit.
@pytest.mark.parametrize(
    ("make", "metric"),
    [
        (Pixels, LossAccuracy(num_classes=NUM_CLASSES, ignore_index=255)),
        (TwoClasses, LossAccuracy(task="binary", ignore_index=None)),
    ],
)
def test_values_of_other_tasks(make: Any, metric: LossAccuracy, tmp_path: Path) -> None:
    watch, module = monitor(), make()
    trainer(tmp_path, watch, max_epochs=2).fit(module, loader(41), loader(21, seed=3))
    last = watch.history.series("val")[-1]
    for logits, target in module.seen["val"][-3:]:
        metric.update(logits, target)
    expected = {key: float(value) for key, value in metric.compute().items()}
    assert_identical(last.values, expected, relative=1e-12)
    assert last.num_items == 21 and last.num_rows == int(metric.counts[0]) > 0
    assert last.paired["nll"]["rows"] == last.num_rows


def test_a_csv_file_has_a_line_for_each_evaluation(tmp_path: Path) -> None:
    watch, logger = monitor(), CSVLogger(tmp_path, version=0)
    trainer(tmp_path, watch, logger=[logger]).fit(Plain(), loader(), loader(21, seed=3))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        lines = [line for line in csv.DictReader(file) if line["lossacc/val/nll"]]
    records = watch.history.series("val")
    assert [float(line["lossacc/val/nll"]) for line in lines] == [record.values["nll"] for record in records]
    assert [(line["epoch"], line["step"]) for line in lines] == [("0.0", "5"), ("1.0", "11")]


def test_a_pause_of_capture_is_seen(tmp_path: Path) -> None:
    """A batch that cannot be read makes the evaluation incomplete; the next one is whole again."""

    class Odd(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            logits = self.net(batch[0])
            odd = self.current_epoch == 1 and batch_idx == 1
            F.cross_entropy(logits[:, :3] if odd else logits, batch[1] % 3)

    watch = monitor()
    with pytest.warns(
        UserWarning, match="could not count a batch of val: Expected `preds` to have 4 classes"
    ) as caught:
        trainer(tmp_path, watch, max_epochs=3).fit(Odd(), loader(), loader(21))
    assert len(ours(caught.list)) == 1
    assert [record.complete for record in watch.history.series("val", complete=False)] == [True, False, True]


def test_an_error_of_capture_makes_an_evaluation_incomplete(tmp_path: Path) -> None:
    def pair(outputs: Any, batch: Any) -> Any:
        if len(batch[1]) != 8:
            raise LookupError("odd batch")
        return torch.zeros(len(batch[1]), NUM_CLASSES), batch[1]

    watch = monitor(capture=pair)
    with pytest.warns(UserWarning, match="could not count a batch of .*LookupError: odd batch") as caught:
        trainer(tmp_path, watch).fit(Plain(), loader(16), loader(17))
    assert len(ours(caught.list)) == 1
    assert {(record.stage, record.complete) for record in watch.history} == {("train", True), ("val", False)}


def test_tokens_are_rows_of_items_and_all_are_counted(tmp_path: Path) -> None:
    class Tokens(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            logits = self.net(batch[0]).repeat_interleave(3, 0)
            F.cross_entropy(logits, batch[1].repeat_interleave(3))

    watch = monitor()
    trainer(tmp_path, watch).fit(Tokens(), loader(), loader(21))
    assert [(record.num_rows, record.num_items) for record in watch.history.series("val")] == [(63, 21)] * 2
    assert watch.history.series("val")[-1].paired["nll"]["items"] == 21


def test_several_calls_of_one_place_are_summed_and_not_paired(tmp_path: Path, capsys: Any) -> None:
    class Loop(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for _ in range(2):
                F.cross_entropy(self.net(batch[0]), batch[1])

    watch = monitor(verbose=True)
    trainer(tmp_path, watch).fit(Loop(), loader(), loader(21))
    assert [record.num_rows for record in watch.history.series("val")] == [42, 42]
    assert all(not record.paired for record in watch.history)
    assert "the step calls the loss several times" in capsys.readouterr().out


# -- context -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_validation_knows_the_training_epoch_so_far(interval: float, tmp_path: Path) -> None:
    """At the epoch's end what the record of the epoch says; reading it does not disturb the epoch's sums."""
    watch, plain = monitor(), monitor(probe_items=0)
    trainer(tmp_path, watch, val_check_interval=interval).fit(Plain(drop=0.0), loader(64), [loader(), loader(seed=2)])
    trainer(tmp_path, plain).fit(Plain(drop=0.0), loader(64), loader())
    for index in (0, 1):
        records = watch.history.series("val", index)
        assert [record.context["train_rows"] for record in records] == [64 * interval, 64.0][-int(1 / interval) :] * 2
        assert [record.context["steps"] for record in records] == [8 * interval] * len(records)
        assert all(sum(record.arrays["train_classes"]) == record.context["train_rows"] for record in records)
        assert all(record.context["num_classes"] == NUM_CLASSES for record in records)
    epochs = watch.history.series("train")
    for record, epoch in zip(
        watch.history.series("val")[int(1 / interval) - 1 :: int(1 / interval)], epochs, strict=True
    ):
        assert record.context["train_nll"] == pytest.approx(epoch.values["nll"], rel=1e-12)
        assert record.context["train_accuracy"] == epoch.values["accuracy"]
        assert record.arrays["train_classes"] == epoch.arrays["classes"]["rows"]
    assert [record.num_rows for record in epochs] == [64, 64]
    assert watch.history.series("val", -1)[0].context["train_rows"] == 64 * interval


def test_a_part_of_an_epoch_is_no_context(tmp_path: Path) -> None:
    """Where a batch is missing, nothing is said of the training; keys are absent, never NaN."""

    class Gap(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch == 0 and batch_idx == 1:
                self.trainer.callbacks[0]._capture.fail("test", RuntimeError("a gap"))
            return super().training_step(batch, batch_idx)

    watch = monitor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, watch).fit(Gap(), loader(), loader())
    first, second = watch.history.series("val")
    assert "train_nll" not in first.context and "train_classes" not in first.arrays
    assert second.context["train_rows"] == 41
    assert all(math.isfinite(value) for record in (first, second) for value in record.context.values())


def test_validate_and_test_have_no_context(tmp_path: Path) -> None:
    watch, module = monitor(), Plain()
    made = trainer(tmp_path, watch)
    made.fit(module, loader(), loader())
    made.validate(module, loader(), verbose=False)
    made.test(module, loader(), verbose=False)
    assert [record.context for stage in ("validate", "test") for record in watch.history.series(stage)] == [{}, {}]


@pytest.mark.parametrize("watched", [True, False, 3])
def test_watching_by_argument(watched: bool | int, tmp_path: Path) -> None:
    watch = monitor(watch=watched)
    trainer(tmp_path, watch).fit(Plain(rate=0.25), loader(), loader())
    contexts = [record.context for record in watch.history.series("val")]
    if watched:
        assert {context["learning_rate"] for context in contexts} == {0.25}
        assert all(context["gradient_norm"] > 0 and context["update_ratio"] > 0 for context in contexts)
        assert watch._watcher is not None and watch._watcher.every == (16 if watched is True else watched)
    else:
        assert all("learning_rate" not in context and "train_nll" in context for context in contexts)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"gradient_clip_val": 0.5}, 0.5),
        ({"gradient_clip_val": 1, "gradient_clip_algorithm": "value"}, None),
    ],
    ids=["none", "norm", "value"],
)
def test_the_norm_of_clipping_is_known(options: dict[str, Any], expected: float | None, tmp_path: Path) -> None:
    watch = monitor()
    trainer(tmp_path, watch, max_epochs=1, **options).fit(Plain(), loader(), loader())
    assert watch.history.series("val")[-1].context.get("gradient_clip") == expected


def test_every_watched_number_reaches_other_ranks() -> None:
    """Numbers travel in a fixed order; the list of what a watcher says must hold all of them."""
    said = re.findall(r"^ {12}([a-z_]+(?:, [a-z_]+)*):", Watcher.values.__doc__ or "", re.MULTILINE)
    assert {name for names in said for name in names.split(", ")} == set(training.WATCHED)
    values = {key: float(place) for place, key in enumerate(training.WATCHED) if place % 3}
    vectors = [training.to_vector(values, torch.device("cpu"), first) for first in (True, False)]
    assert training.from_vector(vectors[0] + vectors[1]) == values


@pytest.mark.parametrize(
    "where", ["start", "begin_step", "end_forward", "before_optimizer_step", "after_step", "values"]
)
def test_a_watcher_that_fails_is_off_with_one_message(where: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Watcher, where, _raise)
    watch = monitor()
    without = fit(Plain, tmp_path)
    with pytest.warns(UserWarning, match="of the user") as caught:
        with_us = fit(Plain, tmp_path, watch)
    assert len(ours(list(caught))) == 1
    assert_identical(without, with_us)
    assert [record.num_rows for record in watch.history.series("train")] == [41, 41]
    assert all(record.complete and "train_nll" in record.context for record in watch.history.series("val"))
    assert len(watch.history.series("val")) == 2


@pytest.mark.parametrize("part", ["fits", "confusion"])
def test_what_the_logits_tell_may_fail_alone(part: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Probe, part, _raise)
    watch = monitor()
    with pytest.warns(UserWarning, match="lacks what the logits tell: RuntimeError: of the user") as caught:
        trainer(tmp_path, watch).fit(Plain(), loader(), loader())
    assert len(ours(list(caught))) == 1
    assert [record.complete for record in watch.history.series("val")] == [True, True]
    assert not any(part in record.arrays for record in watch.history)


class Newton(Plain):
    """Evaluates each step several times."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_step_that_is_evaluated_again_is_counted_once(backend: str | None, tmp_path: Path) -> None:
    """The first evaluation of each step, whose weights are those of every other training."""

    class Compiled(Newton):
        def __init__(self) -> None:
            super().__init__(drop=0.0)
            self.firsts: list[tuple[torch.Tensor, torch.Tensor]] = []
            if backend is not None:
                torch._dynamo.reset()
                self.loss = torch.compile(self._loss, backend=backend)

        def _loss(self, stage: str, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.no_grad():
                self.firsts.append((batch_idx, self.net(batch[0]).clone(), batch[1]))
            return self.loss("train", batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.loss("val", batch)

    watch, module = monitor(), Compiled()
    trainer(tmp_path, watch, max_epochs=1).fit(module, loader(), loader())
    (record,) = watch.history.series("train")
    assert record.num_rows == 41 and len(module.firsts) > 12
    shown = [call for place, call in enumerate(module.firsts) if not place or call[0] != module.firsts[place - 1][0]]
    total = sum(float(F.cross_entropy(logits, target, reduction="sum")) for _, logits, target in shown)
    assert record.values["nll"] == pytest.approx(total / 41, rel=1e-5)


def test_tokens_of_a_training_batch_are_rows_of_items(tmp_path: Path) -> None:
    """The sampling error of a training epoch is that of its sequences."""

    class Tokens(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.net(batch[0])
            return F.cross_entropy(logits.repeat_interleave(3, 0), batch[1].repeat_interleave(3))

    watch = monitor()
    trainer(tmp_path, watch, max_epochs=1).fit(Tokens(drop=0.0), loader(shuffle=True), loader())
    (record,) = watch.history.series("train")
    assert (record.num_rows, record.num_items) == (123, 41)


# -- what was captured -------------------------------------------------------------------------------------------------


class Kind(Plain):
    """Gives the loss something else than logits."""

    def __init__(self, kind: str) -> None:
        super().__init__(drop=0.0, rate=0.001)
        self.kind = kind

    def loss(self, stage: str, batch: Any) -> torch.Tensor:
        logits, target = self.net(batch[0]), batch[1]
        if self.kind == "softmax":
            return F.cross_entropy(logits.softmax(1), target)
        if self.kind == "softmax in half precision":
            return F.cross_entropy(logits.bfloat16().softmax(1), target)
        if self.kind == "log-softmax":
            return F.nll_loss(logits.log_softmax(1), target)
        if self.kind == "no logarithm":
            return F.nll_loss(logits.softmax(1), target)
        if self.kind == "no softmax":
            return F.nll_loss(logits, target)
        if self.kind == "sigmoid":
            return F.binary_cross_entropy_with_logits((30 * logits[:, 0]).sigmoid(), (target > 1).float())
        if self.kind == "small binary logits":
            return F.binary_cross_entropy_with_logits(0.5 + 0.01 * logits[:, 0], (target > 1).float())
        if self.kind == "binary logits":
            return F.binary_cross_entropy_with_logits(logits[:, 0], (target > 1).float())
        return F.cross_entropy(logits, target)


KINDS = {
    "softmax": "probabilities",
    "softmax in half precision": "probabilities",
    "log-softmax": "log-probabilities",
    "no logarithm": "probabilities",
    "no softmax": "",
    "sigmoid": "probabilities",
    "small binary logits": "",
    "binary logits": "",
    "logits": "",
}


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_told_from_logits(kind: str, tmp_path: Path) -> None:
    watch = monitor()
    trainer(tmp_path, watch).fit(Kind(kind), loader(), loader())
    assert {record.arrays["looks_like"] for record in watch.history} == {KINDS[kind]}
    missing = "no log_softmax before F.nll_loss" if kind in ("no logarithm", "no softmax") else ""
    assert {record.arrays["loss_terms"] for record in watch.history} == {missing}
    task = "binary" if "binary" in kind or kind == "sigmoid" else "multiclass"
    assert {record.arrays["task"] for record in watch.history} == {task}


def test_one_batch_of_one_column_decides_nothing() -> None:
    """Logits of one column may lie in [0, 1] for a while; several columns that sum to 1 are no accident."""
    look = Looks()
    assert look.verdict() == ""
    look.update(torch.tensor([0.1, 0.9, 0.5]).view(3, 1, 1))
    assert look.verdict() == "probabilities"
    look.update(torch.tensor([0.1, -3.0]).view(2, 1, 1))
    assert look.verdict() == ""
    look.clear()
    look.update(torch.tensor([[0.2, 0.8], [math.nan, 0.5]]).view(2, 2, 1))
    assert look.verdict() == ""
    look.clear()
    look.update(torch.tensor([[0.2, 0.8], [0.5, 0.5]]).view(2, 2, 1))
    assert look.verdict() == "probabilities"


def test_names_without_a_stage_are_those_of_the_stage_that_logged_them(tmp_path: Path) -> None:
    class Short(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss("train", batch)
            self.log("loss", loss, on_epoch=True)
            self.log("train_acc", 0.25)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"loss": self.loss("val", batch), "acc": 0.75, "test_acc": 0.5})

    watch = monitor()
    made = trainer(tmp_path, watch)
    made.fit(Short(drop=0.0), loader(), loader())
    for record in watch.history.series("val"):
        assert set(record.logged) == {"loss", "acc"} and record.logged["acc"] == 0.75
        assert record.logged["loss"] == pytest.approx(record.values["nll"], rel=1e-6)
    for record in watch.history.series("train"):
        assert "acc" not in record.logged and record.logged["train_acc"] == 0.25
        assert record.logged["loss"] == pytest.approx(record.values["nll"], rel=1e-6)


# -- nothing captured --------------------------------------------------------------------------------------------------


def test_one_message_where_nothing_is_captured(tmp_path: Path) -> None:
    watch = monitor()
    run = trainer(tmp_path, watch, max_epochs=3)
    module = Custom()
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.warns(UserWarning, match="No logits and targets were found") as caught:
        run.fit(module, loader(), loader())
    (message,) = ours(caught.list)
    assert "Tried" in message and "Seen" in message and "capture=" in message
    assert len(watch.history) == 0 and run.global_step == 18
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_capture_and_keys_of_the_output_help(tmp_path: Path) -> None:
    class Keys(Custom):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss("train", batch), "logits": self.net(batch[0]), "target": batch[1]}

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return {"logits": self.net(batch[0]), "target": batch[1]}

    class Given(Keys):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return {"scores": self.net(batch[0])}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss("train", batch), "scores": self.net(batch[0])}

    histories = []
    for module, options in (
        (Keys, {}),
        (Given, {"capture": lambda outputs, batch: (outputs["scores"], batch[1])}),
    ):
        seed_everything(1, verbose=False)
        watch = monitor(**options)
        trainer(tmp_path, watch).fit(module(drop=0.0), loader(), loader(21))
        histories.append([(record.stage, record.num_rows, record.values["nll"]) for record in watch.history])
    assert histories[0] == histories[1] and len(histories[0]) == 4


def test_soft_targets_are_counted_as_unsupported_with_one_message(tmp_path: Path) -> None:
    class Mixed(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            hard = F.one_hot(batch[1], NUM_CLASSES).float()
            return F.cross_entropy(self.net(batch[0]), 0.6 * hard + 0.4 * hard.flip(0))

    watch = monitor()
    features, _ = dataset(40).tensors
    mixed = DataLoader(TensorDataset(features, torch.arange(40) % NUM_CLASSES), batch_size=8)
    with pytest.warns(UserWarning, match="could count no row of train loader 0: 40 rows with soft targets") as caught:
        trainer(tmp_path, watch).fit(Mixed(), mixed, loader(21))
    assert len(ours(caught.list)) == 1
    train = watch.history.series("train")
    assert [record.num_rows for record in train] == [0, 0] and math.isnan(train[0].values["nll"])
    assert train[0].arrays["excluded"]["unsupported"] == 40
    assert [record.num_rows for record in watch.history.series("val")] == [21, 21]


def test_the_opening_explains_the_users_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = monitor(verbose=True)
    trainer(tmp_path, watch, max_epochs=1).fit(Plain(smoothing=0.2, weighted=True), loader(), loader(24, seed=3))
    out = capsys.readouterr().out
    record = watch.history.series("val")[0]
    difference = record.logged["val_loss"] - record.values["nll"]
    assert "captured from F.cross_entropy at modules.py:" in out
    assert (
        f"your val_loss {record.logged['val_loss']:.4f} = NLL {record.values['nll']:.4f} {difference:+.4f} "
        "(smoothing 0.2 and class weights)"
    ) in out
    assert "4 classes, 24 rows: one row is 4.2 pp" in out


def test_the_opening_of_a_second_loader_names_its_own_loss(tmp_path: Path, capsys: Any) -> None:
    watch = monitor(verbose=True)
    trainer(tmp_path, watch, max_epochs=1).fit(Plain(smoothing=0.2), loader(), [loader(16), loader(24, seed=3)])
    record = watch.history.series("val", 1)[0]
    assert f"your val_loss/dataloader_idx_1 {record.logged['val_loss/dataloader_idx_1']:.4f}" in capsys.readouterr().out


def test_the_closing_names_the_best_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = monitor(verbose=True, dirpath=None)
    trainer(tmp_path, watch, max_epochs=3).fit(Plain(rate=0.02), loader(), loader(24, seed=3))
    out = capsys.readouterr().out
    for key, name, best in (
        ("nll", "loss", min),
        ("accuracy", "accuracy", max),
        ("refinement_nll", "refined NLL", min),
    ):
        column = watch.history.column(key)
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name:<12}") and "nats" not in line]
        assert line.split()[len(name.split())] == str(column.index(best(column)))
    count = len({event.id for event in watch.events if event.level == "warning"})
    assert (f"{count} warning" if count else "no warning") in out
    assert (tmp_path / "lossacc" / "summary.txt").read_text() in out


# -- off, twice, copies ------------------------------------------------------------------------------------------------


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSACC", "0")
    started = []
    monkeypatch.setattr(Capture, "start", lambda *args: started.append(args))
    watch = monitor(dirpath=tmp_path / "ours", verbose=True)
    run = trainer(tmp_path, watch)
    module = Plain()
    run.fit(module, loader(), loader())
    run.test(module, loader(), verbose=False)
    assert not started and len(watch.history) == 0 and not (tmp_path / "ours").exists()
    assert not any(key.startswith("lossacc/") for key in run.callback_metrics) and watch.state_dict() == {}


def test_the_entry_point_adds_one_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert callbacks_factory() == []
    monkeypatch.setenv("LOSSACC", "0")
    assert callbacks_factory() == []
    monkeypatch.setenv("LOSSACC", "1")
    (found,) = callbacks_factory()
    assert type(found) is LossAccuracyMonitor


def test_lightning_finds_the_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = "lightning.pytorch.callbacks_factory"
    ours = [point for point in entry_points(group=group) if point.value.startswith("lightning_lossacc.")]
    if not ours:
        point = EntryPoint("lightning_lossacc", "lightning_lossacc.callback:callbacks_factory", group)
        monkeypatch.setattr(f"{CONNECTOR}._load_external_callbacks", lambda name: point.load()())
    monkeypatch.setenv("LOSSACC", "1")
    assert [type(found) for found in trainer(tmp_path).callbacks].count(LossAccuracyMonitor) == 1
    monkeypatch.delenv("LOSSACC")
    assert not any(isinstance(found, LossAccuracyMonitor) for found in trainer(tmp_path).callbacks)


@pytest.mark.parametrize("order", [1, -1])
def test_the_entry_point_beside_an_own_monitor(order: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSACC", "1")
    own, (ambient,), (alone,), logger = monitor(dirpath=None), callbacks_factory(), callbacks_factory(), Memory()
    # Where the package is installed, Lightning would call the factory once more.
    monkeypatch.delenv("LOSSACC")
    run = trainer(tmp_path, *[own, ambient][::order], logger=[logger])
    run.fit(Plain(), loader(), loader())
    assert len(own.history.series("val")) == 2 and len(ambient.history) == 0
    assert len(logger.column("lossacc/val/nll")) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("lossacc")] == ["lossacc"]
    trainer(tmp_path, alone).fit(Plain(), loader(), loader())
    assert len(alone.history.series("val")) == 2


def test_two_own_monitors_do_not_report_twice(tmp_path: Path) -> None:
    first, second, logger = monitor(), monitor(which=1), Memory()
    with pytest.warns(UserWarning, match="two LossAccuracyMonitors; only the first"):
        trainer(tmp_path, first, second, logger=[logger]).fit(Twice(), loader(), loader())
    assert len(logger.column("lossacc/val/nll")) == 2
    assert len(first.history.series("val")) == 2 and len(second.history) == 0


def test_arguments_are_checked() -> None:
    for options in (
        {"quantities": "some"},
        {"accuracy_margin": 0.0},
        {"accuracy_margin": 1.0},
        {"probe_items": -1},
        {"watch": -1},
    ):
        with pytest.raises(ValueError, match=f"Expected `{next(iter(options))}` to"):
            LossAccuracyMonitor(**options)


def test_copies_and_pickles_hold_the_measurements_and_no_trainer(tmp_path: Path) -> None:
    watch = monitor(dirpath=None)
    trainer(tmp_path, watch, logger=[CSVLogger(tmp_path)]).fit(Plain(), loader(), loader())
    for made in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert [record.to_json() for record in made.history] == [record.to_json() for record in watch.history]
        trainer(tmp_path, made).fit(Plain(), loader(), loader())
        assert len(made.history.series("val")) == 2


def test_pairing_can_be_switched_off(tmp_path: Path) -> None:
    watch = monitor(probe_items=0)
    trainer(tmp_path, watch).fit(Plain(), loader(), loader())
    assert all(not record.paired for record in watch.history) and len(watch.history.series("val")) == 2


# -- files, and one fit after another ----------------------------------------------------------------------------------


def same(first: History, second: History) -> None:
    """Equal as written: NaN and infinity are both null."""
    assert [record.to_json() for record in first] == [record.to_json() for record in second]


@pytest.mark.parametrize("pictures", [True], indirect=True)
def test_files_hold_what_memory_holds(tmp_path: Path) -> None:
    watch = monitor(dirpath=None)
    fit(lambda: Plain(drop=0.1), tmp_path, watch, max_epochs=12)
    folder = tmp_path / "lossacc"
    same(History.read(folder / "history.jsonl"), watch.history)
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert lines == [event.to_json() for event in watch.events] and lines
    assert (folder / "lossacc.png").read_bytes().startswith(b"\x89PNG") and (folder / "summary.txt").exists()
    assert all(json.loads(line)["message"] for line in lines)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_second_run_gets_its_own_folder(explicit: bool, tmp_path: Path) -> None:
    wanted = tmp_path / "lossacc"
    for number in range(3):
        watch = monitor(dirpath=wanted if explicit else None)
        trainer(tmp_path, watch).fit(Plain(), loader(), loader())
        folder = wanted if number == 0 else tmp_path / f"lossacc-{number}"
        same(History.read(folder / "history.jsonl"), watch.history)


def test_the_fit_of_another_trainer_starts_anew(tmp_path: Path) -> None:
    watch, loggers = monitor(dirpath=None), [Memory("first"), Memory("second")]
    for number, logger in enumerate(loggers):
        trainer(tmp_path, watch, logger=[logger], max_epochs=2 + number).fit(Plain(), loader(), loader())
    assert [len(logger.column("lossacc/val/nll")) for logger in loggers] == [2, 3]
    assert len(watch.history.series("val")) == 3
    same(History.read(tmp_path / "lossacc-1" / "history.jsonl"), watch.history)


def test_a_fit_that_goes_on_with_the_same_trainer(tmp_path: Path) -> None:
    watch, module = monitor(dirpath=None), Plain()
    run = trainer(tmp_path, watch)
    run.fit(module, loader(), loader())
    run.fit_loop.max_epochs = 4
    run.fit(module, loader(), loader())
    assert [record.epoch for record in watch.history.series("val")] == [0, 1, 2, 3]
    assert all(record.paired for record in watch.history.series("val")[1:])
    same(History.read(tmp_path / "lossacc" / "history.jsonl"), watch.history)


def test_validate_and_test_do_not_disturb_the_trend(tmp_path: Path) -> None:
    watch, module = monitor(), Plain()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    run = trainer(tmp_path, watch, checkpoint, enable_checkpointing=True)
    run.fit(module, loader(), loader(21, seed=3))
    trend = [record.to_json() for record in watch.history.series("val")]
    earliest = sorted(tmp_path.glob("*.ckpt"))[0]
    run.validate(module, loader(21, seed=3), ckpt_path=earliest, verbose=False)
    run.test(module, loader(21, seed=3), ckpt_path=earliest, verbose=False)
    trainer(tmp_path, watch).test(module, loader(21, seed=3), verbose=False)
    assert [record.to_json() for record in watch.history.series("val")] == trend
    assert [record.stage for record in watch.history.records[-3:]] == ["validate", "test", "test"]
    assert watch.history.records[-3].values["nll"] == watch.history.series("val")[0].values["nll"]
    run.fit_loop.max_epochs = 3
    run.fit(module, loader(), loader(21, seed=3))
    assert len(watch.history.series("val")) == 3 and len(watch.history.series("val")[-1].paired) == 2


def test_a_remote_log_directory_gets_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watch, run = monitor(dirpath=None), trainer(tmp_path)
    run.callbacks.append(watch)
    run._default_root_dir = "memory://bucket/runs"
    with pytest.warns(UserWarning, match="writes no files to memory://bucket/runs; give `dirpath`"):
        run.fit(Plain(), loader(), loader())
    assert not list(tmp_path.rglob("*.jsonl")) and len(watch.history.series("val")) == 2


def test_an_exception_restores_the_loss_functions(tmp_path: Path) -> None:
    class Breaks(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise ArithmeticError("of the user")
            return super().training_step(batch, batch_idx)

    original, watch = F.cross_entropy, monitor()
    with pytest.raises(ArithmeticError, match="of the user"):
        trainer(tmp_path, watch).fit(Breaks(), loader(), loader())
    assert F.cross_entropy is original and not loss_calls._listeners
    trainer(tmp_path, watch).fit(Plain(), loader(), loader())
    assert [record.num_rows for record in watch.history.series("train")] == [41, 41]


# -- how items are ordered ---------------------------------------------------------------------------------------------


class Reversed(DistributedSampler):
    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


# What is known of the order decides what is paired and which rows are padding; each sampler that Lightning makes.
def test_sampling_of_known_and_unknown_orders() -> None:
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
    from torch.utils.data import SubsetRandomSampler

    data = dataset(41)

    def read(sampler: Any = None, processes: int = 1, **options: Any) -> stages.Sampling:
        return stages.Sampling.of(DataLoader(data, batch_size=8, sampler=sampler, **options), processes)

    def spread(rank: int, kind: type = DistributedSampler, **options: Any) -> Any:
        return kind(data, num_replicas=2, rank=rank, **options)

    assert read() == stages.Sampling(41, 41, 8, 0, 1, True, "")
    assert not read(processes=2).known and read(processes=2).owned == 41
    assert [read(spread(rank, shuffle=False)).owned for rank in (0, 1)] == [21, 20]
    assert read(spread(1, shuffle=False)) == stages.Sampling(41, 20, 8, 1, 2, True, "")
    shuffled = read(spread(1))
    assert shuffled.owned == 20 and not shuffled.known
    assert read(spread(1, drop_last=True)).owned is None
    wrapped = read(DistributedSamplerWrapper(SubsetRandomSampler(range(11)), num_replicas=2, rank=1, shuffle=False))
    assert (wrapped.num_items, wrapped.owned, wrapped.known) == (11, 5, False)
    assert read(spread(0, Reversed, shuffle=False)).owned is None
    assert read(RandomSampler(data)).owned == 41 and not read(RandomSampler(data)).known
    assert read(RandomSampler(data, replacement=True)).owned is None
    assert read(RandomSampler(data, num_samples=9)).owned is None
    assert stages.Sampling.of([1, 2]).reason == "list is no torch DataLoader"
    assert stages.Sampling.of(DataLoader(data, batch_size=None)).batch_size is None


def test_reading_an_order_draws_no_random_number() -> None:
    states = [torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()]
    for shuffle in (False, True):
        stages.Sampling.of(DataLoader(dataset(), batch_size=8, shuffle=shuffle))
    assert_identical(states, [torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()])


def test_a_data_set_that_grows_is_paired_anew(tmp_path: Path) -> None:
    class Growing(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

        def val_dataloader(self) -> DataLoader:
            return loader(21 if self.trainer.current_epoch < 2 else 24, seed=3)

    watch = monitor()
    run = trainer(tmp_path, watch, max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(Plain(), datamodule=Growing())
    records = watch.history.series("val")
    assert [record.num_rows for record in records] == [21, 21, 24, 24]
    assert [record.paired["nll"]["rows"] if record.paired else 0 for record in records] == [0, 21, 0, 24]


# -- memory ------------------------------------------------------------------------------------------------------------


def test_no_logits_outlive_their_step(tmp_path: Path) -> None:
    alive: list[int] = []
    references: list[weakref.ref[torch.Tensor]] = []

    class Remembers(Plain):
        def loss(self, stage: str, batch: Any) -> Any:
            alive.append(sum(reference() is not None for reference in references))
            logits = self.net(batch[0])
            references.append(weakref.ref(logits))
            return F.cross_entropy(logits, batch[1])

    gc.disable()  # the collector must not be needed
    try:
        trainer(tmp_path, monitor()).fit(Remembers(), loader(), loader(21))
    finally:
        gc.enable()
    assert len(alive) == 18 and not any(alive)


def test_state_is_constant_over_batches(tmp_path: Path) -> None:
    watch, sizes = monitor(), []

    class Sizes(Callback):
        def on_train_batch_end(self, run: Any, *rest: Any) -> None:
            states = watch._run._states.values()
            tensors = [state.counts for state in states] + [state.sums for state in states]
            sizes.append([(id(tensor), tensor.numel()) for tensor in tensors] + [len(watch._run.history)])

    trainer(tmp_path, watch, Sizes(), max_epochs=1).fit(Plain(), loader(400, batch_size=2))
    assert len(sizes) == 200 and all(size == sizes[0] for size in sizes)
