"""Counting on a CPU by code that is compiled for its processor: every statistic in one pass over the logits.

`statistics.cpp` gives the numbers of `reference` and is compiled by the C++ compiler of the machine (two seconds, once
for each temperature grid; kept in the user's cache). Where there is none, or it fails, plain PyTorch counts. PyTorch's
own compiler was slower: 2.1 to 3.4 times the forward pass of `F.cross_entropy` with the grid at 1000 to 32 768 classes,
and 5 to 20 seconds of compilation.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.kernels.plan import LARGEST_GRID, plan_of
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import Layout

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SOURCES = ("vectors.h", "statistics_rows.h", "statistics.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
COUNTED, CORRECT = 1, 64
# How threads come: from the pool that PyTorch has loaded, from one of our own, not at all.
THREADS = (
    ("-fopenmp", "-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc_s", "-lgcc"),
    ("-fopenmp",),
    ("-Wno-unknown-pragmas",),
)


class _Setup(ctypes.Structure):
    """`Setup` of statistics.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("classes", "binary", "has_ignore", "ignore_index", "bins", "top_k")),
        ("per_class", ctypes.c_int64),
        ("bin_edges", ctypes.c_void_p),
        ("margin_edges", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count_half", "count_cells", "count_margin", "count_class")),
        *((name, ctypes.c_int64) for name in ("sum_cells", "sum_class", "sum_grid")),
    )


class _Batch(ctypes.Structure):
    """`Batch` of statistics.cpp."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("dtype", "items", "rows_per_item", "item_stride", "class_stride")),
        *((name, ctypes.c_int64) for name in ("row_stride", "threads")),
        *((name, ctypes.c_void_p) for name in ("target", "counts", "sums")),
        *((name, ctypes.c_void_p) for name in ("row_nll", "row_predicted", "row_flags", "row_grid")),
    )


class RowOutputs(NamedTuple):
    """What may be written for every row of a batch."""

    nll: Tensor | None = None  # (N,) float32, nats; as arithmetic gives it where a logit is not finite
    predicted: Tensor | None = None  # (N,) int32
    flags: Tensor | None = None  # (N,) uint8, of which COUNTED and CORRECT are read here
    grid: Tensor | None = None  # (2 T, N) float32: NLL, then slope, at each temperature


def finds_compiler(variable: str, *names: str) -> bool:
    """Whether the program that an environment variable names, or one of the others, is on the path."""
    return any(name and shutil.which(name) for name in (os.environ.get(variable), *names))


@functools.lru_cache(maxsize=256)
def obstacle(dtype: torch.dtype, layout: Layout) -> str:
    """Why nothing is compiled for such logits, or ''; compiles what they need. A failure is told once."""
    if dtype not in DTYPES:
        return f"logits of {dtype} are counted by PyTorch"
    if len(layout.temperatures) > LARGEST_GRID:
        return f"a grid of more than {LARGEST_GRID} temperatures is counted by PyTorch"
    plan = plan_of(layout)
    return _load(plan.betas, plan.source, plan.grid).obstacle


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
        RuntimeError: if the vectors are on another device than the logits.
    """
    if counts.device != logits.device or sums.device != logits.device:
        raise RuntimeError(
            f"Expected counts and sums to be on the device of the logits, {logits.device}, but they are on "
            f"{counts.device}; move the metric there."
        )
    items, _, rows_per_item = logits.shape
    logits, target = logits.resolve_neg(), target.contiguous()
    item_stride, class_stride, row_stride = logits.stride()
    setup, function = _setup(layout)
    batch = _Batch(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        items,
        rows_per_item,
        item_stride,
        class_stride,
        row_stride,
        torch.get_num_threads(),
        target.data_ptr(),
        counts.data_ptr(),
        sums.data_ptr(),
        *(None if rows is None or tensor is None else tensor.data_ptr() for tensor in rows or RowOutputs()),
    )
    function(ctypes.byref(setup), ctypes.byref(batch))


class _Loaded(NamedTuple):
    function: ctypes._CFuncPtr | None  # type: ignore[name-defined]
    obstacle: str


@functools.lru_cache(maxsize=64)
def _setup(layout: Layout) -> tuple[_Setup, ctypes._CFuncPtr]:  # type: ignore[name-defined]
    plan = plan_of(layout)
    edges = torch.linspace(0, 1, layout.num_bins + 1, dtype=torch.float32)
    steps = torch.tensor(margin_edges(), dtype=torch.float32)
    setup = _Setup(
        layout.num_classes,
        layout.task == "binary",
        layout.ignore_index is not None,
        layout.ignore_index or 0,
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
    return setup, _load(plan.betas, plan.source, plan.grid).function


@functools.lru_cache(maxsize=64)
def _load(betas: tuple[float, ...], source: tuple[int, ...], grid: tuple[int, ...]) -> _Loaded:
    if os.environ.get("LOSSACC_COMPILE", "1") == "0":
        return _Loaded(None, "the environment variable LOSSACC_COMPILE is 0")
    if sys.platform not in ("linux", "darwin"):
        return _Loaded(None, f"nothing is compiled on {sys.platform}")
    compiler = next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (found := shutil.which(name))),
        "",
    )
    if not compiler:
        return _Loaded(None, "there is no C++ compiler (g++, clang++, or the one named by CXX)")
    constants = {
        "GRID_SIZE": len(grid),
        "BETAS": ",".join(f"{beta!r}f" for beta in betas),
        "SOURCES": ",".join(map(str, source)),
        "IN_GRID": ",".join(map(str, grid or (-1,))),
        "ONE": betas.index(1.0),
        "TWO": betas.index(2.0),
    }
    definitions = [f"-D{name}={value}" for name, value in constants.items()]
    reason = ""
    for threads in THREADS:
        try:
            library = ctypes.CDLL(str(_build(compiler, definitions, threads)))
        except (OSError, subprocess.SubprocessError) as error:
            reason = reason or _reason(error)
            continue
        function = library.lossacc_count
        function.argtypes = (ctypes.POINTER(_Setup), ctypes.POINTER(_Batch))
        function.restype = None
        return _Loaded(function, "")
    obstacle = f"{Path(compiler).name} could not compile for this machine ({reason})"
    warnings.warn(f"lossacc counts by plain PyTorch: {obstacle}.", stacklevel=2)
    return _Loaded(None, obstacle)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "stderr", "") or error).strip()
    return next((line for line in text.splitlines() if "error" in line), text.splitlines()[0] if text else repr(error))


def _build(compiler: str, definitions: list[str], threads: tuple[str, ...]) -> Path:
    """Path of the shared library, from the cache if it was made before.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be made.
    """
    folder = Path(__file__).parent
    key = hashlib.sha256("\n".join([compiler, *FLAGS, *threads, *definitions, _processor()]).encode())
    for name in SOURCES:
        key.update((folder / name).read_bytes())
    kept = _cache() / f"statistics-{key.hexdigest()[:24]}.so"
    if not kept.exists():
        # Written beside and renamed, so that no other process loads half a file.
        handle, made = tempfile.mkstemp(suffix=".so", dir=kept.parent)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, *definitions, str(folder / SOURCES[-1]), "-o", made, *threads]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            os.replace(made, kept)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    return kept


@functools.cache
def _cache() -> Path:
    """A folder that nobody but this user can write to: in the user's cache, else among temporary files.

    Raises:
        OSError: if there is none.
    """
    user = os.getuid()
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = (Path(root) / "lightning_lossacc", Path(tempfile.gettempdir()) / f"lightning_lossacc-{user}")
    for folder in places:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except OSError:
            continue
        # What is loaded from it runs as this user.
        own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if own and os.access(folder, os.W_OK):
            return folder
    raise OSError(f"no folder of this user's own to keep it in, neither {places[0]} nor {places[1]}")


@functools.cache
def _processor() -> str:
    """What `-march=native` stands for: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    return "\n".join([platform.machine(), platform.processor(), *told])
