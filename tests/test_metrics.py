"""The metric classes behave as torchmetrics users expect, and their state survives what users do to it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.utilities import check_forward_full_state_property

import lightning_lossacc
from lightning_lossacc import (
    Accuracy,
    LossAccuracy,
    MeanMargin,
    MeanNLL,
    Overconfidence,
    RefinementNLL,
    kernels,
    quantities,
)
from lightning_lossacc.sums import Layout

SINGLES = (MeanNLL, Accuracy, MeanMargin, Overconfidence, RefinementNLL)


def batches(count: int = 4, rows: int = 25, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Labels that follow the logits, so that the best temperature lies inside the grid."""
    logits = [torch.randn(rows, classes) * 2 for _ in range(count)]
    return [(2 * batch, torch.distributions.Categorical(logits=batch).sample()) for batch in logits]


def filled(data: list[tuple[Tensor, Tensor]], **arguments: Any) -> LossAccuracy:
    metric = LossAccuracy(num_classes=3, **arguments)
    for batch in data:
        metric.update(*batch)
    return metric


def assert_equal(first: LossAccuracy, second: LossAccuracy) -> None:
    assert torch.equal(first.counts, second.counts)
    torch.testing.assert_close(first.sums, second.sums, rtol=1e-12, atol=1e-12)


def test_compute_is_the_summary() -> None:
    data = batches()
    metric = filled(data)
    values = metric.compute()
    assert list(values) == list(quantities.KEYS)
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in values.values())
    whole = filled([(torch.cat([z for z, _ in data]), torch.cat([y for _, y in data]))])
    assert_equal(metric, whole)


def test_forward_returns_the_batch_and_adds_it() -> None:
    data = batches()
    metric = LossAccuracy(num_classes=3)
    for batch in data:
        value = metric(*batch)
        alone = filled([batch]).compute()
        assert all(torch.equal(value[key], alone[key]) for key in alone)
    assert_equal(metric, filled(data))
    assert metric.update_count == len(data)


def test_full_state_update_is_not_needed() -> None:
    check_forward_full_state_property(
        MeanNLL,
        init_args={"num_classes": 3},
        input_args={"preds": torch.randn(10, 3), "target": torch.randint(0, 3, (10,))},
        num_update_to_compare=[2],
        reps=2,
    )


def test_reset_keeps_the_tensors_in_and_out_of_inference_mode() -> None:
    metric = filled(batches())
    identity = metric.counts.data_ptr(), metric.sums.data_ptr()
    with torch.inference_mode():
        metric.update(*batches(1)[0])
        metric.reset()
        metric.update(*batches(1)[0])
    metric.update(*batches(1)[0])
    assert (metric.counts.data_ptr(), metric.sums.data_ptr()) == identity
    assert int(metric.compute()["num_rows"]) == 50
    metric.reset()
    assert not metric.counts.any() and not metric.sums.any()


@pytest.mark.parametrize(
    "copying", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric.clone()]
)
def test_copies_are_independent_and_equal(copying: Any) -> None:
    metric = filled(batches())
    other = copying(metric)
    assert_equal(metric, other)
    other.update(*batches(1)[0])
    assert int(other.compute()["num_rows"]) == int(metric.compute()["num_rows"]) + 25


def test_merge_state_is_addition_and_refuses_other_layouts() -> None:
    data = batches()
    first, second = filled(data[:1]), filled(data[1:])
    identity = first.counts.data_ptr()
    before = second.counts.clone()
    first.merge_state(second)
    assert_equal(first, filled(data))
    assert first.counts.data_ptr() == identity and torch.equal(second.counts, before)
    first = filled(data[:1])
    first.merge_state({second.counts_name: second.counts, second.sums_name: second.sums})
    assert_equal(first, filled(data))
    with pytest.raises(ValueError, match="layouts cannot be added"):
        first.merge_state(LossAccuracy(num_classes=4))
    with pytest.raises(ValueError, match="a metric of the same configuration or its state"):
        first.merge_state({"counts": second.counts})


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float", "to", "set_dtype", "module"])
def test_no_conversion_changes_the_state(convert: str) -> None:
    data = batches(40)
    metric = filled(data[:20])
    if convert == "module":
        torch.nn.ModuleList([metric]).to(torch.bfloat16)
    elif convert == "to":
        metric.to(torch.bfloat16)
    elif convert == "set_dtype":
        metric.set_dtype(torch.float16)
    else:
        getattr(metric, convert)()
    assert metric.counts.dtype == torch.int64 and metric.sums.dtype == torch.float64
    for batch in data[20:]:
        metric.update(*batch)
    assert_equal(metric, filled(data))


def test_equal_configurations_share_one_update_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    collection = MetricCollection(
        {cls.__name__: cls(num_classes=3) for cls in SINGLES}
        | {
            "all": LossAccuracy(num_classes=3),
            "ignoring": Accuracy(num_classes=3, ignore_index=0),
            "bins": MeanNLL(num_classes=3, num_bins=5),
        }
    )
    data = batches()
    # Zeros at first: look-alike states that torchmetrics would merge by value.
    collection.update(data[0][0], torch.full_like(data[0][1], -100))
    assert len(collection.compute_groups) == 3
    calls = []
    original = kernels.row_statistics
    monkeypatch.setattr(kernels, "row_statistics", lambda *args: (calls.append(1), original(*args)))
    for batch in data:
        collection.update(*batch)
    assert len(calls) == 3 * len(data)
    found = collection.compute()
    wanted = filled(data).compute()
    for cls in SINGLES:
        torch.testing.assert_close(found[cls.__name__], wanted[cls.quantity])
    torch.testing.assert_close(found["ignoring"], filled(data, ignore_index=0).compute()["accuracy"])
    collection.reset()
    collection.update(*data[0])
    torch.testing.assert_close(collection.compute()["Accuracy"], filled(data[:1]).compute()["accuracy"])


@pytest.mark.parametrize("cls", SINGLES)
def test_tracker_ranks_single_quantities(cls: type[LossAccuracy]) -> None:
    if cls.higher_is_better is None:
        assert cls is Overconfidence  # no direction: zero is best
        return
    tracker = MetricTracker(cls(num_classes=3), maximize=cls.higher_is_better)
    values = []
    for batch in batches():
        tracker.increment()
        tracker.update(*batch)
        values.append(float(tracker.compute()))
    best = max(values) if cls.higher_is_better else min(values)
    assert tracker.best_metric() == pytest.approx(best)


def test_arrays() -> None:
    data = batches()
    metric = filled(data)
    rows = int(metric.compute()["num_rows"])
    assert int(metric.reliability()["rows"].sum()) == rows and metric.reliability()["edges"].shape == (16,)
    assert int(metric.per_class()["rows"].sum()) == rows
    histogram = metric.margin_histogram()
    assert int(histogram["rows"].sum()) == rows and len(histogram["edges"]) + 1 == len(histogram["rows"])
    curve = metric.temperature_curve()
    assert curve["nll"].min() >= curve["best"] >= curve["lower"]
    torch.testing.assert_close(curve["nll"][4], metric.compute()["nll"])
    with pytest.raises(ValueError, match="per_class=True"):
        LossAccuracy(num_classes=3, per_class=False).per_class()
    with pytest.raises(ValueError, match="`temperatures` at construction"):
        LossAccuracy(num_classes=3, temperatures=()).temperature_curve()


def test_filled_past_update_is_not_stale() -> None:
    metric = filled(batches(1))
    before = float(metric.compute()["nll"])
    metric.counts.mul_(2)
    assert int(metric.compute()["num_rows"]) == 50
    metric.sums.mul_(4)
    assert float(metric.compute()["nll"]) == pytest.approx(2 * before)


def test_constant_memory_and_no_graph() -> None:
    metric = LossAccuracy(num_classes=3)
    size = metric.counts.numel(), metric.sums.numel()
    for logits, target in batches(50):
        metric.update(logits.requires_grad_(), target)
    assert (metric.counts.numel(), metric.sums.numel()) == size and not metric.sums.requires_grad
    assert len(metric.state_dict()) == 0


def test_counts_beyond_every_float() -> None:
    for start in (2**24 - 5, 2**31 - 5, 2**53 - 5):
        metric = LossAccuracy(num_classes=3)
        metric.counts.add_(start)
        for batch in batches(3):
            metric.update(*batch)
        assert int(metric.layout.parts(metric.counts, metric.sums)["rows"]) == start + 75


def test_plot() -> None:
    figure, _ = filled(batches()).plot()
    assert figure is not None
    metric = MeanNLL(num_classes=3)
    metric.update(*batches(1)[0])
    assert metric.plot() is not None


def test_binary() -> None:
    logits, target = torch.randn(100), torch.randint(0, 2, (100,))
    metric = LossAccuracy(task="binary")
    metric.update(logits, target)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), target.double())
    torch.testing.assert_close(metric.compute()["nll"], wanted, rtol=1e-6, atol=1e-6)
    assert float(metric.compute()["accuracy"]) == pytest.approx(float(((logits > 0) == target.bool()).double().mean()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "`num_classes` to be given"),
        ({"num_classes": 3, "dist_sync_on_step": True}, "`dist_sync_on_step` to be False"),
        ({"num_classes": 0}, "`num_classes` to be an integer of at least 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossAccuracy(**arguments)


def test_layout_is_public_state_of_every_class() -> None:
    for cls in SINGLES:
        assert cls(num_classes=3).layout == Layout(3)
    assert len(lightning_lossacc.__all__) <= 12
