"""Can anyone feel it? Training steps of Lightning on a GPU without us, with the callback, and with the fused loss.

Run from the repository root on a machine with a CUDA device: `PYTHONPATH=. python benchmarks/bench_gpu_step.py`.
Writes `benchmarks/results/gpu_step.jsonl`. Models have random weights and data that stay on the device; a step is the
wall time from the end of the warm-up to a synchronisation after the last step, over the steps between. Variants run in
turn, several times. `host` is the time that a call of `update` keeps the host busy on tiny inputs: a loop of 1000
calls with one synchronisation at its end, beside the same loop of an empty kernel launch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import device_timing
import lightning
import measure
import numpy as np
import torch
import torch.nn.functional as F
from device_timing import Bench
from measure import Quantiles, Row, Target
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_lossacc import LossAccuracy, LossAccuracyMonitor
from lightning_lossacc.loss import cross_entropy

VARIANTS = ("without", "callback", "callback and fused loss")


class Resident(Dataset):
    """The same batch again and again, on the device: nothing is loaded."""

    def __init__(self, batch: tuple[Tensor, Tensor], length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch


class Model(lightning.LightningModule):
    """Any network that gives logits (N, C, ...), with either loss."""

    def __init__(self, network: nn.Module, fused: bool) -> None:
        super().__init__()
        self.network, self.fused = network, fused

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, target = batch
        logits = self.network(inputs)
        return cross_entropy(logits, target) if self.fused else F.cross_entropy(logits, target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Block(nn.Module):
    """A residual block of two convolutions (He et al. 2016)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.short = nn.Conv2d(width, out, 1, stride) if (width, stride) != (out, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(y + self.short(x))


class LanguageModel(nn.Module):
    """A small transformer; logits of tokens as rows, (N * L, C)."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, 0.0, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, layers), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))).flatten(0, 1)


def residual(dry: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Like ResNet-18 on 32 x 32 images, 100 classes, 512 images a step."""
    width, size = (4, 4) if dry else (64, 512)
    blocks = [Block(width * 2 ** max(0, i - 1), width * 2**i, 1 if i == 0 else 2) for i in range(4)]
    more = [Block(width * 2**i, width * 2**i, 1) for i in range(4)]
    body = [block for pair in zip(blocks, more, strict=True) for block in pair]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 100)]
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), *body, *head), (
        torch.randn(size, 3, 32, 32), torch.randint(0, 100, (size,)),
    )  # fmt: skip


def segmentation(dry: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Convolutions at a quarter of 512 x 512 pixels, 21 classes, 8 images a step."""
    width, size, images = (4, 16, 2) if dry else (128, 512, 8)
    body = [nn.Conv2d(3, width, 7, 4, 3), nn.ReLU(), *[Block(width, width, 1) for _ in range(4)]]
    head = [nn.Conv2d(width, 21, 1), nn.Upsample(scale_factor=4, mode="bilinear")]
    return nn.Sequential(*body, *head), (
        torch.randn(images, 3, size, size), torch.randint(0, 21, (images, size, size)),
    )  # fmt: skip


def language(dry: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Six layers of width 768, 50 257 classes, 8192 tokens a step."""
    vocabulary, width, layers, length = (64, 8, 1, 8) if dry else (50257, 768, 6, 1024)
    tokens = torch.randint(0, vocabulary, (8, length))
    return LanguageModel(vocabulary, width, layers), (tokens, torch.randint(0, vocabulary, (8 * length,)))


WORKLOADS: dict[str, tuple[Callable[[bool], tuple[nn.Module, tuple[Tensor, Tensor]]], str]] = {
    "residual network": (residual, "32-true"),
    "segmentation": (segmentation, "bf16-mixed"),
    "language model": (language, "bf16-mixed"),
}


class Clock(lightning.Callback):
    """Seconds a step, between the end of the warm-up and the last step."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.began, self.seconds = warm_up, 0.0, 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index + 1 == self.warm_up:
            _synchronise()
            self.began = time.perf_counter()
        elif index + 1 == trainer.max_steps:
            _synchronise()
            self.seconds = (time.perf_counter() - self.began) / (trainer.max_steps - self.warm_up)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train(workload: str, variant: str, bench: Bench, steps: int, warm_up: int) -> float:
    """Seconds a step of one run."""
    torch.manual_seed(0)
    make, precision = WORKLOADS[workload]
    network, batch = make(bench.dry)
    batch = tuple(tensor.to(bench.device) for tensor in batch)
    clock = Clock(warm_up)
    callbacks: list[lightning.Callback] = [clock]
    if variant != "without":
        callbacks.append(LossAccuracyMonitor(dirpath=False, report=False))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu" if bench.dry else "gpu", devices=1, logger=False, callbacks=callbacks,
        precision="32-true" if bench.dry else precision, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    loader = DataLoader(Resident(batch, steps), batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Model(network, variant.endswith("fused loss")), loader)
    return clock.seconds


def host(bench: Bench) -> list[Row]:
    """Microseconds that a call keeps the host busy, on 64 x 10 logits."""
    logits, target = torch.randn(64, 10, device=bench.device), torch.randint(0, 10, (64,), device=bench.device)
    metric = LossAccuracy(num_classes=10, temperatures=()).to(bench.device)
    counts, sums, layout = metric.counts, metric.sums, metric.layout
    from lightning_lossacc import kernels

    one = torch.zeros(1, device=bench.device)
    calls = {
        "metric.update": lambda: metric.update(logits, target),
        "kernels.row_statistics": lambda: kernels.row_statistics(logits, target, counts, sums, layout),
        "a launch (add_)": lambda: one.add_(1),
        "F.cross_entropy": lambda: F.cross_entropy(logits, target),
    }
    rows = []
    for name, call in calls.items():
        found = []
        for _ in range(1 if bench.dry else 7):
            _synchronise()
            began = time.perf_counter()
            for _ in range(3 if bench.dry else 1000):
                call()
            found.append((time.perf_counter() - began) / (3 if bench.dry else 1000))
            _synchronise()
        rows.append({"table": "host", "provider": name, **Quantiles.of(1e6 * np.array(found)).row()})
        print(f"  host {name:<26}{1e6 * float(np.median(found)):>8.1f} us", flush=True)
    return rows


def main() -> None:
    bench, arguments = device_timing.start(__doc__.splitlines()[0], 0.0)
    stamp = device_timing.environment()
    rows, targets = host(bench), []
    steps, warm_up, repeats = (4, 2, 1) if bench.dry else (60, 20, 3)
    for workload in WORKLOADS:
        found = {variant: np.array([0.0] * repeats) for variant in VARIANTS}
        for repeat in range(repeats):
            for variant in VARIANTS:
                found[variant][repeat] = train(workload, variant, bench, steps, warm_up)
        for variant, seconds in found.items():
            rows.append({"table": "step", "where": workload, "provider": variant, **Quantiles.of(1e3 * seconds).row()})
            print(f"  {workload:<20}{variant:<26}{1e3 * float(np.median(seconds)):>9.2f} ms", flush=True)
        for variant, limit in (("callback", 1.01), ("callback and fused loss", 1.0)):
            ratio = Quantiles.of(found[variant] / found["without"])
            targets.append(Target(f"step with {variant} / without", workload, limit, ratio))
        if not bench.dry:
            measure.report("gpu_step", rows, targets, stamp, arguments.results)


if __name__ == "__main__":
    main()
