"""`Evidence`: everything that the causes of one loss change are decided from, as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_lossacc.attribution import interval
from lightning_lossacc.history import Record
from lightning_lossacc.trends import Verdict


@dataclass(frozen=True, slots=True)
class Evidence:
    """One evaluation against its reference.

    Attributes:
        reference, current: the two evaluations.
        accuracy: verdict on the accuracy over the same interval.
        paired: comparison on the probe, or None where rows could not be paired.
    """

    reference: Record
    current: Record
    accuracy: Verdict
    paired: dict[str, Any] | None

    @property
    def nll_change(self) -> float:
        """Change of the NLL (nats): the probe's where there is one, else that of the whole evaluation."""
        return self.full_nll_change if self.paired is None else self.paired["nll_change"]

    @property
    def full_nll_change(self) -> float:
        """Change of the NLL over all rows, nats."""
        return self.current.values["nll"] - self.reference.values["nll"]

    @property
    def refinement_change(self) -> tuple[float, float, float]:
        """Paired change of the NLL after one temperature with its 99 % interval (nats); NaN if not measured."""
        if self.paired is None or "refinement_change" not in self.paired:
            return math.nan, math.nan, math.nan
        change = self.paired["refinement_change"]
        return change, *interval(change, self.paired["refinement_change_error"])

    @property
    def refinement_share(self) -> tuple[float, float, float]:
        """Share of the NLL change that is left after one temperature, with its 99 % interval."""
        change, low, high = self.refinement_change
        return change / self.nll_change, low / self.nll_change, high / self.nll_change

    @property
    def temperature(self) -> float:
        """Best temperature of the current evaluation."""
        return self.current.values.get("temperature", math.nan)

    @property
    def at_edge(self) -> bool:
        """Whether the best temperature of either evaluation lies outside the grid, so that nothing is said about it."""
        return any(record.values.get("temperature_at_edge", 1.0) != 0.0 for record in (self.reference, self.current))

    def difference(self, key: str) -> float:
        """Change of one quantity between the two evaluations."""
        return self.current.values.get(key, math.nan) - self.reference.values.get(key, math.nan)
