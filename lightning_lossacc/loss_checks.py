"""Do the arguments of a cross-entropy fit together? Exceptions are of the types that PyTorch's own function raises."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lightning_lossacc.metrics import LossAccuracy

REDUCTIONS = ("mean", "sum", "none")
GRADIENTS = ("backward", "forward")


def is_index(target: Tensor) -> bool:
    return not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)


def check_options(
    logits: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any, label_smoothing: Any
) -> None:
    for name, value in (("logits", logits), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"Expected `{name}` to be a tensor, but got {type(value).__name__}.")
    if isinstance(ignore_index, bool) or not hasattr(ignore_index, "__index__"):
        raise TypeError(
            f"Expected `ignore_index` to be an integer, but got {ignore_index!r}; unlike PyTorch's function "
            "this one has no `size_average` and `reduce`."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"Expected `reduction` to be one of {', '.join(REDUCTIONS)}, but got {reduction!r}.")
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"Expected `label_smoothing` to be between 0 and 1, but got {label_smoothing!r}.")
    if not logits.is_floating_point():
        raise NotImplementedError(f"Expected `logits` to hold floating-point numbers, but got {logits.dtype}.")


def check_gradient(gradient: Any, expected_scale: Any, reduction: str, device: torch.device | None = None) -> None:
    if gradient not in GRADIENTS:
        raise ValueError(f"Expected `gradient` to be one of {', '.join(GRADIENTS)}, but got {gradient!r}.")
    if gradient == "backward":
        return
    if reduction == "none":
        raise ValueError(
            "Expected `reduction` to be 'mean' or 'sum' with `gradient='forward'`, but got 'none'; what arrives at the "
            "losses of single rows is known in the backward pass alone."
        )
    if isinstance(expected_scale, Tensor):
        if expected_scale.numel() != 1 or device not in (None, expected_scale.device):
            raise ValueError(
                f"Expected `expected_scale` to be a number or a tensor of one on the device of `logits`, {device}, but "
                f"got shape {tuple(expected_scale.shape)} on {expected_scale.device}."
            )
    elif isinstance(expected_scale, bool) or not isinstance(expected_scale, Real):
        raise TypeError(f"Expected `expected_scale` to be a number or a tensor, but got {expected_scale!r}.")


def check_shapes(logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    shape, num_classes = tuple(logits.shape), logits.shape[0 if logits.ndim == 1 else 1]

    def found() -> str:  # written only if it is read
        return f"but got {tuple(target.shape)} for `logits` of shape {shape}"

    if logits.ndim == 1:
        if target.numel() != 1 or target.ndim > 1:
            raise ValueError(f"Expected `target` to hold one class index, {found()}.")
    elif target.ndim == 0 or len(target) != len(logits):
        raise ValueError(f"Expected `target` to have the batch size of `logits`, {found()}.")
    elif target.shape != (shape[0], *shape[2:]):
        raise RuntimeError(f"Expected `target` to have shape {(shape[0], *shape[2:])} or {shape}, {found()}.")
    if not is_index(target):
        raise RuntimeError(
            f"Expected `target` to hold class indices of an integer dtype, but got {target.dtype}; class probabilities "
            f"have the shape of `logits`, {shape}."
        )
    if weight is not None:
        if weight.shape != (num_classes,):
            raise RuntimeError(
                f"Expected `weight` to hold one number for each of {num_classes} classes, but got shape "
                f"{tuple(weight.shape)}."
            )
        half = logits.element_size() < 4
        if weight.dtype != logits.dtype and not (half and weight.dtype == torch.float32):
            also = " or torch.float32" if half else ""
            raise RuntimeError(f"Expected `weight` to have dtype {logits.dtype}{also}, but got {weight.dtype}.")
        if weight.requires_grad:
            raise RuntimeError(
                "Expected `weight` without a gradient, but got requires_grad=True; the loss has no derivative by it."
            )
    if logits.device != target.device or (weight is not None and logits.device != weight.device):
        devices = {tensor.device for tensor in (logits, target, weight) if tensor is not None}
        raise RuntimeError(
            "Expected `logits`, `target` and `weight` to be on the same device, but got "
            f"{', '.join(sorted(map(str, devices)))}."
        )


def check_range(index: Tensor, ignore_index: int, num_classes: int) -> bool:
    """Whether every target is a class that counts. Two extremes decide it for most batches."""
    if index.numel() == 0:
        return False
    low, high = (int(extreme) for extreme in index.aminmax())
    if low >= 0 and high < num_classes:
        return not low <= ignore_index <= high
    outside = index[((index < 0) | (index >= num_classes)) & (index != ignore_index)]
    if outside.numel():
        raise IndexError(
            f"Expected `target` to be within 0 ... {num_classes - 1} or `ignore_index`={ignore_index}, but got "
            f"{int(outside.flatten()[0])}."
        )
    return False


def check_metric(stats: Any) -> None:
    if stats is not None and not isinstance(stats, LossAccuracy):
        raise TypeError(
            "Expected `stats` to be a LossAccuracy or a single quantity of it, such as MeanNLL, but got "
            f"{type(stats).__name__}."
        )


def check_stats(stats: Any, logits: Tensor, ignore_index: int) -> None:
    check_metric(stats)
    layout = stats.layout
    if layout.task != "multiclass":
        raise ValueError(f"Expected `stats` to have task='multiclass', as the loss has, but got {layout.task!r}.")
    if layout.input_kind == "probabilities":
        raise ValueError("Expected `stats` to have input_kind='logits', as the loss has, but got 'probabilities'.")
    num_classes = logits.shape[0 if logits.ndim == 1 else 1] if logits.ndim else 1
    if layout.num_classes != num_classes:
        raise ValueError(
            f"Expected `stats` to have num_classes={num_classes}, as the logits have, but got {layout.num_classes}."
        )
    if layout.ignore_index != operator.index(ignore_index):
        raise ValueError(
            f"Expected `stats` to have the loss's ignore_index={ignore_index}, but got {layout.ignore_index}."
        )
    if stats.counts.device != logits.device:
        raise ValueError(
            f"Expected `stats` to be on the device of `logits`, {logits.device}, but got {stats.counts.device}; "
            "move it with `stats.to(...)`."
        )
