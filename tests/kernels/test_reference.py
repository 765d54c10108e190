"""The reference is right: every count exactly and every sum against float64 formulas, over families, dtypes and shapes.

Properties: shift and permutation of rows and classes, any split into batches, chunk size, ignored rows without
    effect, inputs
untouched, bitwise repeatable, equal to PyTorch's own cross-entropy where that is defined. Nothing here needs a GPU.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.kernels import chunks, reference
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout
from tests import gold, inputs

# What a float32 row value may be off by, beside 1e-7 of its own size: eager PyTorch's error is of the same order.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


backend: kernels.Backend = "reference"


@pytest.fixture(params=["reference", "compiled"], autouse=True, scope="module")
def _backend(request: pytest.FixtureRequest) -> None:
    """All that is said of the reference holds for compiled code, which leaves float64 to it."""
    global backend
    backend = "auto" if request.param == "compiled" else "reference"


def totals(logits: Tensor, target: Tensor, layout: Layout) -> dict[str, Tensor]:
    counts, sums = layout.zeros()
    kernels.row_statistics(logits, target, counts, sums, layout, backend)
    return layout.parts(counts, sums)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], *but: str) -> None:
    """Counts exactly, sums to 1e-12: other zeros between the rows change the order of additions."""
    for name in wanted:
        if name not in but:
            tolerance = 0.0 if wanted[name].dtype == torch.int64 else 1e-12
            torch.testing.assert_close(found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=name)


# Two, few and many classes: 2 is the smallest, 7 lies class by class, 40 lies row by row in a chunk.
@pytest.mark.parametrize("num_classes", [2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_equals_gold(family: str, dtype: torch.dtype, num_classes: int) -> None:
    logits, target = inputs.make(family, num_classes=num_classes)
    logits = logits.to(dtype)
    layout = Layout(num_classes, top_k=2)
    found, expected = totals(logits, target, layout), gold.totals(logits.double().tolist(), target.tolist(), top_k=2)
    for name, value in expected.items():
        wanted = torch.tensor(value, dtype=found[name].dtype)
        if found[name].dtype == torch.int64:
            assert torch.equal(found[name].squeeze(), wanted), name
        else:
            scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
            error = (found[name].squeeze() - wanted).abs().max()
            assert float(error) <= TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("num_classes", [2, 7, 40])
@pytest.mark.parametrize("family", ["typical", "confident", "masked", "extreme", "ignored"])
def test_temperature_grid_equals_gold(family: str, num_classes: int) -> None:
    logits, target = inputs.make(family, num_classes=num_classes)
    layout = Layout(num_classes)
    found = totals(logits, target, layout)
    kept = [(row, label) for row, label in zip(logits.tolist(), target.tolist(), strict=True) if label >= 0]
    for place, temperature in enumerate(EVALUATION_TEMPERATURES):
        for name, formula in (("temperature_nll", gold.nll), ("temperature_slope", gold.slope)):
            wanted = math.fsum(formula(row, label, temperature) for row, label in kept)
            value = float(found[name].view(2, -1)[:, place].sum())
            assert value == pytest.approx(wanted, rel=1e-10, abs=1e-9), (name, temperature)
    assert int(found["half_rows"].sum()) == len(kept)


def test_grid_with_a_free_temperature_equals_gold() -> None:
    logits, target = inputs.make("typical")
    layout = Layout(7, temperatures=(0.7, 1.0, 1.3, 2.6))
    found = totals(logits, target, layout)["temperature_nll"].view(2, -1).sum(0)
    rows = list(zip(logits.tolist(), target.tolist(), strict=True))
    wanted = [math.fsum(gold.nll(row, label, t) for row, label in rows) for t in layout.temperatures]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-11, atol=0)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_error_is_at_most_eager_pytorchs(num_classes: int) -> None:
    logits, target = inputs.make("confident", num_rows=400, num_classes=num_classes)
    logits32 = logits.float()
    exact = F.cross_entropy(logits32.double(), target, reduction="sum")
    eager = F.cross_entropy(logits32, target, reduction="none").double().sum()
    ours = totals(logits32, target, Layout(num_classes))["nll"]
    # eps: half a unit in the last place of a float32 NLL of 25, for each row, in the same direction.
    assert abs(float(ours - exact)) <= abs(float(eager - exact)) + 400 * 25 * 2**-24


@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_bins_and_histogram_hold_every_row(family: str) -> None:
    logits, target = inputs.make(family)
    layout = Layout(7)
    found = totals(logits, target, layout)
    rows = int(found["rows"])
    assert int(found["bin_rows"].sum()) == int(found["margin_histogram"].sum()) == rows
    assert int(found["bin_rows"].view(2, -1)[1].sum()) == int(found["correct"])
    torch.testing.assert_close(found["bin_nll"].sum()[None], found["nll"])
    torch.testing.assert_close(found["bin_confidence"].sum()[None], found["confidence"])
    edges = margin_edges()
    values = reference.row_values(*kernels.canonical(logits, target, layout), layout)
    below_zero = int((values.margin[values.valid] < edges[64]).sum())
    assert edges[64] == 0 and int(found["margin_histogram"][:65].sum()) == below_zero


def test_ties_go_to_the_lowest_index() -> None:
    target = torch.arange(5).repeat(4)
    found = totals(torch.zeros(20, 5), target, Layout(5, top_k=3))
    assert int(found["correct"]) == 4 and int(found["ties"]) == 20 and int(found["top_k"]) == 12
    assert found["class_predicted"].tolist() == [20, 0, 0, 0, 0]


@pytest.mark.parametrize("family", ["typical", "tied", "ignored", "masked"])
def test_binary_equals_two_classes(family: str) -> None:
    logits, target = inputs.make(family, num_classes=2)
    logits = logits.clamp(-1e3, 1e3)
    single = logits[:, 1] - logits[:, 0]
    two = totals(torch.stack((torch.zeros_like(single), single), dim=1), target, Layout(2))
    for shape in ((-1,), (-1, 1)):
        one = totals(single.reshape(shape), target.reshape(shape), Layout(2, task="binary"))
        for name in two:
            if name not in ("half_rows", "temperature_nll", "temperature_slope"):
                torch.testing.assert_close(one[name], two[name], msg=name)


# Class-contiguous tokens, channels-first pixels in one and in many chunks, items grouped into one chunk, and views of
# each.
@pytest.mark.parametrize("view", ["contiguous", "transposed", "strided", "offset"])
@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 5, 4, 6), (2, 40, 500), (2, 3, 60_000)])
def test_more_dimensions_equal_flat_rows(shape: tuple[int, ...], view: str) -> None:
    items, classes, *rest = shape
    logits = torch.randn(shape, dtype=torch.float64) * 2
    target = torch.randint(-1, classes, (items, *rest))
    target[target < 0] = -100
    if view == "transposed":
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    elif view == "strided":
        wide = torch.empty(items, 2 * classes, *rest, dtype=logits.dtype)
        wide[:, ::2] = logits
        logits = wide[:, ::2]
    elif view == "offset":
        logits = torch.cat((torch.zeros_like(logits[:1]), logits))[1:]
    layout = Layout(classes)
    nested = totals(logits, target, layout)
    flat = totals(logits.movedim(1, -1).reshape(-1, classes), target.reshape(-1), layout)
    for name in (
        "rows",
        "ignored",
        "correct",
        "top_k",
        "class_rows",
        "class_predicted",
        "bin_rows",
        "margin_histogram",
    ):
        assert torch.equal(nested[name], flat[name]), name
    for name in ("nll", "margin", "confidence", "entropy", "brier", "class_nll"):
        torch.testing.assert_close(nested[name], flat[name], rtol=1e-12, atol=1e-12)
    for name in ("temperature_nll", "temperature_slope"):
        both = [found[name].view(2, -1).sum(0) for found in (nested, flat)]
        torch.testing.assert_close(both[0], both[1], rtol=1e-11, atol=1e-11)
    loss = F.cross_entropy(logits, target, reduction="none").reshape(items, -1).sum(1)
    rows = (target >= 0).reshape(items, -1).sum(1)
    torch.testing.assert_close(nested["items_nll_squared"][0], (loss * loss).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(nested["items_rows_nll"][0], (loss * rows).sum(), rtol=1e-12, atol=0)
    assert int(nested["items_rows_squared"]) == int((rows * rows).sum())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_target(dtype: torch.dtype) -> None:
    logits, target = inputs.make("typical")
    wanted = totals(logits, target, Layout(7))
    found = totals(logits, target.to(dtype), Layout(7))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 6, 255, None])
def test_any_ignore_index(ignore_index: int | None) -> None:
    logits, target = inputs.make("typical")
    if ignore_index is not None:
        target[::4] = ignore_index
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    layout = Layout(7, ignore_index=ignore_index)
    found, wanted = totals(logits, target, layout), totals(logits[kept], target[kept], layout)
    assert int(found["ignored"]) == int((~kept).sum())
    assert_same(found, wanted, "ignored")


@given(
    seed=st.integers(0, 2**31),
    num_rows=st.integers(0, 70),
    num_classes=st.sampled_from([2, 3, 33, 50]),
    cuts=st.lists(st.integers(0, 70), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_split_and_order_merge_to_the_same(seed: int, num_rows: int, num_classes: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, num_classes, dtype=torch.float64, generator=generator) * 3
    target = torch.randint(-1, num_classes + 1, (num_rows,), generator=generator)
    layout = Layout(num_classes, ignore_index=-1)
    whole = layout.zeros()
    kernels.row_statistics(logits, target, *whole, layout)
    order = torch.randperm(num_rows, generator=generator)
    parts = layout.zeros()
    edges = sorted({0, num_rows, *(cut for cut in cuts if cut <= num_rows)})
    for low, high in itertools.pairwise(edges):
        kernels.row_statistics(logits[order[low:high]], target[order[low:high]], *parts, layout)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [64, 4096, 10**6])
@pytest.mark.parametrize("num_classes", [7, 40])
def test_chunk_size_is_irrelevant(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, num_classes: int) -> None:
    logits, target = inputs.make("masked", num_rows=200, num_classes=num_classes)
    wanted = totals(logits, target, Layout(num_classes))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    found = totals(logits, target, Layout(num_classes))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_classes", [7, 40])
def test_shift_of_logits_is_irrelevant(num_classes: int) -> None:
    logits, target = inputs.make("typical", num_classes=num_classes)
    logits = torch.sigmoid(logits)  # inside [0, 1], where others would take them for probabilities
    wanted = totals(logits, target, Layout(num_classes))
    found = totals(logits + 100, target, Layout(num_classes))
    for name in ("rows", "correct", "top_k", "class_predicted", "bin_rows"):
        assert torch.equal(found[name], wanted[name]), name
    for name in ("nll", "margin", "confidence", "entropy", "brier"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-10)


def test_permutation_of_classes_is_irrelevant() -> None:
    logits, target = inputs.make("typical", num_classes=40)
    order = torch.randperm(40)
    wanted = totals(logits, target, Layout(40))
    found = totals(logits[:, order], torch.argsort(order)[target], Layout(40))
    for name in ("rows", "correct", "top_k", "bin_rows", "margin_histogram"):
        assert torch.equal(found[name], wanted[name]), name
    assert torch.equal(found["class_rows"], wanted["class_rows"][order])
    torch.testing.assert_close(found["nll"], wanted["nll"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(60, 7), (4, 7, 15)])
def test_ignored_rows_have_no_effect_whatever_they_hold(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape)
    target = torch.randint(0, 7, (shape[0], *shape[2:]))
    target.view(-1)[::3] = -100
    other = logits.clone()
    mask = (target == -100).unsqueeze(1).expand_as(other)
    other[mask] = math.nan
    wanted, found = totals(logits, target, Layout(7)), totals(other, target, Layout(7))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_non_finite_rows_leave_the_others_unchanged() -> None:
    logits, target = inputs.make("non_finite")
    bad = torch.tensor(
        [
            gold.fate(row, label, -100) != gold.COUNTED
            for row, label in zip(logits.tolist(), target.tolist(), strict=True)
        ]
    )
    wanted, found = totals(logits[~bad], target[~bad], Layout(7)), totals(logits, target, Layout(7))
    assert int(found["non_finite"]) == int(bad.sum()) == 6
    assert_same(found, wanted, "non_finite")


@pytest.mark.parametrize("num_classes", [7, 40])
def test_inputs_are_untouched_and_results_repeat_bitwise(num_classes: int) -> None:
    logits, target = inputs.make("masked", num_classes=num_classes)
    before = logits.clone(), target.clone()
    first, second = totals(logits, target, Layout(num_classes)), totals(logits, target, Layout(num_classes))
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_hot_targets_count_and_soft_ones_do_not() -> None:
    logits, target = inputs.make("typical")
    hot = F.one_hot(target, 7).double()
    wanted = totals(logits, target, Layout(7))
    assert torch.equal(totals(logits, hot, Layout(7))["nll"], wanted["nll"])
    hot[::2] = 0.9 * hot[::2] + 0.1 / 7
    found = totals(logits, hot, Layout(7))
    assert int(found["unsupported"]) == 30 and int(found["rows"]) == 30 and int(found["invalid"]) == 0
    soft = torch.linspace(0, 1, 60)
    found = totals(logits[:, 0], soft, Layout(2, task="binary"))
    assert int(found["unsupported"]) == 58 and int(found["rows"]) == 2


def test_probabilities_and_log_probabilities() -> None:
    logits, target = inputs.make("typical")
    wanted = totals(logits, target, Layout(7))
    for kind, preds in (("probabilities", logits.softmax(1)), ("log_probabilities", logits.log_softmax(1))):
        found = totals(preds, target, Layout(7, input_kind=kind))
        torch.testing.assert_close(found["nll"], wanted["nll"])
        torch.testing.assert_close(found["margin"], wanted["margin"])
    binary, labels = logits[:, 0], (target > 3).long()
    wanted = totals(binary, labels, Layout(2, task="binary"))
    for kind, preds in (("probabilities", binary.sigmoid()), ("log_probabilities", F.logsigmoid(binary))):
        found = totals(preds, labels, Layout(2, task="binary", input_kind=kind))
        torch.testing.assert_close(found["nll"], wanted["nll"])


@pytest.mark.parametrize(
    ("preds", "target", "layout", "words"),
    [
        (torch.zeros(4), torch.zeros(4).long(), Layout(3), r"`preds` to have shape \(N, C, \.\.\.\)"),
        (torch.zeros(4, 2), torch.zeros(4).long(), Layout(3), "3 classes in dimension 1, but got 2"),
        (torch.zeros(4, 3), torch.zeros(5).long(), Layout(3), r"`target` to have shape \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3).long(), Layout(3), r"`target` to have shape \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4), Layout(3), "class indices"),
        (torch.zeros(4, 3).long(), torch.zeros(4).long(), Layout(3), "floating-point logits, but got torch.int64"),
        (torch.tensor(1.0), torch.tensor(1), Layout(3), "dimension of rows"),
        (torch.zeros(4, 2), torch.zeros(4, 2), Layout(2, task="binary"), "several columns"),
        (torch.zeros(4), torch.zeros(5), Layout(2, task="binary"), "`target` to have the shape of `preds`"),
    ],
)
def test_bad_input_gives_one_sentence(preds: Tensor, target: Tensor, layout: Layout, words: str) -> None:
    counts, sums = layout.zeros()
    with pytest.raises((ValueError, TypeError), match=words):
        kernels.row_statistics(preds, target, counts, sums, layout)
    assert not counts.any() and not sums.any()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_empty_batches_add_nothing(shape: tuple[int, ...]) -> None:
    layout = Layout(3)
    counts, sums = layout.zeros()
    kernels.row_statistics(torch.zeros(shape), torch.zeros(shape[0], *shape[2:]).long(), counts, sums, layout)
    assert not counts.any() and not sums.any()


def test_item_values_are_the_items_of_the_sums() -> None:
    logits = torch.randn(5, 7, 12, dtype=torch.float64)
    target = torch.randint(0, 7, (5, 12))
    target[:, ::5] = -100
    layout = Layout(7)
    items, found = kernels.item_values(logits, target, layout), totals(logits, target, layout)
    assert items.shape == (5, 5 + 2 * len(layout.temperatures))
    assert int(items[:, 0].sum()) == int(found["rows"]) and int(items[:, 2].sum()) == int(found["correct"])
    torch.testing.assert_close(items[:, 1].sum()[None], found["nll"])
    torch.testing.assert_close((items[:, 1] ** 2).sum()[None], found["items_nll_squared"])
    grid = torch.cat((found["temperature_nll"].view(2, -1).sum(0), found["temperature_slope"].view(2, -1).sum(0)))
    torch.testing.assert_close(items[:, 5:].sum(0), grid, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("own", [-1e6, -1e9])
def test_a_hopeless_target_takes_no_digits_from_the_others(own: float) -> None:
    """Confidence and entropy are those of the other logits, whatever the distance of the target."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, own]])
    found = totals(logits, torch.tensor([4]), Layout(5))
    chances = torch.softmax(logits.double(), 1)
    assert float(found["confidence"]) == pytest.approx(float(chances.max()), rel=1e-5)
    assert float(found["entropy"]) == pytest.approx(float(torch.special.entr(chances).sum()), rel=1e-5)
    assert float(found["nll"]) == pytest.approx(-own, rel=1e-5)


def test_an_infinite_row_stays_in_its_half() -> None:
    """A target at the least float32 has an infinite NLL at T = 1/4; the sums of the other half stay finite."""
    logits = torch.randn(40, 5)
    logits[0, 2] = torch.finfo(torch.float32).min
    found = totals(logits, torch.full((40,), 2), Layout(5))["temperature_nll"].view(2, -1)
    assert not found.isnan().any()
    assert found.isfinite().all(1).tolist().count(True) == 1
