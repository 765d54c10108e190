"""The three fits tell a temperature, a shift of class shares and class-wise scales apart, and never raise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_lossacc.fits import cross_fitted

CLASSES = 5
FAMILIES = ("temperature", "bias", "vector")


def calibrated(num_rows: int, separation: float = 1.6) -> tuple[Tensor, Tensor]:
    """Logits that are the log-posterior of Gaussians at the corners of a simplex, and their targets."""
    target = torch.randint(0, CLASSES, (num_rows,))
    noise = torch.randn(num_rows, CLASSES, dtype=torch.float64)
    return separation * (separation * F.one_hot(target, CLASSES) + noise), target


def fits(logits: Tensor, target: Tensor) -> dict:
    return cross_fitted(logits, target, torch.rand(len(target)) < 0.5)


def gained(found: dict, name: str, errors: float = 4.0) -> bool:
    return found[f"{name}_gain"] > errors * found[f"{name}_gain_error"]


def test_calibrated_logits_gain_nothing() -> None:
    """Cross-fitted on calibrated logits no family wins, and the largest costs the most."""
    found = fits(*calibrated(2000))
    assert found["items"] == 2000 and found["slope"] == pytest.approx(1.0, abs=0.1)
    assert not any(gained(found, name, 3.0) for name in FAMILIES)
    assert abs(found["temperature"] - found["nll"]) < 0.005 and found["vector"] - found["nll"] < 0.03


def test_one_temperature_is_found_and_nothing_else() -> None:
    """Logits that are three times too large: the temperature saves it all, biases add nothing."""
    logits, target = calibrated(2000)
    found = fits(3 * logits, target)
    assert gained(found, "temperature") and not gained(found, "bias", 3.0) and not gained(found, "vector", 3.0)
    assert found["slope"] == pytest.approx(1 / 3, rel=0.1)
    assert found["temperature"] == pytest.approx(float(F.cross_entropy(logits, target)), abs=0.005)


def test_prior_shift_is_a_bias_and_its_size_is_found() -> None:
    """Logits of other class shares differ by log ratios: no temperature repairs them, the bias is minus the shift."""
    logits, target = calibrated(2000)
    shift = torch.tensor([1.5, 0.5, 0.0, -0.5, -1.5])
    found = fits(logits + shift, target)
    assert gained(found, "bias", 5.0) and not gained(found, "vector", 3.0)
    assert found["bias_values"] == pytest.approx((-shift).tolist(), abs=0.35)
    assert math.fsum(found["bias_values"]) == pytest.approx(0, abs=1e-9)
    corrected = found["slope"] * F.log_softmax(logits + shift, 1) + torch.tensor(found["bias_values"])
    assert float(F.cross_entropy(corrected, target)) == pytest.approx(float(F.cross_entropy(logits, target)), abs=0.01)


def test_errors_of_single_classes_need_a_scale_per_class() -> None:
    """One class twice too sure of itself is repaired neither by a temperature nor by biases alone."""
    target = torch.randint(0, CLASSES, (2000,))
    scores = F.log_softmax(torch.randn(2000, CLASSES, dtype=torch.float64) * 2, 1)
    drawn = torch.multinomial(scores.exp(), 1)[:, 0]
    target = drawn
    distorted = scores * torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])
    found = fits(distorted, target)
    assert gained(found, "vector", 5.0) and found["vector"] < found["temperature"]


def test_it_is_the_optimum_of_the_other_half() -> None:
    """Each family agrees with a long gradient descent on one half, measured on the other."""
    logits, target = calibrated(600)
    logits = 2 * logits + torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0])
    second = torch.arange(600) % 2 == 1
    found = cross_fitted(logits, target, second)
    scores = F.log_softmax(logits, 1)
    wanted = dict.fromkeys(FAMILIES, 0.0)
    for side in (~second, second):
        for name in FAMILIES:
            scale = torch.ones(CLASSES if name == "vector" else 1, dtype=torch.float64, requires_grad=True)
            bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=name != "temperature")
            free = [scale] if name == "temperature" else [scale, bias]
            optimizer = torch.optim.LBFGS(free, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

            def closure(scale=scale, bias=bias, side=side, optimizer=optimizer):
                optimizer.zero_grad()
                prior = (((scale - 1) ** 2 * (CLASSES / len(scale))).sum() + (bias**2).sum()) / (18 * int(side.sum()))
                loss = F.cross_entropy(scale * scores[side] + bias, target[side]) + prior
                loss.backward()
                return loss

            optimizer.step(closure)
            moved = (scale * scores + bias)[~side].detach()
            wanted[name] += float(F.cross_entropy(moved, target[~side], reduction="sum")) / 600
    for name in FAMILIES:
        assert found[name] == pytest.approx(wanted[name], abs=2e-5)


def test_a_constant_in_all_logits_of_a_row_changes_nothing() -> None:
    """Softmax does not see it, so no fit may."""
    logits, target = calibrated(400)
    second = torch.arange(400) % 2 == 1
    first, moved = (cross_fitted(logits + shift, target, second) for shift in (0.0, torch.randn(400, 1) * 20))
    for name in ("nll", *FAMILIES):
        assert moved[name] == pytest.approx(first[name], abs=1e-9)


def test_too_little_is_no_answer() -> None:
    """A missing class, a small half or an empty set give an empty dictionary."""
    logits, target = calibrated(400)
    second = torch.arange(400) % 2 == 1
    assert cross_fitted(logits, target, second)
    assert cross_fitted(logits[:20], target[:20], second[:20]) == {}
    assert cross_fitted(logits[:0], target[:0], second[:0]) == {}
    keep = (target != 3) | second
    assert cross_fitted(logits[keep], target[keep], second[keep]) == {}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(-4, 6),
    st.integers(2, 6),
    st.sampled_from(["plain", "masked", "separable", "equal", "huge"]),
)
def test_never_raises_and_nested_families_stay_close(seed: int, power: float, classes: int, kind: str) -> None:
    """Any scale, masked classes, perfect separation, constant and exploding logits: numbers, or nothing."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(120) % classes
    logits = 10**power * torch.randn(120, classes, generator=generator)
    if kind == "masked":
        logits[torch.arange(120), (target + 1) % classes] = -math.inf
    elif kind == "separable":
        logits = 10**power * F.one_hot(target, classes).double()
    elif kind == "equal":
        logits = torch.full_like(logits, 10**power)
    elif kind == "huge":
        logits = logits * 1e30
    found = cross_fitted(logits, target, torch.rand(120, generator=generator) < 0.5)
    for name in ("nll", *FAMILIES) if found else ():
        assert math.isfinite(found[name]) and found[name] >= 0
    if found and kind == "separable":
        assert found["temperature"] <= found["nll"] + 1e-6
