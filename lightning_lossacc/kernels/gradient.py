"""Triton: the gradient of the cross-entropy from the logits and each row's log-sum-exp.

Made in the backward pass by kernels of its own; or in the forward pass, where the kernels that have just read a row
walk it once more, and then in the backward pass only where another scale arrives than was foreseen, which nobody but
the device knows.

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
    value, hit, top, log_total, scale, own_weight, all_weights, class_weight, smoothing, smoothing_weight,
    SMOOTH: tl.constexpr,
):  # fmt: skip
    """Gradient of one class of one row, which is the target's where `hit` is 1 and not 0; everything broadcasts."""
    probability = tl.exp2(log2_difference(value, top) - log_total)
    result = own_weight * (probability - hit)
    if SMOOTH:
        result = (1.0 - smoothing) * result + smoothing_weight * (all_weights * probability - class_weight)
    return scale * result


@triton.jit
def write_row(
    start, into, weight, truth, considered, ignored, top, log_total, scale, smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """A whole row that has just been read, from its end, which is what a cache still has of a long one."""
    WHOLE: tl.constexpr = C // BLOCK
    if considered:
        if WHOLE * BLOCK < C:
            write_block(
                start, into, WHOLE * BLOCK, weight, truth, top, log_total, scale, smoothing, smoothing_weight,
                C, BLOCK, True, False, WEIGHTED, SMOOTH,
            )  # fmt: skip
        for turn in range(WHOLE):
            write_block(
                start, into, (WHOLE - 1 - turn) * BLOCK, weight, truth, top, log_total, scale, smoothing,
                smoothing_weight, C, BLOCK, False, False, WEIGHTED, SMOOTH,
            )  # fmt: skip
        # The target's entry once more: to look for it in every block costs instructions and registers.
        tl.debug_barrier()
        own_weight, all_weights, class_weight = 1.0, C * 1.0, 1.0
        if WEIGHTED:
            own_weight, all_weights = tl.load(weight + truth), tl.load(weight + C)
            class_weight = own_weight
        own = slope(
            tl.load(start + truth).to(tl.float32), 1.0, top, log_total, scale, own_weight, all_weights, class_weight,
            smoothing, smoothing_weight, SMOOTH,
        )  # fmt: skip
        tl.store(into + truth, own.to(into.dtype.element_ty))
    else:
        for begin in range(0, C, BLOCK):
            fill_block(into, begin, ignored, C, BLOCK)


@triton.jit
def write_block(
    start, into, begin, weight, truth, top, log_total, scale, smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, TARGET: tl.constexpr, WEIGHTED: tl.constexpr,
    SMOOTH: tl.constexpr,
):  # fmt: skip
    """Classes of one row from `begin` on; the target's as those of the others unless `TARGET`."""
    place = begin + tl.arange(0, BLOCK)
    if MASKED:
        value = tl.load(start + place, mask=place < C, other=float("-inf")).to(tl.float32)
    else:
        value = tl.load(start + place).to(tl.float32)
    own_weight, all_weights, class_weight = 1.0, C * 1.0, 1.0
    if WEIGHTED:
        own_weight = tl.load(weight + truth)
        if SMOOTH:
            all_weights = tl.load(weight + C)
            class_weight = tl.load(weight + place, mask=place < C, other=0.0)
    hit = tl.where(place == truth, 1.0, 0.0) if TARGET else 0.0
    found = slope(
        value, hit, top, log_total, scale, own_weight, all_weights, class_weight, smoothing, smoothing_weight, SMOOTH
    )  # fmt: skip
    store_block(into, place, found, C, MASKED)


@triton.jit
def fill_block(into, begin, ignored, C: tl.constexpr, BLOCK: tl.constexpr):
    """0 where a row is ignored, NaN where its target is no class."""
    found = tl.zeros([BLOCK], tl.float32) + tl.where(ignored, 0.0, float("nan"))
    store_block(into, begin + tl.arange(0, BLOCK), found, C, C % BLOCK != 0)


@triton.jit
def store_block(into, place, found, C: tl.constexpr, MASKED: tl.constexpr):
    """Rounds once."""
    if MASKED:
        tl.store(into + place, found.to(into.dtype.element_ty), mask=place < C)
    else:
        tl.store(into + place, found.to(into.dtype.element_ty))


@triton.jit
def write_unit(
    unit, logits, target, weight, row_lse, row_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, target_item_stride, target_row_stride, item_step, row_step,
    ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, HAS_IGNORE: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, SHARED_SCALE: tl.constexpr,
):  # fmt: skip
    """One block of one row of a batch."""
    row = unit // PARTS
    item = (row // rows_per_item).to(tl.int64)
    within = (row % rows_per_item).to(tl.int64)
    label = tl.load(target + item * target_item_stride + within * target_row_stride).to(tl.int64)
    considered, ignored, _, _ = sort_target(label, C, ignore_index, HAS_IGNORE)
    into = gradient + tl.multiple_of(item * item_step + within * row_step, ALIGNED)
    begin = (unit % PARTS) * BLOCK
    if considered:
        write_block(
            logits + tl.multiple_of(item * item_stride + within * row_stride, ALIGNED), into, begin, weight,
            label.to(tl.int32), tl.load(row_lse + row), tl.load(row_lse + num_rows + row),
            tl.load(row_scale if SHARED_SCALE else row_scale + row), smoothing, smoothing_weight,
            C, BLOCK, C % BLOCK != 0, True, WEIGHTED, SMOOTH,
        )  # fmt: skip
    else:
        fill_block(into, begin, ignored, C, BLOCK)


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def row_gradient(
    logits, target, weight, row_lse, row_scale, made_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, target_item_stride, target_row_stride, item_step, row_step,
    ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, PARTS: tl.constexpr, HAS_IGNORE: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, SHARED_SCALE: tl.constexpr, RENEW: tl.constexpr,
):  # fmt: skip
    """One block of one row; classes lie side by side; `item_step` and `row_step` are the gradient's strides.

    With `RENEW` all blocks, by few programs, and none where `gradient` was made for the scale that has arrived.
    """
    if RENEW:
        if tl.load(row_scale) != tl.load(made_scale):
            for unit in range(tl.program_id(0), num_rows * PARTS, tl.num_programs(0)):
                write_unit(
                    unit, logits, target, weight, row_lse, row_scale, gradient, num_rows, rows_per_item, item_stride,
                    row_stride, target_item_stride, target_row_stride, item_step, row_step, ignore_index, smoothing,
                    smoothing_weight, C, BLOCK, ALIGNED, PARTS, HAS_IGNORE, WEIGHTED, SMOOTH, SHARED_SCALE,
                )  # fmt: skip
    else:
        write_unit(
            tl.program_id(0), logits, target, weight, row_lse, row_scale, gradient, num_rows, rows_per_item,
            item_stride, row_stride, target_item_stride, target_row_stride, item_step, row_step, ignore_index,
            smoothing, smoothing_weight, C, BLOCK, ALIGNED, PARTS, HAS_IGNORE, WEIGHTED, SMOOTH, SHARED_SCALE,
        )  # fmt: skip


@triton.jit
def write_lanes(
    start, class_stride, kept, into, class_step, weight, truth, considered, ignored, inside, top, log_total, scale,
    smoothing, smoothing_weight, C: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """All classes of a tile of rows, from `start`, or from registers if they are `KEPT`, into `into`."""
    own_weight, all_weights = 1.0, C * 1.0
    if WEIGHTED:
        own_weight = tl.load(weight + truth)
        all_weights = tl.load(weight + C)
    excluded = tl.where(ignored, 0.0, float("nan"))
    if KEPT:
        for place in tl.static_range(C):
            class_weight = tl.load(weight + place) if WEIGHTED and SMOOTH else 1.0
            found = slope(
                kept[place], tl.where(place == truth, 1.0, 0.0), top, log_total, scale, own_weight, all_weights,
                class_weight, smoothing, smoothing_weight, SMOOTH,
            )  # fmt: skip
            tl.store(into, tl.where(considered, found, excluded).to(into.dtype.element_ty), mask=inside)
            into += class_step
    else:
        for place in range(C):
            value = tl.load(start, mask=considered, other=0.0).to(tl.float32)
            class_weight = tl.load(weight + place) if WEIGHTED and SMOOTH else 1.0
            found = slope(
                value, tl.where(place == truth, 1.0, 0.0), top, log_total, scale, own_weight, all_weights, class_weight,
                smoothing, smoothing_weight, SMOOTH,
            )  # fmt: skip
            tl.store(into, tl.where(considered, found, excluded).to(into.dtype.element_ty), mask=inside)
            start += class_stride
            into += class_step


@triton.jit
def write_tile(
    tile, logits, target, weight, row_lse, row_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, class_stride, target_item_stride, target_row_stride,
    item_step, row_step, class_step, ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, ROWS: tl.constexpr, HAS_IGNORE: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
):  # fmt: skip
    """One tile of the rows of a batch."""
    row = tl.full([], ROWS, tl.int64) * tile + tl.arange(0, ROWS)
    inside = row < num_rows
    item = row // rows_per_item
    within = row % rows_per_item
    label = tl.load(target + item * target_item_stride + within * target_row_stride, mask=inside, other=0).to(tl.int64)
    considered, ignored, _, _ = sort_target(label, C, ignore_index, HAS_IGNORE)
    considered = considered & inside
    top = tl.load(row_lse + row, mask=considered, other=0.0)
    log_total = tl.load(row_lse + num_rows + row, mask=considered, other=0.0)
    if SHARED_SCALE:
        scale = tl.load(row_scale)
    else:
        scale = tl.load(row_scale + row, mask=considered, other=0.0)
    write_lanes(
        logits + item * item_stride + within * row_stride, class_stride, (),
        gradient + item * item_step + within * row_step, class_step, weight,
        tl.where(considered, label, 0).to(tl.int32), considered, ignored, inside, top, log_total, scale,
        smoothing, smoothing_weight, C, WEIGHTED, SMOOTH, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def lane_gradient(
    logits, target, weight, row_lse, row_scale, made_scale, gradient,
    num_rows, rows_per_item, item_stride, row_stride, class_stride, target_item_stride, target_row_stride,
    item_step, row_step, class_step, ignore_index, smoothing, smoothing_weight,
    C: tl.constexpr, ROWS: tl.constexpr, HAS_IGNORE: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr,
    SHARED_SCALE: tl.constexpr, RENEW: tl.constexpr,
):  # fmt: skip
    """All classes of a tile of rows; `item_step`, `row_step` and `class_step` are the gradient's strides.

    With `RENEW` as in `row_gradient`.
    """
    if RENEW:
        if tl.load(row_scale) != tl.load(made_scale):
            for tile in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
                write_tile(
                    tile, logits, target, weight, row_lse, row_scale, gradient, num_rows, rows_per_item, item_stride,
                    row_stride, class_stride, target_item_stride, target_row_stride, item_step, row_step, class_step,
                    ignore_index, smoothing, smoothing_weight, C, ROWS, HAS_IGNORE, WEIGHTED, SMOOTH, SHARED_SCALE,
                )  # fmt: skip
    else:
        write_tile(
            tl.program_id(0), logits, target, weight, row_lse, row_scale, gradient, num_rows, rows_per_item,
            item_stride, row_stride, class_stride, target_item_stride, target_row_stride, item_step, row_step,
            class_step, ignore_index, smoothing, smoothing_weight, C, ROWS, HAS_IGNORE, WEIGHTED, SMOOTH, SHARED_SCALE,
        )  # fmt: skip
