"""The fused cross-entropy as nodes of autograd: what is saved for the backward pass, and what is returned there."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from lightning_lossacc import kernels
from lightning_lossacc.kernels.loss_reference import FEW_CLASSES, FEW_LOGITS, denominator
from lightning_lossacc.loss_calls import Tally
from lightning_lossacc.metrics import LossAccuracy

# Up to here the number of operations is the cost, not their size.
SMALL = 2**15
# Since PyTorch 2.5; who cannot tell must not give away what a second backward pass may want.
_is_graph_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)


def may_give_away() -> bool:
    """Whether a gradient that the forward pass makes could ever be handed on."""
    return _is_graph_kept is not None


class CrossEntropy(torch.autograd.Function):
    """Saves the logits themselves and one number a row, and the gradient where the forward pass makes it."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        reduction: str,
        label_smoothing: float,
        into: LossAccuracy | Tally | None,
        items: int | None,
        made_for: float | Tensor | None,
    ) -> Tensor:
        mean_of = denominator(target, weight, ignore_index) if reduction == "mean" else None
        made_scale = None if made_for is None else _row_scale(_scalar(made_for, logits), mean_of, logits)
        counted = logits, target
        if items is not None:
            # What is saved must not depend on who counts: a checkpoint computes it again without the listener.
            counted = by_item(logits.squeeze(2), target.squeeze(1), items)
        row_loss, row_lse, gradient = read(*counted, weight, ignore_index, label_smoothing, made_scale, into)
        if gradient is not None and items is not None:
            gradient = gradient.transpose(1, 2).reshape(logits.shape)
        ctx.set_materialize_grads(False)
        ctx.arguments = ignore_index, label_smoothing
        ctx.made_at = None if gradient is None else gradient.data_ptr()
        ctx.save_for_backward(logits, target, weight, row_lse, mean_of, gradient, made_scale)
        if reduction == "none":
            return row_loss
        total = _sum(row_loss)
        return (total if mean_of is None else total / mean_of).to(row_loss.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or not ctx.needs_input_grad[0]:
            return (None,) * 9
        logits, target, weight, row_lse, mean_of, gradient, made_scale = ctx.saved_tensors
        row_scale = _row_scale(grad, mean_of, logits)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_of_functorch(grad):
            gradient = _Gradient.apply(logits, row_scale, target, weight, row_lse, *ctx.arguments)
        elif gradient is None or gradient.data_ptr() != ctx.made_at or _is_graph_kept():
            # Whoever gets a gradient may change it, so that a graph that is kept keeps its own; and what hooks on saved
            # tensors bring back is not ours to change.
            gradient = kernels.loss_backward(logits, target, weight, *ctx.arguments, row_lse, row_scale)
        else:
            kernels.renew_gradient(gradient, made_scale, logits, target, weight, *ctx.arguments, row_lse, row_scale)
        return gradient, *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise NotImplementedError(
            "Expected `cross_entropy` of lightning_lossacc to be differentiated backwards, but got forward-mode "
            "differentiation; use torch.nn.functional.cross_entropy, or torch.func.jvp."
        )


class SmallCrossEntropy(torch.autograd.Function):
    """The same gradient, bit by bit, in a third of the operations: for batches where those are the cost."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, reduction: str, ignore_index: int, row_loss: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.rows = len(target) if reduction == "mean" else 1
        ctx.ignore_index = ignore_index
        ctx.is_compiled = kernels.choose(logits).name == "compiled"
        target = target.unsqueeze(1)
        ctx.save_for_backward(logits, target)
        if row_loss is None and ctx.is_compiled:
            row_loss = kernels.loss_forward(logits.unsqueeze(2), target, None, ignore_index, 0.0)[0]
        own = torch.log_softmax(logits, 1).gather(1, target) if row_loss is None else row_loss.neg()
        # From 0, since the sum of a batch without loss is no -0.
        return (0.0 - own.sum(dtype=torch.float64)).div(ctx.rows).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or not ctx.needs_input_grad[0]:
            return (None,) * 5
        logits, target = ctx.saved_tensors
        scale = grad / ctx.rows
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_of_functorch(grad):
            arguments = logits.unsqueeze(2), scale, target, None, logits.new_empty(len(logits)), ctx.ignore_index, 0.0
            return _Gradient.apply(*arguments).squeeze(2), *(None,) * 4
        if ctx.is_compiled:
            arguments = logits.unsqueeze(2), target, None, ctx.ignore_index, 0.0, scale, scale
            return kernels.loss_backward(*arguments).squeeze(2), *(None,) * 4
        found = torch.softmax(logits, 1).mul_(scale)
        return found.scatter_add_(1, target, scale.neg().expand(target.shape)), *(None,) * 4

    jvp = staticmethod(CrossEntropy.jvp)


def is_small(logits: Tensor) -> bool:
    """Whether `SmallCrossEntropy` takes these logits: (N, C) on a CPU, few, and laid out as the others would be."""
    return (
        logits.ndim == 2
        and logits.numel() <= SMALL
        and logits.dtype in (torch.float32, torch.float64)
        and (logits.shape[1] >= FEW_CLASSES or logits.numel() < FEW_LOGITS)
        and logits.is_contiguous()
        and kernels.choose(logits).name in ("reference", "compiled")
    )


class _Gradient(torch.autograd.Function):
    """A node of its own, so that a second derivative meets a clear sentence, and only if one is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        row_scale: Tensor,
        target: Tensor,
        weight: Tensor | None,
        row_lse: Tensor,
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        return kernels.loss_backward(logits, target, weight, ignore_index, label_smoothing, row_lse, row_scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "Expected the gradient of `cross_entropy` of lightning_lossacc to be differentiated no further, but got a "
            "second derivative; use torch.nn.functional.cross_entropy for this loss."
        )


def read(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    made_scale: Tensor | None,
    into: LossAccuracy | Tally | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pass over the logits; what cannot be counted for a listener costs the program nothing but time."""
    arguments = logits, target, weight, ignore_index, label_smoothing

    def run(*vectors: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        if made_scale is None:
            return *kernels.loss_forward(*arguments, *vectors), None
        return kernels.loss_with_gradient(*arguments, made_scale, *vectors)

    if into is None:
        return run()
    try:
        found = run(into.counts, into.sums, into.layout)
    except Exception as error:
        if not isinstance(into, Tally):
            raise
        into.error = error
        return run()
    if isinstance(into, Tally):
        into.filled = True
    return found


def by_item(logits: Tensor, target: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Views (I, C, R) and (I, R) of rows (N, C) and (N,) that are the tokens of I sequences, one after another."""
    return logits.unflatten(0, (items, -1)).transpose(1, 2), target.unflatten(0, (items, -1))


def unseen() -> contextlib.AbstractContextManager[Any]:
    """Hides what the loss computes from a selective checkpoint, which compares the operations of a pass in which rows
    are counted with those of one in which they are not. Other modes that follow operations see them.
    """
    if torch._C._len_torch_dispatch_stack() == 0:
        return contextlib.nullcontext()
    modes = _get_current_dispatch_mode_stack()
    is_selective = any(type(mode).__module__ == "torch.utils.checkpoint" for mode in modes)
    return _disable_current_modes() if is_selective else contextlib.nullcontext()


def _scalar(value: float | Tensor, logits: Tensor) -> Tensor:
    """() in the dtype of the loss of these logits, as what arrives has it; new, since a scaler's changes in place."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(dtype, copy=True)
    number = float(value)
    if abs(number) > torch.finfo(dtype).max:
        number = math.copysign(math.inf, number)
    return torch.full((), number, dtype=dtype, device=logits.device)


def _row_scale(grad: Tensor, mean_of: Tensor | None, logits: Tensor) -> Tensor:
    """Derivative by the row losses, new, in the dtype of the loss; two are equal if what arrived is."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # The gradient of a sum over rows is one number with stride 0, and kernels read numbers side by side.
    return (grad if mean_of is None else grad / mean_of).to(dtype).contiguous()


def _sum(rows: Tensor) -> Tensor:
    # A sum of float32 row losses would be the largest error of the mean; MPS knows no float64.
    return rows.sum(dtype=torch.float32 if rows.device.type == "mps" else torch.float64)


def is_of_functorch(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` holds this tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
