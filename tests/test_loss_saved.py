"""What the fused loss saves for its backward pass: the same whoever counts, and not its own once hooks have had it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lightning_lossacc import LossAccuracy
from lightning_lossacc.capture import Capture
from lightning_lossacc.kernels import loss_reference
from lightning_lossacc.loss import CrossEntropyLoss, cross_entropy
from tests.test_loss_capture import Reserve

# Rows and classes that take the way of few logits, and the other one.
SIZES = [(12, 5), (300, 10)]


def made(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator)
    return logits.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def expected(logits: Tensor, target: Tensor, through: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
    twin = logits.detach().clone().requires_grad_()
    F.cross_entropy(through(twin), target).backward()
    return twin.grad


@pytest.mark.parametrize("gradient", ["backward", "forward"])
@pytest.mark.parametrize(("rows", "classes"), [(12, 4), (600, 4)])
def test_a_checkpointed_loss_of_sequences_is_computed_again_without_the_listener(
    gradient: str, rows: int, classes: int
) -> None:
    """The listener sees three sequences; the second pass of a checkpoint saves the same tensors without it."""
    logits, target = made(rows, classes)
    reserve, capture = Reserve(items=3), Capture()

    def loss() -> Tensor:
        part = partial(cross_entropy, gradient=gradient)
        return checkpoint(lambda values: part(values.tanh(), target), logits, use_reentrant=False)

    for _ in range(2):
        logits.grad = None
        reserve.step(capture, loss).backward()
        assert torch.allclose(logits.grad, expected(logits, target), atol=1e-7)
    assert int(reserve.metric.counts.sum()) > 0


@pytest.mark.parametrize("options", [{}, {"gradient": "forward"}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_a_selective_checkpoint_sees_none_of_it(options: dict[str, Any], rows: int, classes: int) -> None:
    """Counted once; the gradient is that of the loss alone."""
    logits, target = made(rows, classes)
    weight, stats = torch.randn(classes, classes), LossAccuracy(num_classes=classes)
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    checkpoint(
        lambda values: cross_entropy(values @ weight, target, stats=stats, **options),
        logits,
        use_reentrant=False,
        context_fn=contexts,
    ).backward()
    twin = logits.detach().clone().requires_grad_()
    F.cross_entropy(twin @ weight, target, label_smoothing=options.get("label_smoothing", 0.0)).backward()
    assert torch.allclose(logits.grad, twin.grad, atol=1e-6)
    assert stats.compute()["num_rows"] == rows


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_a_hook_brings_back_is_neither_changed_nor_given_away(scale: float) -> None:
    """It may be a file that is mapped read-only, or somebody's only copy."""
    logits, target = made(300, 10)
    kept: list[Tensor] = []

    def unpack(place: int) -> Tensor:
        return kept[place]

    def pack(tensor: Tensor) -> int:
        kept.append(tensor.detach().clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = cross_entropy(logits, target, gradient="forward")
    before = [tensor.clone() for tensor in kept]
    (scale * loss).backward()
    assert torch.allclose(logits.grad, scale * expected(logits, target, lambda values: 1 * values), atol=1e-7)
    assert all(torch.equal(old, new) for old, new in zip(before, kept, strict=True))
    assert logits.grad.data_ptr() not in {tensor.data_ptr() for tensor in kept}


def test_rows_that_are_ignored_are_not_read_again() -> None:
    """Their target stands for class 0, which nothing is known of; only rows that count are mended, in chunks."""
    logits, target = made(4096, 100)
    logits = logits.detach()
    logits[:, 0] = -1e4
    target = target.clamp(min=1)
    target[1:] = -100
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "log_softmax" in str(function):
                sizes.append(args[0].numel())
            return function(*args, **(kwargs or {}))

    one = torch.ones(())
    with Watch():
        loss_reference.loss_with_gradient(logits[..., None], target[:, None], None, -100, 0.0, one)
    assert sum(sizes) == 0
    # All of these are hopeless, and anew in parts.
    with Watch():
        found = loss_reference.loss_with_gradient(logits[..., None], torch.zeros(4096, 1).long(), None, -100, 0.0, one)
    assert sum(sizes) == logits.numel()
    wanted = F.cross_entropy(logits, torch.zeros(4096).long(), reduction="none")
    assert torch.allclose(found[0], wanted)


def test_scales_of_every_kind_of_number() -> None:
    """NumPy's, and such as no float32 holds: then what arrives is another, and the gradient is computed anew."""
    logits, target = made(300, 10)
    wanted = expected(logits, target, lambda values: 1 * values)
    for scale in (np.float32(0.5), np.float64(0.5), 1e300, -1e300, 1):
        logits.grad = None
        cross_entropy(logits, target, gradient="forward", expected_scale=scale).backward()
        assert torch.allclose(logits.grad, wanted, atol=1e-7)


def test_a_scale_is_kept_without_its_history() -> None:
    """A loss with a tensor of a graph can be copied, and follows the tensor's values."""
    scale = torch.tensor(2.0)
    module = CrossEntropyLoss(gradient="forward", expected_scale=(1 * scale.requires_grad_()))
    assert copy.deepcopy(module).expected_scale == 2 and module.expected_scale.grad_fn is None
    followed = torch.tensor(1.0)
    module = CrossEntropyLoss(gradient="forward", expected_scale=followed)
    followed.fill_(4.0)
    assert module.expected_scale == 4


def test_no_loss_is_zero() -> None:
    """Not -0.0, which would be printed so."""
    loss = cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))
    assert str(float(loss)) == "0.0"
