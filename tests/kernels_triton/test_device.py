"""What only a GPU can show: no synchronisation, graphs, no growth of memory, large tensors, no late compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.kernels import launch
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.sums import Layout
from tests.kernels_triton.compared import vectors

pytestmark = pytest.mark.skipif(
    launch.INTERPRETED or not torch.cuda.is_available(), reason="needs a CUDA device, not the interpreter"
)
CASES = [(64, 10), (512, 1000), (200, 50257), (4, 262144)]


@pytest.mark.parametrize(("num_rows", "num_classes"), CASES)
def test_update_never_synchronises(num_rows: int, num_classes: int) -> None:
    """PyTorch's sync-debug mode raises on a synchronising call; the profiler sees no copy to the host."""
    metric = LossAccuracy(num_classes=num_classes).cuda()
    logits = torch.randn(num_rows, num_classes, device="cuda")
    target = torch.randint(0, num_classes, (num_rows,), device="cuda")
    metric.update(logits, target)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(10):
                metric.update(logits, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    assert not [name for name in names if "DtoH" in name]
    assert sum("row_kernel" in name or "lane_kernel" in name for name in names) == 10


@pytest.mark.parametrize(("num_rows", "num_classes"), CASES)
def test_graph_is_captured_and_replayed_with_exact_counts(num_rows: int, num_classes: int) -> None:
    """A thousand replays count a thousand batches, and give the bits of eager updates."""
    layout = Layout(num_classes)
    logits = torch.randn(num_rows, num_classes, device="cuda")
    target = torch.randint(0, num_classes, (num_rows,), device="cuda")
    counts, sums = layout.zeros("cuda")
    kernels.row_statistics(logits, target, counts, sums, layout)
    once, once_sums = counts.clone(), sums.clone()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        kernels.row_statistics(logits, target, counts, sums, layout)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        kernels.row_statistics(logits, target, counts, sums, layout)
    counts.zero_()
    sums.zero_()
    for _ in range(1000):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(counts, 1000 * once)
    assert torch.equal(sums, 1000 * once_sums)


def test_memory_does_not_grow() -> None:
    """Ten thousand updates leave the allocator where a hundred left it, and nothing of N x C is ever allocated."""
    metric = LossAccuracy(num_classes=1000).cuda()
    logits = torch.randn(4096, 1000, device="cuda")
    target = torch.randint(0, 1000, (4096,), device="cuda")
    for _ in range(100):
        metric.update(logits, target)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(10_000):
        metric.update(logits, target)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before < logits.numel() * logits.element_size() / 100


def test_more_than_two_to_the_31_elements() -> None:
    """Rows beyond 2^31 logits are read where they are."""
    num_rows, num_classes = 70_000, 32_768
    logits = torch.zeros(num_rows, num_classes, dtype=torch.bfloat16, device="cuda")
    target = torch.full((num_rows,), 7, device="cuda")
    logits[-1, 7] = 20.0
    logits[-2, 9] = 20.0
    layout = Layout(num_classes, temperatures=())
    parts = layout.parts(*vectors(logits, target, layout))
    assert int(parts["rows"]) == num_rows
    assert int(parts["correct"]) == 1
    assert int(parts["class_predicted"][9]) == 1
    assert int(parts["ties"]) == num_rows - 2


@pytest.mark.parametrize("num_classes", [10, 1000, 262144])
def test_a_partial_batch_compiles_nothing(num_classes: int) -> None:
    """After `precompile` neither a full batch nor a smaller last one makes a kernel."""
    layout = Layout(num_classes, num_bins=11)
    assert kernels.precompile(layout, torch.float32, "cuda")
    made = _kernels()
    counts, sums = layout.zeros("cuda")
    for num_rows in (512, 511, 37, 1):
        logits = torch.randn(num_rows, num_classes, device="cuda")
        target = torch.randint(0, num_classes, (num_rows,), device="cuda")
        kernels.row_statistics(logits, target, counts, sums, layout)
    assert _kernels() == made


def _kernels() -> int:
    return sum(
        len(cache[0]) for kernel in (launch.row_kernel, launch.lane_kernel) for cache in kernel.device_caches.values()
    )


def test_fused_loss_trains_as_eager_does() -> None:
    """Value and gradient of non-leaf logits in bfloat16, with statistics, under accumulation and loss scaling."""
    torch.manual_seed(0)
    hidden = torch.randn(64, 32, device="cuda")
    target = torch.randint(0, 1000, (64,), device="cuda")
    layer = torch.nn.Linear(32, 1000, device="cuda")
    metric = LossAccuracy(num_classes=1000, temperatures=()).cuda()
    gradients = []
    for ours in (True, False):
        layer.zero_grad()
        for _ in range(2):
            logits = layer(hidden).to(torch.bfloat16)
            loss = cross_entropy(logits, target, stats=metric) if ours else F.cross_entropy(logits.float(), target)
            (1024 * loss / 2).backward()
        gradients.append(layer.weight.grad / 1024)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-4)
    assert int(metric.counts[metric.layout.count_slices["rows"]]) == 128


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize(("num_rows", "num_classes"), CASES)
def test_gradient_in_the_forward_pass(num_rows: int, num_classes: int, factor: float) -> None:
    """Expected or not, nothing waits for the host; loss, statistics and gradient are those of the other mode."""
    logits = torch.randn(num_rows, num_classes, device="cuda")
    target = torch.randint(0, num_classes, (num_rows,), device="cuda")
    found = []
    for gradient in ("backward", "forward"):
        metric = LossAccuracy(num_classes=num_classes, temperatures=()).cuda()
        leaf = logits.clone().requires_grad_()
        (factor * cross_entropy(leaf * 1, target, stats=metric, gradient=gradient)).backward()
        leaf.grad = None
        metric.reset()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = cross_entropy(leaf * 1, target, stats=metric, gradient=gradient)
            (factor * loss).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append((loss.detach(), metric.counts.clone(), metric.sums.clone(), leaf.grad))
    assert all(torch.equal(one, other) for one, other in zip(found[0][:3], found[1][:3], strict=True))
    torch.testing.assert_close(found[0][3], found[1][3], rtol=2e-6, atol=1e-9)


def test_compiled_by_inductor() -> None:
    """One graph under torch.compile, with the same counts."""
    layout = Layout(1000)

    @torch.compile(fullgraph=True)
    def step(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        kernels.row_statistics(logits * 2, target, counts, sums, layout)
        return logits.mean()

    logits, target = torch.randn(128, 1000, device="cuda"), torch.randint(0, 1000, (128,), device="cuda")
    vector = layout.zeros("cuda")
    step(logits, target, *vector)
    eager = layout.zeros("cuda")
    kernels.row_statistics(logits * 2, target, *eager, layout)
    assert torch.equal(vector[0], eager[0])
    assert torch.equal(vector[1], eager[1])


@pytest.mark.parametrize(("num_rows", "num_classes"), CASES)
def test_bitwise_repeatable(num_rows: int, num_classes: int) -> None:
    """Ten launches on the same batch give the same bits."""
    layout = Layout(num_classes)
    logits = 4 * torch.randn(num_rows, num_classes, device="cuda")
    target = torch.randint(0, num_classes, (num_rows,), device="cuda")
    first = vectors(logits, target, layout)
    for _ in range(10):
        again = vectors(logits, target, layout)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(("num_rows", "num_classes"), CASES)
def test_statistics_change_no_bit_of_the_loss(num_rows: int, num_classes: int) -> None:
    """Loss and gradient with statistics in the same pass are those without, bit by bit: training is not changed."""
    logits = torch.randn(num_rows, num_classes, device="cuda")
    target = torch.randint(0, num_classes, (num_rows,), device="cuda")
    metric = LossAccuracy(num_classes=num_classes, temperatures=()).cuda()
    found = []
    for stats in (metric, None):
        leaf = logits.clone().requires_grad_()
        loss = cross_entropy(leaf * 1, target, stats=stats)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
