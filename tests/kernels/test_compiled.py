"""Compiled code gives the reference's numbers on a CPU, the same bits with any threads, and never stands in the way.

What it computes is also checked against formulas: all of `test_reference.py` runs with it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.kernels import compiled, native
from lightning_lossacc.sums import Layout
from tests import inputs
from tests.kernels_triton.compared import assert_bitwise, assert_equals_reference, vectors

HALVES = (torch.float32, torch.float16, torch.bfloat16)
missing = compiled.obstacle(torch.float32, Layout(2))
needs_compiler = pytest.mark.skipif(bool(missing), reason=missing)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    logits = (3 * torch.randn(shape)).to(dtype)
    return logits, torch.randint(0, shape[1], (shape[0], *shape[2:]))


# 16 and 17: a vector's rows of classes and one more; 513: class by class no longer; 600: row by row with a rest.
@needs_compiler
@pytest.mark.parametrize("num_classes", [2, 16, 17, 513, 600])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", inputs.FAMILIES)
def test_equals_the_reference(family: str, dtype: torch.dtype, num_classes: int) -> None:
    logits, target = inputs.make(family, num_rows=83, num_classes=num_classes)
    assert_equals_reference(logits.to(dtype), target, Layout(num_classes, top_k=2), "compiled")


@needs_compiler
@pytest.mark.parametrize("temperatures", [(), (0.7, 1.0, 2.6)])
@pytest.mark.parametrize("shape", [(60, 7), (4, 7, 30), (60, 300), (3, 600, 5)])
def test_other_grids(shape: tuple[int, ...], temperatures: tuple[float, ...]) -> None:
    assert_equals_reference(*batch(*shape), Layout(shape[1], temperatures=temperatures), "compiled")


# Items within a slice, a slice within an item, items that fill no slice, classes last in memory, rows that lie apart.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda logits: logits,
    "classes last": lambda logits: logits.movedim(1, -1).contiguous().movedim(-1, 1),
    "items last": lambda logits: logits.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other row": lambda logits: logits.repeat_interleave(2, 0)[::2],
    "expanded": lambda logits: logits[:1].expand(logits.shape),
}


@needs_compiler
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(300, 4, 3), (2, 21, 33, 35), (3, 5, 2000), (70, 9, 16), (5, 700, 9), (2000, 3)])
def test_shapes_and_strides(shape: tuple[int, ...], view: str, dtype: torch.dtype) -> None:
    logits, target = batch(*shape, dtype=dtype)
    target.view(-1)[::7] = -100
    assert_equals_reference(VIEWS[view](logits), target, Layout(shape[1]), "compiled")


@needs_compiler
@pytest.mark.parametrize("shape", [(3000,), (70, 1), (3, 1, 40, 60)])
def test_binary(shape: tuple[int, ...]) -> None:
    logits = 4 * torch.randn(shape)
    logits.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    assert_equals_reference(logits, torch.randint(0, 2, shape), Layout(2, task="binary"), "compiled")


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_many_classes(num_rows: int) -> None:
    """Few rows of a language model's vocabulary."""
    assert_equals_reference(*batch(num_rows, 50257), Layout(50257), "compiled")


@needs_compiler
@pytest.mark.parametrize("num_classes", [10, 600])
def test_error_is_at_most_eager_pytorchs(num_classes: int) -> None:
    """Row by row, against float64: the NLL, of confident rows and of hopeless ones."""
    for family in ("typical", "confident", "extreme"):
        logits, target = inputs.make(family, num_rows=400, num_classes=num_classes)
        logits = logits.float()
        layout = Layout(num_classes)
        found = compiled.count_rows(logits[..., None], target[:, None], *layout.zeros(), layout)
        exact = torch.nn.functional.cross_entropy(logits.double(), target, reduction="none")
        eager = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        size = exact.abs().clamp_min(1.0)
        worst = ((eager - exact).abs() / size).max()
        assert ((found - exact).abs() / size).max() <= worst + 2e-7


@needs_compiler
@pytest.mark.parametrize("shape", [(20000, 10), (2000, 700), (3, 4, 20000), (3000, 4, 7)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    logits, target = batch(*shape)
    kept, found = logits.clone(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(vectors(logits, target, Layout(shape[1]), "compiled"))
    torch.set_num_threads(1)
    assert_bitwise(found[0], found[1])
    assert_bitwise(found[0], found[2])
    assert torch.equal(logits, kept)


@needs_compiler
def test_long_batches_are_taken_in_rounds() -> None:
    """More slices than are in flight at once, of rows and of the parts of one item."""
    logits, target = batch(300_000, 3)
    assert_equals_reference(logits, target, Layout(3), "compiled")
    assert_equals_reference(logits.T[None].contiguous(), target[None], Layout(3), "compiled")


@needs_compiler
def test_few_rows_an_item() -> None:
    """A last vector that is not full, whose rows may lie as far apart as those of a full one."""
    for items, classes, rows in itertools.product(range(1, 10), range(2, 8), range(2, 12)):
        logits, target = batch(items, classes, rows)
        layout = Layout(classes, temperatures=())
        found = vectors(logits, target, layout, "compiled")
        wanted = vectors(logits, target, layout, "reference")
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("distance", [1e30, 1e37, 1e38])
def test_what_is_beyond_all_powers_adds_nothing(distance: float) -> None:
    """A target that is hopelessly far away: the others are certain, and the entropy is 0."""
    logits = torch.tensor([[0.0, distance, 0.0]])
    counts, sums = vectors(logits, torch.tensor([0]), Layout(3), "compiled")
    assert Layout(3).parts(counts, sums)["entropy"].item() < 1e-30


@needs_compiler
def test_tensors_without_memory_are_left_to_pytorch() -> None:
    """A tensor that is zero by decree, and one of a subclass; vectors that are not the layout's are refused."""
    target, layout = torch.randint(0, 5, (8,)), Layout(5)
    zero = torch._efficientzerotensor((8, 5))
    assert kernels.choose(zero, layout).name == "reference"
    assert_bitwise(vectors(zero, target, layout, "auto"), vectors(torch.zeros(8, 5), target, layout, "reference"))

    class Own(Tensor):
        pass

    assert kernels.choose(torch.zeros(8, 5).as_subclass(Own), layout).name == "reference"
    counts, sums = layout.zeros()
    for wrong in ((counts, sums.float()), (counts[:-1], sums), (counts.repeat_interleave(2)[::2], sums)):
        with pytest.raises(RuntimeError, match=r"Expected vectors as `Layout\.zeros` makes them"):
            kernels.row_statistics(torch.zeros(8, 5), target, *wrong, layout, "compiled")


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ignored_and_spoilt_rows_leave_the_others_their_bits(value: float) -> None:
    """Beside them in a vector as well as in the sums; what is ignored may hold anything."""
    logits, target = batch(90, 12)
    wanted = vectors(logits, torch.where(torch.arange(90) % 3 == 0, -100, target), Layout(12), "compiled")
    logits[::3] = value
    found = vectors(logits, torch.where(torch.arange(90) % 3 == 0, -100, target), Layout(12), "compiled")
    assert_bitwise(found, wanted)
    spoilt = vectors(logits, target, Layout(12), "compiled")
    assert torch.equal(spoilt[1], wanted[1])
    assert int(Layout(12).parts(*spoilt)["non_finite"]) == 30


@needs_compiler
@pytest.mark.parametrize("own", [-math.inf, math.nan, 1.0])
@pytest.mark.parametrize("other", [1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_classes", [4, 600])
def test_the_nll_of_a_row_that_is_not_finite_is_pytorchs(own: float, other: float, num_classes: int) -> None:
    """The loss of a training whose logits overflow says so."""
    logits = torch.zeros(1, num_classes)
    logits[0, :2] = torch.tensor([own, other])
    layout, target = Layout(num_classes), torch.zeros(1, dtype=torch.long)
    found = compiled.count_rows(logits[..., None], target[:, None], *layout.zeros(), layout)
    wanted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(found, wanted, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("shape", [(50, 6), (9, 6, 4)])
def test_item_values_are_the_references(shape: tuple[int, ...]) -> None:
    logits, target = batch(*shape)
    target.view(-1)[3] = -100
    logits.view(-1)[40] = math.nan
    found = kernels.item_values(logits, target, Layout(6), "compiled")
    wanted = kernels.item_values(logits, target, Layout(6), "reference")
    # What is predicted for a row that holds a NaN means nothing.
    item = 40 // (6 * math.prod(shape[2:]))
    found[item, 4] = wanted[item, 4]
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("num_classes", [3, 10, 16, 37])
def test_memory_beyond_the_batch_is_not_read(num_classes: int) -> None:
    """The last logit is the last number of a page; the page behind it may not be touched."""
    page, size = mmap.PAGESIZE, 40 * num_classes * 4
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(start + pages * page, page, 0) == 0
    try:
        logits = torch.frombuffer(memory, dtype=torch.float32, count=40 * num_classes, offset=pages * page - size)
        logits = logits.view(40, num_classes).normal_()
        assert_equals_reference(logits, torch.randint(0, num_classes, (40,)), Layout(num_classes), "compiled")
    finally:
        protect(start + pages * page, page, mmap.PROT_READ | mmap.PROT_WRITE)


@needs_compiler
def test_auto_takes_it_and_says_so() -> None:
    metric = LossAccuracy(num_classes=7)
    assert metric.backend_for(torch.zeros(2, 7)) == ("compiled", "it can")
    assert metric.backend_for(torch.zeros(2, 7, dtype=torch.float64)).name == "reference"
    assert LossAccuracy(num_classes=7, backend="reference").backend_for(torch.zeros(2, 7)).name == "reference"


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3"])
def test_processors_with_shorter_vectors(processor: str, tmp_path: Path) -> None:
    """Four and eight numbers a vector: all of this file and of the loss's, in a process of its own."""
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/bash\nexec g++ "${{@/-march=native/-march={processor}}}"\n')
    compiler.chmod(0o755)
    files = [str(Path(__file__)), str(Path(__file__).with_name("test_compiled_loss.py"))]
    left_out = "not fresh and not broken and not without and not kept and not trusted"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", left_out, *files],
        capture_output=True, text=True, env=os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout
    assert len(list((tmp_path / "lightning_lossacc").glob("statistics-*.so"))) > 1


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what could be compiled before, and nothing is remembered of what cannot now."""
    for room, name in ((compiled, "obstacle"), (native, "load"), (native, "_find"), (native, "_cache")):
        monkeypatch.setattr(room, name, getattr(room, name).__wrapped__)


@pytest.mark.parametrize("reason", ["path", "switched off"])
def test_without_a_compiler_pytorch_counts(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silently, with the reason at hand; whoever insists gets one sentence before anything is counted."""
    fresh(monkeypatch)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(*(("PATH", "") if reason == "path" else ("LOSSACC_COMPILE", "0")))
    words = r"there is no C\+\+ compiler" if reason == "path" else "LOSSACC_COMPILE is 0"
    logits, target = batch(4, 7)
    metric = LossAccuracy(num_classes=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.update(logits, target)
    assert metric.backend_for(logits).name == "reference" and words.replace("\\", "") in metric.backend_for(logits)[1]
    metric = LossAccuracy(num_classes=7, backend="compiled")
    with pytest.raises(ValueError, match=rf"Expected `backend='compiled'` to be possible, but .*{words}"):
        metric.update(logits, target)
    assert not metric.counts.any()


@pytest.mark.parametrize("how", ["fails", "writes no library"])
def test_a_broken_compiler_is_told_once(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its own words, or those of the loader; nothing is left in the cache by a compiler that failed."""
    fresh(monkeypatch)
    script = tmp_path / "c++"
    failing = "echo 'error: out of luck' >&2; exit 1"
    script.write_text(f"#!/bin/sh\n{failing if how == 'fails' else 'exit 0'}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = "out of luck" if how == "fails" else "too short"
    with pytest.warns(UserWarning, match=rf"counts by plain PyTorch: c\+\+ could not compile .*{words}"):
        choice = kernels.choose(torch.zeros(2, 7), Layout(7, temperatures=(1.0, 3.0)))
    assert choice.name == "reference"
    assert how != "fails" or not list((tmp_path / "cache" / "lightning_lossacc").iterdir())


@needs_compiler
def test_what_was_compiled_is_kept(tmp_path: Path) -> None:
    """A second process compiles nothing; where the user's cache cannot be written, a temporary folder keeps it."""
    program = (
        "import torch; from lightning_lossacc import LossAccuracy; metric = LossAccuracy(num_classes=3, "
        "temperatures=()); metric.update(torch.zeros(2, 3), torch.tensor([0, 1])); "
        "print(metric.backend_for(torch.zeros(2, 3)).name)"
    )
    stamps: list[list[tuple[str, int]]] = []
    for cache in (tmp_path, tmp_path, Path("/proc/nowhere"), tmp_path):
        if len(stamps) == 3:
            # What a full disk has cut off is made anew.
            (tmp_path / "lightning_lossacc" / stamps[0][0][0]).write_bytes(b"")
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        assert found.stdout == "compiled\n" and "lossacc" not in found.stderr
        stamps.append([(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "lightning_lossacc").iterdir()])
    assert len(stamps[0]) == 1 and stamps[0] == stamps[1] == stamps[2] != stamps[3]
    kept = tmp_path / f"lightning_lossacc-{os.getuid()}"
    assert [path.name for path in kept.iterdir()] == [stamps[0][0][0]]


@pytest.mark.parametrize("mode", [0o777, 0o500])
def test_a_folder_that_others_can_write_to_is_not_trusted(
    mode: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A library that somebody else has put there would run with this user's rights."""
    fresh(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "lightning_lossacc").mkdir()
    (tmp_path / "lightning_lossacc").chmod(mode)
    trusted = mode == 0o500 and os.access(tmp_path / "lightning_lossacc", os.W_OK)  # root may write anywhere
    assert (native._cache().parent == tmp_path) == trusted
