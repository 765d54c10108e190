"""From tensors to launches of the gradient's own kernels: in the backward pass, all of it or only if it must be."""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor

from lightning_lossacc.kernels.gradient import lane_gradient, row_gradient
from lightning_lossacc.kernels.launch import FEW_CLASSES, options, with_sum
from lightning_lossacc.kernels.occupancy import aligned, row_programs

ROW_BLOCK = 4096
TILE_ROWS = 128
WARPS = 4


def loss_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_lse: Tensor,
    row_scale: Tensor,
    gradient: Tensor | None = None,
    made_scale: Tensor | None = None,
) -> Tensor:
    """Gradient of the cross-entropy by the logits, of their shape and dtype; see `gradient`.

    Args:
        logits, target, weight, ignore_index, label_smoothing: as in `launch.loss_rows`.
        row_lse: (2, I * R) float32, from `launch.loss_rows`.
        row_scale: incoming gradient of each row's loss, (I * R,) float32, or one for all rows, ().
        gradient, made_scale: from `launch.loss_rows`, and the `row_scale` that was given there: then it is made anew in
            place if it was made for another scale, and the host does not learn whether.
    """
    gradient = torch.empty_like(logits) if gradient is None else gradient
    items, num_classes, rows_per_item = logits.shape
    num_rows = items * rows_per_item
    if gradient.numel() == 0:
        return gradient
    weights = logits if weight is None else with_sum(weight)
    row_scale = row_scale.float().contiguous()
    tensors = (
        logits, target, weights, row_lse, row_scale, row_scale if made_scale is None else made_scale, gradient
    )  # fmt: skip
    item_stride, class_stride, row_stride = logits.stride()
    numbers = (ignore_index, float(label_smoothing), float(label_smoothing) / num_classes)
    renew = made_scale is not None
    shared = dict(
        C=num_classes, HAS_IGNORE=True, WEIGHTED=weight is not None, SMOOTH=label_smoothing > 0,
        SHARED_SCALE=row_scale.ndim == 0, RENEW=renew, num_warps=WARPS, **options(),
    )  # fmt: skip
    # Programs that mostly find nothing to do should be few.
    most = row_programs(logits.device, WARPS) if renew else num_rows * num_classes
    with torch.cuda.device(logits.device) if logits.device.type == "cuda" else contextlib.nullcontext():
        item_step, class_step, row_step = gradient.stride()
        if num_classes > FEW_CLASSES and class_stride == 1 and class_step == 1:
            block = min(ROW_BLOCK, triton.next_power_of_2(num_classes))
            parts = -(-num_classes // block)
            row_gradient[(min(num_rows * parts, most),)](
                *tensors, num_rows, rows_per_item, item_stride, row_stride, *target.stride(), item_step,
                row_step, *numbers, BLOCK=block, PARTS=parts, **shared,
                ALIGNED=aligned(item_stride, row_stride, item_step, row_step, element_size=logits.element_size()),
            )  # fmt: skip
        else:
            lane_gradient[(min(-(-num_rows // TILE_ROWS), most),)](
                *tensors, num_rows, rows_per_item, item_stride, row_stride, class_stride, *target.stride(),
                item_step, row_step, class_step, *numbers, ROWS=TILE_ROWS, **shared,
            )  # fmt: skip
    return gradient
