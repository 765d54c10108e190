"""A program that uses the fused cross-entropy is measured like one that uses PyTorch's.

Proved here: the monitor recognises the function and the module in every place where a program keeps them, at the line
of the program that calls, once for each call, compiled or not; the loss fills the vectors that a listener reserves, in
its own pass; `stats=` and the monitor count the same rows; training is bitwise the same with and without the monitor.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lightning_lossacc.loss
from lightning_lossacc import CrossEntropyLoss, LossAccuracy, kernels, loss_calls
from lightning_lossacc.capture import Capture, Captured
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.loss import cross_entropy as bound_by_name
from lightning_lossacc.loss_calls import Tally
from tests.modules import NUM_CLASSES, QUIET, Plain, assert_identical, everything, loader, monitor, trainer

pytestmark = QUIET
KEY = ("train", 0)
# Not a plain dict: those are searched for references as well.
ORIGINAL = types.MappingProxyType({"ours": cross_entropy, "theirs": F.cross_entropy})


@pytest.fixture(autouse=True)
def _restored() -> Any:
    yield
    assert lightning_lossacc.loss.cross_entropy is bound_by_name is ORIGINAL["ours"]
    assert F.cross_entropy is ORIGINAL["theirs"]
    assert not loss_calls._listeners and not loss_calls._replaced and not vars(loss_calls._slots)


def step(capture: Capture, body: Callable[[], Any], module: nn.Module | None = None) -> list[Captured]:
    """One step as the callback runs it."""
    seen: list[Captured] = []
    capture.start(KEY, module or nn.Identity(), seen.append)
    capture.stop(body(), None)
    assert capture.last_error is None
    return seen


class Holder(nn.Module):
    """Keeps the loss in several ways."""

    table: Any = staticmethod(bound_by_name)

    def __init__(self) -> None:
        super().__init__()
        self.criterion = CrossEntropyLoss(weight=torch.rand(4), label_smoothing=0.1)
        self.function = bound_by_name


WAYS: dict[str, Callable[[Holder, Tensor, Tensor], Tensor]] = {
    "module": lambda holder, logits, target: holder.criterion(logits, target),
    "attribute": lambda holder, logits, target: holder.function(logits, target),
    "class attribute": lambda holder, logits, target: holder.table(logits, target),
    "name": lambda holder, logits, target: bound_by_name(logits, target),
    "room": lambda holder, logits, target: lightning_lossacc.loss.cross_entropy(logits=logits, target=target),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_place_of_the_function_is_found(way: str) -> None:
    """In the first step, where calls are held, and in the second, where they are handed over at once."""
    holder, capture = Holder(), Capture()
    logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    for _ in range(2):
        seen = step(capture, lambda: WAYS[way](holder, logits, target), holder)
        assert len(seen) == 1, capture.explanation(KEY)
        assert torch.equal(seen[0].logits, logits) and not seen[0].logits.requires_grad
        assert (seen[0].weighted, seen[0].label_smoothing) == ((True, 0.1) if way == "module" else (False, 0.0))
    source = capture.source(KEY)
    assert source is not None and source.startswith("lightning_lossacc.cross_entropy at test_loss_capture.py:")


def test_arguments_in_positional_and_keyword_form() -> None:
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    positional = step(Capture(), lambda: cross_entropy(logits, target, torch.rand(4), 2, "sum", 0.3))
    keyword = step(
        Capture(),
        lambda: cross_entropy(
            target=target, label_smoothing=0.3, ignore_index=2, reduction="sum", weight=torch.rand(4), logits=logits
        ),
    )
    for seen in (positional, keyword):
        assert (seen[0].ignore_index, seen[0].label_smoothing, seen[0].weighted) == (2, 0.3, True)


def test_calls_of_one_module_class_are_as_many_places_as_the_program_has() -> None:
    """The class calls the function at one line of ours, which is no place in the program."""
    criterion = CrossEntropyLoss()
    logits, other, target = torch.randn(6, 4), torch.randn(6, 3), torch.randint(3, (6,))

    def body() -> Tensor:
        first = criterion(logits, target)
        return first + criterion(other, target)

    for which, width in ((0, 4), (1, 3)):
        capture = Capture(which=which)
        for _ in range(2):
            assert [seen.logits.shape[1] for seen in step(capture, body)] == [width]


def test_what_is_handed_to_pytorch_is_seen_once() -> None:
    """Class probabilities are computed by PyTorch's function, which is watched as well."""
    logits, target = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    capture = Capture()
    for _ in range(2):
        assert len(step(capture, lambda: cross_entropy(logits, target))) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_loss_is_seen_once(reentrant: bool) -> None:
    logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    stats, capture = LossAccuracy(num_classes=4), Capture()

    def body() -> None:
        checkpoint(lambda given: cross_entropy(given, target, stats=stats), logits, use_reentrant=reentrant).backward()

    for _ in range(3):
        assert len(step(capture, body)) == 1
    assert stats.update_count == 3


@pytest.mark.parametrize("kind", ["function", "module"])
def test_compiled_loss_is_seen_once_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    criterion = CrossEntropyLoss()
    loss = bound_by_name if kind == "function" else criterion
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    # A function of this file: Dynamo passes over modules of PyTorch's own classes.
    body = torch.compile(
        (lambda x, y: bound_by_name(x, y)) if kind == "function" else (lambda x, y: loss(x, y)),
        backend=backend,
        fullgraph=True,
    )
    capture = Capture()
    for _ in range(3):
        logits, target = torch.randn(6, 4), torch.randint(4, (6,))
        seen = step(capture, lambda: body(logits, target), criterion)
        assert len(seen) == 1 and torch.equal(seen[0].logits, logits)
    assert len(graphs) == 1


class Reserve:
    """Counts as a stage does: what is reserved is filled by the loss, the rest by an update."""

    def __init__(self, items: int | None = None) -> None:
        self.metric = LossAccuracy(num_classes=4, temperatures=())
        self.items = items
        self.asked: list[Captured] = []
        self.seen: list[Captured] = []

    def __call__(self, captured: Captured) -> Tally:
        self.asked.append(captured)
        return Tally(self.metric.counts, self.metric.sums, self.metric.layout, self.items)

    def step(self, capture: Capture, body: Callable[[], Any]) -> Any:
        capture.start(KEY, nn.Identity(), self.seen.append, self)
        result = body()
        capture.stop(result, None)
        return result


def assert_same(found: LossAccuracy, wanted: LossAccuracy) -> None:
    assert torch.equal(found.counts, wanted.counts)
    torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-12, atol=1e-12)


def test_reserved_vectors_are_filled_in_the_pass_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, at the chosen place alone; gradients keep their bits, the loss nearly."""
    reserve, capture, wanted = Reserve(), Capture(), LossAccuracy(num_classes=4, temperatures=())
    updates, count = [], kernels.row_statistics
    monkeypatch.setattr("lightning_lossacc.kernels.row_statistics", lambda *arguments: updates.append(arguments))
    for turn in range(3):
        logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
        target[0] = -100

        def body() -> Tensor:
            loss = cross_entropy(logits, target, label_smoothing=0.1)
            return loss + 0 * cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]))

        loss = reserve.step(capture, body)
        torch.testing.assert_close(loss, cross_entropy(logits, target, label_smoothing=0.1))
        loss.backward()
        assert len(reserve.asked) == turn and [one.counted for one in reserve.seen] == [False, True, True][: turn + 1]
        if turn:
            count(logits.detach(), target, wanted.counts, wanted.sums, wanted.layout)
    assert_same(reserve.metric, wanted)
    assert not updates and capture.last_error is None


def test_rows_of_flattened_sequences_are_counted_by_item() -> None:
    """Rows (B L, C) of B items: standard errors are those of sequences, not of tokens."""
    logits, target = torch.randn(12, 4, requires_grad=True), torch.randint(4, (12,))
    reserve, capture, wanted = Reserve(items=3), Capture(), LossAccuracy(num_classes=4, temperatures=())
    for _ in range(2):
        loss = reserve.step(capture, lambda: cross_entropy(logits, target, reduction="none"))
    wanted.update(logits.view(3, 4, 4).transpose(1, 2), target.view(3, 4))
    assert_same(reserve.metric, wanted)
    torch.testing.assert_close(loss, cross_entropy(logits, target, reduction="none"))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(gradient, torch.autograd.grad(cross_entropy(logits, target, reduction="sum"), logits)[0])


def test_what_cannot_be_filled_in_the_pass_is_handed_over() -> None:
    """A metric of the user's comes first; probabilities, another thread's or a checkpoint's call reserve nothing."""
    logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    stats = LossAccuracy(num_classes=4)
    bodies: list[Callable[[], Any]] = [
        lambda: cross_entropy(logits, target, stats=stats),
        lambda: cross_entropy(logits, torch.full((6, 4), 0.25)),
    ]
    for body in bodies:
        reserve, capture = Reserve(), Capture()
        for _ in range(2):
            reserve.step(capture, body)
        assert [one.counted for one in reserve.seen] == [False, False]
        assert not reserve.metric.counts.any() and capture.last_error is None
    assert stats.update_count == 2
    reserve, capture = Reserve(), Capture()
    for _ in range(2):
        reserve.step(
            capture, lambda: checkpoint(lambda x: cross_entropy(x, target), logits, use_reentrant=False).backward()
        )
    assert len(reserve.asked) == 1
    assert int(reserve.metric.counts[reserve.metric.layout.count_slices["rows"]]) == 6


@pytest.mark.parametrize("fault", ["reserve", "counting"])
def test_a_fault_of_counting_leaves_the_loss_as_it_is(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is remembered, so that this evaluation stays out of trends; the program sees its loss and no more."""
    logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    reserve, capture = Reserve(), Capture()

    def body() -> Tensor:
        return cross_entropy(logits, target)

    def fail(*_: Any) -> None:
        raise ValueError("planted")

    wanted = reserve.step(capture, body)
    if fault == "reserve":
        monkeypatch.setattr(Reserve, "__call__", fail)
    else:
        for way in (kernels.compiled, kernels.reference):
            monkeypatch.setattr(way, "count_rows", fail)
    found = reserve.step(capture, body)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(torch.autograd.grad(found, logits)[0], torch.autograd.grad(wanted, logits)[0])
    where = "reserve" if fault == "reserve" else "counting within the loss"
    assert capture.last_error == f"{where}: ValueError: planted"
    # What could not be reserved is counted as ever; what may have been counted in part is not counted again.
    assert [one.counted for one in reserve.seen] == ([False, False] if fault == "reserve" else [False])


class Fused(Plain):
    """The same network with our loss, which may fill a metric of the module as well."""

    def __init__(self, stats: bool = False, gradient: Any = "backward", **options: Any) -> None:
        super().__init__(**options)
        metric = LossAccuracy(num_classes=NUM_CLASSES, temperatures=()) if stats else None
        self.criterion = CrossEntropyLoss(stats=metric, gradient=gradient)

    def loss(self, stage: str, batch: Any) -> Tensor:
        logits = self.net(batch[0])
        return self.criterion(logits, batch[1])


def fitted(make: Callable[[], Plain], path: Path, *callbacks: Any) -> Plain:
    seed_everything(7, verbose=False)
    module = make()
    trainer(path, *callbacks).fit(module, loader(41, shuffle=True), loader(17, seed=2))
    return module


@pytest.mark.parametrize("gradient", ["backward", "forward"])
def test_training_is_bitwise_the_same_and_measured(gradient: str, tmp_path: Path) -> None:
    """With and without the monitor; all rows of both stages are there, and they are those of PyTorch's loss."""
    watch, reference = monitor(dirpath=tmp_path), monitor()
    make = partial(Fused, gradient=gradient)
    without, with_us = fitted(make, tmp_path), fitted(make, tmp_path, watch)
    assert_identical(everything(without), everything(with_us))
    fitted(Plain, tmp_path, reference)
    for stage, rows in (("train", 41), ("val", 17)):
        found, wanted = watch.history.series(stage), reference.history.series(stage)
        assert [record.num_rows for record in found] == [rows, rows]
        assert found[0].values["nll"] == pytest.approx(wanted[0].values["nll"], rel=1e-5)
    assert "lightning_lossacc.cross_entropy at test_loss_capture.py:" in str(watch._capture.source(KEY))


def test_stats_and_monitor_count_the_same_rows(tmp_path: Path) -> None:
    watch = monitor()
    module = fitted(lambda: Fused(stats=True), tmp_path, watch)
    records = [*watch.history.series("train"), *watch.history.series("val")]
    found = module.criterion.stats.compute()
    assert int(found["num_rows"]) == sum(record.num_rows for record in records) == 2 * (41 + 17)
    total = sum(record.values["nll"] * record.num_rows for record in records)
    assert float(found["nll"]) * int(found["num_rows"]) == pytest.approx(total, rel=1e-9)
