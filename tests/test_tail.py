"""Rows whose label contradicts the model: found where they were put, and not in errors that the model expects."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc.fits import tail
from lightning_lossacc.floors import TAIL_SCORE, labels_contradict
from lightning_lossacc.probe import Probe
from lightning_lossacc.sums import Layout, Task

CLASSES = 5


def calibrated(num_rows: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits whose softmax draws the targets, times `scale`."""
    logits = 3 * torch.randn(num_rows, CLASSES, dtype=torch.float64)
    return scale * logits, torch.multinomial(logits.softmax(1), 1)[:, 0]


def relabelled(target: Tensor, share: float) -> Tensor:
    """A share of the rows gets another class."""
    count = round(share * len(target))
    other = (target[:count] + torch.randint(1, CLASSES, (count,))) % CLASSES
    return torch.cat((other, target[count:]))


def likelihood(logits: Tensor, target: Tensor, share: float, temperature: float) -> float:
    """By the formula: sum log((1 - s) softmax(z / T)_y + s / C)."""
    chance = (logits / temperature).softmax(1)[torch.arange(len(target)), target]
    return float(((1 - share) * chance + share / CLASSES).log().sum())


@pytest.mark.parametrize("scale", [0.4, 1.0, 4.0])
def test_expected_errors_are_no_tail(scale: float) -> None:
    """A fifth of the rows is wrong, with fitting, too small or far too large probabilities."""
    logits, target = calibrated(2000, scale)
    assert (logits.argmax(1) != target).double().mean() > 0.1
    found = tail(logits, target)
    assert found is not None and found.score < TAIL_SCORE / 2 and found.share < 0.02
    assert found.temperature == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("share", [0.02, 0.08])
def test_planted_labels_are_found_with_their_share_and_rows(share: float) -> None:
    """Of over-confident logits: the share, the temperature of the other rows, and the rows themselves."""
    logits, target = calibrated(4000, 2.5)
    noisy = relabelled(target, share)
    found = tail(logits, noisy)
    assert found is not None and found.score > 5 * TAIL_SCORE
    # Uniform labels hit the right class as well: s = share * C / (C - 1).
    assert found.share == pytest.approx(share * CLASSES / (CLASSES - 1), rel=0.3)
    assert found.temperature == pytest.approx(2.5, rel=0.12)
    weight = found.weight
    assert weight.shape == (4000,) and weight.min() >= 0 and weight.max() <= 1
    assert weight[: round(share * 4000)].mean() > 5 * weight[round(share * 4000) :].mean()
    nll = F.cross_entropy(logits, noisy, reduction="none")
    assert found.loss == pytest.approx(float((weight * nll).mean()), rel=1e-9)


@pytest.mark.parametrize("classes", [10, 20])
def test_a_tail_among_rows_that_are_all_right(classes: int) -> None:
    """All other rows are told apart by far, so that no temperature is too low for them; of the labels 4 % are wrong."""
    answers = torch.randint(0, classes, (1000,))
    margin = torch.linspace(9, 3, 1000, dtype=torch.float64)
    logits = margin[:, None] * F.one_hot(answers, classes)
    target = answers.clone()
    target[:40] = (target[:40] + 1) % classes
    found = tail(logits, target)
    assert found is not None and found.temperature <= 1 / 8 and found.score > TAIL_SCORE
    assert found.share == pytest.approx(0.04 * classes / (classes - 1), rel=0.05)
    assert set(found.weight.topk(40).indices.tolist()) == set(range(40))
    nll = F.cross_entropy(logits, target).item()
    assert 0.6 * nll < found.loss < nll


def test_the_maximum_is_a_maximum() -> None:
    """No share and temperature of a fine grid is likelier by the formula, and the score is twice the difference."""
    logits, target = calibrated(600, 2.0)
    target = relabelled(target, 0.05)
    found = tail(logits, target)
    assert found is not None
    best = likelihood(logits, target, found.share, found.temperature)
    temperatures = torch.linspace(0.5, 8, 120).tolist()
    assert best >= max(likelihood(logits, target, s / 200, t) for s in range(1, 60) for t in temperatures) - 0.02
    plain = max(likelihood(logits, target, 0.0, t / 100) for t in range(50, 1500))
    assert found.score == pytest.approx(2 * (best - plain), abs=0.05)


def test_shift_permutation_and_inputs() -> None:
    """A constant a row and the order of rows change nothing; a masked class is no error; inputs stay as they are."""
    logits, target = calibrated(500, 2.0)
    target = relabelled(target, 0.05)
    kept = logits.clone(), target.clone()
    found, shifted = tail(logits, target), tail(logits + torch.randn(500, 1), target)
    order = torch.randperm(500)
    permuted = tail(logits[order], target[order])
    assert torch.equal(logits, kept[0]) and torch.equal(target, kept[1])
    assert found is not None and shifted is not None and permuted is not None
    for other in (shifted, permuted):
        assert other.score == pytest.approx(found.score, abs=1e-6) and other.share == pytest.approx(found.share)
    torch.testing.assert_close(permuted.weight, found.weight[order])
    masked = torch.cat((logits, torch.full((500, 1), -math.inf)), dim=1)
    assert tail(masked, target) is not None


def test_nothing_is_said_of_few_rows_or_numbers_that_are_none() -> None:
    logits, target = calibrated(99)
    assert tail(logits, target) is None
    logits, target = calibrated(300)
    logits[5, 1] = math.nan
    assert tail(logits, target) is None


@pytest.mark.parametrize("scale", [1e4, 60.0, 0.02])
def test_nothing_is_said_beyond_the_temperatures(scale: float) -> None:
    """There a share of arbitrary labels would stand for the temperature that is missing."""
    logits, target = calibrated(1000, scale)
    assert tail(logits, target) is None


def test_rows_of_another_unit_are_a_tail_although_no_temperature_fits() -> None:
    """Five rows whose logits are thousands of times too large push the best temperature of all rows off the grid."""
    logits, target = calibrated(1000)
    logits[:5] *= 3000
    target[:5] = logits[:5].argmin(1)
    found = tail(logits, target)
    assert found is not None and 0.003 < found.share < 0.05 and found.score > 5 * TAIL_SCORE
    assert found.temperature == pytest.approx(1.0, rel=0.15) and bool((found.weight[:5] > 0.9).all())
    # Against the right temperature of all rows, also beyond the grid.
    plain = max(likelihood(logits, target, 0.0, math.exp(0.05 * step)) for step in range(400))
    assert found.score == pytest.approx(
        2 * (likelihood(logits, target, found.share, found.temperature) - plain), rel=0.01
    )


def test_perfect_answers_have_no_tail() -> None:
    """All right with certainty: the likelihood of both is 0."""
    target = torch.randint(0, CLASSES, (300,))
    found = tail(1e4 * F.one_hot(target, CLASSES).double(), target)
    assert found is not None and found.share == 0 and found.score == 0


@pytest.mark.parametrize("offset", [-1e5, 1e5])
def test_distances_are_logits_as_well(offset: float) -> None:
    """A constant far below what masks a class changes nothing."""
    logits, target = calibrated(1000, 2.0)
    target = relabelled(target, 0.03)
    found, moved = tail(logits, target), tail(logits + offset, target)
    assert found is not None and moved is not None and found.score > TAIL_SCORE
    assert moved.score == pytest.approx(found.score, rel=1e-6)


def test_an_ordered_set_is_seen_as_a_whole() -> None:
    """Of 64 classes only every fourth row is fitted; wrong labels at the end count as much as at the beginning."""
    logits = 3 * torch.randn(8192, 64, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1)[:, 0]
    target[4096:4496] = torch.randint(0, 64, (400,))
    order = torch.randperm(8192)
    found, mixed = tail(logits, target), tail(logits[order], target[order])
    assert found is not None and mixed is not None
    assert found.share == pytest.approx(400 / 8192, rel=0.3) and mixed.share == pytest.approx(found.share, rel=0.35)


def test_a_ratio_must_grow_with_the_rows() -> None:
    assert labels_contradict(12.0, 300) and labels_contradict(12.0, 1000) and not labels_contradict(11.9, 100)
    assert labels_contradict(98.5, 8192) and not labels_contradict(98.0, 8192)


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_the_probe_says_how_much_of_a_rise_they_carry(task: Task) -> None:
    """Logits that grow tenfold: the rise of the relabelled rows is theirs, by weights of the later evaluation."""
    if task == "binary":
        clean = 2 * torch.randn(1000)
        clean[:40] *= 3
        target = torch.bernoulli(clean.sigmoid()).long()
        first, second = clean / 4, 4 * clean
        target[:40] = (clean[:40] < 0).long()
    else:
        clean, target = calibrated(1000)
        target[:40] = (clean[:40].argmax(1) + 1) % CLASSES
        first, second = (clean / 4).float(), (4 * clean).float()
    probe = Probe(1000, Layout(2 if task == "binary" else CLASSES, task, temperatures=(0.5, 1.0, 2.0, 4.0)))
    position = torch.arange(1000)
    probe.update(position, first, target)
    probe.keep("nll", 0, 0, 1.0, 1.0)
    probe.clear()
    probe.update(position, second, target)
    found, compared = probe.tail(), probe.compare("nll", 2.0)
    assert found is not None and compared is not None
    both = torch.stack((torch.zeros(1000), second), 1) if task == "binary" else second
    before = torch.stack((torch.zeros(1000), first), 1) if task == "binary" else first
    change = F.cross_entropy(both.double(), target, reduction="none") - F.cross_entropy(
        before.double(), target, reduction="none"
    )
    assert compared["tail_change"] == pytest.approx(float((found.weight * change).mean()), rel=1e-5)
    assert found.weight[:40].mean() > 3 * found.weight[40:].mean()
