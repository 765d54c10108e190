"""The operations work within compiled and exported code, without a graph break; transforms are refused clearly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.sums import Layout

LAYOUT = Layout(7)


def count(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
    """A step that counts on its way."""
    kernels.row_statistics(2 * logits, target, counts, sums, LAYOUT)
    return logits.sum()


def test_compiled_without_a_graph_break() -> None:
    """One graph, the same vectors, and no second compilation for a second batch."""
    compiled = torch.compile(count, fullgraph=True, backend="aot_eager")
    whole, eager = LAYOUT.zeros(), LAYOUT.zeros()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            logits, target = torch.randn(12, 7), torch.randint(0, 7, (12,))
            compiled(logits, target, *whole)
            count(logits, target, *eager)
    assert torch.equal(whole[0], eager[0])
    assert torch.equal(whole[1], eager[1])
    assert int(whole[0][0]) == 36


def test_operation_passes_pytorchs_own_checks() -> None:
    """Schema, fake implementation and functionalisation, by torch.library.opcheck."""
    counts, sums = LAYOUT.zeros()
    layout = LAYOUT
    arguments = (
        torch.randn(5, 7), torch.randint(0, 7, (5,)), counts, sums, layout.num_classes, layout.task, layout.num_bins,
        layout.top_k, list(layout.temperatures), layout.per_class, layout.ignore_index, layout.input_kind, "auto",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.lossacc.row_statistics.default, arguments)


def test_exported() -> None:
    """torch.export keeps the operation as one node."""

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            counts, sums = LAYOUT.zeros()
            self.register_buffer("counts", counts)
            self.register_buffer("sums", sums)

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            kernels.row_statistics(logits, target, self.counts, self.sums, LAYOUT)
            return logits.argmax(1)

    module = Counted()
    program = torch.export.export(module, (torch.randn(5, 7), torch.randint(0, 7, (5,))))
    assert sum("lossacc" in str(node.target) for node in program.graph.nodes) == 1


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_are_refused(transform: object) -> None:
    """Tensors of torch.func cannot be counted; one sentence says so, and nothing was added."""
    metric = LossAccuracy(num_classes=7)

    def loss(logits: Tensor) -> Tensor:
        rows = logits if logits.ndim == 2 else logits[None]
        metric.update(rows, torch.zeros(len(rows), dtype=torch.long))
        return logits.sum()

    with pytest.raises(RuntimeError, match=r"Expected plain tensors, but got those of a torch.func transform"):
        transform(loss)(torch.randn(5, 7))
    assert not metric.counts.any()


@pytest.mark.parametrize("backend", ["cuda", "", None])
def test_unknown_backend_is_refused(backend: object) -> None:
    """A name that is no backend is refused at construction, with those that are."""
    with pytest.raises(
        ValueError, match=r"Expected `backend` to be one of \('auto', 'triton', 'reference', 'compiled'\), "
    ):
        LossAccuracy(num_classes=7, backend=backend)


def test_a_cpu_has_no_triton() -> None:
    """What counts there can be asked for with its reason, and insisting on Triton is an error with that reason."""
    metric = LossAccuracy(num_classes=7)
    assert metric.backend_for(torch.zeros(2, 7)).name in ("compiled", "reference")
    assert metric.backend_for(torch.zeros(2, 7, dtype=torch.float64)) == (
        "reference",
        "logits of torch.float64 are counted by PyTorch",
    )
    with pytest.raises(ValueError, match="but Triton does not count logits on a cpu device; use 'auto'"):
        LossAccuracy(num_classes=7, backend="triton").update(torch.zeros(2, 7), torch.zeros(2, dtype=torch.long))
