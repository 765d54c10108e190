"""Quantities are what their formulas say: against float64 gold, full-array optima, torchmetrics and hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from lightning_lossacc import kernels, quantities, refinement
from lightning_lossacc.sums import Layout
from tests import gold, inputs


def vectors(logits: Tensor, target: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    counts, sums = layout.zeros()
    kernels.row_statistics(logits, target, counts, sums, layout)
    return counts, sums


def summary(logits: Tensor, target: Tensor, **arguments: object) -> dict[str, float]:
    layout = Layout(logits.shape[1], **arguments)
    return quantities.summary(*vectors(logits, target, layout), layout)


def calibrated(num_rows: int, num_classes: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Labels drawn from the softmax, logits then multiplied by `temperature`, which is about the best one."""
    logits = torch.randn(num_rows, num_classes, dtype=torch.float64)
    logits[torch.arange(num_rows), torch.randint(0, num_classes, (num_rows,))] += 3
    target = torch.distributions.Categorical(logits=logits).sample()
    return logits * temperature, target


@pytest.mark.parametrize("family", ["typical", "confident", "tied", "ignored"])
def test_means_equal_gold(family: str) -> None:
    logits, target = inputs.make(family)
    rows = [(row, label) for row, label in zip(logits.tolist(), target.tolist(), strict=True) if label >= 0]
    values, count = summary(logits, target, top_k=2), len(rows)
    hits = [gold.predicted(row) == label for row, label in rows]
    confidences = [max(gold.probabilities(row)) for row, _ in rows]
    edges = [index / 15 for index in range(16)]
    expected = {
        "nll": math.fsum(gold.nll(*row) for row in rows) / count,
        "accuracy": sum(hits) / count,
        "top_k_accuracy": sum(gold.rank(*row) < 2 for row in rows) / count,
        "margin_mean": math.fsum(gold.margin(*row) for row in rows) / count,
        "confidence": math.fsum(confidences) / count,
        "overconfidence": math.fsum(confidences) / count - sum(hits) / count,
        "ece": gold.calibration_error(confidences, hits, edges),
        "brier": math.fsum(gold.brier(*row) for row in rows) / count,
        "entropy": math.fsum(gold.entropy(row) for row, _ in rows) / count,
        "nll_right": math.fsum(gold.nll(*row) for row, hit in zip(rows, hits, strict=True) if hit) / sum(hits),
        "confidence_wrong": math.fsum(c for c, hit in zip(confidences, hits, strict=True) if not hit)
        / (count - sum(hits)),
    }
    for key, value in expected.items():
        assert values[key] == pytest.approx(value, rel=1e-10, abs=1e-12), key
    assert values["perplexity"] == pytest.approx(math.exp(values["nll"]))
    assert values["num_rows"] == values["num_items"] == count


def test_keys_are_documented_and_complete() -> None:
    logits, target = inputs.make("typical")
    assert list(summary(logits, target)) == list(quantities.KEYS)
    assert set(quantities.CORE) <= set(quantities.KEYS)
    assert all(
        item.range and item.meaning and item.better in ("lower", "higher", "-", "0", "1")
        for item in quantities.KEYS.values()
    )
    without = summary(logits, target, temperatures=(), per_class=False)
    assert "refinement_nll" not in without and "balanced_accuracy" not in without and "nll" in without


def test_no_row_gives_nan_and_zero_counts() -> None:
    values = summary(torch.zeros(3, 4), torch.full((3,), -100))
    assert values.pop("num_rows") == values.pop("num_items") == 0
    assert all(math.isnan(value) for value in values.values()), values


# Optima from 0.27 to 7.5 and from 2 to 1000 classes: the whole range that the grid promises.
@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("temperature", [0.28, 0.5, 0.9, 1.5, 3.0, 6.8])
def test_refinement_equals_the_full_array_optimum(num_classes: int, temperature: float) -> None:
    logits, target = calibrated(1000 if num_classes < 1000 else 300, num_classes, temperature)
    layout = Layout(num_classes)
    found = refinement.refinement(*vectors(logits, target, layout), layout)
    best = minimize_scalar(
        lambda log_t: float(F.cross_entropy(logits / math.exp(log_t), target)),
        bounds=(math.log(0.2), math.log(10)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    if not 0.25 < math.exp(best.x) < 8:
        assert found.at_edge
        return
    assert not found.at_edge
    assert abs(found.nll - best.fun) < 1.5e-4
    assert found.temperature == pytest.approx(math.exp(best.x), rel=2e-3)
    assert found.lower - 1e-12 <= best.fun <= found.upper + 1e-12


@pytest.mark.parametrize(("temperature", "edge"), [(0.05, 0.25), (40.0, 8.0)])
def test_an_optimum_outside_the_grid_is_reported_as_such(temperature: float, edge: float) -> None:
    logits, target = calibrated(500, 5, temperature)
    values = summary(logits, target)
    assert values["temperature_at_edge"] == 1.0 and values["temperature"] == edge


def test_scaling_logits_moves_the_temperature_and_not_the_refinement() -> None:
    logits, target = calibrated(800, 6, 1.2)
    once, twice = summary(logits, target), summary(2 * logits, target)
    assert twice["temperature"] == pytest.approx(2 * once["temperature"], rel=1e-3)
    assert twice["refinement_nll"] == pytest.approx(once["refinement_nll"], abs=1e-5)
    assert twice["accuracy"] == once["accuracy"] and twice["nll"] > once["nll"]


def test_cross_fitted_gain_is_honest_where_the_plain_one_is_not() -> None:
    gains, plain = [], []
    for _ in range(30):
        logits, target = calibrated(60, 4, 1.0)
        values = summary(logits, target)
        gains.append(values["temperature_gain"])
        plain.append(values["calibration_nll"])
    # Calibrated logits have nothing to gain: a fit on the same rows always claims some, a cross-fitted one loses a
    # little.
    assert min(plain) >= 0 and sum(plain) / 30 > 0.003
    assert sum(gains) / 30 < 0.001


def test_clustered_error_equals_the_spread_over_resampled_items() -> None:
    items, rows = 4000, 20
    level = torch.randn(items, 1, 1, dtype=torch.float64) * 2
    logits = torch.cat((level.expand(items, 1, rows), torch.zeros(items, 1, rows)), dim=1)
    target = torch.zeros(items, rows, dtype=torch.long)
    means = [
        float(F.cross_entropy(part, label)) for part, label in zip(logits.split(100), target.split(100), strict=True)
    ]
    wanted = float(torch.tensor(means).std())
    layout = Layout(2)
    errors = [
        quantities.summary(*vectors(part, label, layout), layout)["nll_standard_error"]
        for part, label in zip(logits.split(100), target.split(100), strict=True)
    ]
    assert sum(errors) / len(errors) == pytest.approx(wanted, rel=0.25)
    naive = float(F.cross_entropy(logits[:100], target[:100], reduction="none").std()) / math.sqrt(100 * rows)
    assert wanted > 3 * naive


@pytest.mark.parametrize("num_bins", [10, 15])
def test_ece_equals_torchmetrics(num_bins: int) -> None:
    logits, target = calibrated(3000, 6, 1.8)
    logits = logits.float()
    theirs = multiclass_calibration_error(logits.softmax(1), target, num_classes=6, n_bins=num_bins)
    assert summary(logits, target, num_bins=num_bins)["ece"] == pytest.approx(float(theirs), abs=2e-6)
    theirs = multiclass_accuracy(logits, target, num_classes=6, average="macro")
    assert summary(logits, target)["balanced_accuracy"] == pytest.approx(float(theirs), abs=1e-6)


def test_confidence_exactly_one_belongs_to_the_last_bin() -> None:
    # torchmetrics puts it into a bin of its own, so that a 0.99 beside it is never averaged with it.
    logits = torch.tensor([[100.0, 0.0], [0.0, 3.0], [0.0, 100.0]])
    layout = Layout(2, num_bins=2)
    table = quantities.reliability(*vectors(logits, torch.tensor([0, 0, 1]), layout), layout)
    assert table["rows"] == [0, 3] and table["accuracy"][1] == pytest.approx(2 / 3)
    assert math.isnan(table["confidence"][0])


def test_margin_quantile_is_close_to_the_sorted_one() -> None:
    logits, target = calibrated(5000, 4, 2.0)
    margins = logits.gather(1, target[:, None]).squeeze(1) - logits.scatter(1, target[:, None], -math.inf).amax(1)
    for share in (0.05, 0.5):
        wanted = float(torch.quantile(margins, share))
        layout = Layout(4)
        part = layout.parts(*vectors(logits, target, layout))
        assert quantities.margin_quantile(part["margin_histogram"], share) == pytest.approx(
            wanted, abs=0.05 * (1 + abs(wanted))
        )


def test_class_table_folds_small_classes_into_a_rest() -> None:
    logits, target = torch.randn(500, 30), torch.randint(0, 30, (500,)) ** 2 // 30
    layout = Layout(30)
    counts, sums = vectors(logits, target, layout)
    whole, folded = (
        quantities.class_table(counts, sums, layout),
        quantities.class_table(counts, sums, layout, largest=5),
    )
    assert folded["class"][-1] == -1 and len(folded["rows"]) == 6
    assert sum(folded["rows"]) == sum(whole["rows"]) == 500
    assert min(folded["rows"][:5]) >= max(
        rows for index, rows in enumerate(whole["rows"]) if index not in folded["class"]
    )
    total = sum(rows * nll for rows, nll in zip(folded["rows"], folded["nll"], strict=True) if rows)
    assert total == pytest.approx(float(layout.parts(counts, sums)["nll"]))


def test_interpolation_weights_reproduce_the_curve() -> None:
    logits, target = calibrated(500, 8, 2.3)
    layout = Layout(8)
    items = kernels.item_values(logits, target, layout)
    for temperature in (0.3, 1.0, 2.2, 7.0):
        weights = torch.tensor(refinement.interpolation_weights(layout.temperatures, temperature), dtype=torch.float64)
        per_item = items[:, 5:] @ weights
        wanted = F.cross_entropy(logits / temperature, target)
        assert float(per_item.mean()) == pytest.approx(float(wanted), abs=1e-4)
