"""Counting on a CPU by code that is compiled for its processor: every statistic in one pass over the logits.

`statistics.cpp` gives the numbers of `reference`. Where there is no compiler, or it fails, plain PyTorch counts.
PyTorch's own compiler was slower: 2.1 to 3.4 times the forward pass of `F.cross_entropy` with the grid at 1000 to
32 768 classes, after 5 to 20 seconds of compilation.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.kernels import native
from lightning_lossacc.kernels.plan import LARGEST_GRID, plan_of
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import Layout

COUNTED, CORRECT = 1, 64  # bits of `RowOutputs.flags`


class _Setup(ctypes.Structure):
    """`Setup` of statistics.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("binary", "has_ignore", "ignore_index", "bins", "top_k")),
        ("per_class", ctypes.c_int64),
        ("bin_edges", ctypes.c_void_p),
        ("margin_edges", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count_half", "count_cells", "count_margin", "count_class")),
        *((name, ctypes.c_int64) for name in ("sum_cells", "sum_class", "sum_grid")),
    )


class _Batch(ctypes.Structure):
    """`Batch` of statistics.cpp."""

    _fields_ = (
        ("source", native.Source),
        *((name, ctypes.c_void_p) for name in ("counts", "sums")),
        *((name, ctypes.c_void_p) for name in ("row_nll", "row_predicted", "row_flags", "row_grid")),
    )


class RowOutputs(NamedTuple):
    """What may be written for every row of a batch."""

    nll: Tensor | None = None  # (N,) float32, nats; as arithmetic gives it where a logit is not finite
    predicted: Tensor | None = None  # (N,) int32
    flags: Tensor | None = None  # (N,) uint8, of which COUNTED and CORRECT are read here
    grid: Tensor | None = None  # (2 T, N) float32: NLL, then slope, at each temperature


@functools.lru_cache(maxsize=256)
def obstacle(dtype: torch.dtype, layout: Layout) -> str:
    """Why nothing is compiled for such logits, or ''; compiles what they need. A failure is told once."""
    if dtype not in native.DTYPES:
        return f"logits of {dtype} are counted by PyTorch"
    if len(layout.temperatures) > LARGEST_GRID:
        return f"a grid of more than {LARGEST_GRID} temperatures is counted by PyTorch"
    return _load(layout).obstacle


def count_rows(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> Tensor:
    """As `reference.count_rows`, where `obstacle` finds none."""
    nll = logits.new_empty(target.numel(), dtype=torch.float32)
    count(logits, target, counts, sums, layout, RowOutputs(nll=nll))
    return nll


def item_values(logits: Tensor, target: Tensor, layout: Layout) -> Tensor:
    """As `reference.item_values`, where `obstacle` finds none."""
    items, _, rows_per_item = logits.shape
    num_rows, grid = target.numel(), 2 * len(layout.temperatures)
    values = torch.empty((1 + grid, num_rows), dtype=torch.float32)
    predicted = torch.empty(num_rows, dtype=torch.int32)
    flags = torch.empty(num_rows, dtype=torch.uint8)
    count(logits, target, *layout.zeros(), layout, RowOutputs(values[0], predicted, flags, values[1:]))
    counted = (flags & COUNTED) > 0
    columns = torch.stack((counted, *torch.where(counted, values, 0), (flags & CORRECT) > 0)).double()  # (3 + 2 T, N)
    sums = columns.view(len(columns), items, rows_per_item).sum(2)
    first = slice(0, num_rows, rows_per_item)
    ends = torch.stack((target.reshape(-1)[first].double(), predicted[first].double()))
    return torch.cat((sums[[0, 1, -1]], ends, sums[2:-1])).T


def count(
    logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout, rows: RowOutputs | None = None
) -> None:
    """Adds a batch as `count_rows` does; what is wanted of every row is written where `rows` says.

    Raises:
        RuntimeError: if the vectors are on another device than the logits, or are not those of the layout.
    """
    if counts.device != logits.device or sums.device != logits.device:
        raise RuntimeError(
            f"Expected counts and sums to be on the device of the logits, {logits.device}, but they are on "
            f"{counts.device}; move the metric there."
        )
    for vector, dtype, size in ((counts, torch.int64, layout.size_counts), (sums, torch.float64, layout.size_sums)):
        if vector.dtype != dtype or vector.shape != (size,) or not vector.is_contiguous():
            raise RuntimeError(
                f"Expected vectors as `Layout.zeros` makes them, here {size} numbers of {dtype}, but got "
                f"{tuple(vector.shape)} of {vector.dtype}."
            )
    logits, target = logits.resolve_neg(), native.side_by_side(target)
    source = native.source(logits, target)
    if layout.task == "binary":
        source.classes = 2
    setup, function = _setup(layout)
    batch = _Batch(
        source,
        counts.data_ptr(),
        sums.data_ptr(),
        *(None if rows is None or tensor is None else tensor.data_ptr() for tensor in rows or RowOutputs()),
    )
    function(ctypes.byref(setup), ctypes.byref(batch))


@functools.lru_cache(maxsize=64)
def _setup(layout: Layout) -> tuple[_Setup, Any]:
    plan = plan_of(layout)
    edges = torch.linspace(0, 1, layout.num_bins + 1, dtype=torch.float32)
    steps = torch.tensor(margin_edges(), dtype=torch.float32)
    setup = _Setup(
        layout.task == "binary",
        # No target can be a number beyond 64 bits.
        layout.ignore_index is not None and -(2**63) <= layout.ignore_index < 2**63,
        (layout.ignore_index or 0) if -(2**63) <= (layout.ignore_index or 0) < 2**63 else 0,
        layout.num_bins,
        min(layout.top_k, 2**31 - 1),
        layout.per_class,
        edges.data_ptr(),
        steps.data_ptr(),
        plan.count_half,
        plan.count_cells,
        plan.count_margin,
        plan.count_class,
        plan.sum_cells,
        plan.sum_class,
        plan.sum_grid,
    )
    setup.kept = (edges, steps)
    function = _load(layout).library.lossacc_count
    function.argtypes, function.restype = (ctypes.POINTER(_Setup), ctypes.POINTER(_Batch)), None
    return setup, function


def _load(layout: Layout) -> native.Loaded:
    plan = plan_of(layout)
    constants = {
        "GRID_SIZE": len(plan.grid),
        "BETAS": ",".join(f"{float(beta)!r}f" for beta in plan.betas),
        "SOURCES": ",".join(map(str, plan.source)),
        "IN_GRID": ",".join(map(str, plan.grid or (-1,))),
        "ONE": plan.one,
        "TWO": plan.two,
    }
    return native.load("statistics.cpp", tuple(f"-D{name}={value}" for name, value in constants.items()))
