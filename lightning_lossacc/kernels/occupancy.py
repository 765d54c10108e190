"""How many programs does a launch have, and how much of a row for each? A fixed table, and the compiled registers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton

# Parts of a row where there are few rows.
SPLIT = 16
# 32-bit registers of a multiprocessor, of every architecture so far.
REGISTERS = 65536


def row_shape(num_classes: int, element_size: int) -> tuple[int, int, int]:
    """(warps, block, numbers of a 16-byte load) of the row kernel: a fixed table, nothing is tried out in training."""
    vector = 16 // element_size
    num_warps = 1 if num_classes <= 16384 else 4
    most = 32 * num_warps * 32
    return num_warps, max(32 * num_warps * vector, min(most, triton.next_power_of_2(num_classes))), vector


def row_programs(device: torch.device, num_warps: int, kernel: object = None) -> int:
    """Programs of a launch: as many as the device runs at once, each of which sums many rows.

    Sums are exact, so that their number changes no bit. Before a kernel was launched its registers are not known.

    Args:
        device: where it runs.
        num_warps: of a program.
        kernel: what tells compiled kernels apart.
    """
    if device.type != "cuda":
        return 2
    blocks = _RESIDENT.get((device, kernel), max(1, 12 // num_warps))
    return _multiprocessors(device) * blocks


# Programs that a multiprocessor runs at once, by device and kernel.
_RESIDENT: dict[tuple[torch.device, object], int] = {}


def remember(device: torch.device, kernel: object, compiled: Any, num_warps: int) -> None:
    """Notes how many programs of a kernel fit a multiprocessor, from its registers; read on the host, no waiting."""
    registers = getattr(compiled, "n_regs", 0)
    if device.type == "cuda" and registers and (device, kernel) not in _RESIDENT:
        # Registers are handed out in units of 256 to a warp, and at most 32 programs run beside each other.
        per_program = -(-registers * 32 // 256) * 256 * num_warps
        _RESIDENT[device, kernel] = min(32, max(1, REGISTERS // per_program))


@functools.lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def row_split(num_rows: int, num_classes: int, block: int, device: torch.device) -> int:
    """Parts of a row: 1, or `SPLIT` where there are fewer rows than multiprocessors, most of which would stand idle.

    Two values only, both of which are compiled ahead: a last small batch must not wait for a compiler. Decided by the
    shape alone, so that a loss is cut into the same parts with and without statistics.
    """
    few = num_rows <= (_multiprocessors(device) if device.type == "cuda" else 1)
    return SPLIT if few and is_split(num_classes, block) else 1


def is_split(num_classes: int, block: int) -> bool:
    """Whether rows of so many classes are ever split."""
    return num_classes >= 8 * block


def aligned(*strides: int, element_size: int) -> int:
    """Numbers of a 16-byte load if every stride is a multiple of them, else 1."""
    vector = 16 // element_size
    return 1 if any(stride % vector for stride in strides) else vector
