"""The probe compares the same items, its parts add up, and its errors are those of a paired difference."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc import attribution, kernels
from lightning_lossacc.probe import Probe, compare
from lightning_lossacc.refinement import refinement
from lightning_lossacc.sums import Layout


def evaluation(num_rows: int, scale: float, separation: float, noise: Tensor, target: Tensor) -> Tensor:
    return scale * (separation * F.one_hot(target, 4).double() + noise)


def temperature_of(logits: Tensor, target: Tensor) -> float:
    layout = Layout(4)
    counts, sums = layout.zeros()
    kernels.row_statistics(logits, target, counts, sums, layout)
    return refinement(counts, sums, layout).temperature


def two_evaluations(num_rows: int = 500) -> tuple[Probe, Tensor, Tensor, Tensor]:
    target, noise = torch.randint(0, 4, (num_rows,)), torch.randn(num_rows, 4, dtype=torch.float64)
    before, after = evaluation(num_rows, 1.5, 2.0, noise, target), evaluation(num_rows, 3.0, 1.9, noise, target)
    probe = Probe(num_rows, Layout(4))
    probe.update(torch.arange(num_rows), before, target)
    probe.keep("nll", 3, 30, temperature_of(before, target), float(F.cross_entropy(before, target)))
    probe.clear()
    for start in range(0, num_rows, 64):
        part = slice(start, min(start + 64, num_rows))
        probe.update(torch.arange(part.start, part.stop), after[part], target[part])
    return probe, before, after, target


def test_change_and_errors_are_those_of_the_rows() -> None:
    probe, before, after, target = two_evaluations()
    fitted = temperature_of(after, target)
    found = probe.compare("nll", fitted)
    change = F.cross_entropy(after, target, reduction="none") - F.cross_entropy(before, target, reduction="none")
    assert found["nll_change"] == pytest.approx(float(change.mean()), rel=1e-12)
    assert found["nll_change_error"] == pytest.approx(float(change.std()) / math.sqrt(500), rel=1e-9)
    assert (found["reference_epoch"], found["reference_step"], found["items"], found["rows"]) == (3, 30, 500, 500)
    hits = (after.argmax(1) == target).double() - (before.argmax(1) == target).double()
    assert found["accuracy_change"] == pytest.approx(float(hits.mean()))
    assert found["accuracy_change_error"] == pytest.approx(float(hits.std()) / math.sqrt(500))
    first = temperature_of(before, target)
    refined = F.cross_entropy(after / fitted, target) - F.cross_entropy(before / first, target)
    assert found["refinement_change"] == pytest.approx(float(refined), abs=1e-5)
    assert found["refinement_change_error"] < found["nll_change_error"]


def test_groups_partition_the_items_and_add_up() -> None:
    probe, before, after, target = two_evaluations()
    found = probe.compare("nll", 1.5)
    assert sum(group["items"] for group in found["groups"]) == 500
    assert math.fsum(attribution.by_group(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    assert math.fsum(attribution.by_temperature(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    was, is_now = before.argmax(1) == target, after.argmax(1) == target
    sizes = {group["name"]: group["items"] for group in found["groups"]}
    assert sizes == {
        "right both times": int((was & is_now).sum()),
        "wrong both times": int((~was & ~is_now).sum()),
        "wrong to right": int((~was & is_now).sum()),
        "right to wrong": int((was & ~is_now).sum()),
    }


def test_worst_rows_are_named_by_position() -> None:
    probe, before, after, target = two_evaluations()
    change = F.cross_entropy(after, target, reduction="none") - F.cross_entropy(before, target, reduction="none")
    worst = probe.compare("nll", 1.5)["worst"]
    assert [item["index"] for item in worst] == change.argsort(descending=True)[:8].tolist()
    for item in worst:
        assert item["target"] == int(target[item["index"]]) and item["predicted"] == int(after[item["index"]].argmax())
        assert item["change"] == pytest.approx(float(change[item["index"]]) / 500)


def test_nothing_changed_means_nothing_to_say() -> None:
    probe, before, _, target = two_evaluations()
    probe.update(torch.arange(500), before, target)
    found = probe.compare("nll", temperature_of(before, target))
    assert found["nll_change"] == 0 and found["refinement_change"] == 0 and found["worst"] == []


def test_other_labels_or_rows_switch_pairing_off() -> None:
    probe, _, after, target = two_evaluations()
    assert probe.compare("nll", 1.0) is not None and probe.compare("accuracy", 1.0) is None
    changed = target.clone()
    changed[7] = (changed[7] + 1) % 4
    probe.update(torch.arange(500), after, changed)
    assert probe.compare("nll", 1.0) is None
    probe.update(torch.arange(500), after, torch.where(torch.arange(500) == 7, -100, target))
    assert probe.compare("nll", 1.0) is None


def test_large_sets_keep_a_fixed_sample_in_any_order_and_batch() -> None:
    size, layout = 20_000, Layout(4)
    logits, target = torch.randn(size, 4), torch.randint(0, 4, (size,))
    first, second = Probe(size, layout, limit=256), Probe(size, layout, limit=256)
    assert len(first.positions) == 256 and torch.equal(first.positions, second.positions)
    assert first.positions.max() > 15_000 and len(set(first.positions.tolist())) == 256
    first.update(torch.arange(size), logits, target)
    for part in torch.randperm(size).split(777):
        second.update(part, logits[part], target[part])
    assert torch.equal(first.items(1.0), second.items(1.0))
    items = first.items(1.0)
    assert torch.equal(items[:, 3].long(), target[first.positions])
    assert items[:, 0].sum() == 256


def test_items_of_several_rows_group_by_their_right_rows() -> None:
    target = torch.randint(0, 4, (40, 25))
    noise = torch.randn(40, 4, 25, dtype=torch.float64)
    probe = Probe(40, Layout(4))
    hot = F.one_hot(target, 4).double().movedim(-1, 1)
    probe.update(torch.arange(40), 2 * hot + noise, target)
    probe.keep("nll", 0, 0, 1.0, 0.0)
    probe.update(torch.arange(40), 3 * (1.5 * hot + noise), target)
    found = probe.compare("nll", 1.0)
    assert found["items"] == 40 and found["rows"] == 1000
    assert [group["name"].split()[0] for group in found["groups"]] == ["items"] * 3
    assert math.fsum(attribution.by_group(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    assert "rows" in attribution.group_sentence(found)


def test_state_survives_and_foreign_sizes_are_dropped() -> None:
    probe, _, after, target = two_evaluations()
    wanted = probe.compare("nll", 1.7)
    other = Probe(500, Layout(4))
    other.load_state(probe.state())
    other.update(torch.arange(500), after, target)
    assert other.compare("nll", 1.7) == wanted
    small = Probe(20, Layout(4))
    small.load_state(probe.state())
    assert small.references == {}


def test_two_items_are_needed() -> None:
    one = torch.tensor([[1.0, 0.3, 1.0, 2.0, 2.0, 0.3]], dtype=torch.float64)
    assert compare(one, one, [0]) is None
