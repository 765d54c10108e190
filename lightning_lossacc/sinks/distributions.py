"""How are margins and confidences spread? Bins and counts of one record, for the loggers that show histograms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lossacc.history import Record
from lightning_lossacc.margin_bins import MARGIN_BINS, MARGIN_LIMIT, margin_edges


@dataclass(frozen=True, slots=True)
class Distribution:
    """Rows by bin; empty bins at either end are left out.

    Attributes:
        edges: B + 1 ascending edges.
        rows: B counts; the first and the last one are not zero.
    """

    edges: tuple[float, ...]
    rows: tuple[int, ...]

    @property
    def middles(self) -> list[float]:
        """The middle of each bin."""
        return [(low + high) / 2 for low, high in zip(self.edges, self.edges[1:], strict=False)]

    def quantile(self, share: float) -> float:
        """The value below which `share` of the rows lie, linear within a bin."""
        wanted, passed = share * sum(self.rows), 0
        for index, rows in enumerate(self.rows):
            if rows and passed + rows >= wanted:
                low, high = self.edges[index : index + 2]
                return low + (high - low) * (wanted - passed) / rows
            passed += rows
        return self.edges[-1]


def distributions(record: Record) -> dict[str, Distribution]:
    """`"margin"` and `"confidence"` of a record, as far as it holds them and has counted a row.

    Margins beyond ±64 stand in one more bin at either end, as wide in asinh as the others.
    """
    arrays = record.arrays
    reliability = arrays.get("reliability", {})
    found = {
        "margin": _cut(_margin_edges(), arrays.get("margin_histogram", [])),
        "confidence": _cut(reliability.get("edges", []), reliability.get("rows", [])),
    }
    return {name: distribution for name, distribution in found.items() if distribution is not None}


def _margin_edges() -> list[float]:
    beyond = math.sinh(math.asinh(MARGIN_LIMIT) * (1 + 2 / MARGIN_BINS))
    return [-beyond, *margin_edges(), beyond]


def _cut(edges: list[float], rows: list[float]) -> Distribution | None:
    filled = [index for index, count in enumerate(rows) if count > 0]
    if not filled or len(edges) != len(rows) + 1:
        return None
    first, last = filled[0], filled[-1]
    return Distribution(tuple(edges[first : last + 2]), tuple(int(count) for count in rows[first : last + 1]))
