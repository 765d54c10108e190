"""A cross-entropy that can be used in place of PyTorch's, and that fills a metric while it reads the logits anyway.

Value, gradient, shapes and exceptions are those of `torch.nn.functional.cross_entropy`, with these differences: the
loss of float16 and bfloat16 logits is float32, in which it is computed; targets may have any integer dtype; an ignored
row has gradient 0 even if its logits are not finite; on a GPU a target that is no class gives a loss and gradient of
NaN (and is counted as invalid), where PyTorch stops with a device-side assertion; logits must not be changed in place
before the backward pass, which reads them again; and its gradient cannot be differentiated again.

Nothing of the size of the logits is made but their gradient, where PyTorch makes three: log-probabilities, their
gradient, and that of the logits. The backward pass computes the probabilities again and scales them by whatever arrives
there, so that gradient accumulation, loss scaling, several losses on the same logits and several backward passes are
exact. With `gradient="forward"` the pass that reads the logits writes their gradient too, for the scale that is
expected to arrive; the backward pass returns it, or computes it anew if another scale arrived, and is as exact.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_lossacc import kernels
from lightning_lossacc.loss_autograd import (
    CrossEntropy,
    SmallCrossEntropy,
    by_item,
    is_of_functorch,
    is_small,
    may_give_away,
    read,
    unseen,
)
from lightning_lossacc.loss_calls import take_tally
from lightning_lossacc.loss_checks import (
    check_gradient,
    check_metric,
    check_options,
    check_range,
    check_shapes,
    check_stats,
    is_index,
)
from lightning_lossacc.metrics import LossAccuracy

_PLAIN = (Tensor, nn.Parameter)
# Within a tuple the capture of loss calls does not replace it: a call of ours is one call, compiled or not.
_PYTORCH = (F.cross_entropy,)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    stats: LossAccuracy | None = None,
    *,
    gradient: Literal["backward", "forward"] = "backward",
    expected_scale: float | Tensor = 1.0,
) -> Tensor:
    """Cross-entropy of logits and targets; fills `stats` in the same pass.

    With class weights w and label smoothing s the loss of a row is
    (1 - s) w_y (-log p_y) + (s / C) sum_c w_c (-log p_c); `"mean"` divides their sum by the sum of w_y over the rows
    that are not ignored (NaN if there are none).

    `stats` counts logits and targets as they are: its NLL knows no weights and no smoothing. A forward pass that
    `torch.utils.checkpoint` runs again within a backward pass is not counted again. Class probabilities as targets,
    single classes, and tensors of `torch.func`, of subclasses or of a compiler are handed to
    `torch.nn.functional.cross_entropy` (in float32 for half precision); then `stats` reads the logits a second time.

    With `gradient="forward"` the logits are read once and their gradient is written once, where the backward pass would
    read them again; statistics are the same, and the loss is, to the rounding of float32. It is made for
    `expected_scale`, the derivative that the backward pass will bring to the loss: 1 for `loss.backward()`, 1 / k if
    losses are divided by k accumulated batches, the factor of a `GradScaler`, which may be given as a tensor. If
    something else arrives, which is decided on the device, the gradient is computed anew from the logits, at the cost
    of that second read: never by scaling what was rounded, so that a float16 gradient that vanishes at scale 1 does not
    under loss scaling. So it is for `retain_graph=True`, `create_graph=True` and hooks that bring back other tensors
    than were saved. The gradient takes its memory from the forward pass on, not only in the backward pass. A loss that
    needs no gradient makes none. Without effect where PyTorch's function computes the loss, for a few rows of so many
    classes that a GPU splits them, for float64 logits on a GPU, on MPS, and before PyTorch 2.5. On a CPU it saves no
    time with label smoothing or `stats`, and small batches take a way that is shorter than either.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...) of a float dtype.
        target: class indices (), (N,) or (N, d1, ...) of any integer dtype; or class probabilities of the shape of
            `logits`.
        weight: (C,) factor of each class, in the dtype of `logits` or, for half precision, float32; without a gradient.
        ignore_index: target value of rows without any effect.
        reduction: `"mean"`, `"sum"` or `"none"`.
        label_smoothing: s, within 0 ... 1 (Szegedy et al. 2016).
        stats: a metric whose `update` this replaces: `LossAccuracy` or a single quantity, for the multiclass task, with
            the same number of classes and the same `ignore_index`.
        gradient: the pass that computes it: `"backward"`, or `"forward"` (for a mean or a sum).
        expected_scale: what arrives at the loss in the backward pass, for `"forward"`; a number, or a tensor of one on
            the device of the logits.

    Returns:
        A number, or for `"none"` the loss of each row in the shape of the class indices; float32, or float64 for
        float64 logits. In nats.

    Raises:
        ValueError: if the batch sizes differ, `reduction` or `gradient` is unknown, they do not fit together, or
            `stats` counts something else.
        RuntimeError: if other shapes or dtypes do not fit together, `label_smoothing` is out of range, or a second
            derivative is asked for.
        NotImplementedError: if the logits are no real floating-point numbers.
        IndexError: on a CPU, if a target is no class.
        TypeError: if an argument has the wrong type.
    """
    if has_torch_function_variadic(logits, target, weight):
        return handle_torch_function(
            cross_entropy,
            (logits, target, weight),
            logits,
            target,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            stats=stats,
            gradient=gradient,
            expected_scale=expected_scale,
        )
    check_options(logits, target, weight, ignore_index, reduction, label_smoothing)
    check_gradient(gradient, expected_scale, reduction, logits.device)
    if stats is not None:
        check_stats(stats, logits, ignore_index)
        # A checkpointed step runs its forward pass again while the gradient is computed.
        recomputed = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        stats = None if recomputed else stats
    if _is_for_torch(logits, target, weight):
        return _by_torch(logits, target, weight, ignore_index, reduction, label_smoothing, stats)
    check_shapes(logits, target, weight)
    index = target.long()
    on_cpu = logits.device.type == "cpu"
    all_counted = on_cpu and check_range(index, ignore_index, logits.shape[0 if logits.ndim == 1 else 1])
    tally = take_tally() if stats is None else None
    into = stats if tally is None else tally
    plain = all_counted and weight is None and not label_smoothing and reduction != "none"
    small = plain and is_small(logits)
    if small and into is None:
        with unseen():
            return SmallCrossEntropy.apply(logits, index, reduction, ignore_index, None)
    if logits.ndim == 1:
        flat, rows = logits.view(1, -1, 1), index.view(1, 1)
    else:
        rows_per_item = math.prod(logits.shape[2:])
        flat = logits.reshape(*logits.shape[:2], rows_per_item)
        rows = index.reshape(len(logits), rows_per_item)
    # Tokens of a sequence that were flattened into rows are its item again.
    items = tally.items if tally is not None and logits.ndim == 2 else None
    forward = gradient == "forward" and logits.requires_grad and torch.is_grad_enabled() and may_give_away()
    made_for = expected_scale if forward else None
    with unseen():
        if small:
            # What is saved must not depend on who counts: a checkpoint that is computed again is not counted again.
            with torch.no_grad():
                counted = (flat, rows) if items is None else by_item(logits, index, items)
                row_loss = read(*counted, None, ignore_index, 0.0, None, into)[0]
            loss = SmallCrossEntropy.apply(logits, index, reduction, ignore_index, row_loss)
        else:
            arguments = weight, ignore_index, reduction, label_smoothing, into, items, made_for
            loss = CrossEntropy.apply(flat, rows, *arguments)
    if stats is not None:
        _note_update(stats)
    return loss.view(index.shape if logits.ndim > 1 else ()) if reduction == "none" else loss


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`cross_entropy` as a module, in place of `torch.nn.CrossEntropyLoss`.

    `stats` is a submodule: it moves with this one, is reset by its owner (`criterion.stats.reset()`), and is copied and
    pickled with its counts. Training and validation rows belong into two metrics, so into two criterions, or give
    `stats` to `cross_entropy`.

    Args:
        weight: (C,) factor of each class.
        ignore_index, reduction, label_smoothing, stats, gradient, expected_scale: see `cross_entropy`; the last may be
            set anew at any time.

    Raises:
        TypeError: if `stats` is no `LossAccuracy`.
        ValueError: if `gradient` is unknown.

    Example:
        >>> import torch
        >>> from lightning_lossacc import CrossEntropyLoss, LossAccuracy
        >>> criterion = CrossEntropyLoss(stats=LossAccuracy(num_classes=3, temperatures=()))
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
        >>> criterion(logits, torch.tensor([0, 2])).backward()
        >>> round(criterion.stats.compute()["accuracy"].item(), 3)
        0.5
    """

    stats: LossAccuracy | None
    # Of the class too, for modules that were pickled before there was a choice.
    gradient: Literal["backward", "forward"] = "backward"
    expected_scale: float | Tensor = 1.0

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        stats: LossAccuracy | None = None,
        gradient: Literal["backward", "forward"] = "backward",
        expected_scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        check_metric(stats)
        check_gradient(gradient, expected_scale, reduction)
        self.stats = stats
        self.gradient = gradient
        # A tensor of a scaler is followed, its history is not.
        self.expected_scale = expected_scale.detach() if isinstance(expected_scale, Tensor) else expected_scale

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `cross_entropy`."""
        return cross_entropy(
            logits, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, self.stats,
            gradient=self.gradient, expected_scale=self.expected_scale,
        )  # fmt: skip


def _is_for_torch(logits: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether PyTorch's own function computes the loss: what it alone can, or what a compiler fuses by itself."""
    return (
        torch.compiler.is_compiling()
        or logits.shape == target.shape
        or logits.ndim == 0
        or logits.shape[0 if logits.ndim == 1 else 1] < 2
        or logits.device.type == "meta"
        or _is_special(logits)
        or _is_special(target)
        or (weight is not None and _is_special(weight))
    )


def _is_special(tensor: Tensor) -> bool:
    return type(tensor) not in _PLAIN or is_of_functorch(tensor)


def _by_torch(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    stats: LossAccuracy | None,
) -> Tensor:
    half = logits.dtype in (torch.float16, torch.bfloat16)
    probabilities = target.is_floating_point()
    loss = _PYTORCH[0](
        logits.float() if half else logits,
        (target.float() if half else target) if probabilities else target.long() if is_index(target) else target,
        weight.float() if half and weight is not None else weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if stats is not None:
        for tensor in (logits, target):
            if not torch.compiler.is_compiling() and (is_of_functorch(tensor) or is_traceable_wrapper_subclass(tensor)):
                raise RuntimeError(
                    f"Expected plain tensors with `stats`, but got a {type(tensor).__name__} or one of torch.func; "
                    "call without `stats` there."
                )
        logits, target = (logits[None], target[None]) if logits.ndim == 1 else (logits, target)
        kernels.row_statistics(logits, target, stats.counts, stats.sums, stats.layout)
        _note_update(stats)
    return loss


def _note_update(stats: LossAccuracy) -> None:
    """What torchmetrics does around `update`."""
    # A counter that grows would be a new program for a compiler in every step.
    if not torch.compiler.is_compiling() or stats._update_count == 0:
        stats._update_count += 1
    stats._computed = None
