"""The door to the kernels: checks arguments once, brings them into one shape, and says which implementation runs.

Every operation takes `(logits, target, counts, sums, layout)`: tensors, never a metric. Today there is one
implementation, plain PyTorch on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lossacc.kernels import reference
from lightning_lossacc.sums import Layout


def row_statistics(preds: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> None:
    """Adds a batch to the two vectors of `layout`, in place; see `reference` for every formula.

    Args:
        preds: logits (N, C), (N, C, d1, ...), or for the binary task (N,), (N, 1), (N, 1, d1, ...); float16, bfloat16,
            float32 or float64; probabilities or log-probabilities where the layout says so.
        target: class indices (N,), (N, d1, ...) of any integer dtype; floats 0 and 1 for the binary task; one-hot
            floats of the shape of `preds` (a row that is not one-hot is counted as unsupported).
        counts: (layout.size_counts,) int64.
        sums: (layout.size_sums,) float64.

    Raises:
        ValueError: if shapes or class counts do not fit together.
        TypeError: if a dtype does not fit.
    """
    logits, index = canonical(preds, target, layout)
    reference.row_statistics(logits, index, counts, sums, layout)


def item_values(preds: Tensor, target: Tensor, layout: Layout) -> Tensor:
    """Per-item numbers for a probe, (I, 5 + 2 T) float64; arguments as in `row_statistics`."""
    logits, index = canonical(preds, target, layout)
    return reference.item_values(logits, index, layout)


def canonical(preds: Tensor, target: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Logits (I, C, R) and int64 target (I, R), detached, as views where the strides allow.

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
    return logits, index


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
    return logits, target.long().reshape(len(preds), rows_per_item)


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
    return preds.reshape(len(preds), 1, rows_per_item), target.long().reshape(len(preds), rows_per_item)
