"""Which implementation runs is visible, can be asked for, and is never chosen silently where it cannot run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.kernels import launch, occupancy
from lightning_lossacc.sums import Layout


def test_triton_is_chosen_where_it_runs(device: str) -> None:
    """On a CUDA device, or by the interpreter where TRITON_INTERPRET=1."""
    assert kernels.choose(torch.zeros(2, 7, device=device)).name == "triton"
    assert kernels.choose(torch.zeros(2, 7, device=device), requested="reference").name == "reference"


def test_float64_is_counted_by_pytorch(device: str) -> None:
    """Nothing is rounded to float32 silently; who asks for Triton is told."""
    logits = torch.zeros(2, 7, device=device, dtype=torch.float64)
    if device == "cuda":
        kernels.backend._explain.cache_clear()
        with pytest.warns(UserWarning, match="without its Triton kernels"):
            assert kernels.choose(logits).name == "reference"
    else:
        assert kernels.choose(logits).name == "reference"
    with pytest.raises(ValueError, match=r"Expected `backend='triton'` to be possible, but logits of torch.float64"):
        kernels.choose(logits, requested="triton")


def test_metric_uses_and_names_its_backend(device: str) -> None:
    """The same numbers by either backend; `backend` says what was asked for and `backend_for` what runs."""
    logits, target = torch.randn(9, 40, device=device), torch.randint(0, 40, (9,), device=device)
    values = {}
    for backend in ("triton", "reference"):
        metric = LossAccuracy(num_classes=40, backend=backend).to(device)
        metric.update(logits, target)
        values[backend] = metric.compute()
        assert metric.backend == backend
        assert metric.backend_for(logits).name == backend
    for name, value in values["reference"].items():
        torch.testing.assert_close(values["triton"][name], value, rtol=1e-4, atol=1e-5, msg=name, equal_nan=True)


@pytest.mark.parametrize("layout", [Layout(40), Layout(6), Layout(2, task="binary")])
def test_precompile_leaves_nothing_behind(layout: Layout, device: str) -> None:
    """It compiles on rows of its own; nobody's vectors change."""
    assert kernels.precompile(layout, torch.float32, device)
    assert not kernels.precompile(layout, torch.float64, device) or device == "cuda"


@pytest.mark.parametrize("num_classes", [33, 1000, 16384, 16385, 50257, 262144])
@pytest.mark.parametrize("size", [2, 4])
def test_table_of_blocks(num_classes: int, size: int) -> None:
    """A block holds whole 16-byte loads of every lane, and no lane more than 32 numbers at a time."""
    num_warps, block, vector = launch.row_shape(num_classes, size)
    assert block % (32 * num_warps * vector) == 0
    assert block // (32 * num_warps) <= 32
    assert vector * size == 16


@pytest.mark.parametrize(("num_rows", "parts"), [(1, 16), (132, 16), (133, 1), (8192, 1)])
def test_few_rows_are_split(num_rows: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows would leave most of the device idle, and only for classes that are worth it."""
    monkeypatch.setattr(occupancy, "_multiprocessors", lambda device: 132)
    cuda = torch.device("cuda", 0)
    assert occupancy.row_split(num_rows, 262144, 4096, cuda) == parts
    assert occupancy.row_split(num_rows, 1000, 1024, cuda) == 1


@pytest.mark.parametrize(
    ("stride", "size", "numbers"), [(1000, 4, 4), (1000, 2, 8), (50257, 2, 1), (0, 2, 8), (12, 2, 1)]
)
def test_rows_that_start_at_whole_loads(stride: int, size: int, numbers: int) -> None:
    """Rows of 1000 classes are read 16 bytes at a time, odd ones number by number."""
    assert occupancy.aligned(stride, 0, element_size=size) == numbers


@pytest.mark.parametrize(("registers", "num_warps", "programs"), [(168, 1, 12), (255, 1, 8), (64, 4, 8), (0, 1, 12)])
def test_programs_fill_a_multiprocessor(
    registers: int, num_warps: int, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the registers of the compiled kernel; a dozen warps before they are known."""
    monkeypatch.setattr(occupancy, "_multiprocessors", lambda device: 132)
    monkeypatch.setattr(occupancy, "_RESIDENT", {})
    cuda = torch.device("cuda", 0)
    occupancy.remember(cuda, "kernel", SimpleNamespace(n_regs=registers), num_warps)
    assert occupancy.row_programs(cuda, num_warps, "kernel") == 132 * programs
