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


def totals(
    rows: Sequence[Sequence[float]], labels: Sequence[int], top_k: int, ignore_index: int | None = -100
) -> dict[str, object]:
    """Counts and sums of a layout by formula, for one row an item."""
    num_classes = len(rows[0])
    fates = [fate(row, label, ignore_index) for row, label in zip(rows, labels, strict=True)]
    kept = [(row, label) for row, label, fate in zip(rows, labels, fates, strict=True) if fate == COUNTED]
    nlls = [nll(row, label) for row, label in kept]
    hits = [predicted(row) == label for row, label in kept]
    margins = [margin(row, label) for row, label in kept]
    classes = range(num_classes)
    return {
        "rows": len(kept),
        "items": len(kept),
        **{name: fates.count(name) for name in (IGNORED, INVALID, NON_FINITE)},
        "correct": sum(hits),
        "ties": sum(value == 0 for value in margins),
        "top_k": sum(rank(row, label) < top_k for row, label in kept),
        "margin_rows": sum(math.isfinite(value) for value in margins),
        "items_rows_squared": len(kept),
        "items_rows_correct": sum(hits),
        "items_correct_squared": sum(hits),
        "class_rows": [sum(label == index for _, label in kept) for index in classes],
        "class_predicted": [sum(predicted(row) == index for row, _ in kept) for index in classes],
        "class_correct": [
            sum(hit and label == index for hit, (_, label) in zip(hits, kept, strict=True)) for index in classes
        ],
        "nll": math.fsum(nlls),
        "items_nll_squared": math.fsum(value * value for value in nlls),
        "items_rows_nll": math.fsum(nlls),
        "margin": math.fsum(value for value in margins if math.isfinite(value)),
        "confidence": math.fsum(max(probabilities(row)) for row, _ in kept),
        "entropy": math.fsum(entropy(row) for row, _ in kept),
        "brier": math.fsum(brier(row, label) for row, label in kept),
        "class_nll": [
            math.fsum(value for value, (_, label) in zip(nlls, kept, strict=True) if label == index)
            for index in classes
        ],
    }
