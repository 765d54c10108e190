"""Small batches on a CPU take a shorter way, and nobody could tell.

Proved here: the gradient is bit by bit that of the longer way in either mode; what only the longer way can do is left
to it; checkpoints, graphs of gradients, forward-mode differentiation and kept graphs find what they find there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_lossacc import LossAccuracy, loss, loss_autograd
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.loss_autograd import SMALL

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shape of the logits of each call that took the shorter way."""
    found: list[tuple[int, ...]] = []
    original = loss_autograd.SmallCrossEntropy.apply

    class Spy:
        @staticmethod
        def apply(logits: Tensor, *rest: Any) -> Tensor:
            found.append(tuple(logits.shape))
            return original(logits, *rest)

    monkeypatch.setattr(loss, "SmallCrossEntropy", Spy)
    return found


def made(rows: int = 12, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return (3 * torch.randn(rows, classes)).to(dtype).requires_grad_(), torch.randint(classes, (rows,))


@pytest.mark.parametrize("shape", [(32, 10), (1, 2), (200, 10), (204, 10), (31, 1000), (300, 16), (2, 16384)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_is_bit_by_bit_that_of_the_longer_way(
    shape: tuple[int, int], dtype: torch.dtype, short: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both reductions and any scale; the loss too, with and without a metric."""
    logits, target = made(*shape, dtype)
    for reduction, scale, mode in itertools.product(("mean", "sum"), (1.0, 0.3), ("backward", "forward")):
        found = []
        for longer, stats in ((False, None), (False, LossAccuracy(num_classes=shape[1])), (True, None)):
            with monkeypatch.context() as patch:
                if longer:
                    patch.setattr(loss, "is_small", lambda _: False)
                value = cross_entropy(logits, target, reduction=reduction, stats=stats, gradient=mode)
                found.append((value, torch.autograd.grad(scale * value, logits)[0]))
        for value, gradient in found:
            torch.testing.assert_close(value, found[0][0], rtol=1e-6, atol=1e-7)
            assert torch.equal(gradient, found[0][1])
        assert mode == "forward" or torch.equal(found[0][0], found[2][0])
    assert len(short) == 16 and set(short) == {shape}


def test_what_the_shorter_way_cannot_do_takes_the_longer_one(short: list[Any]) -> None:
    logits, target = made()
    ignored = target.clone()
    ignored[2] = -100
    calls: list[Callable[[], Tensor]] = [
        lambda: cross_entropy(logits, ignored),
        lambda: cross_entropy(logits, target, ignore_index=int(target[0])),
        lambda: cross_entropy(logits, target, torch.rand(5)),
        lambda: cross_entropy(logits, target, label_smoothing=0.1),
        lambda: cross_entropy(logits, target, reduction="none"),
        lambda: cross_entropy(logits.half(), target),
        lambda: cross_entropy(logits.T.contiguous().T, target),
        lambda: cross_entropy(logits[0], target[0]),
        lambda: cross_entropy(logits[..., None], target[..., None]),
        lambda: cross_entropy(*made(SMALL // 32 + 1, 32)),
        lambda: cross_entropy(*made(205, 10)),
        lambda: cross_entropy(logits[:0], target[:0]),
    ]
    for call in calls:
        call()
    assert not short
    cross_entropy(logits, target, ignore_index=7)
    assert short


def test_graphs_of_gradients_and_kept_graphs(short: list[Any]) -> None:
    logits, target = made()
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    (found,) = torch.autograd.grad(cross_entropy(logits, target), logits, create_graph=True)
    torch.testing.assert_close(found.detach(), wanted)
    with pytest.raises(RuntimeError, match=r"second derivative; use torch.nn.functional.cross_entropy"):
        found.square().sum().backward()
    total = cross_entropy(logits, target)
    for kept in (True, True, False):
        (2 * total).backward(retain_graph=kept)
    torch.testing.assert_close(logits.grad, 6 * wanted)
    assert len(short) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch itself
def test_forward_mode_is_refused(short: list[Any]) -> None:
    logits, target = made()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        cross_entropy(forward_ad.make_dual(logits.detach(), logits.detach()), target)
    assert short


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_a_checkpointed_loss(counted: bool, reentrant: bool, short: list[Any]) -> None:
    """The second pass counts nothing and saves what the first one saved."""
    logits, target = made()
    stats = LossAccuracy(num_classes=5) if counted else None
    checkpoint(lambda x: cross_entropy(x.tanh(), target, stats=stats), logits, use_reentrant=reentrant).backward()
    torch.testing.assert_close(logits.grad, torch.autograd.grad(F.cross_entropy(logits.tanh(), target), logits)[0])
    assert len(short) == 2
    if stats is not None:
        assert int(stats.counts[stats.layout.count_slices["rows"]]) == 12


def test_logits_that_are_not_finite(short: list[Any]) -> None:
    """As in PyTorch; without a weight there is no other difference."""
    logits, target = made()
    with torch.no_grad():
        logits[0, target[0]] = -torch.inf
        logits[1, 0] = torch.nan
    for reduction in ("mean", "sum"):
        found, wanted = (function(logits, target, reduction=reduction) for function in (cross_entropy, F.cross_entropy))
        torch.testing.assert_close(found, wanted, equal_nan=True)
        slopes = (torch.autograd.grad(value, logits)[0] for value in (found, wanted))
        torch.testing.assert_close(*slopes, equal_nan=True)
    assert short
