"""Two processes measure what one measures: counts exactly, sums to 1e-12, and both decide the same.

Proved here, with gloo on the CPU: any size of the data set, divisible or not, one row, a rank without batches, classes
known on one rank only, several loaders, wrapped samplers and own shards; three collectives an evaluation, the same ones
on each rank; rank zero alone writes; ranks that disagree, or of which one fails, go on together and never hang; a
training epoch that is saved in its middle keeps the rows of both ranks; nothing is sent after an exception.

One pair of processes runs all scenarios one after another (this file as a program) and writes down what it saw.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import traceback
import warnings
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler, TensorDataset

from lightning_lossacc import History, LossAccuracy, LossAccuracyMonitor, Record
from lightning_lossacc.capture import Captured
from lightning_lossacc.run import Run
from lightning_lossacc.sinks import reporter
from lightning_lossacc.stages import Sampling, Settings, StageState
from lightning_lossacc.training import WATCHED
from tests.modules import NUM_CLASSES, QUIET, Failing, Memory, assert_identical, safely

pytestmark = QUIET
WORLD = 2
EPOCHS = 8
TIMEOUT = 200  # seconds for all scenarios; they take about 20 on two idle cores
SIZES = (1, 33, 41, 42)


class Table(LightningModule):
    """Reads logits from a table by epoch and row, so that they are the same bits in any batch; grows over-confident."""

    def __init__(self, num_rows: int = 64, num_classes: int = NUM_CLASSES, ranks: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        first = torch.randn(num_rows, num_classes, generator=generator)
        growth = 1 + 0.5 * torch.arange(EPOCHS)[:, None, None]
        # No buffer: DDP broadcasts those in each forward, which a rank without batches would miss.
        self.table = first * growth + 0.01 * torch.randn(EPOCHS, *first.shape, generator=generator)
        self.scale = nn.Parameter(torch.ones(()))
        self.ranks = ranks
        self.broken: tuple[int, ...] = ()  # ranks on which `forward` fails, which no step calls

    def logits(self, index: Tensor) -> Tensor:
        return self.table[min(self.current_epoch, EPOCHS - 1)][index]

    def forward(self, index: Tensor) -> Tensor:
        if self.global_rank in self.broken:
            raise RuntimeError("on this rank only")
        return self.logits(index)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, target = batch
        return F.cross_entropy(self.logits(index) * self.scale, target)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.global_rank in self.ranks:
            index, target = batch
            F.cross_entropy(self.logits(index), target)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class OtherClasses(Table):
    """One more class on rank 1."""

    def logits(self, index: Tensor) -> Tensor:
        logits = super().logits(index)
        return F.pad(logits, (0, self.global_rank)) if not self.training else logits


class OtherTraining(Table):
    """One more class on rank 1 in training alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        index, target = batch
        return F.cross_entropy(F.pad(self.logits(index), (0, self.global_rank)) * self.scale, target)


class Breaks(Table):
    """Stops in the middle of an epoch, on every rank."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.current_epoch == 1 and batch_idx == 2:
            raise ArithmeticError("of the user")
        return super().training_step(batch, batch_idx)


class OnRankZero(IterableDataset):
    """Nothing on rank 1."""

    def __iter__(self) -> Any:
        return iter(rows(17)) if torch.distributed.get_rank() == 0 else iter(())


class Keep(Checkpoint):
    """Saves within the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            trainer.save_checkpoint(self.path / "middle.ckpt", weights_only=False)

    def on_exception(self, trainer: Trainer, *rest: Any) -> None:
        trainer.save_checkpoint(self.path / "exception.ckpt", weights_only=False)


def rows(num_rows: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(6)
    return TensorDataset(torch.arange(num_rows), torch.randint(NUM_CLASSES, (64,), generator=generator)[:num_rows])


def batches(num_rows: int, **options: Any) -> DataLoader:
    return DataLoader(rows(num_rows), batch_size=4, **options)


def trainer(path: Path, world: int, *callbacks: Any, **options: Any) -> Trainer:
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20)) if world > 1 else "auto"
    defaults: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "limit_train_batches": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": path,
    }
    return Trainer(
        accelerator="cpu", devices=world, strategy=strategy, callbacks=list(callbacks), **{**defaults, **options}
    )


def _raise(*args: Any, **options: Any) -> None:
    raise RuntimeError("on this rank only")


def scenario(name: str, path: Path, world: int) -> LossAccuracyMonitor:
    """One scenario, in one process or in each of several; every one is a full fit."""
    seed_everything(3, verbose=False)
    kind, _, detail = name.partition(" ")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    options: dict[str, Any] = {}
    module: Table = Table()
    # As many rows a step in one process as in several.
    train, validation, callbacks = DataLoader(rows(8), batch_size=8 // world), batches(41), []
    arguments: dict[str, Any] = {"dirpath": path / name.replace(" ", "-"), "verbose": False}
    point = None
    if kind == "size":
        validation = batches(int(detail))
    elif kind == "probe":
        arguments["probe_items"] = 10
    elif kind == "train-probe":
        arguments |= {"train_probe": rows(23), "probe_items": 17}
    elif kind == "broken-train-probe":
        arguments["train_probe"] = rows(23)
        module.broken = (int(detail),)
    elif kind == "loaders":
        validation = [batches(41), batches(1)]
    elif kind == "subset":
        validation = DataLoader(rows(41), batch_size=4, sampler=SubsetRandomSampler(range(11)))
    elif kind == "shards":
        options["use_distributed_sampler"] = False
        validation = batches(21 + 5 * rank)
    elif kind == "sampled-shards":
        options["use_distributed_sampler"] = False
        shard = rows(21 + 5 * rank)
        sampler = DistributedSampler(shard, world, rank, shuffle=False)
        validation = DataLoader(shard, batch_size=4, sampler=sampler)
    elif kind == "one-rank-has-data":
        validation = DataLoader(OnRankZero(), batch_size=4)
    elif kind == "one-rank-captures":
        module = Table(ranks=(1,))
    elif kind == "nothing-captured":
        module = Table(ranks=())
    elif kind == "disagreement":
        module = OtherClasses()
    elif kind == "training-disagreement":
        module = OtherTraining()
    elif kind == "skipped-loaders":
        module.allow_zero_length_dataloader_with_multiple_devices = True
        validation = DataLoader(TensorDataset(*rows(8)[: 8 * (1 - rank)]), batch_size=4)
        options["use_distributed_sampler"] = False
    elif kind in ("train", "saved", "resumed", "exception"):
        train, options = batches(64), {"max_epochs": 3, "limit_train_batches": 6}
        callbacks = [Keep(path)] if kind in ("saved", "exception") else []
        point = path / "middle.ckpt" if kind == "resumed" else None
        module = Breaks() if kind == "exception" else module
    elif kind == "faulty":
        where, target = detail.split()
        if rank == int(where):
            if target == "on_event":
                arguments["on_event"] = _raise
            elif target == "logger":
                options["logger"] = [Failing(), Memory()]
            elif target == "directory":
                path.joinpath("file").write_text("")
                arguments["dirpath"] = path / "file" / "below"
            else:
                owner, attribute = {
                    "statistics": ("lightning_lossacc.kernels", "row_statistics"),
                    "examine": ("lightning_lossacc.diagnosis.engine.Diagnosis", "examine"),
                    "sampling": ("lightning_lossacc.stages.Sampling", "of"),
                    "values": ("lightning_lossacc.stages.StageState", "values"),
                }[target]
                patch = pytest.MonkeyPatch()
                patch.setattr(f"{owner}.{attribute}", _raise)
                callbacks = []
                monitor = LossAccuracyMonitor(**arguments)
                try:
                    trainer(path, world, monitor, **options).fit(module, train, validation)
                finally:
                    patch.undo()
                return monitor
    monitor = LossAccuracyMonitor(**arguments)
    run = trainer(path, world, monitor, *callbacks, **options)
    if kind == "exception":
        with pytest.raises(ArithmeticError):
            run.fit(module, train, validation)
    else:
        run.fit(module, train, validation, **safely(point))
    if kind == "size":
        run.test(module, validation, verbose=False)
    return monitor


COMPARED = [f"size {size}" for size in SIZES] + ["probe", "loaders", "train-probe"]
# Loggers and files are rank zero's alone.
FAULTY = ["faulty 0 logger", "faulty 0 directory"] + [
    f"faulty {rank} {target}"
    for rank in range(WORLD)
    for target in ("on_event", "statistics", "examine", "sampling", "values")
]
SCENARIOS = [
    *COMPARED,
    "subset",
    "shards",
    "sampled-shards",
    "one-rank-has-data",
    "one-rank-captures",
    "nothing-captured",
    "disagreement",
    "training-disagreement",
    "skipped-loaders",
    "train",
    "saved",
    "resumed",
    "exception",
    *FAULTY,
    *(f"broken-train-probe {rank}" for rank in range(WORLD)),
]


def found(monitor: LossAccuracyMonitor) -> dict[str, Any]:
    return {
        "records": [asdict(replace(record, time=0.0)) for record in monitor.history],
        "events": [event.to_json() for event in monitor.events],
    }


def work(path: Path) -> None:
    """What each process does: all scenarios, and what it saw of them."""
    torch.set_num_threads(1)
    calls: list[list[Any]] = []
    evaluations: list[int] = []
    all_reduce, evaluate = torch.distributed.all_reduce, Run.evaluate

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if any("lightning_lossacc" in frame.filename for frame in traceback.extract_stack()):
            calls.append([tensor.numel(), str(tensor.dtype), str(options.get("op", "sum"))])
        return all_reduce(tensor, *args, **options)

    def evaluated(*args: Any) -> None:
        before = len(calls)
        evaluate(*args)
        evaluations.append(len(calls) - before)

    torch.distributed.all_reduce = counted
    Run.evaluate = evaluated
    reporter.image = lambda *args, **options: None
    for name in SCENARIOS:
        calls.clear()
        evaluations.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            seen = found(scenario(name, path, WORLD))
        seen |= {
            "calls": list(calls),
            "evaluations": list(evaluations),
            "warnings": [str(item.message) for item in caught if "lossacc" in str(item.message).lower()],
        }
        place = path / f"rank-{os.environ['LOCAL_RANK']}-{name.replace(' ', '-')}.json"
        place.write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """What both processes saw, by scenario and rank."""
    path = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.test_distributed", str(path)]
    processes = []
    for rank in range(WORLD):
        with open(path / f"log-{rank}", "w") as log:
            ranked = environment | {"LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=ranked, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    except subprocess.TimeoutExpired:
        codes = [-1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = ["\n".join((path / f"log-{rank}").read_text().splitlines()[-25:]) for rank in range(WORLD)]
    assert codes == [0] * WORLD, f"{codes}: last scenario {sorted(path.glob('*.json'))[-1:]}\n" + "\n---\n".join(ends)
    return path, {
        name: [json.loads((path / f"rank-{rank}-{name.replace(' ', '-')}.json").read_text()) for rank in range(WORLD)]
        for name in SCENARIOS
    }


def close(first: Any, second: Any, where: str = "") -> None:
    """Integers and texts equal, numbers to 1e-12."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            close(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            close(one, other, f"{where}/{index}")
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-12, abs=1e-12, nan_ok=True), where
    else:
        assert first == second, where


def unwatched(record: dict[str, Any]) -> dict[str, Any]:
    """Without gradients and weights, which two processes add in another order in single precision."""
    return record | {"context": {key: value for key, value in record["context"].items() if key not in WATCHED}}


def without_training(record: dict[str, Any]) -> dict[str, Any]:
    """What was evaluated, where the training saw other rows."""
    arrays = {key: value for key, value in record["arrays"].items() if key != "train_classes"}
    return unwatched(record) | {"arrays": arrays, "context": {}}


# One row (a rank without any), and sizes that two processes divide and do not, with a full last batch and without.
@pytest.mark.parametrize("name", COMPARED)
def test_two_processes_measure_what_one_measures(name: str, pair: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = found(scenario(name, tmp_path, 1))
    first, second = pair[1][name]
    for kind in ("val", "test", "train_probe"):
        expected = [unwatched(record) for record in alone["records"] if record["stage"] == kind]
        records = [unwatched(record) for record in first["records"] if record["stage"] == kind]
        assert len(expected) == len(records) >= EPOCHS * (kind in ("val", name.replace("-", "_")))
        close(records, expected, name)
        assert all(record["complete"] for record in records)
    evaluated = [json.loads(event) for event in alone["events"]]
    close([json.loads(event) for event in first["events"]], evaluated)
    assert first["events"] == second["events"]
    assert bool(evaluated) == (name != "size 1"), "all scenarios but the smallest must have events"
    last = [record for record in first["records"] if record["stage"] == "val"][-1]
    assert (
        last["num_rows"] == {"probe": 41, "loaders": 42, "train-probe": 41}.get(name)
        or int(name.split()[-1]) == last["num_rows"]
    )


def test_ranks_agree_on_everything(pair: Any) -> None:
    for name in SCENARIOS:
        first, second = pair[1][name]
        assert first["calls"] == second["calls"], name
        if not name.startswith("faulty"):
            assert_identical(first["records"], second["records"], name, relative=1e-12)
            assert first["events"] == second["events"], name


def test_an_evaluation_takes_three_collectives(pair: Any) -> None:
    for name in [
        *COMPARED,
        "subset",
        "shards",
        "sampled-shards",
        "one-rank-has-data",
        "one-rank-captures",
        "train",
        "resumed",
    ]:
        for seen in pair[1][name]:
            assert set(seen["evaluations"]) == {3}, name
    for seen in pair[1]["nothing-captured"]:
        assert set(seen["evaluations"]) == {1, 3}, "the header alone where there is nothing, three for the training"


def test_healthy_scenarios_give_no_warning(pair: Any) -> None:
    quiet = [
        *COMPARED,
        "subset",
        "shards",
        "sampled-shards",
        "one-rank-has-data",
        "one-rank-captures",
        "train",
        "saved",
        "resumed",
    ]
    for name in quiet:
        assert [seen["warnings"] for seen in pair[1][name]] == [[], []], name


def test_rank_zero_alone_writes(pair: Any) -> None:
    path, seen = pair
    for name in COMPARED:
        written = History.read(path / name.replace(" ", "-") / "history.jsonl")
        expected = [Record(**record).to_json() for record in seen[name][0]["records"]]
        assert [replace(record, time=0.0).to_json() for record in written] == expected
    # A second writer would have chosen a numbered folder, or written each line twice.
    assert not (path / "probe-1").exists()


def series(seen: dict[str, Any], stage: str = "val") -> list[dict[str, Any]]:
    return [record for record in seen["records"] if record["stage"] == stage]


def test_wrapped_samplers_lose_their_padding_and_are_not_paired(pair: Any) -> None:
    for seen in pair[1]["subset"]:
        assert [(record["num_rows"], record["paired"]) for record in series(seen)] == [(11, {})] * EPOCHS


def test_own_shards_of_other_sizes_are_added_and_not_paired(pair: Any) -> None:
    for seen in pair[1]["shards"]:
        assert [(record["num_rows"], record["paired"]) for record in series(seen)] == [(21 + 26, {})] * EPOCHS
    # Probes of other sizes would be vectors of other lengths, for which a sum waits or fails.
    for seen in pair[1]["sampled-shards"]:
        assert [(record["num_rows"], record["paired"]) for record in series(seen)] == [(11 + 13, {})] * EPOCHS


def test_validation_knows_the_training_of_all_ranks(pair: Any) -> None:
    """Rows and classes of the epoch so far are those of both ranks; what is watched is rank zero's on both."""
    first, second = (series(seen) for seen in pair[1]["train"])
    for record, other in zip(first, second, strict=True):
        assert record["context"] == other["context"]
        assert record["context"]["train_rows"] == sum(record["arrays"]["train_classes"]) == 48
        assert record["context"]["steps"] == 6 and record["context"]["learning_rate"] == 0.0
    assert [record["context"]["train_nll"] for record in first] == pytest.approx(
        [record["values"]["nll"] for record in series(pair[1]["train"][0], "train")], rel=1e-12
    )


def test_fixed_training_rows_are_counted_once_and_followed(pair: Any) -> None:
    """Every rank evaluates all of them; the counts are one rank's, and so is the memory."""
    for seen in pair[1]["train-probe"]:
        records = series(seen, "train_probe")
        assert [(record["num_rows"], record["complete"]) for record in records] == [(17, True)] * EPOCHS
        assert [record["arrays"]["memory"]["evaluations"] for record in records] == list(range(1, EPOCHS + 1))
        assert set(records[-1]["paired"]) == {"nll", "val-nll"}
        assert all("duplicates" in record["arrays"] for record in series(seen))


@pytest.mark.parametrize("rank", range(WORLD))
def test_a_train_probe_that_fails_on_one_rank_is_off_on_all(rank: int, pair: Any) -> None:
    """The validation is what it would have been, and nothing waits."""
    for seen in pair[1][f"broken-train-probe {rank}"]:
        assert all(not record["complete"] for record in series(seen, "train_probe"))
        assert [record["values"] for record in series(seen)] == [
            record["values"] for record in series(pair[1]["size 41"][0])
        ]
        assert set(seen["evaluations"]) == {3}
    first, second = pair[1][f"broken-train-probe {rank}"]
    assert first["events"] == second["events"]
    assert len(first["warnings"]) == 1 and second["warnings"] == []


def test_ranks_without_data_or_classes_take_part(pair: Any) -> None:
    for seen in pair[1]["one-rank-has-data"]:
        assert [(record["num_rows"], record["complete"]) for record in series(seen)] == [(17, True)] * EPOCHS
    for seen in pair[1]["one-rank-captures"]:
        assert [record["num_rows"] for record in series(seen)] == [20] * EPOCHS


def test_nothing_captured_anywhere(pair: Any) -> None:
    first, second = pair[1]["nothing-captured"]
    assert not series(first) and len(series(first, "train")) == EPOCHS
    assert len(first["warnings"]) == 1 and "No logits and targets were found" in first["warnings"][0]
    assert second["warnings"] == []


def test_ranks_that_disagree_skip_together(pair: Any) -> None:
    first, second = pair[1]["disagreement"]
    assert not series(first) and len(series(first, "train")) == EPOCHS
    assert len(first["warnings"]) == 1 and "ranks captured different losses or class counts" in first["warnings"][0]
    assert second["warnings"] == []


def test_ranks_that_disagree_on_the_training_still_validate(pair: Any) -> None:
    """Only what the training would have told is missing."""
    for seen in pair[1]["training-disagreement"]:
        assert not series(seen, "train")
        assert [record["values"] for record in series(seen)] == [
            record["values"] for record in series(pair[1]["size 41"][0])
        ]
        assert not any("train_nll" in record["context"] for record in series(seen))
        assert not any("train_classes" in record["arrays"] for record in series(seen))
        assert all(record["context"]["learning_rate"] == 0.0 for record in series(seen))


def test_ranks_that_lightning_lets_skip_switch_it_off(pair: Any) -> None:
    first, second = pair[1]["skipped-loaders"]
    assert first["records"] == second["records"] == [] and first["calls"] == []
    assert len(first["warnings"]) == 1 and "lossacc is off" in first["warnings"][0]


def test_a_saved_epoch_keeps_the_rows_of_both_ranks(pair: Any) -> None:
    """Only rows are compared: Lightning hands out an epoch from its start again, unless a loader knows its place."""
    path, seen = pair
    whole, saved, resumed = (seen[name][0] for name in ("train", "saved", "resumed"))
    assert [record["num_rows"] for record in series(whole, "train")] == [48] * 3
    assert_identical(series(whole, "train"), series(saved, "train"), relative=1e-12)
    assert [record["num_rows"] for record in series(resumed, "train")] == [48] * 3
    assert all(record["complete"] for record in series(resumed, "train"))
    evaluated = [[without_training(record) for record in series(run)[1:]] for run in (whole, resumed)]
    assert_identical(*evaluated)
    (state,) = _states(path / "middle.ckpt")
    assert state["train"]["batches"] == 2 and state["train"]["complete"]
    assert int(state["train"]["counts"][0]) == 2 * 4 * WORLD
    assert len(seen["saved"][0]["calls"]) == len(seen["train"][0]["calls"]) + 3


def test_nothing_is_sent_after_an_exception(pair: Any) -> None:
    path, seen = pair
    (state,) = _states(path / "exception.ckpt")
    assert state["train"]["batches"] == 2 and not state["train"]["complete"]
    first, second = seen["exception"]
    assert first["evaluations"] == second["evaluations"] == [3, 3]
    assert len(first["calls"]) == len(second["calls"]) == 6 + 3, "two evaluations and the normal save"


def _states(path: Path) -> list[dict[str, Any]]:
    callbacks = torch.load(path, weights_only=True)["callbacks"]
    return [state for key, state in callbacks.items() if key.startswith("LossAccuracyMonitor")]


# Every size up to a few batches on up to five ranks, in one process: the rows of all ranks are those of one.
@pytest.mark.parametrize("world", range(1, 6))
def test_padding_is_cut_for_any_size_and_number_of_ranks(world: int) -> None:
    for size in range(1, 51):
        data = rows(size)
        logits = Table().table[0]
        total, items = [], 0
        for rank in range(world):
            sampler = DistributedSampler(data, world, rank, shuffle=False)
            loader = DataLoader(data, batch_size=4, sampler=sampler)
            state = StageState("val", 0, Settings(), grid=True)
            state.begin_evaluation(Sampling.of(loader, world), {})
            for index, target in loader:
                state.begin_batch()
                state.add(Captured(logits[index], target, "multiclass", -100, 0.0, False, "here"))
                state.end_batch()
            state.flush()
            assert state.failure is None and state.probe is not None
            total.append(state.counts)
            items += state.probe.current[:-1, 0]
        expected = LossAccuracy(num_classes=NUM_CLASSES)
        expected.update(logits[:size], data.tensors[1])
        assert torch.equal(torch.stack(total).sum(0), expected.counts), size
        assert torch.equal(items, torch.ones(size, dtype=torch.float64)), size


# Each fault on the rank that writes and on the other one: nothing hangs, and the other rank has all it would have had.
@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_on_one_rank_does_not_stop_the_other(name: str, pair: Any) -> None:
    _, where, target = name.split()
    seen, expected = pair[1][name], pair[1]["size 41"][0]
    other = seen[1 - int(where)]
    values = [record["values"] for record in series(other)]
    # What is missing on one rank is missing: both know, and rank zero says so.
    is_partial = target in ("statistics", "sampling")
    assert [record["complete"] for record in series(other)] == [not is_partial] * EPOCHS
    if target == "statistics":
        assert [record["num_rows"] for record in series(other)] == [20 + int(where)] * EPOCHS
    elif target != "sampling":
        close(values, [record["values"] for record in series(expected)])
    assert len(seen[0]["warnings"]) == (1 if where == "0" or is_partial else 0), seen[0]["warnings"]
    assert seen[1]["warnings"] == []
    assert math.isfinite(values[-1]["nll"])


if __name__ == "__main__":
    work(Path(sys.argv[1]))
