"""Sums to quantities: accuracy, margin, calibration, intervals. Pure functions of a `Layout` and its two vectors.

Nothing here needs a device: both vectors are read once, and every result is a Python float. With no counted row every
mean is NaN. `KEYS` lists what `summary` returns, with unit, range and the better direction, for documentation and
tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.refinement import cross_fitted_gain, refinement
from lightning_lossacc.sums import Layout


class Quantity(NamedTuple):
    """How one key of `summary` is to be read: its range, the better direction, what it is, and its source."""

    range: str
    better: str  # "lower", "higher" or "-"
    meaning: str


KEYS: dict[str, Quantity] = {
    "nll": Quantity(
        "[0, inf) nats", "lower", "mean of log sum exp(z) - z_y; the cross-entropy without weights or smoothing"
    ),
    "nll_standard_error": Quantity("[0, inf) nats", "-", "sampling error of nll, clustered by item"),
    "perplexity": Quantity("[1, inf)", "lower", "exp(nll)"),
    "accuracy": Quantity("[0, 1]", "higher", "rows whose target is the lowest index among the maxima"),
    "accuracy_standard_error": Quantity("[0, 1]", "-", "sampling error of accuracy, clustered by item"),
    "top_k_accuracy": Quantity("[0, 1]", "higher", "rows whose target fewer than k classes beat"),
    "balanced_accuracy": Quantity("[0, 1]", "higher", "mean recall of the classes that occur"),
    "margin_mean": Quantity("(-inf, inf)", "higher", "mean of z_y - max other z (Pleiss et al. 2020)"),
    "margin_p05": Quantity("[-64, 64]", "higher", "5 % quantile of the margin, from 128 asinh-spaced bins"),
    "confidence": Quantity("[1/C, 1]", "-", "mean of the largest probability (Guo et al. 2017)"),
    "confidence_wrong": Quantity("[1/C, 1]", "lower", "mean confidence of the wrong rows"),
    "overconfidence": Quantity("[-1, 1]", "0", "mean confidence - accuracy; > 0 over-confident"),
    "ece": Quantity("[0, 1]", "lower", "sum over bins of share * |accuracy - confidence| (Naeini et al. 2015)"),
    "mce": Quantity("[0, 1]", "lower", "largest |accuracy - confidence| of a bin (Naeini et al. 2015)"),
    "brier": Quantity("[0, 2]", "lower", "mean of sum (p - onehot)^2 (Brier 1950)"),
    "entropy": Quantity("[0, ln C] nats", "-", "mean of -sum p ln p"),
    "refinement_nll": Quantity("[0, nll] nats", "lower", "nll after the best single temperature (Berta et al. 2025)"),
    "calibration_nll": Quantity("[0, inf) nats", "lower", "nll - refinement_nll: what one temperature removes"),
    "temperature": Quantity("[0.25, 8]", "1", "temperature of the smallest nll; > 1 over-confident (Guo et al. 2017)"),
    "temperature_at_edge": Quantity("{0, 1}", "0", "1 if the optimum lies outside the grid"),
    "temperature_gain": Quantity(
        "(-inf, inf) nats", "-", "nll saved by temperatures fitted on the other half of the items"
    ),
    "nll_right": Quantity("[0, ln C] nats", "lower", "mean nll of the right rows"),
    "nll_wrong": Quantity("[ln 2, inf) nats", "lower", "mean nll of the wrong rows"),
    "majority_rate": Quantity("[1/C, 1]", "-", "share of the most frequent target class"),
    "predicted_majority_rate": Quantity("[1/C, 1]", "-", "share of the most frequently predicted class"),
    "num_rows": Quantity("[0, inf)", "-", "counted rows"),
    "num_items": Quantity("[0, inf)", "-", "items with a counted row"),
}
CORE: tuple[str, ...] = (
    "nll",
    "accuracy",
    "balanced_accuracy",
    "refinement_nll",
    "calibration_nll",
    "temperature",
    "overconfidence",
    "margin_p05",
)


def summary(counts: Tensor, sums: Tensor, layout: Layout) -> dict[str, float]:
    """All scalar quantities; keys as in `KEYS`, without those that the layout switches off.

    Args:
        counts: (layout.size_counts,) int64.
        sums: (layout.size_sums,) float64.
    """
    counts, sums = counts.cpu(), sums.cpu()
    part = layout.parts(counts, sums)

    def count(name: str) -> int:
        return int(part[name])

    rows, items, correct = count("rows"), count("items"), count("correct")
    nll = _ratio(float(part["nll"]), rows)
    accuracy = _ratio(correct, rows)
    bins = part["bin_rows"].view(2, -1)
    confidence_wrong, confidence_right = part["bin_confidence"].view(2, -1).sum(1).tolist()
    nll_wrong, nll_right = part["bin_nll"].view(2, -1).sum(1).tolist()
    confidence = _ratio(confidence_wrong + confidence_right, rows)
    ece, mce = calibration_errors(bins, part["bin_confidence"].view(2, -1))
    values = {
        "nll": nll,
        "nll_standard_error": clustered_standard_error(
            nll,
            float(part["items_nll_squared"]),
            float(part["items_rows_nll"]),
            count("items_rows_squared"),
            rows,
            items,
        ),
        "perplexity": math.exp(min(nll, 700.0)),
        "accuracy": accuracy,
        "accuracy_standard_error": clustered_standard_error(
            accuracy,
            count("items_correct_squared"),
            count("items_rows_correct"),
            count("items_rows_squared"),
            rows,
            items,
        ),
        "top_k_accuracy": _ratio(count("top_k"), rows),
        "margin_mean": _ratio(float(part["margin"]), count("margin_rows")),
        "margin_p05": margin_quantile(part["margin_histogram"], 0.05),
        "confidence": confidence,
        "confidence_wrong": _ratio(confidence_wrong, rows - correct),
        "overconfidence": confidence - accuracy,
        "ece": ece,
        "mce": mce,
        "brier": _ratio(float(part["brier"]), rows),
        "entropy": _ratio(float(part["entropy"]), rows),
        "nll_right": _ratio(nll_right, correct),
        "nll_wrong": _ratio(nll_wrong, rows - correct),
        "num_rows": float(rows),
        "num_items": float(items),
    }
    if layout.per_class:
        occurring = part["class_rows"] > 0
        recall = part["class_correct"][occurring].double() / part["class_rows"][occurring]
        values["balanced_accuracy"] = _ratio(float(recall.sum()), int(occurring.sum()))
        values["majority_rate"] = _ratio(int(part["class_rows"].max()), rows)
        values["predicted_majority_rate"] = _ratio(int(part["class_predicted"].max()), rows)
    if layout.temperatures:
        best = refinement(counts, sums, layout)
        values["refinement_nll"] = best.nll
        values["calibration_nll"] = nll - best.nll
        values["temperature"] = best.temperature
        values["temperature_at_edge"] = float(best.at_edge) if rows else math.nan
        values["temperature_gain"] = cross_fitted_gain(counts, sums, layout)
    return {key: values[key] for key in KEYS if key in values}


def clustered_standard_error(
    mean: float, squares: float, products: float, squared_rows: float, rows: int, items: int
) -> float:
    """Standard error of a mean over rows when items, not rows, were sampled.

    sqrt(I / (I - 1) * sum_i (s_i - n_i mean)^2) / n, with s_i the sum over the n_i rows of item i (Cameron and Miller
    2015).

    Args:
        mean: sum_i s_i / n.
        squares: sum_i s_i^2.
        products: sum_i n_i s_i.
        squared_rows: sum_i n_i^2.
        rows: n.
        items: I; fewer than 2 give NaN.
    """
    if items < 2:
        return math.nan
    spread = max(squares - 2 * mean * products + mean * mean * squared_rows, 0.0)
    return math.sqrt(items / (items - 1) * spread) / rows


def calibration_errors(bin_rows: Tensor, bin_confidence: Tensor) -> tuple[float, float]:
    """Expected and largest calibration error over confidence bins (Naeini et al. 2015).

    Args:
        bin_rows: (2, B) wrong and right rows.
        bin_confidence: (2, B) their summed confidence.
    """
    rows = bin_rows.sum(0).double()
    filled = rows > 0
    if not bool(filled.any()):
        return math.nan, math.nan
    gaps = (bin_rows[1].double() - bin_confidence.sum(0))[filled].abs()
    return float(gaps.sum() / rows.sum()), float((gaps / rows[filled]).max())


def margin_quantile(histogram: Tensor, share: float) -> float:
    """The margin below which `share` of the rows lie, linear within a bin; ±64 beyond the last edges; NaN if empty.

    Args:
        histogram: (130,) rows by margin bin with an overflow bin at either end.
        share: in (0, 1).
    """
    edges = margin_edges()
    total = int(histogram.sum())
    if total == 0:
        return math.nan
    wanted = share * total
    passed = 0
    for index, rows in enumerate(histogram.tolist()):
        if rows and passed + rows >= wanted:
            if index == 0:
                return edges[0]
            if index == len(edges):
                return edges[-1]
            low, high = edges[index - 1], edges[index]
            return low + (high - low) * (wanted - passed) / rows
        passed += rows
    return edges[-1]


def reliability(counts: Tensor, sums: Tensor, layout: Layout) -> dict[str, list[float]]:
    """Reliability diagram: for each of the B confidence bins its edges, rows, accuracy and mean confidence (NaN if
    empty).
    """
    part = layout.parts(counts.cpu(), sums.cpu())
    wrong, right = part["bin_rows"].view(2, -1).tolist()
    confidence = part["bin_confidence"].view(2, -1).sum(0).tolist()
    rows = [first + second for first, second in zip(wrong, right, strict=True)]
    return {
        "edges": [index / layout.num_bins for index in range(layout.num_bins + 1)],
        "rows": rows,
        "accuracy": [_ratio(hits, total) for hits, total in zip(right, rows, strict=True)],
        "confidence": [_ratio(value, total) for value, total in zip(confidence, rows, strict=True)],
    }


def class_table(counts: Tensor, sums: Tensor, layout: Layout, largest: int | None = None) -> dict[str, list[float]]:
    """Per class: index, rows, predicted rows, right rows, mean NLL of its rows (NaN without rows).

    Args:
        largest: keep this many classes with most rows and fold the others into one entry with index -1.
    """
    part = layout.parts(counts.cpu(), sums.cpu())
    columns = [part[name].double() for name in ("class_rows", "class_predicted", "class_correct", "class_nll")]
    order = torch.arange(len(columns[0]))
    if largest is not None and len(order) > largest:
        order = torch.argsort(columns[0], descending=True, stable=True)
        rest = order[largest:]
        order = order[:largest]
        columns = [torch.cat((column[order], column[rest].sum()[None])) for column in columns]
    index = order.tolist() + [-1] * (len(columns[0]) - len(order))
    rows, predicted, correct, nll = (column.tolist() for column in columns)
    return {
        "class": index,
        "rows": rows,
        "predicted": predicted,
        "correct": correct,
        "nll": [_ratio(value, total) for value, total in zip(nll, rows, strict=True)],
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
