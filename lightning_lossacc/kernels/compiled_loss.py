"""The cross-entropy and its gradient on a CPU, by code that is compiled for its processor.

`cross_entropy.cpp` gives the numbers of `loss_reference`, whose functions these are.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from lightning_lossacc.kernels import native


class _Loss(ctypes.Structure):
    """`Loss` of cross_entropy.cpp."""

    _fields_ = (
        ("source", native.Source),
        ("ignore_index", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("smoothing", ctypes.c_double),
        ("row_scale", ctypes.c_void_p),
        ("scale_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("row_loss", "row_lse", "gradient")),
        *((name, ctypes.c_int64) for name in ("item_stride", "class_stride", "row_stride")),
    )


def obstacle(dtype: torch.dtype) -> str:
    """Why nothing is compiled for such logits, or ''; compiles what they need. A failure is told once."""
    return native.load("cross_entropy.cpp").obstacle if dtype in native.DTYPES else f"{dtype} is left to PyTorch"


def loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """As `loss_reference.loss_forward`."""
    loss, lse = logits.new_empty((2, target.numel()), dtype=torch.float32)
    _compute(logits, target, weight, ignore_index, label_smoothing, loss=loss, lse=lse)
    return loss, lse


def loss_with_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `loss_reference.loss_with_gradient`."""
    loss, lse = logits.new_empty((2, target.numel()), dtype=torch.float32)
    grad = torch.empty_like(logits)
    _compute(logits, target, weight, ignore_index, label_smoothing, row_scale, loss, lse, grad)
    return loss, lse, grad


def loss_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_lse: Tensor,
    row_scale: Tensor,
    grad: Tensor | None = None,
) -> Tensor:
    """As `loss_reference.loss_backward`."""
    del row_lse
    grad = torch.empty_like(logits) if grad is None else grad
    _compute(logits, target, weight, ignore_index, label_smoothing, row_scale, grad=grad)
    return grad


def _compute(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_scale: Tensor | None = None,
    loss: Tensor | None = None,
    lse: Tensor | None = None,
    grad: Tensor | None = None,
) -> None:
    # Kept by name until the call returns, since the structure holds addresses alone.
    logits, target = logits.resolve_neg(), native.side_by_side(target)
    weight = None if weight is None else native.side_by_side(weight.to(torch.float32))
    row_scale = None if row_scale is None else native.side_by_side(row_scale.to(torch.float32))
    work = _Loss(
        native.source(logits, target),
        ignore_index,
        _address(weight),
        label_smoothing,
        _address(row_scale),
        0 if row_scale is None or row_scale.numel() == 1 else 1,
        _address(loss),
        _address(lse),
        _address(grad),
        *(logits if grad is None else grad).stride(),
    )
    _function()(ctypes.byref(work))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _function() -> Any:
    function = native.load("cross_entropy.cpp").library.lossacc_cross_entropy
    function.argtypes, function.restype = (ctypes.POINTER(_Loss),), None
    return function
