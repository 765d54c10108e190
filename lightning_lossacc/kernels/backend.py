"""Which implementation runs where, and why: Triton on CUDA devices, compiled code on a CPU, PyTorch elsewhere."""

from __future__ import annotations

import functools
import os
import warnings
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.kernels import compiled, compiled_loss
from lightning_lossacc.kernels.native import finds_compiler, is_plain
from lightning_lossacc.kernels.plan import LARGEST_GRID
from lightning_lossacc.sums import Layout

Backend = Literal["auto", "triton", "reference", "compiled"]
BACKENDS: tuple[Backend, ...] = ("auto", "triton", "reference", "compiled")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Float64 atomics, on which exact sums rest, are a matter of course from here on.
OLDEST_CAPABILITY = (7, 0)


class Choice(NamedTuple):
    """What runs, and why nothing else does."""

    name: Literal["triton", "reference", "compiled"]
    reason: str


def choose(logits: Tensor, layout: Layout | None = None, requested: Backend = "auto") -> Choice:
    """What runs for these logits.

    Args:
        logits: only dtype and device are looked at.
        layout: what is counted; None for a loss alone.
        requested: `"auto"` takes Triton on a CUDA device, code that a C++ compiler makes for a CPU, and where neither
            can run plain PyTorch, which is `"reference"`; `"triton"` and `"compiled"` raise where they cannot run.

    Raises:
        ValueError: if `requested` is unknown or cannot run.
    """
    if expect_backend(requested) == "reference":
        return Choice("reference", "it was asked for")
    device = logits.device
    obstacle = ""
    if requested != "compiled":
        num_temperatures = 0 if layout is None else len(layout.temperatures)
        obstacle = _obstacle(device.type, device.index, logits.dtype, num_temperatures)
        if not obstacle:
            return Choice("triton", "it was asked for" if requested == "triton" else "it can")
    if requested != "triton" and (device.type == "cpu" or requested == "compiled"):
        if device.type != "cpu":
            obstacle = f"the logits are on a {device.type} device"
        elif not is_plain(logits):
            obstacle = f"logits of type {type(logits).__name__} that may have no memory are counted by PyTorch"
        elif layout is None:
            obstacle = compiled_loss.obstacle(logits.dtype)
        else:
            obstacle = compiled.obstacle(logits.dtype, layout)
        if not obstacle:
            return Choice("compiled", "it was asked for" if requested == "compiled" else "it can")
    if requested != "auto" and obstacle:
        raise ValueError(f"Expected `backend='{requested}'` to be possible, but {obstacle}; use 'auto' or 'reference'.")
    if device.type == "cuda":
        _explain(obstacle)
    return Choice("reference", obstacle)


def expect_backend(backend: str) -> Backend:
    """The argument, if it is the name of a backend.

    Raises:
        ValueError: if it is not.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Expected `backend` to be one of {BACKENDS}, but got {backend!r}.")
    return backend


@functools.lru_cache(maxsize=256)
def _obstacle(device: str, index: int | None, dtype: torch.dtype, num_temperatures: int) -> str:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device not in ("cuda", "cpu") or (device == "cpu" and not interpreted):
        return f"Triton does not count logits on a {device} device"
    if find_spec("triton") is None:
        return "triton is not installed"
    if not interpreted and not finds_compiler("CC", "gcc", "clang", "cc"):
        return "triton finds no C compiler (gcc, clang, or the one named by CC), which it needs to launch a kernel"
    if device == "cuda" and torch.cuda.get_device_capability(index) < OLDEST_CAPABILITY:
        return f"the device is older than compute capability {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
    if dtype not in TRITON_DTYPES:
        return f"logits of {dtype} are counted by PyTorch"
    if num_temperatures > LARGEST_GRID:
        return f"a grid of more than {LARGEST_GRID} temperatures is counted by PyTorch"
    return ""


@functools.lru_cache(maxsize=8)
def _explain(obstacle: str) -> None:
    """Once a process and reason: the same numbers come slower, and nothing else tells why."""
    warnings.warn(f"lossacc counts without its Triton kernels: {obstacle}.", stacklevel=4)
