"""What is left of the loss after one temperature, from values and slopes of the NLL on a grid of temperatures.

The NLL of logits / T is convex in b = 1 / T, so that the sign change of its slope brackets the optimum, the best grid
point is above the minimum, and the tangents of its neighbours meet below it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from lightning_lossacc.sums import Layout

GOLDEN = (math.sqrt(5) - 1) / 2


class Refinement(NamedTuple):
    """The loss after one temperature, and how well it is known.

    Attributes:
        nll: smallest NLL over temperatures within the grid, nats.
        temperature: where it is reached.
        at_edge: whether the optimum lies outside the grid, so that the true minimum is lower than `nll`.
        lower, upper: bounds that certainly hold, by convexity of the NLL in the inverse temperature: the best grid
            point is above the minimum, the tangents of its neighbours meet below it. `lower` is NaN at an edge.
    """

    nll: float
    temperature: float
    at_edge: bool
    lower: float
    upper: float


def refinement(counts: Tensor, sums: Tensor, layout: Layout) -> Refinement:
    """NLL after the best single temperature, over all items; see `best_temperature`."""
    part = layout.parts(counts, sums)
    rows = int(part["rows"])
    nll = part["temperature_nll"].view(2, -1).sum(0)
    slope = part["temperature_slope"].view(2, -1).sum(0)
    if rows == 0:
        return Refinement(math.nan, math.nan, False, math.nan, math.nan)
    return best_temperature(layout.temperatures, (nll / rows).tolist(), (slope / rows).tolist())


def cross_fitted_gain(counts: Tensor, sums: Tensor, layout: Layout) -> float:
    """NLL (nats) saved on each half of the items by the temperature that is best for the other half; NaN if a half is
    empty.

    An honest estimate of what temperature scaling will save on new data: fitted and measured on different items.
    """
    part = layout.parts(counts, sums)
    rows = part["half_rows"].tolist()
    if min(rows) == 0:
        return math.nan
    nll = (part["temperature_nll"].view(2, -1) / part["half_rows"][:, None]).tolist()
    slope = (part["temperature_slope"].view(2, -1) / part["half_rows"][:, None]).tolist()
    one = layout.temperatures.index(1.0)
    saved = 0.0
    for half, other in ((0, 1), (1, 0)):
        fitted = best_temperature(layout.temperatures, nll[other], slope[other]).temperature
        scaled = _Curve(layout.temperatures, nll[half], slope[half]).at(fitted)
        saved += rows[half] * (nll[half][one] - scaled)
    return saved / sum(rows)


def half_temperatures(counts: Tensor, sums: Tensor, layout: Layout) -> list[float]:
    """Best temperature of either half of the items: how far two independent fits differ; NaN for an empty half."""
    part = layout.parts(counts.cpu(), sums.cpu())
    nll, slope = part["temperature_nll"].view(2, -1), part["temperature_slope"].view(2, -1)
    return [
        best_temperature(layout.temperatures, (nll[half] / rows).tolist(), (slope[half] / rows).tolist()).temperature
        if rows
        else math.nan
        for half, rows in enumerate(part["half_rows"].tolist())
    ]


def best_temperature(temperatures: tuple[float, ...], nll: list[float], slope: list[float]) -> Refinement:
    """Smallest NLL over one temperature from values and slopes on a grid.

    The NLL is convex in the inverse temperature b, so the sign change of its slope brackets the optimum. Inside, it is
    interpolated in log b by the polynomial through values and slopes of up to six grid points around the bracket
    (Hermite), whose smallest value within the bracket is found by a golden section.

    Args:
        temperatures: ascending.
        nll: mean NLL of logits / temperature at each, nats.
        slope: mean derivative of it by b at each.
    """
    best = min(range(len(nll)), key=nll.__getitem__)
    upper = nll[best]
    if slope[0] < 0:  # still falling towards larger b, that is below the smallest temperature
        return Refinement(nll[0], temperatures[0], True, math.nan, upper)
    if slope[-1] > 0:
        return Refinement(nll[-1], temperatures[-1], True, math.nan, upper)
    left = next(
        (place for place in range(len(nll) - 1) if slope[place] >= 0 >= slope[place + 1]),
        min(best, len(nll) - 2),
    )
    curve = _Curve(temperatures, nll, slope)
    low, high = math.log(temperatures[left]), math.log(temperatures[left + 1])
    first, second = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_first, at_second = curve.at(math.exp(first)), curve.at(math.exp(second))
    for _ in range(50):
        if at_first <= at_second:
            high, second, at_second = second, first, at_first
            first = high - GOLDEN * (high - low)
            at_first = curve.at(math.exp(first))
        else:
            low, first, at_first = first, second, at_second
            second = low + GOLDEN * (high - low)
            at_second = curve.at(math.exp(second))
    temperature = math.exp((low + high) / 2)
    lower = _tangent_bound(
        1 / temperatures[left], nll[left], slope[left], 1 / temperatures[left + 1], nll[left + 1], slope[left + 1]
    )
    found = min(max(curve.at(temperature), lower), upper)
    return Refinement(found, temperature, False, lower, upper)


def interpolation_weights(temperatures: tuple[float, ...], temperature: float) -> list[float]:
    """Weights (2 T,) of values and slopes on the grid whose sum is the interpolated NLL at `temperature`.

    The interpolation of `best_temperature` is linear in what it interpolates, so that the same weights serve every
    item.
    """
    size = len(temperatures)
    inside = min(max(temperature, temperatures[0]), temperatures[-1])
    units = [[float(place == index) for place in range(size)] for index in range(size)]
    zeros = [0.0] * size
    values = [_Curve(temperatures, unit, zeros).at(inside) for unit in units]
    return values + [_Curve(temperatures, zeros, unit).at(inside) for unit in units]


def _tangent_bound(
    beta: float, value: float, slope: float, other: float, other_value: float, other_slope: float
) -> float:
    """Height at which the tangents of a convex function at two points meet."""
    if slope == other_slope:
        return min(value, other_value)
    meet = (other_value - value + slope * beta - other_slope * other) / (slope - other_slope)
    return value + slope * (meet - beta)


class _Curve:
    """NLL between grid temperatures: Hermite interpolation in log inverse temperature over six points at most."""

    def __init__(self, temperatures: tuple[float, ...], nll: list[float], slope: list[float]) -> None:
        self.places = [-math.log(temperature) for temperature in temperatures]  # log b, descending
        self.nll = nll
        self.slope = [value / temperature for value, temperature in zip(slope, temperatures, strict=True)]
        self.pieces: dict[int, tuple[list[float], list[float]]] = {}

    def at(self, temperature: float) -> float:
        place = -math.log(temperature)
        last = len(self.places) - 2
        left = next((index for index in range(last + 1) if place >= self.places[index + 1]), last)
        nodes, coefficients = self.pieces.get(left) or self.pieces.setdefault(left, self._piece(left))
        value = coefficients[-1]
        for node, coefficient in zip(reversed(nodes[:-1]), reversed(coefficients[:-1]), strict=True):
            value = value * (place - node) + coefficient
        return value

    def _piece(self, left: int) -> tuple[list[float], list[float]]:
        """Newton nodes (each twice) and divided differences of the polynomial used between `left` and `left + 1`."""
        chosen = range(max(left - 2, 0), min(left + 4, len(self.places)))
        nodes = [self.places[index] for index in chosen for _ in range(2)]
        slopes = [self.slope[index] for index in chosen for _ in range(2)]
        column = [self.nll[index] for index in chosen for _ in range(2)]
        coefficients = [column[0]]
        for order in range(1, len(nodes)):
            column = [
                slopes[index]
                if nodes[index + order] == nodes[index]
                else (column[index + 1] - column[index]) / (nodes[index + order] - nodes[index])
                for index in range(len(column) - 1)
            ]
            coefficients.append(column[0])
        return nodes, coefficients


def temperature_curve(counts: Tensor, sums: Tensor, layout: Layout) -> dict[str, list[float]]:
    """Mean NLL (nats) at each temperature of the grid, over all items."""
    part = layout.parts(counts.cpu(), sums.cpu())
    rows = int(part["rows"])
    total = part["temperature_nll"].view(2, -1).sum(0).tolist()
    return {"temperature": list(layout.temperatures), "nll": [value / rows if rows else math.nan for value in total]}
