"""The fused loss and its gradient are right: against float64, for weights, smoothing, shapes, strides and dtypes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.sums import Layout
from tests.kernels_triton.compared import assert_bitwise, vectors


def gold(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Row losses and gradient in float64, by PyTorch."""
    exact = logits.double().requires_grad_()
    weight = None if weight is None else weight.double()
    losses = F.cross_entropy(exact, target, weight=weight, label_smoothing=smoothing, reduction="none")
    (gradient,) = torch.autograd.grad((losses * scale).sum(), exact)
    return losses.detach().reshape(-1), gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 1), (5, 70, 1), (2, 6, 70), (2, 40, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_equal_gold(
    dtype: torch.dtype, shape: tuple[int, int, int], weighted: bool, smoothing: float, device: str
) -> None:
    """Rows and their gradients, of (N, C), channels-first images and tokens, in full and in half precision."""
    logits = (3 * torch.randn(shape)).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], shape[2]))
    target[0, 0] = -100
    weight = torch.rand(shape[1]) + 0.5 if weighted else None
    scale = torch.rand(target.shape)
    losses, gradient = gold(logits, target, weight, smoothing, scale)
    on_device = None if weight is None else weight.to(device)
    arguments = (logits.to(device), target.to(device), on_device, -100, smoothing)
    found, lse = kernels.loss_forward(*arguments, backend="triton")
    slope = kernels.loss_backward(*arguments, lse, scale.reshape(-1).to(device), backend="triton")
    torch.testing.assert_close(found.double().cpu(), losses, rtol=2e-6, atol=4e-6)
    assert slope.dtype == dtype
    # The interpreter cuts bfloat16 off where the device rounds.
    half = 2**-8 if device == "cuda" else 2**-7
    last_place = half if dtype == torch.bfloat16 else 2**-20
    torch.testing.assert_close(slope.double().cpu(), gradient, rtol=last_place, atol=2e-6)


def test_one_scale_for_all_rows(device: str) -> None:
    """A mean has one incoming gradient: a number on the device, which the host never reads."""
    logits, target = torch.randn(5, 40, 1).to(device), torch.randint(0, 40, (5, 1)).to(device)
    _, lse = kernels.loss_forward(logits, target, None, -100, 0.0, backend="triton")
    scale = torch.tensor(0.25, device=device)
    one = kernels.loss_backward(logits, target, None, -100, 0.0, lse, scale, backend="triton")
    all_rows = kernels.loss_backward(logits, target, None, -100, 0.0, lse, scale.expand(5).clone(), backend="triton")
    assert torch.equal(one, all_rows)


@pytest.mark.parametrize("num_classes", [6, 40])
def test_statistics_are_filled_in_the_same_pass(num_classes: int, device: str) -> None:
    """With weights and smoothing in the loss the statistics are still those of the logits, bit by bit."""
    logits, target = torch.randn(9, num_classes, 1).to(device), torch.randint(0, num_classes, (9, 1)).to(device)
    layout = Layout(num_classes)
    counts, sums = layout.zeros(device)
    weight = torch.rand(num_classes).to(device)
    kernels.loss_forward(logits, target, weight, -100, 0.1, counts, sums, layout, backend="triton")
    assert_bitwise((counts.cpu(), sums.cpu()), vectors(logits, target, layout))


@pytest.mark.parametrize("num_classes", [6, 40])
def test_targets_that_are_no_class(num_classes: int, device: str) -> None:
    """Ignored rows have loss and gradient 0 even with NaN; a target out of range gives NaN in its own row."""
    logits = torch.randn(4, num_classes, 1)
    logits[0] = math.nan
    target = torch.tensor([[-100], [num_classes], [2], [2**40]])
    found, lse = kernels.loss_forward(logits.to(device), target.to(device), None, -100, 0.1, backend="triton")
    ones = torch.ones(4, device=device)
    slope = kernels.loss_backward(logits.to(device), target.to(device), None, -100, 0.1, lse, ones, backend="triton")
    assert float(found[0]) == 0
    assert not slope[0].any()
    assert found[[1, 3]].isnan().all()
    assert slope[[1, 3]].isnan().all()
    assert bool(found[2].isfinite())
    assert bool(slope[2].isfinite().all())


def test_hopeless_target_keeps_a_finite_loss(device: str) -> None:
    """A target 200 nats below the maximum has a probability of 0 in float32, and its loss is 200."""
    logits = torch.zeros(2, 40, 1)
    logits[:, 3] = 200.0
    target = torch.tensor([[5], [3]])
    found, lse = kernels.loss_forward(logits.to(device), target.to(device), None, -100, 0.0, backend="triton")
    torch.testing.assert_close(found.cpu(), torch.tensor([200.0, 0.0]))
    slope = kernels.loss_backward(
        logits.to(device), target.to(device), None, -100, 0.0, lse, torch.ones(2, device=device), backend="triton"
    )
    torch.testing.assert_close(slope[0, [3, 5], 0].cpu(), torch.tensor([1.0, -1.0]))


def test_more_temperatures_than_a_kernel_keeps(device: str) -> None:
    """Counted by PyTorch in the forward pass, so that the backward pass takes PyTorch's numbers too."""
    layout = Layout(40, temperatures=tuple(0.5 + 0.25 * place for place in range(20)))
    logits, target = torch.randn(5, 40, 1).to(device), torch.randint(0, 40, (5, 1)).to(device)
    counts, sums = layout.zeros(device)
    losses, lse = kernels.loss_forward(logits, target, None, -100, 0.0, counts, sums, layout)
    ones = torch.ones(5, device=device)
    slope = kernels.loss_backward(logits, target, None, -100, 0.0, lse, ones)
    wanted, gradient = gold(logits.cpu(), target.cpu(), None, 0.0, torch.ones(5, 1))
    torch.testing.assert_close(losses.double().cpu(), wanted, rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(slope.double().cpu(), gradient, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("num_classes", [6, 40])
def test_an_impossible_target_has_an_infinite_loss(num_classes: int, device: str) -> None:
    """-inf at the target: the loss is inf as eager's, and the gradients of all rows are finite."""
    logits, target = torch.randn(3, num_classes, 1), torch.zeros(3, 1, dtype=torch.long)
    logits[1, 0] = -math.inf
    arguments = (logits.to(device), target.to(device), None, -100, 0.0)
    losses, lse = kernels.loss_forward(*arguments, backend="triton")
    slope = kernels.loss_backward(*arguments, lse, torch.ones(3, device=device), backend="triton")
    assert losses.isinf().tolist() == [False, True, False]
    assert bool(slope.isfinite().all())
