"""Forward and backward pass of our cross-entropy beside `F.cross_entropy`, with and without statistics, on a CPU.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_loss.py [--seconds 8]`. Writes
`benchmarks/results/loss.jsonl`; about two minutes. Says which targets hold and exits with 0 whether they do or not.

Logits are those of `bench_update.py`, not a leaf of the graph, so that no gradient is copied into `.grad`. Statistics
are those of a training step (no temperatures); 'forward' is ours with `gradient="forward"`. Before anything is timed,
losses and gradients are compared. The peak of memory is the largest sum of live allocations that PyTorch's profiler saw
in one pass, without the inputs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import measure
import torch
import torch.nn.functional as F
from bench_update import Case, classifier_logits
from measure import Quantiles, Row, Target
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lightning_lossacc import LossAccuracy
from lightning_lossacc.loss import cross_entropy

# Image classifiers, two language vocabularies, a small problem, segmentation (channels first), half precision.
CASES = ("16384x1000", "16384x100", "65536x10", "1024x32768", "1024x50257", "8x21x128x128", "16384x1000:bfloat16")
LOSS_BOUND = {"float32": 1e-6, "bfloat16": 1e-2}
GRADIENT_BOUND = {"float32": 1e-6, "bfloat16": 1e-2}


def operations(case: Case, logits: Tensor, target: Tensor) -> tuple[dict[str, Callable[[], Tensor]], LossAccuracy]:
    """One forward and backward pass of every provider, which returns the gradient; and the metric that is filled."""
    leaf = logits.requires_grad_()
    metric = LossAccuracy(num_classes=case.num_classes, temperatures=())

    def run(loss: Callable[[Tensor, Tensor], Tensor], update: bool = False) -> Tensor:
        given = leaf.view_as(leaf)
        total = loss(given, target)
        if update:
            metric.update(given, target)
        return torch.autograd.grad(total, given)[0]

    return {
        "cross_entropy": partial(run, F.cross_entropy),
        "cross_entropy + update": partial(run, F.cross_entropy, update=True),
        "ours": partial(run, cross_entropy),
        "ours, stats": partial(run, partial(cross_entropy, stats=metric)),
        "ours, forward": partial(run, partial(cross_entropy, gradient="forward")),
        "ours, forward, stats": partial(run, partial(cross_entropy, gradient="forward", stats=metric)),
    }, metric


def agreement(case: Case, logits: Tensor, target: Tensor, timed: dict[str, Callable[[], Tensor]]) -> Row:
    """Largest differences of loss and gradient from PyTorch's in float64, the latter of the largest entry; of PyTorch's
    own as well, whose sum over 50 257 classes is off by 4e-6.

    Raises:
        RuntimeError: if ours are not the same; then there is nothing to compare.
    """
    exact = logits.detach().double().requires_grad_()
    wanted = F.cross_entropy(exact, target)
    (slope,) = torch.autograd.grad(wanted, exact)
    losses = [cross_entropy(logits, target, gradient=gradient) for gradient in ("backward", "forward")]
    loss = max((found - wanted).abs().item() for found in losses)
    off = {name: ((make() - slope).abs().max() / slope.abs().max()).item() for name, make in timed.items()}
    gradient = max(value for name, value in off.items() if name.startswith("ours"))
    if loss > LOSS_BOUND[case.dtype] or gradient > GRADIENT_BOUND[case.dtype]:
        raise RuntimeError(f"Expected the same loss and gradient, but they differ by {loss:g} and {gradient:g}.")
    return {"loss": loss, "gradient": gradient, "gradient of cross_entropy": off["cross_entropy"]}


def peak_bytes(operation: Callable[[], Tensor]) -> int:
    """Largest sum of live allocations within one pass."""
    operation()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        operation()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure_case(case: Case, budget: float) -> tuple[list[Row], list[Target]]:
    """Rows of one case, one a provider, and its targets; prints a table."""
    logits, target = classifier_logits(case)
    timed, metric = operations(case, logits, target)
    place = {"shape": list(case.shape), "dtype": case.dtype}
    rows: list[Row] = [{"table": "agreement", **place, **agreement(case, logits, target, timed)}]
    size = logits.numel() * logits.element_size()
    peaks = {name: peak_bytes(operation) for name, operation in timed.items()}
    seconds = measure.interleave(timed, prepare=metric.reset, touch=logits.detach().sum, seconds=budget)
    ratios = {name: Quantiles.of(values / seconds["cross_entropy"]) for name, values in seconds.items()}
    lines = []
    for name, values in seconds.items():
        milliseconds = Quantiles.of(1e3 * values)
        rows.append(
            {
                "table": "loss",
                **place,
                "provider": name,
                "unit": "ms",
                **milliseconds.row(),
                "of_cross_entropy": ratios[name].median,
                "peak_bytes": peaks[name],
                "peak_of_logits": peaks[name] / size,
            }
        )
        lines.append(
            {
                str(case): name,
                "ms": str(milliseconds),
                "x cross_entropy": f"{ratios[name].median:.2f}",
                "peak / logits": f"{peaks[name] / size:.2f}",
                "repeats": milliseconds.repeats,
            }
        )
    measure.print_table(lines)
    bars = [
        Target(f"{name} / cross_entropy, forward + backward", str(case), 1.0, ratios[name])
        for name in timed
        if name.startswith("ours")
    ]
    against_update = Quantiles.of(seconds["ours, stats"] / seconds["cross_entropy + update"])
    bars.append(Target("ours, stats / (cross_entropy + update)", str(case), 1.0, against_update))
    return rows, bars


def main() -> None:
    """Measures all cases, prints the tables and writes the file."""
    arguments = measure.parser(__doc__.partition("\n")[0], 8.0, "one case")
    arguments.add_argument(
        "--cases", type=Case.parse, nargs="+", default=[Case.parse(case) for case in CASES], help="NxC[x...][:dtype]"
    )
    chosen: argparse.Namespace = arguments.parse_args()
    stamp = measure.environment()
    print(json.dumps(stamp), end="\n\n")
    rows: list[Row] = []
    bars: list[Target] = []
    for case in chosen.cases:
        more_rows, more_bars = measure_case(case, chosen.seconds)
        rows += more_rows
        bars += more_bars
    measure.report("loss", rows, bars, stamp, chosen.results)


if __name__ == "__main__":
    main()
