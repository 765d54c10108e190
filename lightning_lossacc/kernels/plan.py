"""A `Layout` as the constants of a Triton kernel: where each part lies, and how few exponentials give the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from lightning_lossacc.sums import Layout

# Exponentials are grouped in chains of squares from the lowest power up; 1 is never a square, to be exact.
LARGEST_GRID = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """Constants of a layout's kernels.

    Attributes:
        betas: inverse temperatures, ascending; with 1, and 2 for the Brier score, whether or not the grid has them.
        source: place of the beta whose square gives this one; -1 for an exponential of its own.
        grid: place in `betas` of each temperature of the layout.
        one, two: places of 1 and 2.
    """

    betas: tuple[float, ...]
    source: tuple[int, ...]
    grid: tuple[int, ...]
    one: int
    two: int
    count_half: int
    count_cells: int
    count_margin: int
    count_class: int
    sum_cells: int
    sum_class: int
    sum_grid: int


@lru_cache(maxsize=64)
def plan_of(layout: Layout) -> Plan:
    """The constants of a layout.

    Raises:
        ValueError: if it has more temperatures than a kernel keeps in registers.
    """
    if len(layout.temperatures) > LARGEST_GRID:
        raise ValueError(
            f"Expected at most {LARGEST_GRID} `temperatures` for a kernel, but got {len(layout.temperatures)}."
        )
    wanted = [1 / temperature for temperature in layout.temperatures]
    betas = sorted({*wanted, 1.0, 2.0})
    source = []
    for beta in betas:
        half = next((place for place, other in enumerate(betas) if math.isclose(2 * other, beta, rel_tol=1e-9)), -1)
        source.append(-1 if beta == 1.0 else half)
    counts, sums = layout.count_slices, layout.sum_slices
    return Plan(
        betas=tuple(betas),
        source=tuple(source),
        grid=tuple(betas.index(beta) for beta in wanted),
        one=betas.index(1.0),
        two=betas.index(2.0),
        count_half=counts["half_rows"].start,
        count_cells=counts["bin_rows"].start,
        count_margin=counts["margin_histogram"].start,
        count_class=counts["class_rows"].start,
        sum_cells=sums["bin_confidence"].start,
        sum_class=sums["class_nll"].start,
        sum_grid=sums["temperature_nll"].start,
    )
