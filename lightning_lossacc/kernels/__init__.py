"""The door to the kernels: checks arguments once, brings them into one shape, and says which implementation runs.

Every operation takes `(logits, target, counts, sums, layout)`: tensors, never a metric. On a CUDA device Triton reads
the logits once, on a CPU compiled code; everywhere else, and for float64, plain PyTorch gives the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_lossacc.kernels import compiled, compiled_loss, library, loss_reference, reference
from lightning_lossacc.kernels.backend import BACKENDS, Backend, Choice, choose, expect_backend
from lightning_lossacc.sums import Layout

__all__ = [
    "BACKENDS",
    "Backend",
    "Choice",
    "canonical",
    "choose",
    "expect_backend",
    "item_values",
    "loss_backward",
    "loss_forward",
    "loss_with_gradient",
    "precompile",
    "renew_gradient",
    "row_statistics",
]


def row_statistics(
    preds: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout, backend: Backend = "auto"
) -> None:
    """Adds a batch to the two vectors of `layout`, in place; see `reference` for every formula.

    Args:
        preds: logits (N, C), (N, C, d1, ...), or for the binary task (N,), (N, 1), (N, 1, d1, ...); float16, bfloat16,
            float32 or float64; probabilities or log-probabilities where the layout says so.
        target: class indices (N,), (N, d1, ...) of any integer dtype; floats 0 and 1 for the binary task; one-hot
            floats of the shape of `preds` (a row that is not one-hot is counted as unsupported).
        counts: (layout.size_counts,) int64.
        sums: (layout.size_sums,) float64.
        backend: see `choose`.

    Raises:
        ValueError: if shapes or class counts do not fit together, or the backend cannot run.
        TypeError: if a dtype does not fit.
        RuntimeError: within `torch.func` transforms, whose tensors cannot be counted.
    """
    if torch.compiler.is_compiling():
        library.row_statistics(preds.detach(), target.detach(), counts, sums, layout, backend)
        return
    _refuse_transforms(preds, target)
    chosen = choose(preds, layout, backend).name
    if chosen == "triton":
        from lightning_lossacc.kernels import launch

        if (
            preds.ndim == 2
            and target.ndim == 1
            and preds.shape == (len(target), layout.num_classes)
            and layout.task == "multiclass"
            and layout.input_kind == "logits"
            and not target.is_floating_point()
            and preds.device == target.device
        ):
            launch.row_statistics(preds, target, counts, sums, layout)
            return
        logits, index = canonical(preds, target, layout, wide_target=False)
        launch.statistics(logits, index, counts, sums, layout)
        return
    logits, index = canonical(preds, target, layout)
    (compiled.count if chosen == "compiled" else reference.count_rows)(logits, index, counts, sums, layout)


library.serve(row_statistics)


def loss_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    counts: Tensor | None = None,
    sums: Tensor | None = None,
    layout: Layout | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every row, filling the vectors of `layout` in the same pass if there is one.

    Args:
        counts, sums: (layout.size_counts,) int64 and (layout.size_sums,) float64; needed with `layout` only.
        layout: what is counted; its `ignore_index` is the loss's.

    The other arguments, and results, as in `loss_reference.loss_forward`.
    """
    arguments = logits, target, weight, ignore_index, label_smoothing
    if choose(logits, layout, backend).name == "triton":
        from lightning_lossacc.kernels import launch

        return launch.loss_rows(*arguments, counts, sums, layout)[:2]
    nll = _count_rows(logits, target, counts, sums, layout, backend)
    if choose(logits, None, backend).name == "compiled":
        return compiled_loss.loss_forward(*arguments)
    return loss_reference.loss_forward(*arguments, nll)


def loss_with_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_scale: Tensor,
    counts: Tensor | None = None,
    sums: Tensor | None = None,
    layout: Layout | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`loss_forward`, and the gradient of a total whose derivative by every row's loss is `row_scale`, () float.

    There is no gradient where it is better made in the backward pass: few rows that are split over programs, and
    devices where plain PyTorch runs and the host would have to wait in order to compare scales.
    """
    arguments = logits, target, weight, ignore_index, label_smoothing
    if choose(logits, layout, backend).name == "triton":
        from lightning_lossacc.kernels import launch

        return launch.loss_rows(*arguments, counts, sums, layout, row_scale)
    nll = _count_rows(logits, target, counts, sums, layout, backend)
    if logits.device.type != "cpu":
        return *loss_reference.loss_forward(*arguments, nll), None
    if choose(logits, None, backend).name == "compiled":
        return compiled_loss.loss_with_gradient(*arguments, row_scale)
    return loss_reference.loss_with_gradient(*arguments, row_scale, nll)


def _count_rows(
    logits: Tensor,
    target: Tensor,
    counts: Tensor | None,
    sums: Tensor | None,
    layout: Layout | None,
    backend: Backend,
) -> Tensor | None:
    """The NLL of every row where something is counted."""
    if layout is None:
        return None
    count = compiled if choose(logits, layout, backend).name == "compiled" else reference
    return count.count_rows(logits, target, counts, sums, layout)


def renew_gradient(
    gradient: Tensor,
    made_scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_lse: Tensor,
    row_scale: Tensor,
) -> None:
    """Makes the gradient of `loss_with_gradient` anew, in place, where `row_scale` is not its `made_scale`.

    From the logits: a half-precision gradient that was rounded, or lost, at another scale is not repaired by scaling.
    """
    arguments = logits, target, weight, ignore_index, label_smoothing, row_lse, row_scale
    if row_lse.ndim == 2:
        from lightning_lossacc.kernels import launch_gradient

        launch_gradient.loss_gradient(*arguments, gradient, made_scale)
    elif not torch.equal(row_scale, made_scale):
        loss = compiled_loss if choose(logits).name == "compiled" else loss_reference
        loss.loss_backward(*arguments, gradient)


def loss_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_lse: Tensor,
    row_scale: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Gradient of a total by the logits; arguments as in `loss_reference.loss_backward`."""
    # Two numbers a row come from Triton's forward pass; a layout may have ruled it out there and not here.
    if row_lse.ndim == 2 and choose(logits, None, backend).name == "triton":
        from lightning_lossacc.kernels import launch_gradient

        return launch_gradient.loss_gradient(logits, target, weight, ignore_index, label_smoothing, row_lse, row_scale)
    loss = compiled_loss if choose(logits, None, backend).name == "compiled" else loss_reference
    return loss.loss_backward(logits, target, weight, ignore_index, label_smoothing, row_lse, row_scale)


def precompile(layout: Layout, dtype: torch.dtype, device: torch.device | str, rows_per_item: int = 1) -> bool:
    """Compiles what contiguous batches of this kind need, so that no training step waits for it.

    Args:
        layout: what will be counted.
        dtype: of the logits.
        device: where they will be.
        rows_per_item: rows of an item, 1 for (N, C).

    Returns:
        Whether there was something to compile.
    """
    logits = torch.zeros(1, 1 if layout.task == "binary" else layout.num_classes, rows_per_item, dtype=dtype,
                         device=device)  # fmt: skip
    chosen = choose(logits, layout).name
    if chosen != "triton":
        return chosen == "compiled"
    counts, sums = layout.zeros(device)
    target = torch.zeros(1, rows_per_item, dtype=torch.int64, device=device)
    from lightning_lossacc.kernels import launch

    launch.precompile(logits, target, counts, sums, layout)
    return True


def item_values(preds: Tensor, target: Tensor, layout: Layout, backend: Backend = "auto") -> Tensor:
    """Per-item numbers for a probe, (I, 5 + 2 T) float64; arguments as in `row_statistics`."""
    logits, index = canonical(preds, target, layout)
    count = compiled if choose(logits, layout, backend).name == "compiled" else reference
    return count.item_values(logits, index, layout)


def canonical(preds: Tensor, target: Tensor, layout: Layout, wide_target: bool = True) -> tuple[Tensor, Tensor]:
    """Logits (I, C, R) and target (I, R), int64 if `wide_target`, detached, as views where the strides allow.

    Raises:
        ValueError, TypeError: see `row_statistics`.
    """
    if not preds.is_floating_point():
        raise TypeError(f"Expected `preds` to hold floating-point {layout.input_kind}, but got {preds.dtype}.")
    if preds.ndim == 0:
        raise ValueError("Expected `preds` to have a dimension of rows, but got a single number.")
    if preds.device != target.device:
        raise ValueError(
            f"Expected `preds` and `target` to be on the same device, but got {preds.device} and {target.device}."
        )
    preds, target = preds.detach(), target.detach()
    if layout.task == "binary":
        logits, index = _binary(preds, target)
    else:
        logits, index = _multiclass(preds, target, layout.num_classes)
    if layout.input_kind == "probabilities":
        logits = torch.logit(logits) if layout.task == "binary" else logits.log()
    elif layout.input_kind == "log_probabilities" and layout.task == "binary":
        logits = logits - torch.log(-torch.expm1(logits))
    return logits, index.long() if wide_target else index


def _refuse_transforms(preds: Tensor, target: Tensor) -> None:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if wrapped(preds) or wrapped(target):
        raise RuntimeError(
            "Expected plain tensors, but got those of a torch.func transform; count the logits outside of it."
        )
    for name, tensor in (("preds", preds), ("target", target)):
        # Sharded tensors, say, have no memory that a kernel could read.
        if type(tensor) is not Tensor and is_traceable_wrapper_subclass(tensor):
            raise TypeError(
                f"Expected `{name}` to be a plain tensor, but got {type(tensor).__name__}; use its local part."
            )


def _multiclass(preds: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    if preds.ndim < 2:
        raise ValueError(
            f"Expected `preds` to have shape (N, C, ...), but got {tuple(preds.shape)}; "
            "for one logit a row use task='binary'."
        )
    if preds.shape[1] != num_classes:
        raise ValueError(
            f"Expected `preds` to have {num_classes} classes in dimension 1, but got {preds.shape[1]} "
            f"(shape {tuple(preds.shape)})."
        )
    rows_shape = (preds.shape[0], *preds.shape[2:])
    if target.is_floating_point():
        if target.shape != preds.shape:
            raise ValueError(
                f"Expected `target` to hold class indices of shape {rows_shape}, or one-hot rows of shape "
                f"{tuple(preds.shape)}, but got {target.dtype} of shape {tuple(target.shape)}."
            )
        largest, index = target.max(dim=1)
        single = (largest == 1) & (target.abs().sum(dim=1) == 1)
        target = torch.where(single, index, reference.UNSUPPORTED_TARGET)
    elif target.shape != rows_shape:
        raise ValueError(
            f"Expected `target` to have shape {rows_shape} for `preds` of shape {tuple(preds.shape)}, "
            f"but got {tuple(target.shape)}."
        )
    rows_per_item = math.prod(rows_shape[1:])
    logits = preds.reshape(len(preds), num_classes, rows_per_item)
    return logits, target.reshape(len(preds), rows_per_item)


def _binary(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if preds.ndim > 1 and preds.shape[1] != 1:
        raise ValueError(
            f"Expected `preds` to have shape (N,), (N, 1) or (N, 1, ...) for the binary task, but got "
            f"{tuple(preds.shape)}; several columns are several questions, which are not supported."
        )
    squeezed = (preds.shape[0], *preds.shape[2:])
    if target.shape not in (preds.shape, squeezed):
        raise ValueError(
            f"Expected `target` to have the shape of `preds`, {tuple(preds.shape)}, or {squeezed}, "
            f"but got {tuple(target.shape)}."
        )
    if target.is_floating_point():
        single = (target == 0) | (target == 1)
        whole = target == target.round()
        index = torch.where(whole & torch.isfinite(target), target, 0).long()
        # A fraction is a soft label; another whole number may be `ignore_index`, else it is an invalid class.
        target = torch.where(single | whole, index, reference.UNSUPPORTED_TARGET)
    rows_per_item = math.prod(squeezed[1:])
    return preds.reshape(len(preds), 1, rows_per_item), target.reshape(len(preds), rows_per_item)
