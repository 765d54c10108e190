"""The kernels compile for a Hopper GPU without spilling, and their main loops stay within their budget of instructions.

Compiled offline by Triton's own tools: no GPU is asked, and a change that would slow the loops down is caught anyway.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
pytest.importorskip("triton", reason="the kernels need triton")


@pytest.fixture(scope="module")
def sm90() -> ModuleType:
    """The benchmark that compiles and counts; imported as running it as a script does."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        return __import__("sm90")
    finally:
        sys.path.pop(0)


# Instructions per logit as compiled with triton 3.7.1, and a tenth more. One read leaves 31 of them for float32 and
# 15.6 for bfloat16 on an H200.
BUDGETS = [
    (8192, "fp32", (), 14.0),
    (8192, "bf16", (), 15.2),
    (8192, "fp32", OCTAVES, 31.9),
    (128256, "bf16", (), 16.0),
    (8192, "fp32", EVALUATION_TEMPERATURES, 51.2),
]


@pytest.mark.parametrize(("num_classes", "dtype", "temperatures", "budget"), BUDGETS)
def test_row_kernel(
    num_classes: int, dtype: str, temperatures: tuple[float, ...], budget: float, sm90: ModuleType
) -> None:
    """Nothing is spilled to memory, and a turn of the loop is as short as it was."""
    found = sm90.row_statistics(num_classes, dtype, Layout(num_classes, temperatures=temperatures))
    assert found.stack == 0
    assert 0.5 * budget <= found.slots <= budget
    assert found.registers <= 255


@pytest.mark.parametrize(("dtype", "budget"), [("fp32", 6.5), ("bf16", 8.0)])
def test_loss_alone(dtype: str, budget: float, sm90: ModuleType) -> None:
    """Without statistics the loop has one exponential, one maximum and one sum a logit."""
    found = sm90.row_statistics(8192, dtype, None, with_loss=True)
    assert found.stack == 0
    assert 0.5 * budget <= found.slots <= budget


# Read and written once, float32 logits leave 62 instructions, bfloat16 ones 31.
GRADIENT_BUDGETS = [
    (8192, "fp32", False, 6.5, 5.3, 128),
    (8192, "bf16", False, 8.5, 7.2, 128),
    (8192, "fp32", True, 14.0, 5.3, 255),
    (8192, "bf16", True, 15.2, 7.2, 255),
    (50257, "fp32", False, 16.5, 6.4, 168),
    (128256, "bf16", False, 9.5, 7.2, 128),
    (128256, "bf16", True, 16.2, 7.2, 255),
]


@pytest.mark.parametrize(("num_classes", "dtype", "with_stats", "budget", "writing", "registers"), GRADIENT_BUDGETS)
def test_loss_and_gradient(
    num_classes: int, dtype: str, with_stats: bool, budget: float, writing: float, registers: int, sm90: ModuleType
) -> None:
    """The first walk over a row is nearly as short as without the second, which writes 16 bytes a lane."""
    layout = Layout(num_classes, temperatures=()) if with_stats else None
    found = sm90.row_statistics(num_classes, dtype, layout, with_loss=True, with_gradient=True)
    assert found.stack == 0
    assert 0.5 * budget <= found.slots <= budget
    assert 0.5 * writing <= found.writing_slots <= writing
    assert found.registers <= registers
    if num_classes % 8 == 0:
        assert sum("STG.E.128" in line for line in found.writing) >= 4
    assert not any("SHFL" in line or "BAR.SYNC" in line for line in (*found.turn, *found.writing))


def test_lanes_with_loss_and_gradient(sm90: ModuleType) -> None:
    """Few classes stay in registers between the sums and the gradient."""
    found = sm90.lane_statistics(21, "fp32", None, by_item=False, with_gradient=True)
    assert found.stack == 0
    assert found.slots <= 37.1
    assert found.registers <= 128


@pytest.mark.parametrize("kernel", ["row_gradient", "lane_gradient"])
def test_a_gradient_that_is_right_costs_nothing(kernel: str, sm90: ModuleType) -> None:
    """Programs compare two numbers before they do anything; the kernel that makes a gradient anew spills nothing."""
    found = sm90.renewal(kernel, 8192 if kernel == "row_gradient" else 21, "bf16")
    assert found.stack == 0
    first = next(place for place, line in enumerate(found.text) if "EXIT" in line)
    assert first <= 40
    assert not any("STG" in line or "MUFU.EX2" in line for line in found.text[:first])


@pytest.mark.parametrize(("temperatures", "budget"), [((), 59.3), (OCTAVES, 92.6)])
def test_lane_kernel(temperatures: tuple[float, ...], budget: float, sm90: ModuleType) -> None:
    """Channels-first images of 21 classes, with all that a row costs beside its classes."""
    found = sm90.lane_statistics(21, "fp32", Layout(21, temperatures=temperatures))
    assert found.stack == 0
    assert found.slots <= budget


def test_rows_of_1000_classes_load_sixteen_bytes_as_well(sm90: ModuleType) -> None:
    """The stride is no multiple of 16 numbers, but whole loads fit; the kernel is told so."""
    found = sm90.row_statistics(1000, "bf16", Layout(1000, temperatures=()))
    assert sum("LDG.E.128" in line for line in found.text) >= 4


def test_loops_load_sixteen_bytes_and_do_not_shuffle(sm90: ModuleType) -> None:
    """Logits are read 16 bytes a lane, and the main loop has no shuffle and no barrier."""
    found = sm90.row_statistics(8192, "bf16", Layout(8192, temperatures=()))
    assert sum("LDG.E.128" in line for line in found.text) >= 4
    assert not any("SHFL" in line or "BAR.SYNC" in line for line in found.turn)


def test_shortest_turn_takes_the_branch_that_skips() -> None:
    """Of two ways through a loop with equally many exponentials the shorter one counts."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import sm90

    sys.path.pop(0)
    lines = [(0, "MUFU.EX2 R0, R1"), (16, "@P0 BRA 0x40"), (32, "FADD"), (48, "FADD"), (64, "@P1 BRA 0x0")]
    assert [text for _, text in sm90.shortest_turn(lines)] == ["MUFU.EX2 R0, R1", "@P0 BRA 0x40", "@P1 BRA 0x0"]
