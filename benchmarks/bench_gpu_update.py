"""What does it cost on a GPU to count every statistic? `LossAccuracy.update` beside what users have.

Run from the repository root on a machine with a CUDA device: `PYTHONPATH=. python benchmarks/bench_gpu_update.py`.
Writes `benchmarks/results/gpu_update.jsonl`.

Bytes are counted term by term: the logits once and the targets once. `share of read bandwidth` divides them by the
time and by the bandwidth of a sum over 4 GB in the same process. Peers: `F.cross_entropy` forward (loss only),
torchmetrics (accuracy micro, macro and top-5, calibration error), torcheval (accuracy micro and top-5).
"""

from __future__ import annotations

from collections.abc import Callable

import device_timing
import numpy as np
import torch
import torch.nn.functional as F
from device_timing import Bench, timing_row
from measure import Quantiles, Row, Target
from torch import Tensor

from lightning_lossacc import LossAccuracy

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CASES = (
    ((8192, 10), "float32"),
    ((65536, 1000), "float32"),
    ((65536, 1000), "bfloat16"),
    ((8, 21, 512, 512), "float32"),
    ((8192, 32768), "bfloat16"),
    ((8192, 50257), "bfloat16"),
    ((8192, 128256), "bfloat16"),
    ((8192, 32768), "float32"),
    ((4096, 262144), "bfloat16"),
    ((65536, 100), "float32"),
    ((65536, 256), "bfloat16"),
    ((8, 262144), "bfloat16"),
)
DRY_CASES = (((16, 10), "float32"), ((8, 40), "bfloat16"), ((2, 5, 4, 4), "float32"))


def batch(shape: tuple[int, ...], dtype: str, device: str) -> tuple[Tensor, Tensor]:
    """Logits of a classifier that is often right, and its targets."""
    torch.manual_seed(0)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=device)
    logits = torch.randn(shape, dtype=getattr(torch, dtype), device=device).mul_(2)
    hit = torch.rand(target.shape, device=device) < 0.8
    logits.scatter_(1, target.unsqueeze(1), torch.where(hit, 8.0, 0.0).unsqueeze(1).to(logits.dtype))
    return logits, target


def operations(logits: Tensor, target: Tensor) -> dict[str, Callable[[], Callable[[], object]]]:
    """How each provider is made; making imports it."""
    num_classes = logits.shape[1]

    def ours(**arguments: object) -> Callable[[], object]:
        metric = LossAccuracy(num_classes=num_classes, **arguments).to(logits.device)
        return lambda: metric.update(logits, target)

    def torchmetrics() -> Callable[[], object]:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

        shared = {"num_classes": num_classes, "validate_args": False}
        metrics = [
            MulticlassAccuracy(average="micro", **shared),
            MulticlassAccuracy(average="macro", **shared),
            MulticlassAccuracy(average="micro", top_k=min(5, num_classes), **shared),
            MulticlassCalibrationError(**shared),
        ]
        for metric in metrics:
            metric.to(logits.device)

        def update() -> None:
            for metric in metrics:
                metric.update(logits, target)
            metrics[-1].reset()  # it keeps every row

        return update

    def torcheval() -> Callable[[], object]:
        from torcheval.metrics import MulticlassAccuracy

        if logits.ndim > 2:
            raise ValueError("Expected (N, C).")
        metrics = [MulticlassAccuracy(device=logits.device), MulticlassAccuracy(k=5, num_classes=num_classes,
                                                                                device=logits.device)]  # fmt: skip

        def update() -> None:
            for metric in metrics:
                metric.update(logits, target)

        return update

    return {
        "ours, no grid": lambda: ours(temperatures=()),
        "ours, no grid, no top-k": lambda: ours(temperatures=(), top_k=1),
        "ours, octaves": lambda: ours(temperatures=OCTAVES),
        "ours, half octaves": ours,
        "ours, PyTorch": lambda: ours(temperatures=(), backend="reference"),
        "F.cross_entropy forward": lambda: lambda: F.cross_entropy(logits, target),
        "torchmetrics": torchmetrics,
        "torcheval": torcheval,
    }


def run(bench: Bench, shape: tuple[int, ...], dtype: str, read_speed: float) -> tuple[list[Row], list[Target]]:
    """One case."""
    logits, target = batch(shape, dtype, bench.device)
    where = "x".join(map(str, shape)) + f" {dtype}"
    print(where, flush=True)
    size = logits.numel() * logits.element_size() + target.numel() * target.element_size()
    made = dict(device_timing.providers(operations(logits, target)))
    times = bench.time(made)
    rows, targets = [], []
    for name, seconds in times.items():
        kernels, copies = bench.launches(made[name])
        share = size / float(np.median(seconds)) / read_speed
        rows.append(
            timing_row("update", where, name, seconds, bytes=size, share_of_read_bandwidth=share, kernels=kernels,
                       copies_to_host=copies, peak_bytes=bench.peak_bytes(made[name]))
        )  # fmt: skip
        print(f"  {name:<26}{1e6 * float(np.median(seconds)):>10.1f} us  {100 * share:>5.1f} % of read bandwidth, "
              f"{kernels} kernels, {copies} copies", flush=True)  # fmt: skip
    grid = "ours, octaves" if dtype == "float32" else "ours, no grid, no top-k"
    if len(shape) == 2 and shape[1] >= 1000 and shape[0] >= 4096 and grid in times:
        share = Quantiles.of(size / times[grid] / read_speed)
        targets.append(Target(f"{grid}, share of read bandwidth", where, 0.9 if shape[1] >= 4096 else 0.75, share,
                              at_most=False))  # fmt: skip
    if "torchmetrics" in times:
        ratio = Quantiles.of(times["torchmetrics"] / times["ours, half octaves"])
        targets.append(Target("torchmetrics / everything of ours", where, 20.0, ratio, at_most=False))
    if dtype == "bfloat16" and shape[0] >= 4096:
        ratio = Quantiles.of(times["ours, octaves"] / times["ours, no grid, no top-k"])
        targets.append(Target("grid / no grid, bfloat16", where, 1.7, ratio))
    return rows, targets


if __name__ == "__main__":
    device_timing.sweep("gpu_update", __doc__.partition("\n")[0], CASES, DRY_CASES, run)
