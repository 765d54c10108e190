"""The kernels are right: against float64 formulas and the reference, for every family, dtype, shape and stride.

And they add exactly: any order of rows, batches and programs gives the same bits.
"""

from __future__ import annotations

import math

import pytest
import torch

from lightning_lossacc import kernels, refinement
from lightning_lossacc.kernels import launch
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout
from tests import gold, inputs
from tests.kernels_triton.compared import ROW_ERROR, assert_bitwise, assert_equals_reference, vectors

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


# Two classes and seven lie a row a lane, forty are walked along the row.
@pytest.mark.parametrize("num_classes", [2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_equals_gold(family: str, dtype: torch.dtype, num_classes: int, device: str) -> None:
    """Every count by formula exactly, every sum within a few roundings a row."""
    logits, target = inputs.make(family, num_rows=12, num_classes=num_classes)
    logits = logits.to(dtype)
    layout = Layout(num_classes, top_k=2, temperatures=(0.5, 1.0, 2.0))
    found = layout.parts(*vectors(logits.to(device), target.to(device), layout))
    for name, value in gold.totals(logits.double().tolist(), target.tolist(), top_k=2).items():
        wanted = torch.tensor(value, dtype=found[name].dtype)
        if found[name].dtype == torch.int64:
            assert torch.equal(found[name].squeeze(), wanted), name
        else:
            error = (found[name].squeeze() - wanted).abs().max()
            assert float(error) <= 12 * ROW_ERROR + 1e-6 * float(wanted.abs().max()), name


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_error_is_at_most_eager_pytorchs(num_classes: int, device: str) -> None:
    """|kernel - gold| <= |eager - gold| + eps, eps a rounding to 2^-20 and half a last place of 25 nats a row."""
    logits, target = inputs.make("confident", num_rows=24, num_classes=num_classes)
    logits = logits.float()
    exact = torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum")
    eager = torch.nn.functional.cross_entropy(logits, target, reduction="none").double().sum()
    layout = Layout(num_classes, temperatures=())
    ours = layout.parts(*vectors(logits.to(device), target.to(device), layout))["nll"]
    assert abs(float(ours - exact)) <= abs(float(eager - exact)) + 24 * (2**-21 + 25 * 2**-24)


@pytest.mark.parametrize("temperatures", [EVALUATION_TEMPERATURES, OCTAVES, (0.7, 1.0, 1.3, 2.6)])
@pytest.mark.parametrize("num_classes", [5, 50])
def test_temperature_grid_equals_gold(num_classes: int, temperatures: tuple[float, ...], device: str) -> None:
    """NLL and slope at every temperature, from chains of squares and from exponentials of their own."""
    logits, target = inputs.make("typical", num_rows=16, num_classes=num_classes)
    layout = Layout(num_classes, temperatures=temperatures)
    found = layout.parts(*vectors(logits.float().to(device), target.to(device), layout))
    rows = list(zip(logits.float().double().tolist(), target.tolist(), strict=True))
    for place, temperature in enumerate(temperatures):
        for name, formula in (("temperature_nll", gold.nll), ("temperature_slope", gold.slope)):
            wanted = math.fsum(formula(row, label, temperature) for row, label in rows)
            value = float(found[name].view(2, -1)[:, place].sum())
            assert value == pytest.approx(wanted, rel=3e-6, abs=16 * 4 * ROW_ERROR), (name, temperature)
    assert int(found["half_rows"].sum()) == 16


def test_halves_are_those_of_the_reference(device: str) -> None:
    """The hash of the content puts an item into the same half on every backend, so that runs can be continued."""
    layout = Layout(40)
    logits, target = inputs.make("typical", num_rows=24, num_classes=40)
    found = vectors(logits.float().to(device), target.to(device), layout)[0]
    wanted = vectors(logits.float(), target, layout, "reference")[0]
    part = layout.count_slices["half_rows"]
    assert torch.equal(found[part], wanted[part])
    assert min(wanted[part].tolist()) > 0


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_refinement_is_that_of_the_full_logits(scale: float, device: str) -> None:
    """The NLL after one temperature within 5e-4 nats and the temperature within 2 % of a search over all logits."""
    logits, _ = inputs.make("typical", num_rows=64, num_classes=12)
    target = torch.distributions.Categorical(logits=logits).sample()
    logits = (scale * logits).float()
    layout = Layout(12)
    found = refinement.refinement(*vectors(logits.to(device), target.to(device), layout), layout)
    candidates = torch.linspace(math.log(0.2), math.log(9), 4000, dtype=torch.float64).exp()
    levels = [float(torch.nn.functional.cross_entropy(logits.double() / t, target)) for t in candidates]
    best = min(range(len(levels)), key=levels.__getitem__)
    assert found.nll == pytest.approx(levels[best], abs=5e-4)
    assert found.temperature == pytest.approx(float(candidates[best]), rel=0.02)


def _shapes() -> dict[str, tuple[torch.Tensor, torch.Tensor, Layout]]:
    image = torch.randn(2, 6, 5, 9) * 3
    tokens = torch.randn(2, 5, 40) * 3
    rows = torch.randn(9, 80) * 3
    return {
        "image": (image, torch.randint(0, 6, (2, 5, 9)), Layout(6)),
        "long_items": (torch.randn(2, 4, 150), torch.randint(0, 4, (2, 150)), Layout(4)),
        "channels_last": (image.to(memory_format=torch.channels_last), torch.randint(0, 6, (2, 5, 9)), Layout(6)),
        "tokens": (tokens.transpose(1, 2), torch.randint(0, 40, (2, 5)), Layout(40)),
        "many_classes_apart": (torch.randn(2, 40, 5), torch.randint(0, 40, (2, 5)), Layout(40)),
        "columns": (rows[:, ::2], torch.randint(0, 40, (9,)), Layout(40)),
        "rows": (rows[::2], torch.randint(0, 80, (5,)), Layout(80)),
        "transposed": (torch.randn(40, 9).T, torch.randint(0, 40, (9,)), Layout(40)),
        "expanded": (torch.randn(1, 40).expand(7, 40), torch.randint(0, 40, (7,)), Layout(40)),
        "odd_rows": (torch.randn(5, 53)[:, 1:], torch.randint(0, 52, (5,)), Layout(52)),
        "binary": (torch.randn(30) * 4, torch.randint(0, 2, (30,)), Layout(2, task="binary")),
        "binary_image": (torch.randn(2, 1, 9, 9) * 4, torch.randint(0, 2, (2, 9, 9)), Layout(2, task="binary")),
        "one_row": (torch.randn(1, 40), torch.tensor([3]), Layout(40)),
        "all_top_k": (torch.randn(9, 4), torch.randint(0, 4, (9,)), Layout(4, top_k=9)),
        "no_classes_kept": (rows, torch.randint(0, 80, (9,)), Layout(80, per_class=False, temperatures=())),
        "no_ignore_index": (rows, torch.randint(-2, 80, (9,)), Layout(80, ignore_index=None)),
        "ignored_class": (rows, torch.randint(0, 3, (9,)), Layout(80, ignore_index=1)),
        "many_bins": (rows, torch.randint(0, 80, (9,)), Layout(80, num_bins=40)),
        "one_hot": (rows, torch.eye(80)[torch.randint(0, 80, (9,))], Layout(80)),
        "log_input": (rows.log_softmax(1), torch.randint(0, 80, (9,)), Layout(80, input_kind="log_probabilities")),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_shapes()))
def test_shapes_and_strides(name: str, device: str) -> None:
    """Any shape and stride gives the reference's numbers."""
    preds, target, layout = _shapes()[name]
    strides = preds.stride()
    on_device = preds.to(device)
    assert device == "cpu" or on_device.stride() == strides or name in ("expanded", "columns", "rows", "odd_rows")
    assert_equals_reference(on_device, target.to(device), layout)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_target(dtype: torch.dtype, device: str) -> None:
    """Targets are read as they are, 255 as an ignored class too."""
    target = torch.randint(0, 40, (12,)).to(dtype)
    target[3] = 255 if dtype == torch.uint8 else -100
    layout = Layout(40, ignore_index=int(target[3]))
    assert_equals_reference(torch.randn(12, 40).to(device), target.to(device), layout)


def test_an_empty_batch_changes_nothing(device: str) -> None:
    """No row, no launch, no error."""
    layout = Layout(7)
    counts, sums = vectors(torch.empty(0, 7, device=device), torch.empty(0, dtype=torch.long, device=device), layout)
    assert not counts.any() and not sums.any()


@pytest.mark.parametrize("num_classes", [7, 40])
def test_any_order_and_any_split_give_the_same_bits(num_classes: int, device: str) -> None:
    """Sums are of multiples of 2^-20, whose addition is exact: permuted rows and split batches change nothing."""
    logits, target = inputs.make("confident", num_rows=22, num_classes=num_classes)
    logits, target, layout = logits.float().to(device), target.to(device), Layout(num_classes)
    whole = vectors(logits, target, layout)
    order = torch.randperm(22)
    assert_bitwise(vectors(logits[order], target[order], layout), whole)
    counts, sums = layout.zeros(device)
    for part in (slice(0, 1), slice(1, 9), slice(9, 22)):
        kernels.row_statistics(logits[part], target[part], counts, sums, layout, "triton")
    assert_bitwise((counts.cpu(), sums.cpu()), whole)


@pytest.mark.parametrize("programs", [1, 3, 20])
def test_any_number_of_programs_gives_the_same_bits(
    programs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do other devices, and a busy one."""
    logits, target = inputs.make("typical", num_rows=20, num_classes=40)
    logits, target, layout = logits.float().to(device), target.to(device), Layout(40)
    whole = vectors(logits, target, layout)
    monkeypatch.setattr(launch, "row_programs", lambda device, warps, kernel: programs)
    monkeypatch.setattr(launch, "row_split", lambda rows, classes, block, device: 1)
    assert_bitwise(vectors(logits, target, layout), whole)


@pytest.mark.parametrize("place", [0, 300, 383, 384, 1279, 4999])
def test_rows_split_over_programs(place: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of many classes are cut into parts; ties over parts and targets in any of them are found."""
    monkeypatch.setattr(launch, "row_programs", lambda device, warps, kernel: 40)
    monkeypatch.setattr(launch, "row_shape", lambda classes, size: (1, 32 * (16 // size), 16 // size))
    monkeypatch.setattr(launch, "row_split", lambda rows, classes, block, device: launch.SPLIT)
    logits = 3 * torch.randn(3, 5000)
    target = torch.tensor([place, place, (place + 700) % 5000])
    logits[0, place] = logits[0, (place + 1900) % 5000] = 30.0
    logits[1, place] = 25.0
    assert_equals_reference(logits.to(device), target.to(device), Layout(5000))


@pytest.mark.parametrize("num_classes", [7, 40])
def test_shift_changes_nothing(num_classes: int, device: str) -> None:
    """A constant on all logits leaves the softmax as it is; 64 is a power of two, so that nothing is rounded."""
    logits, target = inputs.make("tied", num_rows=16, num_classes=num_classes)
    logits, target, layout = logits.float().to(device), target.to(device), Layout(num_classes)
    counts, sums = vectors(logits, target, layout)
    shifted_counts, shifted_sums = vectors(logits + 64, target, layout)
    but_halves = layout.count_slices["half_rows"].start
    assert torch.equal(counts[:but_halves], shifted_counts[:but_halves])
    grid = layout.sum_slices["temperature_nll"].start
    torch.testing.assert_close(sums[:grid], shifted_sums[:grid], rtol=2e-6, atol=16 * ROW_ERROR)


@pytest.mark.parametrize("shape", [(6, 40), (6, 5), (2, 5, 7)])
def test_memory_around_the_batch_is_not_read(shape: tuple[int, ...], device: str) -> None:
    """Logits within a tensor of NaN, targets far out of range: nothing foreign has an effect, nothing is written."""
    around = torch.full((3, *shape), math.nan)
    around[1] = torch.randn(shape)
    around, kept = around.to(device), around.clone()
    rows = (shape[0], *shape[2:])
    target = torch.randint(0, shape[1], rows)
    target.view(-1)[0], target.view(-1)[2], target.view(-1)[4] = 2**40, -(2**40), -100
    counts, sums = vectors(around[1], target.to(device), Layout(shape[1]))
    parts = Layout(shape[1]).parts(counts, sums)
    assert int(parts["invalid"]) == 2
    assert int(parts["ignored"]) == 1
    assert int(parts["rows"]) == target.numel() - 3
    assert int(parts["non_finite"]) == 0
    assert bool(sums.isfinite().all())
    torch.testing.assert_close(around.cpu(), kept, rtol=0, atol=0, equal_nan=True)


def test_ignored_rows_have_no_effect_even_with_nan(device: str) -> None:
    """Rows with the ignored target are counted as ignored, whatever their logits."""
    logits, target = inputs.make("typical", num_rows=12, num_classes=40)
    logits, layout = logits.float(), Layout(40)
    wanted = vectors(logits[4:].to(device), target[4:].to(device), layout)
    target[:4] = -100
    logits[:4] = math.nan
    counts, sums = vectors(logits.to(device), target.to(device), layout)
    assert int(layout.parts(counts, sums)["ignored"]) == 4
    counts[layout.count_slices["ignored"]] = 0
    assert_bitwise((counts, sums), wanted)


@pytest.mark.parametrize("offset", [1000.0, 12345.0, 1e6])
def test_a_growing_maximum_far_from_zero_costs_no_digits(offset: float, device: str) -> None:
    """Ascending logits raise the maximum in every block; the sums are rescaled by what they refer to."""
    logits = (offset + torch.linspace(0, 8, 700)).repeat(4, 1)
    target = torch.tensor([0, 250, 500, 699])
    exact = torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum")
    layout = Layout(700, temperatures=())
    found = layout.parts(*vectors(logits.to(device), target.to(device), layout))["nll"]
    assert float(found) == pytest.approx(float(exact), abs=4 * 4e-6)


@pytest.mark.parametrize("value", [-1e10, -1e30, torch.finfo(torch.float32).min])
def test_rows_that_are_masked_by_a_large_number(value: float, device: str) -> None:
    """Equal logits are a uniform guess whatever they are: ln C, and nothing that is not finite in any sum."""
    layout = Layout(40)
    logits, target = torch.full((3, 40), value), torch.tensor([0, 5, 39])
    parts = layout.parts(*vectors(logits.to(device), target.to(device), layout))
    assert float(parts["nll"]) == pytest.approx(3 * math.log(40), abs=1e-5)
    assert all(bool(part.isfinite().all()) for part in parts.values())
