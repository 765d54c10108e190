"""The compiled loss gives the reference's rows and gradients; `test_loss*.py` compares both with PyTorch's own."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_lossacc.kernels import compiled_loss, loss_reference
from tests import inputs
from tests.kernels.test_compiled import HALVES, VIEWS

missing = compiled_loss.obstacle(torch.float32)
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)
EPS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def assert_same(logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, scale: Tensor) -> None:
    """Loss and gradient in one pass, each by itself, and written into a tensor that is there."""
    arguments = logits, target, weight, -100, smoothing
    wanted = loss_reference.loss_with_gradient(*arguments, scale)
    found = compiled_loss.loss_with_gradient(*arguments, scale)
    torch.testing.assert_close(found[0], wanted[0], rtol=2e-5, atol=2e-6, equal_nan=True)
    # Log-sum-exp means nothing in rows that are ignored, or whose target's logit is not finite.
    own = logits.gather(1, target.clamp(0, logits.shape[1] - 1).unsqueeze(1)).flatten()
    told = (target.flatten() != -100) & own.isfinite() & wanted[1].isfinite()
    torch.testing.assert_close(found[1][told], wanted[1][told], rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(found[2], wanted[2], rtol=2e-5, atol=EPS[found[2].dtype], equal_nan=True)
    loss, lse = compiled_loss.loss_forward(*arguments)
    assert torch.equal(loss.nan_to_num(), found[0].nan_to_num())
    kept = torch.full_like(found[2], 7.0)
    assert compiled_loss.loss_backward(*arguments, lse, scale, kept) is kept
    assert torch.equal(kept.nan_to_num(), found[2].nan_to_num())


# 17: a vector and one class more; 600: row by row with a rest.
@pytest.mark.parametrize("num_classes", [2, 17, 600])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_equals_the_reference(family: str, dtype: torch.dtype, num_classes: int) -> None:
    """With class weights and label smoothing, alone and together; one scale for all rows or one for each."""
    logits, target = inputs.make(family, num_rows=37, num_classes=num_classes)
    logits, target = logits.to(dtype).unsqueeze(2), target.unsqueeze(1)
    for weight, smoothing in itertools.product((None, torch.rand(num_classes)), (0.0, 0.1)):
        assert_same(logits, target, weight, smoothing, torch.tensor(0.5))
    assert_same(logits, target, None, 0.0, torch.rand(37))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(30, 4, 3), (2, 21, 33, 35), (5, 700, 9), (70, 600, 1)])
def test_shapes_and_strides(shape: tuple[int, ...], view: str) -> None:
    for dtype in HALVES:
        logits = VIEWS[view]((3 * torch.randn(shape)).to(dtype)).flatten(2)
        target = torch.randint(0, shape[1], (shape[0], logits.shape[2]))
        target.view(-1)[::5] = -100
        assert_same(logits, target, None, 0.0, torch.tensor(1.0))


def test_few_rows_an_item() -> None:
    """A last vector that is not full, whose rows may lie as far apart as those of a full one."""
    for items, classes, rows in itertools.product(range(1, 10), range(2, 8), range(2, 12)):
        logits, target = torch.randn(items, classes, rows), torch.randint(0, classes, (items, rows))
        found = compiled_loss.loss_with_gradient(logits, target, None, -100, 0.0, torch.tensor(1.0))
        wanted = loss_reference.loss_with_gradient(logits, target, None, -100, 0.0, torch.tensor(1.0))
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(20000, 10, 1), (900, 900, 1), (3, 5, 40000)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, int, int]) -> None:
    logits, target = 3 * torch.randn(shape), torch.randint(0, shape[1], (shape[0], shape[2]))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(compiled_loss.loss_with_gradient(logits, target, None, -100, 0.1, torch.tensor(1.0)))
    torch.set_num_threads(1)
    for mine in found[1:]:
        assert all(torch.equal(left, right) for left, right in zip(mine, found[0], strict=True))


@pytest.mark.parametrize("num_classes", [3, 16, 37, 515])
def test_memory_beyond_the_batch_is_not_touched(num_classes: int) -> None:
    """Neither read behind the logits nor written behind the gradient: the pages there may not be entered."""
    page, numbers = mmap.PAGESIZE, 21 * num_classes
    pages = -(-numbers * 4 // page)
    protect: Callable[..., int] = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    held, tensors = [], []
    try:
        for _ in range(2):
            memory = mmap.mmap(-1, (pages + 1) * page)
            held.append((memory, ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages * page))
            assert protect(held[-1][1], page, 0) == 0
            flat = torch.frombuffer(memory, dtype=torch.float32, count=numbers, offset=pages * page - 4 * numbers)
            tensors.append(flat.view(21, num_classes, 1))
        logits, grad = tensors
        logits.normal_()
        target, one = torch.randint(0, num_classes, (21, 1)), torch.tensor(1.0)
        compiled_loss.loss_backward(logits, target, None, -100, 0.0, one, one, grad)
        torch.testing.assert_close(grad, loss_reference.loss_backward(logits, target, None, -100, 0.0, one, one))
    finally:
        for _, start in held:
            protect(start, page, mmap.PROT_READ | mmap.PROT_WRITE)
