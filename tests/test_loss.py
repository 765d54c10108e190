"""The fused cross-entropy has the value and gradient of PyTorch's, and is never further from the truth.

Proved here against `torch.nn.functional.cross_entropy` in float64 of the same rounded inputs: every dtype, reduction,
weight, smoothing, shape and memory layout; rows that are ignored, non-finite, out of range or absent; and that nothing
of the size of the logits is made but their gradient.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_lossacc import kernels
from lightning_lossacc.kernels import loss_reference
from lightning_lossacc.kernels.chunks import CHUNK_BYTES
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.sums import Layout
from tests.inputs import make

pytestmark = pytest.mark.usefixtures("on_cpu")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Beyond what PyTorch's own result misses, relative to the largest value of a comparison: last places of the dtype.
LOSS_EPS = {torch.float32: 2e-7, torch.float64: 2e-15, torch.float16: 2e-7, torch.bfloat16: 2e-7}
GRAD_EPS = {torch.float32: 2e-7, torch.float64: 2e-15, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def evaluate(function: Any, logits: Tensor, target: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient for an upstream gradient that differs from row to row; both float64."""
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = function(logits, target, **arguments)
    upstream = torch.linspace(0.5, 1.5, max(1, loss.numel()), dtype=torch.float64)[: loss.numel()].view(loss.shape)
    (gradient,) = torch.autograd.grad(loss, logits, upstream.to(loss.dtype))
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape
    return loss.detach().double(), gradient.double()


def assert_no_worse(logits: Tensor, target: Tensor, ours: Any = cross_entropy, **arguments: Any) -> None:
    """|ours - gold| <= |eager - gold| + eps; half precision is compared with PyTorch in float32, rounded at the end."""
    before = logits.clone()
    found = evaluate(ours, logits, target, **arguments)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "the caller's logits are never written to"
    half = logits.dtype in (torch.float16, torch.bfloat16)
    wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in arguments.items()}
    gold = evaluate(F.cross_entropy, logits.double(), target, **wide)
    narrow = {key: value.float() if half and isinstance(value, Tensor) else value for key, value in arguments.items()}
    eager = evaluate(F.cross_entropy, logits.float() if half else logits, target, **narrow)
    if half:
        eager = eager[0], eager[1].to(logits.dtype).double()
    for mine, theirs, true, eps in zip(found, eager, gold, (LOSS_EPS, GRAD_EPS), strict=True):
        assert torch.equal(mine.isnan(), true.isnan()) and torch.equal(mine.isinf(), true.isinf())
        finite = true.isfinite()
        mine, theirs, true = mine[finite], theirs[finite], true[finite]
        allowed = eps[logits.dtype] * max(1.0, float(true.abs().max())) if true.numel() else 0.0
        assert ((mine - true).abs() <= (theirs - true).abs() + allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["typical", "confident", "tied", "extreme", "ignored", "constant"])
def test_value_and_gradient_are_no_further_from_the_truth_than_pytorch(family: str, dtype: torch.dtype) -> None:
    """All reductions, class weights and label smoothing, alone and together."""
    logits, target = make(family)
    logits = logits.to(dtype)
    weight = torch.rand(7).to(dtype)
    for reduction, smoothing, weights in itertools.product(("mean", "sum", "none"), (0.0, 0.1, 1.0), (None, weight)):
        assert_no_worse(logits, target, weight=weights, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("classes", [2, 3, 15, 16, 17, 33, 1000])
def test_every_number_of_classes(classes: int) -> None:
    """Few classes are transposed, many are not; the border and odd numbers are covered."""
    logits, target = make("typical", 37, classes)
    for dtype, smoothing in itertools.product(DTYPES, (0.0, 0.2)):
        assert_no_worse(logits.to(dtype), target, label_smoothing=smoothing)


def test_masked_classes_are_legal() -> None:
    """-inf in a class that is not the target: a finite loss, and gradient 0 there, as PyTorch has it."""
    logits, target = make("masked")
    assert logits.isinf().any()
    assert_no_worse(logits.float(), target)
    assert_no_worse(logits.float(), target, reduction="none", label_smoothing=0.1)
    assert_no_worse(logits.float(), target, reduction="none", label_smoothing=0.1, weight=torch.rand(7))


def test_logits_that_are_not_finite_spread_no_further_than_in_pytorch() -> None:
    logits, target = make("non_finite")
    assert_no_worse(logits.float(), target, reduction="none")


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_a_common_offset_costs_nothing(offset: float) -> None:
    """One float32 number log sum exp(z) would round the probabilities by 1e-3 here."""
    logits, target = make("typical")
    logits = (logits.float() + offset).float()
    assert_no_worse(logits, target)
    assert_no_worse(logits, target, reduction="none", label_smoothing=0.1)


def layouts(items: int, classes: int, rest: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same shape in every order of memory that programs make."""
    flat = torch.randn(items, *rest, classes).to(dtype)
    last = flat.movedim(-1, 1)
    return {
        "contiguous": last.contiguous(),
        "classes last": last,
        "every second": torch.randn(items, 2 * classes, *rest).to(dtype)[:, ::2],
        "rows apart": torch.randn(2 * items, classes, *rest).to(dtype)[::2],
        "expanded": torch.randn(1, classes, *rest).to(dtype).expand(items, classes, *rest),
        "offset": torch.randn(items * classes * math.prod(rest) + 1)[1:].view(items, classes, *rest).to(dtype),
        "transposed": torch.randn(classes, items, *rest).to(dtype).transpose(0, 1),
    }


@pytest.mark.parametrize("rest", [(), (9,), (3, 5), (2, 3, 2)], ids=str)
def test_every_shape_and_memory_layout(rest: tuple[int, ...]) -> None:
    for classes, dtype in itertools.product((4, 21), (torch.float32, torch.bfloat16)):
        target = torch.randint(0, classes, (6, *rest))
        target.view(-1)[::5] = -100
        for logits in layouts(6, classes, rest, dtype).values():
            assert_no_worse(logits, target, weight=torch.rand(classes), label_smoothing=0.1)
            assert_no_worse(logits, target, reduction="none")


@pytest.mark.parametrize(
    "shape",
    [(1200, 1000), (200_000, 5), (30, 40_000), (2, 7, 90_000), (150, 7, 30, 40), (2, 600_000)],
    ids=str,
)
def test_many_chunks_are_one(shape: tuple[int, ...]) -> None:
    """Rows, items, parts of items and a single row above 2 MB, in both orders of memory."""
    rows = (shape[0], *shape[2:])
    assert math.prod(shape) * 4 > 1.5 * CHUNK_BYTES
    last = torch.randn(*rows, shape[1]).movedim(-1, 1)
    target = torch.randint(0, shape[1], rows)
    target.view(-1)[::7] = -100
    for logits in (last, last.contiguous()):
        assert_no_worse(logits, target)
    assert_no_worse(last, target, weight=torch.rand(shape[1]), label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_targets_of_any_integer_dtype(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 4)
    target = torch.tensor([0, 1, 3, 2, 0])
    assert torch.equal(cross_entropy(logits, target.to(dtype)), cross_entropy(logits, target))
    assert_no_worse(torch.randn(2, 4, 3), torch.tensor([[0, 1, 2], [3, 3, 0]]))


def test_ignore_index_may_be_a_class_or_255() -> None:
    logits = torch.randn(30, 5)
    target = torch.randint(0, 5, (30,))
    assert_no_worse(logits, target, ignore_index=3, weight=torch.rand(5), label_smoothing=0.1)
    found = cross_entropy(logits, target.to(torch.uint8).masked_fill(target == 3, 255), ignore_index=255)
    assert torch.equal(found, cross_entropy(logits, target, ignore_index=3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_counted_row(weighted: bool, smoothing: float) -> None:
    """All ignored, or none there: NaN for the mean, 0 for the sum, gradients of 0, as in PyTorch."""
    arguments = {"weight": torch.rand(4) if weighted else None, "label_smoothing": smoothing}
    for shape in ((3, 4), (3, 4, 2), (0, 4), (2, 4, 0), (0, 4, 3)):
        target = torch.full((shape[0], *shape[2:]), -100)
        for reduction in ("mean", "sum", "none"):
            assert_no_worse(torch.randn(shape), target, reduction=reduction, **arguments)
    assert math.isnan(cross_entropy(torch.randn(3, 4), torch.full((3,), -100)))


def test_one_row_without_a_batch() -> None:
    for target, reduction in itertools.product((torch.tensor(2), torch.tensor([2])), ("mean", "sum", "none")):
        logits, arguments = torch.randn(4), {"reduction": reduction, "weight": torch.rand(4), "label_smoothing": 0.1}
        found, gradient = evaluate(cross_entropy, logits, target, **arguments)
        # PyTorch itself fails in the backward pass of a target of shape (1,).
        wanted, wanted_gradient = evaluate(F.cross_entropy, logits[None], target.view(1), **arguments)
        assert found.shape == ()
        torch.testing.assert_close(found, wanted.view(()), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, wanted_gradient[0], rtol=1e-6, atol=1e-6)


def test_one_class_and_class_probabilities_are_those_of_pytorch() -> None:
    assert_no_worse(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))
    probabilities = torch.rand(6, 5).softmax(1)
    for dtype in DTYPES:
        logits = torch.randn(6, 5).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        found = cross_entropy(logits, probabilities.to(dtype), weight=torch.ones(5).to(dtype), label_smoothing=0.1)
        wanted = F.cross_entropy(logits.to(wide), probabilities.to(dtype).to(wide), label_smoothing=0.1)
        assert found.dtype == wide
        torch.testing.assert_close(found, wanted)
    given = probabilities.clone().requires_grad_()
    cross_entropy(torch.randn(6, 5), given).backward()
    assert given.grad is not None


def test_loss_is_float32_for_half_precision() -> None:
    for dtype in DTYPES:
        loss = cross_entropy(torch.randn(4, 3).to(dtype), torch.tensor([0, 1, 2, 0]))
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_targets_entry_is_rounded_once() -> None:
    """p_y = 0.9995 is 0.99609 in bfloat16: stored before 1 is taken off, it makes the entry eight times too large."""
    logits = torch.tensor([[math.log(0.9995), math.log(0.0005)]], dtype=torch.float64).bfloat16()
    gold = torch.softmax(logits.double(), 1)[0, 0] - 1
    _, gradient = evaluate(cross_entropy, logits, torch.tensor([0]))
    assert abs(gradient[0, 0] - 0.5 * gold) <= 2**-8 * abs(gold)


def test_an_ignored_row_has_no_gradient_even_if_it_is_not_finite() -> None:
    """PyTorch's gradient is NaN there: one padded row of -inf would end a training."""
    target = torch.tensor([0, -100, -100, 1])
    for shape in ((4, 20), (4, 3)):
        logits = torch.randn(shape)
        logits[1], logits[2, 0] = -math.inf, math.nan
        loss, gradient = evaluate(cross_entropy, logits, target, label_smoothing=0.1)
        rest, rest_gradient = evaluate(cross_entropy, logits[::3], target[::3], label_smoothing=0.1)
        assert loss == rest and torch.equal(gradient[::3], rest_gradient)
        assert not gradient[1:3].any()


def test_on_a_device_an_invalid_target_is_nan_and_counted() -> None:
    """The operation itself raises nothing, so that nothing is read on the host; other rows keep their numbers."""
    logits, target = make("out_of_range")
    logits, target = logits.float().unsqueeze(2), target.unsqueeze(1)
    layout = Layout(7, temperatures=())
    counts, sums = layout.zeros()
    loss, lse = kernels.loss_forward(logits, target, None, -100, 0.0, counts, sums, layout)
    invalid = ((target < 0) | (target >= 7)).flatten()
    assert torch.equal(loss.isnan(), invalid) and int(invalid.sum()) == 4
    assert int(layout.parts(counts, sums)["invalid"]) == 4 and int(layout.parts(counts, sums)["rows"]) == 56
    torch.testing.assert_close(lse[~invalid], logits.squeeze(2).logsumexp(1)[~invalid])
    one = torch.tensor(1.0)
    gradient = loss_reference.loss_backward(logits, target, None, -100, 0.0, lse, one).squeeze(2)
    assert gradient[invalid].isnan().all() and gradient[~invalid].isfinite().all()


class _Sizes(TorchDispatchMode):
    """Bytes of the largest storage that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if is_tensor(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = max(self.made.get(storage.data_ptr(), 0), storage.nbytes())
        return result


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


@pytest.mark.parametrize("shape", [(4000, 1000), (300_000, 10), (4, 10, 100_000)], ids=str)
def test_nothing_of_the_size_of_the_logits_is_made_but_the_gradient(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    target.view(-1)[0] = -100
    rows, size = target.numel(), logits.numel() * 4
    with _Sizes() as forward:
        loss = cross_entropy(logits, target, weight=torch.rand(shape[1]), label_smoothing=0.1)
    with _Sizes() as backward:
        loss.backward()
    assert max(forward.made.values()) <= max(CHUNK_BYTES, 8 * rows) < size / 2
    large = [made for made in backward.made.values() if made > max(CHUNK_BYTES, 8 * rows)]
    assert large == [size]
    with _Sizes() as eager:
        F.cross_entropy(logits, target)
    assert max(eager.made.values()) == size, "the instrument sees PyTorch's log-probabilities"
