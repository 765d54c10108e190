"""Compiled code gives the reference's numbers, once for all batches, and is refused where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.kernels import compiled
from lightning_lossacc.sums import Layout
from tests import inputs

needs_compiler = pytest.mark.skipif(bool(compiled.obstacle()), reason=compiled.obstacle())
# From PyTorch's compiler, not from us.
pytestmark = pytest.mark.filterwarnings("ignore")


def assert_same(logits: torch.Tensor, target: torch.Tensor, layout: Layout) -> None:
    found, wanted = layout.zeros(), layout.zeros()
    kernels.row_statistics(logits, target, *found, layout, "compiled")
    kernels.row_statistics(logits, target, *wanted, layout, "reference")
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-4)


@needs_compiler
def test_equals_the_reference_over_families_and_batches() -> None:
    """Every family with one compilation; batches of any size make no other."""
    layout = Layout(40, top_k=2)
    for family in inputs.FAMILIES:
        logits, target = inputs.make(family, num_classes=40)
        assert_same(logits.float(), target, layout)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for num_rows in (59, 33, 2, 1):
            assert_same(logits.float()[:num_rows], target[:num_rows], layout)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("temperatures", [(), (0.7, 1.0, 2.6)])
@pytest.mark.parametrize("shape", [(60, 7), (4, 7, 30), (60, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_the_reference(shape: tuple[int, ...], temperatures: tuple[float, ...], dtype: torch.dtype) -> None:
    """Few classes, channels first, many classes; other grids; other dtypes."""
    logits = (3 * torch.randn(shape)).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    assert_same(logits, target, Layout(shape[1], temperatures=temperatures))


def test_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names what is missing, before anything is counted."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiled, "obstacle", compiled.obstacle.__wrapped__)
    metric = LossAccuracy(num_classes=7, backend="compiled")
    with pytest.raises(
        ValueError, match=r"Expected `backend='compiled'` to be possible, but there is no C\+\+ compiler"
    ):
        metric.update(torch.zeros(2, 7), torch.zeros(2, dtype=torch.long))
    assert not metric.counts.any()
