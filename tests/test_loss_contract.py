"""The fused cross-entropy keeps its promises to autograd, to its metric and to whoever calls it wrongly.

Proved here: exceptions of PyTorch's types; the metric holds what `update` would have put there, once for each row that
the program showed, and refuses to count something else; gradients under accumulation, loss scaling, shared logits,
repeated and checkpointed backward passes; transforms and compilers; copies of the module.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lightning_lossacc
from lightning_lossacc import Accuracy, CrossEntropyLoss, LossAccuracy, MeanNLL
from lightning_lossacc.loss import cross_entropy


def batch(rows: int = 12, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    target = torch.randint(classes, (rows,))
    target[::4] = -100
    return torch.randn(rows, classes).to(dtype).requires_grad_(), target


def metric(**arguments: Any) -> LossAccuracy:
    return LossAccuracy(num_classes=5, **arguments)


def assert_counts(found: LossAccuracy, *batches: tuple[Tensor, Tensor]) -> None:
    """The vectors are those of `update` with the same batches."""
    wanted = LossAccuracy(**{name: getattr(found.layout, name) for name in ("num_classes", "temperatures")})
    for logits, target in batches:
        wanted.update(logits, target)
    assert torch.equal(found.counts, wanted.counts)
    torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-12, atol=1e-12)
    assert found.update_count == wanted.update_count


def gradient_of(step: Callable[[Any, Tensor], None], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient that a step leaves with our loss and with PyTorch's."""
    found = []
    for function in (cross_entropy, F.cross_entropy):
        leaf = logits.detach().clone().requires_grad_()
        step(function, leaf)
        found.append(leaf.grad)
    return found[0], found[1]


ROWS, INDEX = torch.randn(3, 5), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("logits", "target", "arguments", "words"),
    [
        (ROWS, torch.tensor([0, 5, 2]), {}, "within 0 ... 4 or `ignore_index`=-100, but got 5"),
        (ROWS, torch.tensor([0, -1, 2]), {}, "but got -1"),
        (torch.randn(1, 5, 2), torch.tensor([[7, -100]]), {}, "but got 7"),
        (ROWS, torch.tensor([0, 1]), {}, r"batch size of `logits`, but got \(2,\)"),
        (ROWS, torch.tensor(0), {}, "batch size of `logits`"),
        (ROWS, torch.zeros(3, 2).long(), {}, r"shape \(3,\) or \(3, 5\), but got \(3, 2\)"),
        (torch.randn(2, 5, 4), torch.zeros(2, 3).long(), {}, r"shape \(2, 4\)"),
        (torch.randn(2, 5, 4), torch.zeros(2).long(), {}, r"shape \(2, 4\)"),
        (torch.randn(2, 5, 4, 4), torch.zeros(1, 4, 4).long(), {}, "batch size"),
        (ROWS[0], INDEX, {}, "one class index"),
        (ROWS, torch.zeros(3, 5).long(), {}, None),
        (ROWS, torch.zeros(3), {}, "integer dtype, but got torch.float32"),
        (ROWS, torch.zeros(3).bool(), {}, "integer dtype, but got torch.bool"),
        (ROWS, INDEX, {"weight": torch.ones(4)}, "each of 5 classes"),
        (ROWS, INDEX, {"weight": torch.ones(1, 5)}, "each of 5 classes"),
        (ROWS, INDEX, {"weight": torch.ones(5).double()}, "dtype torch.float32, but got torch.float64"),
        (ROWS, INDEX, {"weight": torch.ones(5, requires_grad=True)}, "`weight` without a gradient"),
        (ROWS, INDEX, {"label_smoothing": 1.5}, "between 0 and 1, but got 1.5"),
        (ROWS, INDEX, {"label_smoothing": -0.1}, "between 0 and 1"),
        (ROWS, INDEX, {"label_smoothing": math.nan}, "between 0 and 1"),
        (ROWS, INDEX, {"reduction": "avg"}, "mean, sum, none, but got 'avg'"),
        (ROWS, INDEX, {"ignore_index": None}, "`ignore_index` to be an integer"),
        (ROWS, INDEX, {"ignore_index": False}, "`ignore_index` to be an integer"),
        (ROWS, INDEX, {"ignore_index": 1.0}, "`ignore_index` to be an integer"),
        (ROWS.long(), INDEX, {}, "floating-point numbers, but got torch.int64"),
        (ROWS.cfloat(), INDEX, {}, "floating-point numbers"),
        (ROWS, [0, 1, 2], {}, "`target` to be a tensor, but got list"),
        ([[1.0]], INDEX, {}, "`logits` to be a tensor"),
        (torch.tensor(1.0), torch.tensor(0), {}, None),
        (torch.randn(3, 0), INDEX, {}, None),
    ],
)
def test_exceptions_have_the_types_of_pytorch(
    logits: Any, target: Any, arguments: dict[str, Any], words: str | None
) -> None:
    """The same call of PyTorch's function raises the same type; nothing has been counted by then."""
    kind = RuntimeError
    # Only what lies above 1 is refused there; NaN and negative smoothing pass.
    if arguments.get("label_smoothing", 2.0) > 1:
        with pytest.raises(Exception) as eager:
            F.cross_entropy(logits, target, **arguments)
        kind = eager.type
    with pytest.raises(kind, match=words) as found:
        cross_entropy(logits, target, **arguments)
    assert found.type is kind


def test_a_refused_batch_is_not_counted() -> None:
    stats = metric()
    with pytest.raises(IndexError):
        cross_entropy(ROWS, torch.tensor([0, 5, 2]), stats=stats)
    assert not stats.counts.any() and stats.update_count == 0


@pytest.mark.parametrize(
    ("stats", "arguments", "words"),
    [
        (lambda: metric(ignore_index=None), {}, "ignore_index=-100, but got None"),
        (metric, {"ignore_index": 0}, "ignore_index=0, but got -100"),
        (lambda: LossAccuracy(num_classes=4), {}, "num_classes=5, as the logits have, but got 4"),
        (lambda: LossAccuracy(task="binary"), {}, "task='multiclass', as the loss has, but got 'binary'"),
        (lambda: metric(input_kind="probabilities"), {}, "but got 'probabilities'"),
        (lambda: metric().to("meta"), {}, "device of `logits`, cpu, but got meta"),
    ],
)
def test_a_metric_that_counts_something_else_is_refused(stats: Any, arguments: Any, words: str) -> None:
    """Never counted wrongly in silence."""
    with pytest.raises(ValueError, match=words):
        cross_entropy(ROWS, INDEX, stats=stats(), **arguments)
    with pytest.raises(TypeError, match="`stats` to be a LossAccuracy"):
        CrossEntropyLoss(stats=nn.Linear(2, 2))
    with pytest.raises(TypeError, match="`stats` to be a LossAccuracy"):
        cross_entropy(ROWS, INDEX, stats={})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_metric_holds_what_update_would_have_put_there(dtype: torch.dtype) -> None:
    """With and without a gradient, in every reduction; weights and smoothing belong to the loss alone."""
    stats, batches = metric(), [batch(dtype=dtype) for _ in range(4)]
    cross_entropy(*batches[0], stats=stats)
    cross_entropy(*batches[1], torch.rand(5).to(dtype), reduction="none", label_smoothing=0.2, stats=stats)
    with torch.no_grad():
        cross_entropy(*batches[2], reduction="sum", stats=stats)
    with torch.inference_mode():
        cross_entropy(*batches[3], stats=stats)
    assert_counts(stats, *batches)
    before = stats.compute()["nll"]
    cross_entropy(*batch(dtype=dtype), stats=stats)
    assert stats.compute()["nll"] != before, "the result of an earlier compute is not returned again"


def test_the_metric_of_images_of_one_row_and_of_probabilities() -> None:
    """Items are entries of dimension 0; single rows and class probabilities are counted apart from the loss."""
    stats = metric()
    logits, target = torch.randn(3, 5, 4, 2), torch.randint(5, (3, 4, 2))
    cross_entropy(logits, target, stats=stats)
    assert_counts(stats, (logits, target))
    stats = metric()
    cross_entropy(logits[0, :, 0, 0], target[0, 0, 0], stats=stats)
    assert_counts(stats, (logits[:1, :, 0, 0], target[:1, 0, 0]))
    stats = metric()
    cross_entropy(ROWS, F.one_hot(INDEX, 5).float(), stats=stats)
    assert_counts(stats, (ROWS, INDEX))
    cross_entropy(ROWS, torch.full((3, 5), 0.2), stats=stats)
    assert int(stats.layout.parts(stats.counts, stats.sums)["unsupported"]) == 3


@pytest.mark.parametrize("kind", [MeanNLL, Accuracy])
def test_single_quantities_are_metrics_too(kind: type[LossAccuracy]) -> None:
    stats = kind(num_classes=5)
    cross_entropy(ROWS, INDEX, stats=stats)
    assert float(stats.compute()) == pytest.approx(float(metric()(ROWS, INDEX)[kind.quantity]))


def test_without_weights_and_smoothing_the_sum_is_the_metrics_nll() -> None:
    stats, (logits, target) = metric(), batch()
    loss = cross_entropy(logits, target, stats=stats)
    assert loss.item() == pytest.approx(float(stats.compute()["nll"]), rel=1e-6)


def test_gradients_of_logits_that_are_used_twice() -> None:
    """Two losses on the same logits, another use of them, one backward pass or two with a kept graph."""
    logits, target = batch()
    other = torch.randint(5, (12,))

    def together(function: Any, leaf: Tensor) -> None:
        shared = leaf.sin()
        (function(shared, target) + 2 * function(shared, other, reduction="sum") + shared.square().sum()).backward()

    def apart(function: Any, leaf: Tensor) -> None:
        shared = leaf.sin()
        first, second = function(shared, target, label_smoothing=0.1), function(shared, other)
        first.backward(retain_graph=True)
        second.backward(retain_graph=True)
        first.backward()

    for step in (together, apart):
        torch.testing.assert_close(*gradient_of(step, logits))


def test_gradients_of_half_precision_are_not_scaled_after_rounding() -> None:
    """A tiny loss scale would be lost in float16 if the gradient were stored before it is scaled."""
    logits, target = batch(dtype=torch.float16)
    gold = logits.detach().double().requires_grad_()
    (F.cross_entropy(gold, target) * 2.0**-6).backward()
    (cross_entropy(logits, target) * 2.0**-6).backward()
    torch.testing.assert_close(logits.grad.double(), gold.grad, rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_loss_is_counted_once(reentrant: bool) -> None:
    """The forward pass runs again within the backward pass and must not count its rows again."""
    stats, (logits, target) = metric(), batch()
    loss = checkpoint(lambda given: cross_entropy(given.tanh(), target, stats=stats), logits, use_reentrant=reentrant)
    loss.backward()
    assert_counts(stats, (logits.tanh(), target))
    wanted = torch.autograd.grad(F.cross_entropy(logits.tanh(), target), logits)[0]
    torch.testing.assert_close(logits.grad, wanted)


def test_logits_changed_before_the_backward_pass_are_refused() -> None:
    leaf, target = batch()
    logits = leaf * 1
    loss = cross_entropy(logits, target)
    logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch itself
def test_no_second_derivative_and_one_sentence() -> None:
    """`create_graph=True` alone is legal; only a second derivative is refused."""
    logits, target = batch()
    (gradient,) = torch.autograd.grad(cross_entropy(logits, target), logits, create_graph=True)
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    torch.testing.assert_close(gradient.detach(), wanted)
    with pytest.raises(RuntimeError, match=r"second derivative; use torch.nn.functional.cross_entropy"):
        gradient.square().sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        cross_entropy(forward_ad.make_dual(ROWS, ROWS), INDEX)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch itself
def test_transforms_of_torch_func() -> None:
    """They compute with PyTorch's own function; a metric inside of them is refused, not silently wrong."""
    gradient = torch.func.grad(cross_entropy)(ROWS, INDEX)
    torch.testing.assert_close(gradient, torch.func.grad(F.cross_entropy)(ROWS, INDEX))
    each = torch.func.vmap(cross_entropy)(ROWS, INDEX)
    torch.testing.assert_close(each, F.cross_entropy(ROWS, INDEX, reduction="none"))
    hessian = torch.func.hessian(cross_entropy)(ROWS, INDEX)
    torch.testing.assert_close(hessian, torch.func.hessian(F.cross_entropy)(ROWS, INDEX))
    stats = metric()
    with pytest.raises(RuntimeError, match="Expected plain tensors with `stats`"):
        torch.func.grad(lambda logits: cross_entropy(logits, INDEX, stats=stats))(ROWS)
    assert not stats.counts.any()
    criterion = CrossEntropyLoss(weight=torch.rand(5))
    given = {"weight": torch.ones(5)}
    torch.testing.assert_close(
        torch.func.functional_call(criterion, given, (ROWS, INDEX)), F.cross_entropy(ROWS, INDEX)
    )


def test_a_compiler_sees_one_graph_and_one_program() -> None:
    """PyTorch's own loss within the graph, which the compiler fuses; float32 for half precision all the same."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(cross_entropy, backend=backend, fullgraph=True)
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(3):
            logits, target = batch(dtype=dtype)
            loss = function(logits, target, label_smoothing=0.1)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, cross_entropy(logits, target, label_smoothing=0.1))
    assert len(compiled) == 2
    loss = function(logits, target.int(), label_smoothing=0.1)
    torch.testing.assert_close(loss, cross_entropy(logits, target, label_smoothing=0.1))


def test_a_compiler_fills_the_metric_without_a_graph_break() -> None:
    """At most one more program, for a metric that has been updated, and none for each step."""
    torch._dynamo.reset()
    compiled, stats, batches = [], metric(temperatures=()), [batch() for _ in range(4)]

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(cross_entropy, backend=backend, fullgraph=True)
    for logits, target in batches:
        loss = function(logits, target, stats=stats)
        wanted = F.cross_entropy(logits, target)
        torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(wanted, logits))
    assert len(compiled) <= 2 and stats.update_count == 1
    stats._update_count = len(batches)
    assert_counts(stats, *batches)


def test_tensors_without_numbers_and_subclasses() -> None:
    assert cross_entropy(ROWS.to("meta"), INDEX.to("meta"), reduction="none").shape == (3,)

    class Mine(Tensor):
        pass

    found = cross_entropy(ROWS.as_subclass(Mine), INDEX)
    assert isinstance(found, Mine) and torch.equal(found.as_subclass(Tensor), F.cross_entropy(ROWS, INDEX))


def test_autocast_changes_nothing() -> None:
    logits, target = batch(dtype=torch.bfloat16)
    weight = torch.rand(5)
    wanted = cross_entropy(logits, target, weight, label_smoothing=0.1)
    stats = metric()
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy(logits, target, weight, label_smoothing=0.1, stats=stats)
        (inside,) = torch.autograd.grad(found, logits)
    assert torch.equal(found, wanted) and torch.equal(inside, torch.autograd.grad(wanted, logits)[0])
    assert_counts(stats, (logits, target))


def test_no_tensor_outlives_its_step() -> None:
    logits, target = batch()
    stats, dead = metric(), []
    for _ in range(3):
        used = logits * 2
        dead.append(weakref.ref(used))
        cross_entropy(used, target, stats=stats).backward()
        del used
    gc.collect()
    assert all(reference() is None for reference in dead)
    assert not stats.sums.requires_grad


def test_module_is_that_of_pytorch_with_a_metric() -> None:
    criterion = CrossEntropyLoss(weight=torch.rand(5), ignore_index=3, reduction="sum", label_smoothing=0.1)
    assert isinstance(criterion, nn.CrossEntropyLoss) and list(criterion.state_dict()) == ["weight"]
    plain = nn.CrossEntropyLoss(weight=criterion.weight, ignore_index=3, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(criterion(ROWS, INDEX), plain(ROWS, INDEX))
    plain.load_state_dict(criterion.state_dict())
    criterion.double()
    assert criterion(ROWS.double(), INDEX).dtype == torch.float64


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_of_the_module_have_a_metric_of_their_own(copying: Any) -> None:
    criterion = CrossEntropyLoss(stats=metric())
    assert criterion.stats in list(criterion.children()), "it moves with the module"
    criterion(ROWS, INDEX)
    other = copying(criterion)
    assert_counts(other.stats, (ROWS, INDEX))
    other(ROWS, INDEX)
    assert_counts(criterion.stats, (ROWS, INDEX))
    criterion.to(torch.bfloat16)
    assert criterion.stats.sums.dtype == torch.float64
    criterion.stats.reset()
    assert not criterion.stats.counts.any() and other.stats.counts.any()


def test_module_is_public() -> None:
    assert "CrossEntropyLoss" in lightning_lossacc.__all__
    assert lightning_lossacc.CrossEntropyLoss is CrossEntropyLoss
