"""Is training with all statistics faster than without? Loss and gradient on a GPU beside the public ways to get them.

Run from the repository root on a machine with a CUDA device: `PYTHONPATH=. python benchmarks/bench_gpu_loss.py`.
Writes `benchmarks/results/gpu_loss.jsonl`.

Logits are the result of an operation, not a leaf, so that no gradient is cloned into a leaf; the incoming gradient is a
half, as with two accumulated batches, which makes implementations that compute the gradient in the forward pass scale
it; ours is told what to expect there, and once is not, to see what that costs. Values and gradients are compared before
anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import device_timing
import numpy as np
import torch
import torch.nn.functional as F
from bench_gpu_update import batch
from device_timing import Bench, timing_row
from measure import Quantiles, Row, Target
from torch import Tensor

from lightning_lossacc import LossAccuracy
from lightning_lossacc.loss import cross_entropy

CASES = (
    ((8192, 128256), "bfloat16"),
    ((8192, 10), "float32"),
    ((65536, 1000), "float32"),
    ((65536, 1000), "bfloat16"),
    ((8, 21, 512, 512), "float32"),
    ((8192, 32768), "bfloat16"),
    ((8192, 50257), "bfloat16"),
    ((4096, 262144), "bfloat16"),
)
DRY_CASES = (((16, 10), "float32"), ((8, 40), "bfloat16"), ((2, 5, 4, 4), "float32"))


def operations(leaf: Tensor, target: Tensor) -> dict[str, Callable[[], Callable[[], object]]]:
    """How each provider is made; making imports it."""
    num_classes = leaf.shape[1]

    def by(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        def step() -> Tensor:
            logits = leaf.view_as(leaf)
            (gradient,) = torch.autograd.grad(0.5 * loss(logits, target), logits)
            return gradient

        return step

    forward = {"gradient": "forward", "expected_scale": 0.5}

    def ours(options: dict[str, object] | None = None, **arguments: object) -> Callable[[], object]:
        metric = LossAccuracy(num_classes=num_classes, **arguments).to(leaf.device)
        return by(lambda logits, labels: cross_entropy(logits, labels, stats=metric, **(options or {})))

    def compiled() -> Callable[[], object]:
        if leaf.device.type == "cpu":
            raise RuntimeError("not compiled in a dry run")
        return by(torch.compile(F.cross_entropy, dynamic=False))

    def liger() -> Callable[[], object]:
        from liger_kernel.transformers.functional import liger_cross_entropy

        if leaf.ndim > 2:
            raise ValueError("Expected (N, C).")
        # It writes the gradient over the logits, so that it gets a copy that is timed with it.
        return by(lambda logits, labels: liger_cross_entropy(logits.clone(), labels))

    def quack() -> Callable[[], object]:
        from quack import cross_entropy as quack_loss

        if leaf.ndim > 2:
            raise ValueError("Expected (N, C).")
        return by(lambda logits, labels: quack_loss(logits, labels, reduction="mean"))

    return {
        "ours with statistics": lambda: ours(temperatures=()),
        "ours with statistics and grid": ours,
        "ours, loss alone": lambda: by(cross_entropy),
        "ours forward, with statistics": lambda: ours(forward, temperatures=()),
        "ours forward, loss alone": lambda: by(partial(cross_entropy, **forward)),
        "ours forward, another scale": lambda: by(partial(cross_entropy, gradient="forward")),
        "F.cross_entropy": lambda: by(F.cross_entropy),
        "torch.compile": compiled,
        "Liger-Kernel (and a copy)": liger,
        "QuACK": quack,
    }


def compare(made: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Those whose gradient equals eager PyTorch's within half precision; a peer that is wrong is said and left out.

    Raises:
        AssertionError: if ours is wrong.
    """
    wanted = made["F.cross_entropy"]()
    right = {}
    for name, operation in made.items():
        found = operation()
        error = float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())
        if error < 2e-2:
            right[name] = operation
            continue
        print(f"  without {name}: its gradient is off by {error:g}", flush=True)
        assert not name.startswith("ours"), (
            f"Expected the gradient of {name} to be PyTorch's, but it is off by {error:g}."
        )
    return right


def run(bench: Bench, shape: tuple[int, ...], dtype: str, _: float) -> tuple[list[Row], list[Target]]:
    """One case."""
    logits, target = batch(shape, dtype, bench.device)
    where = "x".join(map(str, shape)) + f" {dtype}"
    print(where, flush=True)
    leaf = logits.requires_grad_()
    made = dict(device_timing.providers(operations(leaf, target)))
    made = compare(made)
    times = bench.time(made)
    rows = []
    for name, seconds in times.items():
        kernels, copies = bench.launches(made[name])
        rows.append(
            timing_row("loss", where, name, seconds, kernels=kernels, copies_to_host=copies,
                       peak_bytes=bench.peak_bytes(made[name]))
        )  # fmt: skip
        print(
            f"  {name:<30}{1e6 * float(np.median(seconds)):>10.1f} us, {kernels} kernels, {copies} copies", flush=True
        )
    eager, mine = times["F.cross_entropy"], times["ours with statistics"]
    limit = 0.35 if shape == (8192, 128256) else 1.0
    targets = [
        Target("loss, gradient and statistics / eager F.cross_entropy", where, limit, Quantiles.of(mine / eager))
    ]
    peers = [name for name in ("torch.compile", "Liger-Kernel (and a copy)", "QuACK") if name in times]
    if peers:
        best = min(peers, key=lambda name: float(np.median(times[name])))
        ratio = Quantiles.of(mine / times[best])
        targets.append(Target(f"loss, gradient and statistics / {best}", where, 0.75, ratio))
    return rows, targets


if __name__ == "__main__":
    device_timing.sweep("gpu_loss", __doc__.partition("\n")[0], CASES, DRY_CASES, run)
