"""From tensors to launches: which kernel, how many programs, and no more than one copy."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lightning_lossacc.kernels.lanewise import item_kernel, lane_kernel
from lightning_lossacc.kernels.occupancy import SPLIT, aligned, is_split, remember, row_programs, row_shape, row_split
from lightning_lossacc.kernels.plan import plan_of
from lightning_lossacc.kernels.rowwise import row_kernel
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import Layout

# Up to this many classes a row is a lane's, and its logits stay in registers.
FEW_CLASSES = 32
# From this many rows of an item on, tiles end with their item.
LONG_ITEM = 64
LANE_ROWS = 64
LANE_WARPS = 1
ITEMS_AT_ONCE = 256
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What a launch without statistics, or without a loss, leaves unused.
NO_LAYOUT = Layout(num_classes=2, temperatures=(), per_class=False)


def statistics(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> None:
    """Adds a batch to the two vectors of `layout`, in place, without a host synchronisation.

    Args:
        logits: (I, C, R) float16, bfloat16 or float32 with any strides; (I, 1, R) for the binary task.
        target: (I, R) of any integer dtype, with any strides.
        counts, sums: as in `reference.row_statistics`.
    """
    _launch(logits, target, counts, sums, layout, None, -100, 0.0, False)


def precompile(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> None:
    """Compiles every kernel that batches like this one may need, of many rows and of few; arguments as `statistics`."""
    if layout.task == "multiclass" and logits.shape[2] == 1:
        row_statistics(logits[:, :, 0], target[:, 0], counts, sums, layout)
    block = row_shape(layout.num_classes, logits.element_size())[1]
    for split in (1, SPLIT) if is_split(layout.num_classes, block) else (1,):
        _launch(logits, target, counts, sums, layout, None, -100, 0.0, False, split)


class Recipe(NamedTuple):
    """All of a launch for (N, C) logits that does not depend on the rows."""

    kernel: Any
    constants: dict[str, Any]
    edges: Tensor
    ignore_index: int
    block: int  # of the row kernel; 0 for the lane kernel


_RECIPES: dict[tuple[Any, ...], Recipe] = {}


def row_statistics(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> None:
    """`statistics` for logits (N, C) and integer targets (N,), where the host's time is the cost: no view is made.

    Arguments otherwise as in `statistics`; the layout is of the multiclass task and of logits.
    """
    num_rows, num_classes = logits.shape
    item_stride, class_stride = logits.stride()
    device = logits.device
    # Strides of a single row may be anything, and the kernels are specialised by them.
    step = item_stride if num_rows > 1 else num_classes
    key = (layout.fingerprint, logits.dtype, device, class_stride == 1, step % 16)
    recipe = _RECIPES.get(key)
    if recipe is None:
        recipe = _RECIPES[key] = _recipe(logits, layout, step)
    few = recipe.block and row_split(num_rows, num_classes, recipe.block, device) > 1
    if num_rows == 0 or few or (device.type == "cuda" and device.index != torch.cuda.current_device()):
        statistics(logits.unsqueeze(2), target.unsqueeze(1), counts, sums, layout)
        return
    tensors = (logits, target, counts, sums, recipe.edges, sums, logits, logits, logits)
    tail = (target.stride(0) if num_rows > 1 else 1, 0, recipe.ignore_index, 0.0, 0.0)
    if recipe.block:
        programs = row_programs(device, recipe.constants["num_warps"], key)
        compiled = recipe.kernel[(min(num_rows, programs),)](
            *tensors, logits, logits, num_rows, 1, step, 0, *tail, **recipe.constants
        )
        remember(device, key, compiled, recipe.constants["num_warps"])
    else:
        recipe.kernel[(-(-num_rows // LANE_ROWS),)](
            *tensors, num_rows, 1, step, 0, class_stride, *tail, **recipe.constants
        )


def _recipe(logits: Tensor, layout: Layout, step: int) -> Recipe:
    num_classes = logits.shape[1]
    ignore_index = layout.ignore_index
    shared = constants(layout, ignore_index is not None, False, False, False, num_classes) | {"BY_ITEM": False}
    by_row = num_classes > FEW_CLASSES and logits.stride(1) == 1
    if by_row:
        block = row_shape(num_classes, logits.element_size())[1]
        whole = _row_constants(num_classes, logits.element_size(), 1, step)
        kernel = row_kernel
    else:
        block = 0
        whole = _lane_constants(num_classes, False, False)
        kernel = lane_kernel
    ignore = 0 if ignore_index is None else ignore_index
    return Recipe(kernel, shared | whole | options(), _edges(logits.device), ignore, block)


def _row_constants(num_classes: int, element_size: int, split: int, *strides: int) -> dict[str, Any]:
    num_warps, block, vector = row_shape(num_classes, element_size)
    chunk = triton.cdiv(triton.cdiv(num_classes, block), split) * block
    return {"BLOCK": block, "CHUNK": chunk, "SPLIT": split, "LANES": 32 * num_warps, "VEC": vector,
            "ALIGNED": aligned(*strides, element_size=element_size),
            "num_warps": num_warps}  # fmt: skip


def _lane_constants(num_classes: int, binary: bool, one_item: bool) -> dict[str, Any]:
    return {"ROWS": LANE_ROWS, "BINARY": binary, "KEEP": num_classes <= FEW_CLASSES, "ONE_ITEM": one_item,
            "num_warps": LANE_WARPS}  # fmt: skip


def loss_rows(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    counts: Tensor | None,
    sums: Tensor | None,
    layout: Layout | None,
    row_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss of every row, (I * R,) float32, its log-sum-exp in two parts, (2, I * R), and the gradient.

    With a `layout` its vectors are filled as well. See `rowwise.row_kernel`.

    Args:
        logits, target, counts, sums: as in `statistics`.
        weight: (C,) of a float dtype, or None.
        ignore_index: rows with this target have loss 0.
        label_smoothing: e in [0, 1].
        row_scale: what the gradient of every row is scaled by, () float32; None for no gradient. Rows that are split
            over programs get none either, since no program knows the whole of one before it has read its part.
    """
    return _launch(logits, target, counts, sums, layout, weight, ignore_index, label_smoothing, True, None, row_scale)


def with_sum(weight: Tensor) -> Tensor:
    """(C + 1,) float32: the weights and, behind them, their sum."""
    weight = weight.float()
    return torch.cat((weight, weight.sum().reshape(1)))


def _launch(
    logits: Tensor,
    target: Tensor,
    counts: Tensor | None,
    sums: Tensor | None,
    layout: Layout | None,
    weight: Tensor | None,
    ignore_index: int | None,
    smoothing: float,
    with_loss: bool,
    split: int | None = None,
    row_scale: Tensor | None = None,
) -> Any:
    items, columns, rows_per_item = logits.shape
    num_rows = items * rows_per_item
    num_classes = 2 if layout is not None and layout.task == "binary" else columns
    if layout is not None:
        ignore_index = layout.ignore_index
    device = logits.device
    # Of their own memory: a caller may not change a view in place, and its alignment would depend on the number of
    # rows, so that kernels were compiled anew for odd ones.
    row_loss = torch.empty(num_rows, dtype=torch.float32, device=device) if with_loss else None
    row_lse = torch.empty(2, num_rows, dtype=torch.float32, device=device) if with_loss else None
    by_row = num_classes > FEW_CLASSES and logits.stride(1) == 1
    if by_row and split is None:
        split = row_split(num_rows, num_classes, row_shape(num_classes, logits.element_size())[1], device)
    gradient = None if row_scale is None or (by_row and split > 1) else torch.empty_like(logits)
    if by_row and gradient is not None and gradient.stride(1) != 1:
        gradient = None  # of expanded logits, say; another kernel would sum the loss in another order
    if num_rows == 0:
        return row_loss, row_lse, gradient
    shared = constants(layout, ignore_index is not None, with_loss, weight is not None, smoothing > 0, num_classes)
    by_item = shared["STATS"] and rows_per_item > 1
    item_size = shared["ITEM_SIZE"]
    workspace = torch.zeros(items * (item_size + 1), dtype=torch.float64, device=device) if by_item else sums
    weights = None if weight is None else with_sum(weight)
    row_stride = logits.stride(2) if rows_per_item > 1 else 0
    kept = (counts, sums, _edges(device), workspace)
    unused = logits
    tensors = (
        logits, target,
        *((unused if tensor is None else tensor) for tensor in kept),
        unused if weights is None else weights,
        *((unused, unused) if row_loss is None else (row_lse, row_loss)),
    )  # fmt: skip
    # A dimension of one has any stride; the kernels are specialised by it, and must not be made anew for one row.
    strides = (logits.stride(0) if items > 1 else columns * rows_per_item, row_stride)
    target_strides = (target.stride(0) if items > 1 else rows_per_item, target.stride(1) if rows_per_item > 1 else 0)
    ignore = 0 if ignore_index is None else ignore_index
    numbers = (ignore, float(smoothing), float(smoothing) / num_classes)
    shared = shared | {"BY_ITEM": by_item}
    slopes = {} if gradient is None else _slopes(gradient, row_scale, by_row)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if by_row:
            _row_launch(tensors, num_rows, rows_per_item, strides, target_strides, numbers, shared, logits, split,
                        slopes)  # fmt: skip
        else:
            _lane_launch(tensors, num_rows, rows_per_item, (*strides, logits.stride(1)), target_strides, numbers,
                         shared, columns == 1, slopes)  # fmt: skip
        if by_item:
            item_kernel[(1,)](
                workspace, counts, sums, items, ITEMS=ITEMS_AT_ONCE, ITEM_SIZE=item_size,
                T=len(shared["GRID"]), COUNT_HALF=shared["COUNT_HALF"], SUM_GRID=shared["SUM_GRID"], num_warps=4,
                **options(),
            )  # fmt: skip
    return row_loss, row_lse, gradient


def _slopes(gradient: Tensor, row_scale: Tensor, by_row: bool) -> dict[str, Any]:
    """What a kernel that writes the gradient as well is given beside."""
    items, columns, rows_per_item = gradient.shape
    item_step, class_step, row_step = gradient.stride()
    given = {
        "GRADIENT": True,
        "row_scale": row_scale,
        "gradient": gradient,
        "item_step": item_step if items > 1 else columns * rows_per_item,
        "row_step": row_step if rows_per_item > 1 else 0,
    }
    return given if by_row else given | {"class_step": class_step}


def _row_launch(
    tensors: tuple[Tensor, ...], num_rows: int, rows_per_item: int, strides: tuple[int, int],
    target_strides: tuple[int, int], numbers: tuple[int, float, float], shared: dict[str, Any], logits: Tensor,
    split: int, slopes: dict[str, Any],
) -> None:  # fmt: skip
    num_classes = shared["C"]
    num_warps = row_shape(num_classes, logits.element_size())[0]
    key = (logits.dtype, bool(slopes), *shared.values())
    steps = (slopes["item_step"], slopes["row_step"]) if slopes else ()
    most = row_programs(logits.device, num_warps, key)
    numbers_a_part = 5 + 2 * len(shared["BETAS"])
    if split > 1:
        parts = torch.zeros(num_rows * split * numbers_a_part, dtype=torch.float32, device=logits.device)
        tickets = torch.zeros(num_rows, dtype=torch.int32, device=logits.device)
    else:
        parts = tickets = logits
    compiled = row_kernel[(min(num_rows * split, most),)](
        *tensors, parts, tickets, num_rows, rows_per_item, *strides, *target_strides, *numbers,
        **_row_constants(num_classes, logits.element_size(), split, *strides, *steps), **shared, **slopes, **options(),
    )  # fmt: skip
    if split == 1:
        remember(logits.device, key, compiled, num_warps)


def _lane_launch(
    tensors: tuple[Tensor, ...], num_rows: int, rows_per_item: int, strides: tuple[int, int, int],
    target_strides: tuple[int, int], numbers: tuple[int, float, float], shared: dict[str, Any], binary: bool,
    slopes: dict[str, Any],
) -> None:  # fmt: skip
    one_item = shared["BY_ITEM"] and rows_per_item >= LONG_ITEM
    rows = LANE_ROWS
    tiles = num_rows // rows_per_item * -(-rows_per_item // rows) if one_item else -(-num_rows // rows)
    lane_kernel[(tiles,)](
        *tensors, num_rows, rows_per_item, *strides, *target_strides, *numbers,
        **_lane_constants(shared["C"], binary, one_item), **shared, **slopes, **options(),
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def constants(
    layout: Layout | None, has_ignore: bool, with_loss: bool, weighted: bool, smooth: bool, num_classes: int
) -> dict[str, Any]:
    """What both kernels are compiled for; no statistics without a layout."""
    with_stats = layout is not None
    layout = layout or NO_LAYOUT
    plan = plan_of(layout)
    betas, source, firsts = plan.betas, plan.source, tuple(
        place == plan.one or place in plan.grid for place in range(len(plan.betas))
    )  # fmt: skip
    if not with_stats:
        # The log-sum-exp alone.
        betas, source, firsts = (1.0,), (-1,), (False,)
    return {
        "C": num_classes,
        "HAS_IGNORE": has_ignore,
        "STATS": with_stats,
        "LOSS": with_loss,
        "WEIGHTED": weighted,
        "SMOOTH": with_loss and smooth,
        "ITEM_SIZE": 3 + 2 * len(plan.grid),
        "GRID": plan.grid,
        "BETAS": betas,
        "SOURCE": source,
        "FIRSTS": firsts,
        "ONE": betas.index(1.0),
        "TWO": plan.two if with_stats else 0,
        "TOP_K": layout.top_k,
        "NUM_BINS": layout.num_bins,
        "PER_CLASS": layout.per_class,
        "COUNT_HALF": plan.count_half,
        "COUNT_CELLS": plan.count_cells,
        "COUNT_MARGIN": plan.count_margin,
        "COUNT_CLASS": plan.count_class,
        "SUM_CELLS": plan.sum_cells,
        "SUM_CLASS": plan.sum_class,
        "SUM_GRID": plan.sum_grid,
    }


@functools.lru_cache(maxsize=16)
def _edges(device: torch.device) -> Tensor:
    """(129,) float32 edges of the margin histogram, kept for the life of the process."""
    return torch.tensor(margin_edges(), dtype=torch.float32, device=device)


def options() -> dict[str, Any]:
    # Multiply-add is fused on purpose; triton 3.10 no longer does so by itself.
    return {} if INTERPRETED else {"enable_fp_fusion": True}
