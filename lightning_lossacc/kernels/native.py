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


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its memory: subclasses, and tensors that are zero by decree, may have none."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor._is_zerotensor()


def side_by_side(tensor: Tensor) -> Tensor:
    """The same numbers as they are to be read: contiguous, in memory, with their sign."""
    return (tensor.clone() if tensor._is_zerotensor() else tensor).resolve_neg().contiguous()


def source(logits: Tensor, target: Tensor) -> Source:
    """What tells C++ where the numbers are; both tensors must outlive it.

    Raises:
        RuntimeError: if one of them has no memory.
    """
    items, classes, rows_per_item = logits.shape
    for tensor in (logits, target):
        if tensor.numel() and not tensor.data_ptr():
            raise RuntimeError(f"Expected tensors that hold numbers, but got a {type(tensor).__name__} without memory.")
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
    found = _find(name, definitions)
    if "could not compile" in found.obstacle:
        warnings.warn(f"lossacc counts by plain PyTorch: {found.obstacle}.", stacklevel=2)
    return found


@functools.lru_cache(maxsize=64)
def _find(name: str, definitions: tuple[str, ...]) -> Loaded:
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
            return Loaded(_opened(compiler, name, definitions, threads), "")
        except (OSError, subprocess.SubprocessError) as error:
            reason = reason or _reason(error)
            if isinstance(error, subprocess.TimeoutExpired):
                break
    return Loaded(None, f"{Path(compiler).name} could not compile for this machine ({reason})")


def _opened(compiler: str, name: str, definitions: tuple[str, ...], threads: tuple[str, ...]) -> ctypes.CDLL:
    """The library, made anew if the one that was kept cannot be opened any more."""
    made = _build(compiler, name, definitions, threads)
    try:
        return ctypes.CDLL(str(made))
    except OSError:
        made.unlink(missing_ok=True)
        return ctypes.CDLL(str(_build(compiler, name, definitions, threads)))


def _reason(error: Exception) -> str:
    status = f"exit status {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else str(error)
    text = str(getattr(error, "stderr", "") or status).strip()
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
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
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
        # A user without a home would get a folder of that name wherever the program runs.
        if not folder.is_absolute():
            continue
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
    return "\n".join([platform.machine(), platform.processor(), "".join(platform.libc_ver()), torch.__version__, *told])
