"""C++ that is compiled where it runs: by which compiler, with which flags, and where the result is kept.

Two seconds, once for each source and its constants; a library is found again by what it was made of and for.
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

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# How threads come: from the pool that PyTorch has loaded, from one of our own, not at all.
THREADS = (
    ("-fopenmp", "-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc_s", "-lgcc"),
    ("-fopenmp",),
    ("-Wno-unknown-pragmas",),
)


class Source(ctypes.Structure):
    """`Source` of rows.h: where logits (I, C, R) and targets (I, R) are."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("dtype", "classes", "items", "rows_per_item")),
        *((name, ctypes.c_int64) for name in ("item_stride", "class_stride", "row_stride", "threads")),
        ("target", ctypes.c_void_p),
    )


class Loaded(NamedTuple):
    """A library, or why there is none."""

    library: ctypes.CDLL | None
    obstacle: str


def source(logits: Tensor, target: Tensor) -> Source:
    """What tells C++ where the numbers are; both tensors must outlive it."""
    items, classes, rows_per_item = logits.shape
    return Source(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        classes,
        items,
        rows_per_item,
        *logits.stride(),
        torch.get_num_threads(),
        target.data_ptr(),
    )


def finds_compiler(variable: str, *names: str) -> bool:
    """Whether the program that an environment variable names, or one of the others, is on the path."""
    return any(name and shutil.which(name) for name in (os.environ.get(variable), *names))


@functools.lru_cache(maxsize=64)
def load(name: str, definitions: tuple[str, ...] = ()) -> Loaded:
    """The library made of `name` beside this file with these constants; a failure is told once.

    Args:
        name: such as `"statistics.cpp"`.
        definitions: such as `"-DGRID_SIZE=0"`.
    """
    if os.environ.get("LOSSACC_COMPILE", "1") == "0":
        return Loaded(None, "the environment variable LOSSACC_COMPILE is 0")
    if sys.platform not in ("linux", "darwin"):
        return Loaded(None, f"nothing is compiled on {sys.platform}")
    compilers = (shutil.which(found) for found in (os.environ.get("CXX"), *COMPILERS) if found)
    compiler = next((found for found in compilers if found), None)
    if compiler is None:
        return Loaded(None, "there is no C++ compiler (g++, clang++, or the one named by CXX)")
    reason = ""
    for threads in THREADS:
        try:
            return Loaded(ctypes.CDLL(str(_build(compiler, name, definitions, threads))), "")
        except (OSError, subprocess.SubprocessError) as error:
            reason = reason or _reason(error)
    obstacle = f"{Path(compiler).name} could not compile for this machine ({reason})"
    warnings.warn(f"lossacc counts by plain PyTorch: {obstacle}.", stacklevel=2)
    return Loaded(None, obstacle)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "stderr", "") or error).strip()
    return next((line for line in text.splitlines() if "error" in line), text.splitlines()[0] if text else repr(error))


def _build(compiler: str, name: str, definitions: tuple[str, ...], threads: tuple[str, ...]) -> Path:
    """Path of the shared library, from the cache if it was made before.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be made.
    """
    folder = Path(__file__).parent
    key = hashlib.sha256("\n".join([compiler, *FLAGS, *threads, *definitions, _processor()]).encode())
    for path in (*sorted(folder.glob("*.h")), folder / name):
        key.update(path.read_bytes())
    kept = _cache() / f"{Path(name).stem}-{key.hexdigest()[:24]}.so"
    if not kept.exists():
        # Written beside and renamed, so that no other process loads half a file.
        handle, made = tempfile.mkstemp(suffix=".so", dir=kept.parent)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, *definitions, str(folder / name), "-o", made, *threads]
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
