"""Fixed training rows are evaluated as validation does it, and the training never notices.

Proved here: bitwise the same training with user metrics, BatchNorm, dropout, random data and custom buffers; modes,
buffers, logged values and random states put back, after a failure too; values are those of the module in eval mode on
these rows; every form of a batch; a loader's sampler is never drawn from; augmentation and shuffling are named; what
cannot be read is off with one message; references, memory and duplicates are in the records; wrong labels planted in
the data are found.
"""

from __future__ import annotations

import math
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from lightning_lossacc import LossAccuracy
from lightning_lossacc.train_probe import TrainProbe
from tests.modules import (
    NUM_CLASSES,
    NUM_FEATURES,
    QUIET,
    Plain,
    assert_identical,
    dataset,
    everything,
    loader,
    monitor,
    safely,
    trainer,
)

pytestmark = QUIET


class Full(Plain):
    """Has `forward`, BatchNorm, a buffer that counts calls, and metrics of the user in every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, nn.BatchNorm1d(16))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=NUM_CLASSES)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.modes: list[bool] = []

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        self.modes.append(self.training)
        self.log("forward", 1.0)
        return self.net(features)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        features, target = batch
        logits = self.net(features)
        self.accuracy.update(logits, target)
        self.log("val_loss", F.cross_entropy(logits, target))
        self.log("val_acc", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        self.modes.append(self.training)


class Augmented(Dataset[Any]):
    """Draws from every generator there is."""

    def __init__(self, num_rows: int = 41) -> None:
        self.rows = dataset(num_rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features, target = self.rows[index]
        return features + torch.randn(NUM_FEATURES) + random.random() + numpy.random.random(), target


def fit(path: Path, make: Any = Full, train_probe: Any = None, **options: Any) -> tuple[dict[str, Any], Any]:
    seed_everything(7, verbose=False)
    module = make()
    arguments = {"train_probe": train_probe} if train_probe is not None else {}
    watch = monitor(**arguments)
    made = trainer(path, *([watch] if train_probe is not None else []), **{"max_epochs": 3, **options})
    # No batch of one row, which BatchNorm refuses.
    made.fit(module, loader(40, shuffle=True), loader(64, seed=3))
    logged = {key: value.clone() for key, value in made.callback_metrics.items() if not key.startswith("lossacc/")}
    return everything(module) | {"logged": logged, "modes": [child.training for child in module.modules()]}, watch


def probes(watch: Any) -> list[Any]:
    return watch.history.series("train_probe", complete=False)


@pytest.mark.filterwarnings("ignore:.*gives other inputs each time.*", "ignore:.*never draws from.*")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("kind", ["rows", "augmented", "shuffled"])
def test_training_is_bitwise_the_same(kind: str, precision: str, tmp_path: Path) -> None:
    data = {"rows": dataset(), "augmented": Augmented(), "shuffled": loader(shuffle=True)}[kind]
    without, _ = fit(tmp_path, precision=precision)
    with_it, watch = fit(tmp_path, train_probe=data, precision=precision)
    assert_identical(without, with_it)
    assert [record.complete for record in probes(watch)] == [True] * 3
    assert "forward" not in with_it["logged"]


def test_modes_are_those_of_validation_and_put_back_one_by_one(tmp_path: Path) -> None:
    """A frozen child stays in eval mode while its parents train."""

    class Frozen(Full):
        def on_train_epoch_start(self) -> None:
            self.net[1].eval()

    seed_everything(1, verbose=False)
    module = Frozen()
    watch = monitor(train_probe=dataset())
    trainer(tmp_path, watch).fit(module, loader(40), loader())
    assert module.modes and not any(module.modes)
    assert int(module.calls) == 0, "a buffer that `forward` writes to is as it was"
    assert len(probes(watch)) == 2


class Table(Plain):
    """Remembers its weights at each validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.states: list[dict[str, Tensor]] = []

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)

    def on_validation_epoch_end(self) -> None:
        self.states.append({name: value.clone() for name, value in self.state_dict().items()})


@pytest.mark.parametrize("limit", [8192, 20])
def test_values_are_those_of_the_module_on_these_rows(limit: int, tmp_path: Path) -> None:
    module, data = Table(), dataset(50, seed=5)
    watch = monitor(train_probe=data, probe_items=limit)
    trainer(tmp_path, watch).fit(module, loader(), loader())
    positions = TrainProbe(data, limit).positions
    assert len(positions) == min(limit, 50)
    module.eval()
    for record, state in zip(probes(watch), module.states, strict=True):
        module.load_state_dict(state)
        metric = LossAccuracy(num_classes=NUM_CLASSES)
        with torch.no_grad():
            metric.update(module(data.tensors[0][positions]), data.tensors[1][positions])
        expected = {key: float(value) for key, value in metric.compute().items()}
        assert record.num_rows == len(positions)
        assert {key: record.values[key] for key in expected} == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_records_have_references_memory_and_duplicates(tmp_path: Path) -> None:
    """Half of the validation rows are training rows."""
    module, data = Table(drop=0.0, rate=0.1), dataset(40, seed=5)
    other = dataset(40, seed=6)
    both = TensorDataset(*(torch.cat(pair) for pair in zip(data.tensors, other.tensors, strict=True)))
    watch = monitor(train_probe=data)
    trainer(tmp_path, watch, max_epochs=8).fit(module, DataLoader(data, 8), DataLoader(both, 16))
    records, validations = probes(watch), watch.history.series("val")
    order = [record.stage for record in watch.history]
    assert order[:3] == ["train_probe", "val", "train"], "before the validation whose diagnosis reads it"
    assert records[0].paired == {} and set(records[1].paired) == {"nll", "val-nll"}
    for place, record in enumerate(records[1:], start=1):
        best = min(range(place), key=lambda index: validations[index].values["nll"])
        assert record.paired["val-nll"]["reference_epoch"] == best == record.arrays["memory"]["reference_epoch"]
        own = min(range(place), key=lambda index: records[index].values["nll"])
        assert record.paired["nll"]["reference_epoch"] == own
    assert {best.paired["val-nll"]["reference_epoch"] for best in records[1:]} != {0}
    assert all(record.arrays["duplicates"] == pytest.approx(0.5, abs=0.03) for record in validations[1:])
    assert records[0].context == {"num_classes": NUM_CLASSES, "random_rows": 0}


def test_keys_are_logged_and_can_be_monitored(tmp_path: Path) -> None:
    watch = monitor(train_probe=dataset())
    made = trainer(tmp_path, watch)
    made.fit(Table(), loader(), [loader(seed=2), loader(seed=3)])
    keys = {key for key in made.callback_metrics if key.startswith("lossacc/train_probe/")}
    assert "lossacc/train_probe/nll" in keys and not any("dataloader_idx" in key for key in keys)
    assert float(made.callback_metrics["lossacc/train_probe/nll"]) == pytest.approx(probes(watch)[-1].values["nll"])


# -- forms of a batch --------------------------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    """Rows in another form."""

    def __init__(self, form: Any) -> None:
        self.rows, self.form = dataset(), form

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.form(*self.rows[index])


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Named(Table):
    def forward(self, pixels: Tensor, scale: Tensor | None = None) -> Any:
        return {"logits": self.net(pixels), "hidden": None}


class Columns(Table):
    """Its inputs come in two parts, as tabular data do; its own steps have them in one."""

    def forward(self, categories: Tensor, numbers: Tensor | None = None) -> Tensor:
        return super().forward(categories if numbers is None else torch.cat((categories, numbers), 1))


class Attribute(Table):
    def forward(self, features: Tensor) -> Any:
        return Output(self.net(features))


class Several(Table):
    def forward(self, batch: Any) -> Any:
        return None, self.net(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)


class Nothing(Table):
    def forward(self, batch: Any) -> Any:
        return None


FORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tuple": (Table, lambda x, y: (x, y), {}),
    "list": (Table, lambda x, y: [x, y], {}),
    "several inputs": (Columns, lambda x, y: (x[:2], x[2:], y), {}),
    "labels": (Named, lambda x, y: {"pixels": x, "labels": y}, {}),
    "label": (Named, lambda x, y: {"pixels": x, "label": y, "scale": x}, {}),
    "target": (Named, lambda x, y: {"target": y, "pixels": x}, {}),
    "y": (Named, lambda x, y: {"y": y, "pixels": x}, {}),
    "attribute": (Attribute, lambda x, y: (x, y), {}),
    "capture": (
        Several,
        lambda x, y: (x, x, y),
        {"capture": lambda outputs, batch: (outputs[1], batch[-1]) if isinstance(outputs, tuple) else None},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_batch(form: str, tmp_path: Path) -> None:
    make, shape, options = FORMS[form]
    module = make(drop=0.0)
    module.trainer = trainer(tmp_path, monitor())
    data = Rows(shape)
    watch = monitor(train_probe=data, **options)
    with warnings.catch_warnings():
        # `capture=` is for the steps too, which return nothing here.
        warnings.filterwarnings("ignore", message="No logits and targets|.*failed.*|.*could not count.*")
        trainer(tmp_path, watch, max_epochs=1).fit(module, loader(), loader())
    state = watch._run.train_rows.state
    assert state.failure is None
    if form != "capture":
        (record,) = probes(watch)
        with torch.no_grad():
            expected = F.cross_entropy(module.eval().net(dataset().tensors[0]), dataset().tensors[1])
        assert record.values["nll"] == pytest.approx(float(expected), rel=1e-6)
    else:
        assert [record.num_rows for record in probes(watch)] == [41]


UNREADABLE: dict[str, tuple[Any, Any, str]] = {
    "three parts": (Table, lambda x, y: (x, x, y), "a batch is a list of 3; expected"),
    "no forward": (Plain, lambda x, y: (x, y), "forward"),
    "no logits": (Nothing, lambda x, y: (x, y), "`forward` gave NoneType and Tensor, not two tensors"),
    "an error": (Table, lambda x, y: (x[:2], y), "RuntimeError"),
    "other rows": (Table, lambda x, y: (x, y.repeat(3)), "logits"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_off_with_one_message(kind: str, tmp_path: Path) -> None:
    """The training goes on as without it, and is asked nothing again."""
    make, shape, message = UNREADABLE[kind]
    without, _ = fit(tmp_path, make)
    with pytest.warns(UserWarning, match="`train_probe` is off") as caught:
        with_it, watch = fit(tmp_path, make, train_probe=Rows(shape))
    ours = [str(item.message) for item in caught if "lossacc" in str(item.message)]
    assert len(ours) == 1 and message in ours[0], ours
    assert_identical(without, with_it)
    assert not any(record.complete for record in probes(watch)) and len(watch.history.series("val")) == 3


class Breaks(Full):
    """Fails in the second batch of `forward`, after it has changed everything that it can."""

    def forward(self, features: Tensor) -> Tensor:
        logits = super().forward(features)
        torch.rand(3), random.random(), numpy.random.random()
        if len(features) < 30:
            raise ArithmeticError("of the user")
        return logits


def test_everything_is_put_back_after_a_failure(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ArithmeticError: of the user"):
        with_it, _ = fit(tmp_path, Breaks, train_probe=DataLoader(dataset(), batch_size=30))
    assert_identical(fit(tmp_path, Breaks)[0], with_it)


# -- data --------------------------------------------------------------------------------------------------------------


def test_a_sampler_is_never_drawn_from(tmp_path: Path) -> None:
    class Never(RandomSampler):
        def __iter__(self) -> Any:
            raise AssertionError("drawn from")

    data = DataLoader(dataset(), batch_size=8, sampler=Never(dataset()))
    with pytest.warns(UserWarning, match="never draws from the Never of `train_probe`") as caught:
        _, watch = fit(tmp_path, train_probe=data)
    assert len([item for item in caught if "never draws" in str(item.message)]) == 1
    assert [record.num_rows for record in probes(watch)] == [41] * 3


def test_augmentation_is_named_and_drawn_alike(tmp_path: Path) -> None:
    """The same noise at each evaluation, so that frozen weights give the same values."""
    with pytest.warns(UserWarning, match="gives other inputs each time"):
        _, watch = fit(tmp_path, lambda: Table(rate=0.0), train_probe=Augmented())
    assert len({record.values["nll"] for record in probes(watch)[1:]}) == 1


def test_a_loader_collates_and_sizes_its_batches(tmp_path: Path) -> None:
    sizes: list[int] = []

    def collate(rows: list[Any]) -> Any:
        sizes.append(len(rows))
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    _, watch = fit(tmp_path, train_probe=DataLoader(dataset(), batch_size=15, collate_fn=collate), max_epochs=1)
    assert sizes == [15, 15, 15, 11], "the first batch twice, to see whether it is random"
    assert [record.num_rows for record in probes(watch)] == [41]


def test_rows_may_be_read_together() -> None:
    class Together(TensorDataset):
        def __getitems__(self, index: list[int]) -> list[Any]:
            return [super(Together, self).__getitem__(place) for place in index]

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("one by one")

    probe = TrainProbe(Together(*dataset().tensors))
    assert len(probe._batch(torch.arange(5))[1]) == 5


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), 5, iter(())])
def test_data_without_numbers_are_refused(data: Any) -> None:
    with pytest.raises(TypeError, match="Expected `train_probe` to be a Dataset with a length"):
        monitor(train_probe=data)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        monitor(train_probe=TensorDataset(torch.zeros(0, 3)))
    with pytest.raises(ValueError, match="`probe_items` to be larger than 0"):
        monitor(train_probe=dataset(), probe_items=0)
    copy = pickle.loads(pickle.dumps(monitor(train_probe=dataset())))
    assert copy._run._train_probe.sampling.num_items == 41


# -- over a run --------------------------------------------------------------------------------------------------------


def test_memory_and_references_survive_a_resume(tmp_path: Path) -> None:
    def run(epochs: int, point: Path | None = None) -> Any:
        seed_everything(3, verbose=False)
        watch = monitor(train_probe=dataset(), watch=False)
        made = trainer(tmp_path, watch, max_epochs=epochs)
        made.fit(Table(drop=0.0, rate=0.3), loader(), loader(64, seed=3), **safely(point))
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt", weights_only=False)
        return watch

    full = run(6)
    run(3)
    resumed = run(6, tmp_path / "3.ckpt")
    for first, second in zip(probes(full)[3:], probes(resumed)[3:], strict=True):
        assert second.arrays["memory"] == first.arrays["memory"] and first.arrays["memory"]["evaluations"] > 3
        assert second.paired == first.paired


def test_wrong_labels_are_found(tmp_path: Path) -> None:
    """A tenth of the labels is wrong; a network that is large enough learns them by heart, late."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(400, NUM_FEATURES, generator=generator)
    right = (features[:, :NUM_CLASSES]).argmax(1)
    wrong = torch.randperm(400, generator=generator)[:40]
    given = right.clone()
    given[wrong] = (right[wrong] + torch.randint(1, NUM_CLASSES, (40,), generator=generator)) % NUM_CLASSES
    held_out = torch.randn(400, NUM_FEATURES, generator=generator)

    class Large(Table):
        def __init__(self) -> None:
            super().__init__(drop=0.0)
            self.net = nn.Sequential(nn.Linear(NUM_FEATURES, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.02)

    seed_everything(5, verbose=False)
    data = TensorDataset(features, given)
    validation = TensorDataset(held_out, held_out[:, :NUM_CLASSES].argmax(1))
    watch = monitor(train_probe=data)
    made = trainer(tmp_path, watch, max_epochs=25)
    made.fit(Large(), DataLoader(data, 32, shuffle=True), DataLoader(validation, 128))
    found = probes(watch)[-1].arrays["memory"]
    suspects = [suspect["index"] for suspect in found["suspects"]]
    assert len(suspects) == 16
    truly = sum(index in set(wrong.tolist()) for index in suspects)
    assert truly >= 14, f"{truly} of 16 suspects are labelled wrong; 1.6 would be by chance"
    for suspect in found["suspects"]:
        assert suspect["target"] == int(given[suspect["index"]])
        if suspect["index"] in set(wrong.tolist()):
            assert suspect["nll_reference"] > math.log(NUM_CLASSES) + 1
    assert found["memorised"] >= 10
