"""How the kernels' vectors are compared: with formulas, with the reference, and with each other bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.sums import Layout

# What a row's value may be off by, beside 1e-6 of its own size: 4.8e-7 from rounding to 2^-20, and float32 arithmetic.
ROW_ERROR = 2e-6


def vectors(preds: Tensor, target: Tensor, layout: Layout, backend: str = "triton") -> tuple[Tensor, Tensor]:
    """Counts and sums of one batch, on the CPU."""
    counts, sums = layout.zeros(preds.device)
    kernels.row_statistics(preds, target, counts, sums, layout, backend)
    return counts.cpu(), sums.cpu()


def assert_equals_reference(preds: Tensor, target: Tensor, layout: Layout, backend: str = "triton") -> None:
    """Every count exactly (bins up to rows near an edge), every sum within `ROW_ERROR` a row of the reference."""
    kernel = layout.parts(*vectors(preds, target, layout, backend))
    wanted = layout.parts(*vectors(preds.double(), target, layout, "reference"))
    rows = max(1, int(wanted["rows"]))
    for name, expected in wanted.items():
        found = kernel[name]
        if name in ("bin_rows", "margin_histogram"):
            # A row whose value lies within rounding of an edge may fall to either side.
            assert int((found - expected).abs().sum()) <= 2 + rows // 50, name
            assert int(found.sum()) == int(expected.sum()), name
        elif name in ("bin_confidence", "bin_nll"):
            assert abs(float(found.sum() - expected.sum())) <= ROW_ERROR * rows + 1e-6 * float(expected.abs().sum()), (
                name
            )
        elif found.dtype == torch.int64:
            assert torch.equal(found, expected), (name, found, expected)
        else:
            error = (found - expected).abs()
            allowed = ROW_ERROR * rows * 8 + 3e-6 * expected.abs()
            assert bool((error <= allowed).all()), (name, float(error.max()))


def assert_bitwise(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Both vectors are the same, bit by bit."""
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
