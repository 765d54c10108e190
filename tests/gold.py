"""The formulas of the papers in float64, row by row, in plain Python: loops allowed, nothing of ours imported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

IGNORED, INVALID, NON_FINITE, COUNTED = "ignored", "invalid", "non_finite", "counted"


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def fate(logits: Sequence[float], target: int, ignore_index: int | None) -> str:
    if ignore_index is not None and target == ignore_index:
        return IGNORED
    if not 0 <= target < len(logits):
        return INVALID
    bad = any(math.isnan(value) or value == math.inf for value in logits)
    return NON_FINITE if bad or logits[target] == -math.inf else COUNTED


def nll(logits: Sequence[float], target: int, temperature: float = 1.0) -> float:
    scaled = [value / temperature for value in logits]
    return log_sum_exp(scaled) - scaled[target]


def probabilities(logits: Sequence[float]) -> list[float]:
    total = log_sum_exp(logits)
    return [math.exp(value - total) for value in logits]


def margin(logits: Sequence[float], target: int) -> float:
    return logits[target] - max(value for index, value in enumerate(logits) if index != target)


def predicted(logits: Sequence[float]) -> int:
    return max(range(len(logits)), key=lambda index: (logits[index], -index))


def rank(logits: Sequence[float], target: int) -> int:
    mine = logits[target]
    return sum(value > mine or (value == mine and index < target) for index, value in enumerate(logits))


def entropy(logits: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities(logits) if p > 0)


def brier(logits: Sequence[float], target: int) -> float:
    return math.fsum((p - (index == target)) ** 2 for index, p in enumerate(probabilities(logits)))


def slope(logits: Sequence[float], target: int, temperature: float) -> float:
    """Derivative of the NLL of logits / temperature by 1 / temperature."""
    chances = probabilities([value / temperature for value in logits])
    return math.fsum(p * value for p, value in zip(chances, logits, strict=True) if p > 0) - logits[target]


def calibration_error(confidences: Sequence[float], hits: Sequence[bool], edges: Sequence[float]) -> float:
    total, count = 0.0, len(confidences)
    for low, high in itertools.pairwise(edges):
        last = high == edges[-1]
        members = [i for i, value in enumerate(confidences) if low <= value < high or (last and value == high)]
        if members:
            gap = math.fsum(hits[i] for i in members) - math.fsum(confidences[i] for i in members)
            total += abs(gap) / count
    return total
