"""Triton: the gradient of the cross-entropy from the logits and each row's log-sum-exp.

With p = softmax(z), label smoothing e, weights w (1 without), W = sum w, g the row's incoming gradient:

    d loss / d z_c = g ((1 - e) w_y (p_c - [c = y]) + e / C (W p_c - w_c))

The softmax is computed again rather than kept, so that the gradient is scaled once and in float32 whatever the dtype of
the logits, and nothing but itself is written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_lossacc.kernels.tally import log2_difference, sort_target


@triton.jit
def slope(
    value, place, truth, top, log_total, scale, own_weight, all_weights, class_weight, smoothing, smoothing_weight,
    SMOOTH: tl.constexpr,
):  # fmt: skip
    """Gradient of one class of one row; everything broadcasts."""
    probability = tl.exp2(log2_difference(value, top) - log_total)
    hit = tl.where(place == truth, 1.0, 0.0)
    result = own_weight * (probability - hit)
    if SMOOTH:
        result = (1.0 - smoothing) * result + smoothing_weight * (all_weights * probability - class_weight)
    return scale * result


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def row_gradient(
    logits, target, weight, row_lse, row_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, target_item_stride, target_row_stride, item_step, row_step,
    ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, HAS_IGNORE: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, SHARED_SCALE: tl.constexpr,
):  # fmt: skip
    """One block of one row; classes lie side by side; `item_step` and `row_step` are the gradient's strides."""
    row = tl.program_id(0) // PARTS
    item = (row // rows_per_item).to(tl.int64)
    within = (row % rows_per_item).to(tl.int64)
    label = tl.load(target + item * target_item_stride + within * target_row_stride).to(tl.int64)
    considered, ignored, _, _ = sort_target(label, C, ignore_index, HAS_IGNORE)
    offset = tl.multiple_of(item * item_stride + within * row_stride, ALIGNED)
    place = (tl.program_id(0) % PARTS) * BLOCK + tl.arange(0, BLOCK)
    inside = place < C
    if considered:
        scale = tl.load(row_scale if SHARED_SCALE else row_scale + row)
        value = tl.load(logits + offset + place, mask=inside, other=float("-inf")).to(tl.float32)
        truth = label.to(tl.int32)
        own_weight, all_weights, class_weight = 1.0, C * 1.0, 1.0
        if WEIGHTED:
            own_weight = tl.load(weight + truth)
            if SMOOTH:
                all_weights = tl.load(weight + C)
                class_weight = tl.load(weight + place, mask=inside, other=0.0)
        found = slope(
            value, place, truth, tl.load(row_lse + row), tl.load(row_lse + num_rows + row), scale, own_weight,
            all_weights, class_weight, smoothing, smoothing_weight, SMOOTH,
        )  # fmt: skip
    else:
        found = tl.zeros([BLOCK], tl.float32) + tl.where(ignored, 0.0, float("nan"))
    into = gradient + tl.multiple_of(item * item_step + within * row_step, ALIGNED)
    tl.store(into + place, found.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def lane_gradient(
    logits, target, weight, row_lse, row_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, class_stride, target_item_stride, target_row_stride,
    item_step, row_step, class_step, ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, ROWS: tl.constexpr, HAS_IGNORE: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
):  # fmt: skip
    """All classes of a tile of rows; `item_step`, `row_step` and `class_step` are the gradient's strides."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    item = row // rows_per_item
    within = row % rows_per_item
    label = tl.load(target + item * target_item_stride + within * target_row_stride, mask=inside, other=0).to(tl.int64)
    considered, ignored, _, _ = sort_target(label, C, ignore_index, HAS_IGNORE)
    considered = considered & inside
    truth = tl.where(considered, label, 0).to(tl.int32)
    start = logits + item * item_stride + within * row_stride
    into = gradient + item * item_step + within * row_step
    top = tl.load(row_lse + row, mask=considered, other=0.0)
    log_total = tl.load(row_lse + num_rows + row, mask=considered, other=0.0)
    if SHARED_SCALE:
        scale = tl.load(row_scale)
    else:
        scale = tl.load(row_scale + row, mask=considered, other=0.0)
    own_weight, all_weights, class_weight = 1.0, C * 1.0, 1.0
    if WEIGHTED:
        own_weight = tl.load(weight + truth)
        all_weights = tl.load(weight + C)
    excluded = tl.where(ignored, 0.0, float("nan"))
    for place in range(C):
        value = tl.load(start, mask=considered, other=0.0).to(tl.float32)
        if WEIGHTED and SMOOTH:
            class_weight = tl.load(weight + place)
        found = slope(
            value, place, truth, top, log_total, scale, own_weight, all_weights, class_weight, smoothing,
            smoothing_weight, SMOOTH,
        )  # fmt: skip
        found = tl.where(considered, found, excluded)
        tl.store(into, found.to(gradient.dtype.element_ty), mask=inside)
        start += class_stride
        into += class_step
