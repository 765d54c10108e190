"""What needs all classes, compiled to C++ by PyTorch's own compiler: for long runs on a CPU that has a C++ compiler.

The same numbers as `reference.reduce_classes`, in fewer passes over a chunk. One update of 16384 x 1000 float32 logits
took 1.0 times the forward pass of `F.cross_entropy` without the temperature grid and 2.1 times with it, where plain
PyTorch takes 1.3 and 3.5; of 1024 x 32768, where a chunk holds few rows, 2.0 instead of 1.0 and 3.4 instead of 4.2
(`benchmarks/results/update.jsonl`, 2-core AMD EPYC). The first chunk of a kind waits 5 to 20 seconds for the compiler,
later processes a second, from its cache; so it is used where it is asked for, and never by itself.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lossacc.kernels.reference import LARGEST_EXPONENT, LOWEST_DIFFERENCE, reduce_classes
from lightning_lossacc.sums import Layout

# The compiler makes special code for sizes 0 and 1; a chunk of so few rows is not worth it.
FEWEST_ROWS = 2


@functools.cache
def obstacle() -> str:
    """Why nothing can be compiled, or ''; looked for once a process, since every update asks."""
    if finds_compiler("CXX", "g++", "clang++", "c++"):
        return ""
    return "there is no C++ compiler (g++, clang++, or the one named by CXX)"


def finds_compiler(variable: str, *names: str) -> bool:
    """Whether the program that an environment variable names, or one of the others, is on the path."""
    return any(name and shutil.which(name) for name in (os.environ.get(variable), *names))


def reduce(
    logits: Tensor,
    target: Tensor,
    own: Tensor,
    class_dim: int,
    layout: Layout,
    buffers: list[Tensor],
    result: Tensor,
) -> None:
    """As `reference.reduce_classes`; the buffers stay as they are."""
    if len(target) < FEWEST_ROWS:
        reduce_classes(logits, target, own, class_dim, layout, buffers, result)
        return
    with torch.no_grad():
        result.copy_(_kernel(class_dim, layout.temperatures)(logits, target, own))


@functools.lru_cache(maxsize=16)
def _kernel(class_dim: int, temperatures: tuple[float, ...]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    steepest = max([2.0, *(1 / temperature for temperature in temperatures)])

    def sums(logits: Tensor, target: Tensor, own: Tensor) -> Tensor:
        shape = (1, -1) if class_dim == 1 else (-1, 1)
        place = torch.arange(logits.shape[class_dim]).view(shape)
        difference = logits - own.unsqueeze(class_dim)
        rival = torch.where(place == target.unsqueeze(class_dim), -torch.inf, difference)
        other = rival.amax(class_dim)
        shift = torch.where(other * steepest < LARGEST_EXPONENT, torch.zeros_like(other), other)
        base = torch.where(shift == 0, own, logits.amax(class_dim))
        difference = torch.where(rival == -torch.inf, rival, logits - base.unsqueeze(class_dim))
        difference = difference.clamp_min(LOWEST_DIFFERENCE)
        power = difference.exp()
        rows = [other, shift, power.sum(class_dim), (power * difference).sum(class_dim), (power * power).sum(class_dim)]
        totals, firsts, chains = [], [], {}
        # From the lowest power up, the square of its half where there is one; 1 is never a square.
        for temperature in reversed(temperatures):
            beta = 1 / temperature
            half = next((known for known in chains if abs(2 * known - beta) < 1e-9 * beta), None)
            if beta == 1.0:
                current = power
            else:
                current = (difference * beta).exp() if half is None else chains[half] * chains[half]
            chains[beta] = current
            totals.append(current.sum(class_dim))
            firsts.append((current * difference).sum(class_dim))
        return torch.stack([*rows, *totals[::-1], *firsts[::-1]])

    return torch.compile(sums, dynamic=True)
