"""Time of `LossAccuracy.update` beside `F.cross_entropy` forward and beside torchmetrics, on a CPU.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_update.py [--seconds 6]`. Writes
`benchmarks/results/update.jsonl`; about two minutes. Says which targets hold and exits with 0 whether they do or not.

Logits are those of a calibrated classifier that is right in 80 % of the rows. Before anything is timed, NLL, accuracy,
top-5 accuracy and calibration error are compared. All inputs are resident and no gradient is recorded. States are
emptied before every round, not timed: torchmetrics' calibration error keeps every row in lists, which would grow. It
bins them in `compute` alone, so update and update with compute are both given.

torchmetrics has its defaults; without its validation of arguments the times were the same within noise. Its macro
accuracy counts C^2 pairs of classes: at C = 32768 that takes about 10 s and 8.6 GB of memory, so rounds are few there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import measure
import numpy as np
import torch
import torch.nn.functional as F
from measure import Array, Quantiles, Row, Target
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_lossacc import LossAccuracy, kernels
from lightning_lossacc.sums import Layout

SEED = 20240
ACCURACY = 0.8
CHECKED_ROWS = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Image classifiers with C = 1000, 100, 10; two language vocabularies; segmentation with few classes, channels first;
# and one case in half precision, which is widened first.
CASES = (
    "16384x1000",
    "4096x10000",
    "1024x32768",
    "16384x100",
    "65536x10",
    "8x21x128x128",
    "16384x1000:bfloat16",
)
# What a user of torchmetrics has instead of `LossAccuracy`: parts of a round, whose times add up.
PARTS = ("micro", "macro", "calibration", "top-5")


@dataclass(frozen=True, slots=True)
class Case:
    """Shape (N, C, ...) and dtype of the logits."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Case:
        """Reads `16384x1000` or `16384x1000:bfloat16`."""
        sizes, _, dtype = text.partition(":")
        dtype = dtype or "float32"
        parts = sizes.split("x")
        if len(parts) < 2 or not all(part.isdecimal() and int(part) for part in parts) or dtype not in DTYPES:
            raise argparse.ArgumentTypeError(
                f"Expected a case to be like 16384x1000 or 16384x1000:bfloat16, but got {text!r}."
            )
        return cls(tuple(int(part) for part in parts), dtype)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.shape[1]

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype}"


def classifier_logits(case: Case) -> tuple[Tensor, Tensor]:
    """Logits of a classifier that is right in 80 % of its rows and, on average, as confident as that.

    Normal logits; the target's is raised by the 80 % quantile of what it lacks, and all are scaled until the mean
    confidence of the first rows is the accuracy.

    Returns:
        Logits (N, C, ...) contiguous, target (N, ...) int64.
    """
    generator = torch.Generator().manual_seed(SEED)
    rows = math.prod(case.shape) // case.num_classes
    logits = torch.randn(rows, case.num_classes, generator=generator)
    target = torch.randint(case.num_classes, (rows, 1), generator=generator)
    own = logits.gather(1, target)
    others = logits.scatter(1, target, -math.inf).amax(1, keepdim=True)
    lacking = (others - own).flatten().sort().values
    logits.scatter_(1, target, own + lacking[min(round(ACCURACY * rows), rows - 1)])
    low, high = 1e-3, 1e3
    for _ in range(30):
        scale = math.sqrt(low * high)
        confident = (scale * logits[:CHECKED_ROWS]).softmax(1).amax(1).mean().item() > ACCURACY
        low, high = (low, scale) if confident else (scale, high)
    logits = logits.mul_(high).to(DTYPES[case.dtype])
    items, _, *rest = case.shape
    if rest:
        logits = logits.view(items, *rest, case.num_classes).movedim(-1, 1).contiguous()
    return logits, target.view(items, *rest)


def torchmetrics_parts(num_classes: int) -> dict[str, Metric]:
    """Accuracy (micro, macro, top-5) and calibration error with the bins of `LossAccuracy`."""
    made = (
        MulticlassAccuracy(num_classes, average="micro"),
        MulticlassAccuracy(num_classes, average="macro"),
        MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
        MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
    )
    return dict(zip(PARTS, made, strict=True))


def same_numbers(ours: LossAccuracy, parts: dict[str, Metric], logits: Tensor, target: Tensor) -> Row:
    """Largest differences between what the providers compute; both are meant to be the same quantities.

    Raises:
        RuntimeError: if they are not; then there is nothing to compare.
    """
    # Not macro accuracy, which is slow and counts a class without rows as 0 if it was predicted.
    for metric in (ours, *(parts[part] for part in ("micro", "top-5", "calibration"))):
        metric.reset()
        metric.update(logits, target)
    values = ours.compute()
    loss = F.cross_entropy(logits.float(), target)
    differences = {
        "accuracy": abs(values["accuracy"].item() - parts["micro"].compute().item()),
        "top_k_accuracy": abs(values["top_k_accuracy"].item() - parts["top-5"].compute().item()),
        "ece": abs(values["ece"].item() - parts["calibration"].compute().item()),
        "nll": abs(values["nll"].item() - loss.item()),
    }
    # torchmetrics takes the softmax in the dtype of the logits and sums in float32; ties at the k-th place are its own.
    bound = 2e-4 if logits.dtype == torch.float32 else 2e-2
    if max(differences.values()) > bound:
        raise RuntimeError(f"Expected both libraries to agree within {bound:g}, but they differ: {differences}.")
    return {"right": values["accuracy"].item(), "confidence": values["confidence"].item(), "differences": differences}


def operations(
    case: Case, logits: Tensor, target: Tensor
) -> tuple[dict[str, Callable[[], object]], Callable[[], None], Row]:
    """All operations of one round in order, what empties their states, and how their numbers agree."""
    ours = {
        name + suffix: LossAccuracy(num_classes=case.num_classes, backend=backend, **options)
        for suffix, backend in (("", "auto"), (", plain", "reference"))
        for name, options in (("ours", {"temperatures": ()}), ("ours, grid", {}))
    }
    parts = torchmetrics_parts(case.num_classes)
    agreement = same_numbers(ours["ours, grid"], parts, logits, target)
    ours["ours"].update(logits, target)  # a compiler is not timed

    def empty() -> None:
        for metric in (*ours.values(), *parts.values()):
            metric.reset()

    timed: dict[str, Callable[[], object]] = {
        "cross_entropy": partial(F.cross_entropy, logits, target),
        **{name: partial(metric.update, logits, target) for name, metric in ours.items()},
        "ours, grid: compute": ours["ours, grid"].compute,
    }
    for part, metric in parts.items():
        timed[part] = partial(metric.update, logits, target)
        timed[f"{part}: compute"] = metric.compute
    return timed, empty, agreement


def providers(times: dict[str, Array]) -> dict[str, Array]:
    """Seconds (rounds,) of what is compared: single operations, and sums of those a user would call together."""

    def total(parts: tuple[str, ...]) -> Array:
        return np.sum([times[part] for part in parts], axis=0)

    computes = tuple(f"{part}: compute" for part in PARTS)
    return {
        "cross_entropy": times["cross_entropy"],
        **{name: times[name] for name in ("ours", "ours, grid", "ours, plain", "ours, grid, plain")},
        "ours, grid + compute": total(("ours, grid", "ours, grid: compute")),
        **{f"torchmetrics {part}": times[part] for part in PARTS},
        "torchmetrics without top-5": total(PARTS[:3]),
        "torchmetrics": total(PARTS),
        "torchmetrics without top-5 + compute": total(PARTS[:3] + computes[:3]),
        "torchmetrics + compute": total(PARTS + computes),
    }


def targets(case: Case, seconds: dict[str, Array]) -> list[Target]:
    """The bars that apply to a case; torchmetrics is accuracy (micro, macro, top-5) and calibration error together."""
    bars: list[Target] = []

    def ratio(over: str, under: str) -> Quantiles:
        return Quantiles.of(seconds[over] / seconds[under])

    def at_most(limit: float, provider: str, classes: int) -> None:
        if case.dtype == "float32" and case.num_classes >= classes:
            name = f"{provider} / cross_entropy, C >= {classes}"
            bars.append(Target(name, str(case), limit, ratio(provider, "cross_entropy")))

    def at_least(limit: float, theirs: str, mine: str) -> None:
        bars.append(Target(f"{theirs} / {mine}", str(case), limit, ratio(theirs, mine), at_most=False))

    at_most(1.0, "ours", 100)
    at_most(1.5, "ours, grid", 100)
    at_least(5.0, "torchmetrics without top-5", "ours, grid")
    at_least(5.0, "torchmetrics", "ours, grid")
    at_least(5.0, "torchmetrics + compute", "ours, grid + compute")
    return bars


@torch.no_grad()
def measure_case(case: Case, budget: float) -> tuple[list[Row], list[Target]]:
    """Rows of one case, one a provider, and its targets; prints a table."""
    logits, target = classifier_logits(case)
    timed, empty, agreement = operations(case, logits, target)
    seconds = providers(measure.interleave(timed, prepare=empty, touch=logits.sum, seconds=budget))
    place = {"shape": list(case.shape), "dtype": case.dtype}
    rows: list[Row] = [{"table": "agreement", **place, **agreement}]
    lines = []
    for name, values in seconds.items():
        milliseconds = Quantiles.of(1e3 * values)
        ratio = Quantiles.of(values / seconds["cross_entropy"])
        slower = Quantiles.of(values / seconds["ours, grid"])
        rows.append(
            {
                "table": "update",
                **place,
                "provider": name,
                "unit": "ms",
                **milliseconds.row(),
                "of_cross_entropy": ratio.median,
                "of_ours_grid": slower.median,
            }
        )
        lines.append(
            {
                str(case): name,
                "ms": str(milliseconds),
                "x cross_entropy": f"{ratio.median:.2f}",
                "x ours, grid": f"{slower.median:.2f}",
                "repeats": milliseconds.repeats,
            }
        )
    measure.print_table(lines)
    return rows, targets(case, seconds)


def main() -> None:
    """Measures all cases, prints the tables and writes the file."""
    arguments = measure.parser(__doc__.partition("\n")[0], 6.0, "one case")
    arguments.add_argument(
        "--cases", type=Case.parse, nargs="+", default=[Case.parse(case) for case in CASES], help="NxC[x...][:dtype]"
    )
    chosen = arguments.parse_args()
    stamp = measure.environment()
    # What counted: without a C++ compiler it is plain PyTorch as well.
    stamp["backend"] = kernels.choose(torch.empty(0, 100), Layout(100)).name
    print(json.dumps(stamp), end="\n\n")
    rows: list[Row] = []
    bars: list[Target] = []
    for case in chosen.cases:
        more_rows, more_bars = measure_case(case, chosen.seconds)
        rows += more_rows
        bars += more_bars
    measure.report("update", rows, bars, stamp, chosen.results)


if __name__ == "__main__":
    main()
