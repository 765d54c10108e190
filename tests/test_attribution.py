"""Every identity adds up to its change within 1e-9, names the right part, and says so in one line."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_lossacc import attribution, kernels
from lightning_lossacc.attribution import by_answer, by_cell, by_class, by_loss, by_margin, by_temperature
from lightning_lossacc.history import Record
from lightning_lossacc.probe import Probe
from lightning_lossacc.quantities import class_table, summary
from lightning_lossacc.sums import Layout


def recorded(logits: Tensor, target: Tensor, largest: int = 64, **logged: float) -> Record:
    """One evaluation as it is recorded."""
    layout = Layout(logits.shape[1])
    counts, sums = layout.zeros()
    kernels.row_statistics(logits, target, counts, sums, layout)
    part = layout.parts(counts, sums)
    cells = {"rows": part["bin_rows"].view(2, -1).tolist(), "nll": part["bin_nll"].view(2, -1).tolist()}
    arrays = {"cells": cells, "classes": class_table(counts, sums, layout, largest)}
    values = summary(counts, sums, layout)
    return Record("val", 0, 0, 0, 0.0, True, len(target), len(target), values, arrays, logged)


def paired(before: Tensor, after: Tensor, target: Tensor) -> dict:
    probe = Probe(len(target), Layout(before.shape[1]))
    probe.update(torch.arange(len(target)), before, target)
    probe.keep("nll", 0, 0, recorded(before, target).values["temperature"], 0.0)
    probe.update(torch.arange(len(target)), after, target)
    found = probe.compare("nll", recorded(after, target).values["temperature"])
    assert found is not None
    return found


def change(before: Record, after: Record) -> float:
    return after.values["nll"] - before.values["nll"]


def two(num_rows: int = 400, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(0, classes, (num_rows,))
    noise = torch.randn(num_rows, classes, dtype=torch.float64)
    hot = F.one_hot(target, classes)
    return 1.5 * (2.0 * hot + noise), 3 * (1.9 * hot + noise), target


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(20, 400), st.floats(-1.5, 1.0), st.floats(-1.5, 1.0))
def test_every_identity_adds_up(seed: int, classes: int, num_rows: int, first: float, second: float) -> None:
    """Random evaluations with empty cells, absent classes and other rows: parts sum to the change within 1e-9."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (num_rows,), generator=generator)
    before, after = (
        10**power * torch.randn(num_rows, classes, dtype=torch.float64, generator=generator)
        for power in (first, second)
    )
    pairs = paired(before, after, target)
    for parts in (attribution.by_group(pairs), by_temperature(pairs), by_margin(pairs)):
        assert math.fsum(parts.values()) == pytest.approx(pairs["nll_change"], abs=1e-9)
    # Another set of rows, fewer of the classes, and classes beyond the largest three as a rest.
    other = torch.randint(0, max(2, classes // 2), (num_rows + 7,), generator=generator)
    longer = torch.cat((after, after[:7]))
    old = recorded(before, target, largest=3, loss=0.5)
    for new in (recorded(after, target, largest=3, loss=0.7), recorded(longer, other, largest=3, loss=0.7)):
        wanted = pytest.approx(change(old, new), abs=1e-9)
        assert math.fsum(by_answer(old.values, new.values).values()) == wanted
        cells = by_cell(old.arrays["cells"], new.arrays["cells"])
        assert cells["moved between cells"] + cells["within right"] + cells["within wrong"] == wanted
        table = by_class(old.arrays["classes"], new.arrays["classes"])
        assert table["shares of classes"] + table["within classes"] == wanted
        assert math.fsum(item["moved"] + item["within"] for item in table["classes"]) == wanted
        both = set(old.arrays["classes"]["class"]) & set(new.arrays["classes"]["class"])
        assert {item["class"] for item in table["classes"]} <= both | {-1}
        assert math.fsum(by_loss(old, new).values()) == pytest.approx(0.2, abs=1e-12)


def test_a_fixed_set_has_no_shift_of_classes() -> None:
    """On the same rows the classes' shares are the same, so that all is within classes."""
    before, after, target = two()
    table = by_class(recorded(before, target).arrays["classes"], recorded(after, target).arrays["classes"])
    assert table["shares of classes"] == pytest.approx(0, abs=1e-15) and table["within classes"] != 0


def test_the_worst_class_is_named_first() -> None:
    """One class of four gets all the change."""
    before, _, target = two()
    after = torch.where((target == 2)[:, None], 4 * before, before)
    table = by_class(recorded(before, target).arrays["classes"], recorded(after, target).arrays["classes"])
    assert table["classes"][0]["class"] == 2
    assert [item["within"] for item in table["classes"][1:]] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_pure_temperature_has_no_flips_and_moves_nothing_else() -> None:
    """Logits times three: all of the change is confidence, no answer flips, and the certified bounds hold nothing."""
    before, _, target = two()
    pairs = paired(before, 3 * before, target)
    parts = by_temperature(pairs)
    assert abs(parts["after one temperature"]) < 1e-3 < abs(parts["confidence (one temperature)"])
    low, high = attribution.temperature_bounds(pairs)
    assert low <= 0 <= high and high - low < 0.03
    found = attribution.flips(pairs)
    assert (found["to_right"], found["to_wrong"], found["p_value"]) == (0, 0, 1.0)
    answers = by_answer(recorded(before, target).values, recorded(3 * before, target).values)
    assert answers["share of right answers"] == 0 and answers["wrong answers"] > 0 > answers["right answers"]


def test_margin_and_tail_are_told_apart() -> None:
    """Mass that goes to the third class only is no matter of the margin."""
    logits = torch.tensor([[2.0, 1.0, -3.0]], dtype=torch.float64).repeat(50, 1)
    target = torch.zeros(50).long()
    parts = by_margin(paired(logits, logits + torch.tensor([0.0, 0.0, 3.5]), target))
    assert parts["margin to the strongest rival"] == pytest.approx(0, abs=1e-12)
    assert parts["mass on other classes"] > 0.1


def test_mcnemar_is_exact_for_few_flips_and_normal_for_many() -> None:
    """Against the binomial sum and the textbook normal form."""

    def with_flips(gained: int, lost: int) -> dict[str, float]:
        sizes = {"right both times": 900, "wrong both times": 100 - gained - lost}
        sizes |= {"wrong to right": gained, "right to wrong": lost}
        return attribution.flips({"items": 1000, "groups": [{"name": k, "items": v} for k, v in sizes.items()]})

    few = with_flips(2, 9)
    assert few["p_value"] == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert few["accuracy_change"] == pytest.approx(-0.007)
    assert few["error"] == pytest.approx(math.sqrt(11 - 49 / 1000) / 1000)
    assert with_flips(20, 40)["p_value"] == pytest.approx(math.erfc(20 / math.sqrt(60) / math.sqrt(2)))
    assert with_flips(0, 0)["p_value"] == 1.0
    assert attribution.flips({"items": 5, "groups": [{"name": "items with more right rows", "items": 5}]}) == {}


def test_a_penalty_is_not_the_likelihood() -> None:
    """A logged loss that rises by its penalty alone is explained by it; without a logged loss nothing is said."""
    before, _, target = two()
    old, new = (recorded(before, target, loss=recorded(before, target).values["nll"] + more) for more in (0.1, 0.4))
    parts = by_loss(old, new)
    assert parts["nll"] == 0 and parts["rest of the logged loss"] == pytest.approx(0.3)
    assert by_loss(replace(old, logged={}), new) == {}
    named = [replace(record, logged={"val_loss": record.logged["loss"], "val_acc": 0.9}) for record in (old, new)]
    assert by_loss(*named) == parts
    several = [replace(record, logged={"val_loss": 1.0, "val_aux_loss": 2.0}) for record in (old, new)]
    assert by_loss(*several) == {}


def test_all_of_it_as_numbers_and_as_lines() -> None:
    """One call carries every identity, leaves out what was not measured, and each of the others is one line."""
    before, after, target = two()
    old, new = recorded(before, target, loss=1.0), recorded(after, target, loss=2.0)
    pairs = paired(before, after, target)
    full = change(old, new)
    parts = attribution.attribution(pairs, full, old, new)
    assert set(parts) == {
        "nll_change", "full_nll_change", "outside_probe", "by_group", "by_temperature", "temperature_bounds",
        "by_margin", "flips", "worst", "by_answer", "by_cell", "by_class", "by_loss",
    }  # fmt: skip
    assert parts["outside_probe"] == pytest.approx(0, abs=1e-9)
    lines = attribution.sentences(parts)
    assert [line.split()[0] for line in lines] == ["flips:", "after", "by", "not", "not", "by", "the"]
    assert f"{parts['flips']['to_right']} to right" in lines[0] and "\n" not in "".join(lines)
    for name, value in parts["by_answer"].items():
        assert f"{name} {value:+.4f}" in lines[3]
    unpaired = attribution.attribution(None, full, old, replace(new, arrays={}, logged={}))
    assert set(unpaired) == {"full_nll_change", "by_answer"}
    assert attribution.sentences(attribution.attribution(None, full)) == []


def test_missing_values_give_no_identity() -> None:
    """NaN, empty tables and other numbers of bins are no numbers to add up."""
    before, after, target = two()
    old, new = recorded(before, target), recorded(after, target)
    assert by_answer(old.values, {"nll": math.nan, "accuracy": math.nan}) == {}
    empty = {"rows": [[0] * 15, [0] * 15], "nll": [[0.0] * 15, [0.0] * 15]}
    assert by_cell(old.arrays["cells"], empty) == {}
    assert by_cell(old.arrays["cells"], {"rows": [[1], [2]], "nll": [[1.0], [0.5]]}) == {}
    nothing = {"class": [0, 1], "rows": [0, 0], "nll": [math.nan, math.nan]}
    assert by_class(new.arrays["classes"], nothing) == {}
    # All right in both: there is no mean of wrong rows, and the identity still holds.
    sure = [recorded(F.one_hot(target, 4).double() * size, target) for size in (3.0, 5.0)]
    parts = by_answer(sure[0].values, sure[1].values)
    assert parts["wrong answers"] == 0 and math.fsum(parts.values()) == pytest.approx(change(*sure), abs=1e-9)
    # The first wrong rows: they moved there, and no mean of wrong rows changed.
    parts = by_answer(sure[0].values, new.values)
    assert parts["wrong answers"] == 0 and math.fsum(parts.values()) == pytest.approx(change(sure[0], new), abs=1e-9)
    cells = by_cell(sure[0].arrays["cells"], new.arrays["cells"])
    assert cells["within wrong"] == 0
