"""The kernels that read the logits write their gradient as well: the right one, and no bit of anything else changes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.sums import Layout
from tests.kernels_triton.test_loss import gold

SCALE = 0.75
SHAPES = [(6, 5, 1), (5, 70, 1), (3, 2500, 1), (2, 6, 70), (2, 40, 5), (70, 32, 1)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_equal_gold(
    dtype: torch.dtype, shape: tuple[int, int, int], weighted: bool, smoothing: float, device: str
) -> None:
    """Few classes in registers, many in one block and in several, channels-first images and tokens."""
    logits = (3 * torch.randn(shape)).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], shape[2]))
    target[0, 0] = -100
    weight = torch.rand(shape[1]) + 0.5 if weighted else None
    losses, wanted = gold(logits, target, weight, smoothing, torch.full(target.shape, SCALE))
    on_device = None if weight is None else weight.to(device)
    arguments = (logits.to(device), target.to(device), on_device, -100, smoothing)
    scale = torch.tensor(SCALE, device=device)
    found, lse, slope = kernels.loss_with_gradient(*arguments, scale, backend="triton")
    torch.testing.assert_close(found.double().cpu(), losses, rtol=2e-6, atol=4e-6)
    assert slope.dtype == dtype and slope.shape == shape
    # The interpreter cuts half precision off where the device rounds.
    places = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    torch.testing.assert_close(slope.double().cpu(), wanted, rtol=places[dtype], atol=2e-6)
    plain, plain_lse = kernels.loss_forward(*arguments, backend="triton")
    assert torch.equal(found, plain) and torch.equal(lse, plain_lse)
    other = kernels.loss_backward(*arguments, lse, scale, backend="triton")
    torch.testing.assert_close(slope, other, rtol=places[dtype], atol=1e-8)


@pytest.mark.parametrize("shape", [(9, 6, 1), (9, 40, 1), (3, 2500, 1), (2, 6, 70), (2, 40, 5)])
def test_statistics_are_filled_in_the_same_pass(shape: tuple[int, int, int], device: str) -> None:
    """Statistics, loss and gradient have the bits that they have without one another."""
    logits, target = torch.randn(shape).to(device), torch.randint(0, shape[1], (shape[0], shape[2])).to(device)
    layout, scale = Layout(shape[1]), torch.tensor(SCALE, device=device)
    arguments = (logits, target, torch.rand(shape[1]).to(device), -100, 0.1)
    counts, sums = layout.zeros(device)
    found = kernels.loss_with_gradient(*arguments, scale, counts, sums, layout, backend="triton")
    wanted_counts, wanted_sums = layout.zeros(device)
    kernels.loss_forward(*arguments, wanted_counts, wanted_sums, layout, backend="triton")
    assert torch.equal(counts, wanted_counts) and torch.equal(sums, wanted_sums)
    for one, other in zip(found, kernels.loss_with_gradient(*arguments, scale, backend="triton"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_classes", [6, 40])
def test_targets_that_are_no_class_and_logits_that_are_not_finite(num_classes: int, device: str) -> None:
    """Ignored rows have gradient 0 even with NaN, a target out of range NaN in its own row, -inf elsewhere is legal."""
    logits = torch.randn(5, num_classes, 1)
    logits[0], logits[2, 1], logits[4, 2] = math.nan, -math.inf, -math.inf
    target = torch.tensor([[-100], [num_classes], [2], [2**40], [2]])
    scale = torch.tensor(1.0, device=device)
    found, _, slope = kernels.loss_with_gradient(
        logits.to(device), target.to(device), None, -100, 0.0, scale, backend="triton"
    )
    assert found.isnan().tolist() == [False, True, False, True, False] and float(found[0]) == 0
    assert bool(found[4].isinf()) and not slope[0].any()
    assert slope[[1, 3]].isnan().all() and slope[[2, 4]].isfinite().all()
    assert float(slope[2, 1]) == 0


@pytest.mark.parametrize("shape", [(300, 6, 1), (5, 70, 1), (3, 9000, 1), (2, 6, 70)])
def test_made_anew_for_another_scale_alone(shape: tuple[int, int, int], device: str) -> None:
    """A planted gradient stays where the scale is the one that it was made for, and is replaced where it is not."""
    logits, target = torch.randn(shape).to(device), torch.randint(0, shape[1], (shape[0], shape[2])).to(device)
    arguments = (logits, target, None, -100, 0.0)
    made, arrived = torch.tensor(1.0, device=device), torch.tensor(0.5, device=device)
    _, lse, slope = kernels.loss_with_gradient(*arguments, made, backend="triton")
    planted = torch.full_like(slope, 7.0)
    kernels.renew_gradient(planted, made, *arguments, lse, made.clone())
    assert bool((planted == 7).all())
    kernels.renew_gradient(planted, made, *arguments, lse, arrived)
    assert torch.equal(planted, kernels.loss_backward(*arguments, lse, arrived, backend="triton"))
    kernels.renew_gradient(planted, made, *arguments, lse, torch.tensor(math.nan, device=device))
    assert bool(planted.isnan().all())


def test_rows_that_are_split_wait_for_the_backward_pass(device: str) -> None:
    """No program of a split row has the whole of it; so it is with a gradient whose classes would lie apart."""
    scale = torch.tensor(1.0, device=device)
    logits, target = torch.randn(1, 9000, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    assert kernels.loss_with_gradient(logits, target, None, -100, 0.0, scale, backend="triton")[2] is None
    spread = torch.randn(3, 1, 40, device=device).movedim(2, 1).expand(3, 40, 2)
    target = torch.zeros(3, 2, dtype=torch.long, device=device)
    made = kernels.loss_with_gradient(spread, target, None, -100, 0.0, scale, backend="triton")[2]
    assert made is None or made.stride(1) == 1
    for given in (logits, spread):
        leaf = given.clone().requires_grad_()
        index = torch.zeros(given.shape[0], given.shape[2], dtype=torch.long, device=device)
        cross_entropy(leaf, index, gradient="forward").backward()
        slope = leaf.grad
        leaf.grad = None
        F.cross_entropy(leaf, index).backward()
        torch.testing.assert_close(slope, leaf.grad, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("num_classes", [6, 40])
def test_loss_trains_as_the_other_mode_does(num_classes: int, factor: float, device: str) -> None:
    """Through autograd: expected and unexpected scales, kept graphs, statistics."""
    target = torch.randint(0, num_classes, (9,))
    target[2] = -100
    target = target.to(device)
    logits = torch.randn(9, num_classes, device=device)
    stats = LossAccuracy(num_classes=num_classes, temperatures=()).to(device)

    def gradient(**arguments: object) -> Tensor:
        leaf = logits.clone().requires_grad_()
        loss = cross_entropy(leaf, target, label_smoothing=0.1, **arguments)
        (factor * loss).backward(retain_graph=True)
        (factor * loss).backward(retain_graph=True)
        (3 * factor * loss).backward()
        return leaf.grad

    wanted = gradient()
    for arguments in ({}, {"stats": stats}, {"expected_scale": 0.25}):
        found = gradient(gradient="forward", **arguments)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-8)
    assert int(stats.counts[stats.layout.count_slices["rows"]]) == 8
