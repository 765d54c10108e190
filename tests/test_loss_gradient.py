"""The gradient that the forward pass makes is that of the backward pass, whatever happens between the two.

Proved here: value and gradient against float64 gold; bit by bit the other mode's, with and without statistics; nothing
is computed in the backward pass if what arrives was expected, and exactly what is needed if it was not: accumulation,
loss scaling, shared logits, kept graphs, repeated, checkpointed and derived backward passes; no gradient is made for
nobody, none outlives its use.
"""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_lossacc import CrossEntropyLoss, LossAccuracy, kernels, loss, loss_autograd
from lightning_lossacc.capture import Capture
from lightning_lossacc.kernels import compiled_loss, loss_reference
from lightning_lossacc.kernels.chunks import CHUNK_BYTES
from lightning_lossacc.loss import cross_entropy
from tests.inputs import make
from tests.test_loss import DTYPES, _Sizes, assert_no_worse, evaluate, layouts
from tests.test_loss_capture import Reserve
from tests.test_loss_contract import assert_counts, batch, metric

in_forward = partial(cross_entropy, gradient="forward")
# `evaluate` brings one half to a single loss.
foreseen = partial(in_forward, expected_scale=0.5)

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(autouse=True)
def _longer_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most batches here are so small that both modes would be one."""
    monkeypatch.setattr(loss, "is_small", lambda _: False)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each gradient that was computed in a forward or in a backward pass."""
    found: list[str] = []
    names = (("loss_with_gradient", "forward"), ("loss_backward", "backward"))
    for way, (name, where) in itertools.product((loss_reference, compiled_loss), names):
        original = getattr(way, name)

        def run(*arguments: Any, original: Any = original, where: str = where) -> Any:
            found.append(where)
            return original(*arguments)

        monkeypatch.setattr(way, name, run)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["typical", "confident", "tied", "extreme", "masked", "ignored", "constant"])
def test_value_and_gradient_are_no_further_from_the_truth_than_pytorch(family: str, dtype: torch.dtype) -> None:
    """Expected or not; class weights and label smoothing, alone and together."""
    logits, target = make(family)
    logits, weight = logits.to(dtype), torch.rand(7).to(dtype)
    for ours, reduction, smoothing, weights in itertools.product(
        (in_forward, foreseen), ("mean", "sum"), (0.0, 0.1, 1.0), (None, weight)
    ):
        assert_no_worse(logits, target, ours, weight=weights, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("rest", [(), (9,), (3, 5)], ids=str)
def test_every_shape_and_memory_layout(rest: tuple[int, ...]) -> None:
    for classes, dtype in itertools.product((4, 21), (torch.float32, torch.bfloat16)):
        target = torch.randint(0, classes, (6, *rest))
        target.view(-1)[::5] = -100
        for logits in layouts(6, classes, rest, dtype).values():
            assert_no_worse(logits, target, foreseen, weight=torch.rand(classes), label_smoothing=0.1)
            assert_no_worse(logits, target, foreseen)


@pytest.mark.parametrize("shape", [(1200, 1000), (30, 40_000), (2, 7, 90_000), (150, 7, 30, 40)], ids=str)
def test_many_chunks_are_one(shape: tuple[int, ...]) -> None:
    rows = (shape[0], *shape[2:])
    assert math.prod(shape) * 4 > 1.5 * CHUNK_BYTES
    last = torch.randn(*rows, shape[1]).movedim(-1, 1)
    target = torch.randint(0, shape[1], rows)
    target.view(-1)[::7] = -100
    for logits in (last, last.contiguous()):
        assert_no_worse(logits, target, foreseen)


@pytest.mark.parametrize("family", ["typical", "extreme", "ignored", "non_finite", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bit_by_bit_the_gradient_of_the_backward_pass(dtype: torch.dtype, family: str) -> None:
    """With and without statistics, expected or not; the loss within rounding, the statistics to the bit."""
    logits, target = make(family)
    logits = logits.to(dtype)
    for smoothing, reduction in itertools.product((0.0, 0.1), ("mean", "sum")):
        arguments = {"label_smoothing": smoothing, "reduction": reduction}
        counted = [LossAccuracy(num_classes=7) for _ in range(3)]
        wanted, slope = evaluate(partial(cross_entropy, stats=counted[0]), logits, target, **arguments)
        for ours in (in_forward, foreseen, *(partial(foreseen, stats=stats) for stats in counted[1:])):
            loss, gradient = evaluate(ours, logits, target, **arguments)
            torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6, equal_nan=True)
            assert torch.equal(gradient.nan_to_num(7e7), slope.nan_to_num(7e7))
        assert all(torch.equal(stats.counts, counted[0].counts) for stats in counted)
        assert all(torch.equal(stats.sums, counted[0].sums) for stats in counted)


def test_a_hopeless_target_has_its_loss() -> None:
    """A probability that is 0 in float32, or has lost digits there, is no infinite and no coarse loss."""
    logits, target = torch.zeros(6, 20), torch.zeros(6, dtype=torch.long)
    logits[:, 3] = torch.tensor([0.0, 80.0, 90.0, 103.0, 200.0, 3e38])
    for logits_of in (logits, logits[:, :5], logits.T.reshape(1, 20, 6)):
        found = [in_forward(row.requires_grad_(), torch.zeros(1, *row.shape[2:]).long()) for row in logits_of.split(1)]
        wanted = [F.cross_entropy(row.double(), torch.zeros(1, *row.shape[2:]).long()) for row in logits_of.split(1)]
        torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=1e-6, atol=0)
    assert_no_worse(logits, target, foreseen, reduction="sum")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_counted_row(weighted: bool, smoothing: float) -> None:
    arguments = {"weight": torch.rand(4) if weighted else None, "label_smoothing": smoothing}
    for shape in ((3, 4), (3, 4, 2), (0, 4), (2, 4, 0)):
        target = torch.full((shape[0], *shape[2:]), -100)
        for ours, reduction in itertools.product((in_forward, foreseen), ("mean", "sum")):
            assert_no_worse(torch.randn(shape), target, ours, reduction=reduction, **arguments)


@pytest.mark.parametrize("scale", [1.0, 0.25, 65536.0, torch.tensor(3.0), torch.tensor([1 / 3])], ids=str)
def test_nothing_is_computed_for_a_scale_that_was_expected(scale: Any, computed: list[str]) -> None:
    """One pass; and two where something else arrives, be it by a last bit."""
    logits, target = batch()
    (wanted,) = torch.autograd.grad(scale * F.cross_entropy(logits, target).sum(), logits, torch.ones_like(scale)
                                    if isinstance(scale, Tensor) else None)  # fmt: skip
    loss = in_forward(logits, target, expected_scale=scale)
    incoming = torch.as_tensor(scale, dtype=torch.float32).reshape(())
    (found,) = torch.autograd.grad(loss, logits, incoming)
    assert computed == ["forward"]
    torch.testing.assert_close(found, wanted)
    loss = in_forward(logits, target, reduction="sum", expected_scale=scale)
    next_to_it = torch.nextafter(incoming, torch.tensor(0.0))
    (other,) = torch.autograd.grad(loss, logits, next_to_it)
    assert computed == ["forward", "forward", "backward"]
    assert torch.equal(
        other, torch.autograd.grad(cross_entropy(logits, target, reduction="sum"), logits, next_to_it)[0]
    )


def test_an_expected_scale_is_what_it_was_in_the_forward_pass(computed: list[str]) -> None:
    """A scaler changes its scale in place after the step; what was made is compared with what it was made for."""
    logits, target = batch()
    for reduction, computations in (("sum", 1), ("mean", 3)):
        scale = torch.tensor(4.0)
        loss = in_forward(logits, target, expected_scale=scale, reduction=reduction)
        scale.fill_(8.0)
        (found,) = torch.autograd.grad(loss, logits, torch.tensor(8.0 if reduction == "mean" else 4.0))
        assert len(computed) == computations
    torch.testing.assert_close(found, 8 * torch.autograd.grad(F.cross_entropy(logits, target), logits)[0])


def test_a_gradient_that_vanishes_unscaled_does_not_under_loss_scaling() -> None:
    """What float16 has lost at scale 1 cannot be multiplied back: it is computed anew, or for the scale at once."""
    logits, target = (4 * torch.randn(4096, 100)).half(), torch.randint(0, 100, (4096,))
    gold = logits.double().requires_grad_()
    (65536.0 * F.cross_entropy(gold, target)).backward()
    for scale in (1.0, 65536.0):
        leaf = logits.clone().requires_grad_()
        (65536.0 * in_forward(leaf, target, expected_scale=scale)).backward()
        torch.testing.assert_close(leaf.grad.double(), gold.grad, rtol=2**-10, atol=2**-24)
    in_forward(leaf, target).backward()
    assert (torch.autograd.grad(in_forward(leaf, target), leaf)[0] == 0).float().mean() > 0.01, "it does vanish"


def both(step: Callable[[Any, Tensor], None], logits: Tensor) -> None:
    """A step leaves the gradient that it leaves with the other mode, and that of PyTorch within rounding."""
    found = []
    for function in (in_forward, cross_entropy, F.cross_entropy):
        leaf = logits.detach().clone().requires_grad_()
        step(function, leaf)
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[0], found[2])


def test_gradients_under_accumulation_and_scaling() -> None:
    """A loss divided by 3 and scaled by 65536 as in fp16, and one that arrives as it is, into one gradient."""
    logits, target = batch()

    def accumulate(function: Any, leaf: Tensor) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        optimizer = torch.optim.SGD([leaf], 0.0)
        for _ in range(3):
            scaler.scale(function(2 * leaf, target) / 3).backward()
        scaler.unscale_(optimizer)
        function(leaf, target).backward()
        function(leaf, target, reduction="sum").backward()

    both(accumulate, logits)


def test_gradients_of_logits_that_are_used_twice() -> None:
    logits, target = batch()
    other = torch.randint(5, (12,))

    def together(function: Any, leaf: Tensor) -> None:
        shared = leaf.sin()
        (function(shared, target) + function(shared, other) + shared.square().sum()).backward()

    def leaves(function: Any, leaf: Tensor) -> None:
        (function(leaf, target) + function(leaf, other, reduction="sum") + 2 * function(leaf, other)).backward()

    for step in (together, leaves):
        both(step, logits)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_kept_graph_keeps_its_gradient(scale: float) -> None:
    """Backward passes again and again, into a leaf that may take a tensor as its own, and hooks that write into it."""
    logits, target = batch()

    def again(function: Any, leaf: Tensor) -> None:
        loss = function(leaf, target)
        for kept in (True, True, True, False):
            (scale * loss).backward(retain_graph=kept)
            leaf.grad.mul_(1.5)

    def hooked(function: Any, leaf: Tensor) -> None:
        shared = leaf.sin()
        shared.register_hook(lambda grad: grad.mul_(3.0))
        loss = function(shared, target)
        for kept in (True, True, False):
            (scale * loss).backward(retain_graph=kept)

    def alternating(function: Any, leaf: Tensor) -> None:
        loss = function(leaf, target)
        for factor in (1.0, 7.0, 1.0, 0.5, 1.0):
            (factor * loss).backward(retain_graph=True)

    for step in (again, hooked, alternating):
        both(step, logits)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch itself
def test_no_second_derivative_and_one_sentence() -> None:
    """With a graph of the gradient that is asked for, whether or not the graph of the loss is kept."""
    logits, target = batch()
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    for kept in (True, False):
        (gradient,) = torch.autograd.grad(in_forward(logits, target), logits, create_graph=True, retain_graph=kept)
        torch.testing.assert_close(gradient.detach(), wanted)
        with pytest.raises(RuntimeError, match=r"second derivative; use torch.nn.functional.cross_entropy"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_loss(reentrant: bool) -> None:
    stats, (logits, target) = metric(), batch()
    loss = checkpoint(lambda given: in_forward(given.tanh(), target, stats=stats), logits, use_reentrant=reentrant)
    loss.backward()
    assert_counts(stats, (logits.tanh(), target))
    torch.testing.assert_close(logits.grad, torch.autograd.grad(F.cross_entropy(logits.tanh(), target), logits)[0])


def test_saved_tensors_that_are_packed_away() -> None:
    logits, target = batch()
    with torch.autograd.graph.save_on_cpu():
        loss = in_forward(logits * 1, target)
    (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(found, torch.autograd.grad(F.cross_entropy(logits, target), logits)[0])


def test_logits_changed_before_the_backward_pass_are_refused() -> None:
    leaf, target = batch()
    logits = leaf * 1
    loss = in_forward(logits, target)
    logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_gradient_is_made_for_nobody(computed: list[str]) -> None:
    """Neither in evaluation nor for logits without a gradient; the loss is the same."""
    logits, target = batch()
    wanted = cross_entropy(logits, target)
    with torch.no_grad():
        assert torch.equal(in_forward(logits, target), wanted)
    with torch.inference_mode():
        assert torch.equal(in_forward(logits, target), wanted)
    assert torch.equal(in_forward(logits.detach(), target), wanted)
    assert not computed


def test_nothing_of_the_size_of_the_logits_is_made_but_the_gradient() -> None:
    logits, target = torch.randn(4000, 1000, requires_grad=True), torch.randint(0, 1000, (4000,))
    size = logits.numel() * 4
    with _Sizes() as forward:
        loss = in_forward(logits, target, weight=torch.rand(1000), label_smoothing=0.1)
    with _Sizes() as backward:
        loss.backward()
    assert [made for made in forward.made.values() if made > CHUNK_BYTES] == [size]
    assert not [made for made in backward.made.values() if made > CHUNK_BYTES]


def test_the_gradient_is_given_away() -> None:
    """After the backward pass nothing of the loss holds it: the leaf takes it without a copy."""
    (logits, target), made = batch(), []
    original = kernels.loss_with_gradient

    def spy(*arguments: Any) -> Any:
        found = original(*arguments)
        made.append(found[2].data_ptr())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "loss_with_gradient", spy)
        loss = in_forward(logits, target)
    loss.backward()
    assert logits.grad.data_ptr() == made[0]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"gradient": "both"}, ValueError, "`gradient` to be one of backward, forward, but got 'both'"),
        ({"reduction": "none"}, ValueError, "'mean' or 'sum' with `gradient='forward'`, but got 'none'"),
        ({"expected_scale": "1"}, TypeError, "`expected_scale` to be a number or a tensor, but got '1'"),
        ({"expected_scale": torch.ones(2)}, ValueError, r"a tensor of one .* but got shape \(2,\)"),
        ({"expected_scale": torch.ones((), device="meta")}, ValueError, "device of `logits`, cpu, but got .* on meta"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    logits, target = batch()
    with pytest.raises(kind, match=words):
        cross_entropy(logits, target, **{"gradient": "forward", **arguments})
    criterion = {key: value for key, value in arguments.items() if not isinstance(value, Tensor)}
    if criterion:
        with pytest.raises(kind, match=words):
            CrossEntropyLoss(**{"gradient": "forward", **criterion})


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch itself
def test_where_pytorch_computes_the_loss_the_mode_has_no_effect() -> None:
    """Class probabilities, one class, transforms and compilers; one graph, one program."""
    logits, target = batch()
    probabilities = torch.rand(12, 5).softmax(1)
    (found,) = torch.autograd.grad(in_forward(logits, probabilities), logits)
    torch.testing.assert_close(found, torch.autograd.grad(F.cross_entropy(logits, probabilities), logits)[0])
    rows, index = logits.detach(), target.clamp_min(0)
    torch.testing.assert_close(torch.func.grad(in_forward)(rows, index), torch.func.grad(F.cross_entropy)(rows, index))
    torch._dynamo.reset()
    compiled = torch.compile(in_forward, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            logits, target = batch()
            (found,) = torch.autograd.grad(compiled(logits, target), logits)
            torch.testing.assert_close(found, torch.autograd.grad(F.cross_entropy(logits, target), logits)[0])


def test_without_knowing_of_kept_graphs(monkeypatch: pytest.MonkeyPatch, computed: list[str]) -> None:
    logits, target = batch()
    monkeypatch.setattr(loss_autograd, "_is_graph_kept", None)
    (found,) = torch.autograd.grad(in_forward(logits, target), logits)
    assert computed == ["backward"]
    torch.testing.assert_close(found, torch.autograd.grad(F.cross_entropy(logits, target), logits)[0])


def test_reserved_vectors_are_filled_in_the_pass_of_the_loss(computed: list[str]) -> None:
    """The monitor counts in this pass as well; the gradient keeps its bits and is still made once."""
    reserve, capture, wanted = Reserve(), Capture(), LossAccuracy(num_classes=4, temperatures=())
    for turn in range(3):
        logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
        loss = reserve.step(capture, lambda logits=logits, target=target: in_forward(logits, target))
        (found,) = torch.autograd.grad(loss, logits)
        assert computed == ["forward", "backward"] * turn + ["forward"]
        assert torch.equal(found, torch.autograd.grad(cross_entropy(logits, target), logits)[0])
        if turn:
            wanted.update(logits, target)
    assert [one.counted for one in reserve.seen] == [False, True, True]
    assert torch.equal(reserve.metric.counts, wanted.counts)
    torch.testing.assert_close(reserve.metric.sums, wanted.sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copying", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_module(copying: Any, computed: list[str]) -> None:
    """The choice survives copies; a module that was pickled before there was one computes in the backward pass."""
    logits, target = batch()
    criterion = copying(CrossEntropyLoss(gradient="forward", expected_scale=0.5, stats=metric()))
    (0.5 * criterion(logits, target)).backward()
    assert computed == ["forward"]
    criterion.expected_scale = 0.25
    (0.25 * criterion(logits, target)).backward()
    assert computed == ["forward"] * 2
    older = CrossEntropyLoss()
    del older.__dict__["gradient"], older.__dict__["expected_scale"]
    older(logits, target).backward()
    assert computed == ["forward", "forward", "backward"]
