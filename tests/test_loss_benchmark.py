"""`bench_loss.py` runs, compares what is the same, and would notice what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_benchmarks import check, run, scripts

__all__ = ["scripts"]  # a fixture


def test_bench_loss(tmp_path: Path) -> None:
    """Every provider at every place, with time and memory; ours needs less memory than PyTorch's."""
    rows, summary, output = run("loss", tmp_path, "--cases", "2000x1000", "2x7x30x40", "64x100:bfloat16")
    check(rows, summary, "loss")
    found = {(tuple(row["shape"]), row["provider"]): row for row in rows if row["table"] == "loss"}
    providers = ["cross_entropy", "cross_entropy + update", "ours", "ours, stats", "ours, forward",
                 "ours, forward, stats"]  # fmt: skip
    assert list(found) == [(shape, name) for shape in ((2000, 1000), (2, 7, 30, 40), (64, 100)) for name in providers]
    assert all(row["median"] > 0 for row in found.values())
    large = {name: found[(2000, 1000), name]["peak_of_logits"] for name in providers}
    assert large["cross_entropy"] == pytest.approx(3, abs=0.05)
    # The gradient, and buffers of at most two chunks of 2 MB beside logits of 8 MB.
    assert all(1 <= large[name] <= 1.6 for name in ("ours", "ours, forward"))
    assert all(large[name] < large["cross_entropy"] for name in ("ours, stats", "ours, forward, stats"))
    assert "peak / logits" in output and len(summary["targets"]) == 5


def test_a_wrong_gradient_is_no_comparison(scripts: Any) -> None:
    bench = scripts("bench_loss")
    case = bench.Case.parse("64x10")
    logits, target = bench.classifier_logits(case)
    timed, _ = bench.operations(case, logits, target)
    assert bench.agreement(case, logits, target, timed)["gradient"] < 1e-6
    for name in ("ours", "ours, forward"):
        wrong = {**timed, name: lambda name=name: 1.01 * timed[name]()}
        with pytest.raises(RuntimeError, match="the same loss and gradient"):
            bench.agreement(case, logits, target, wrong)


def test_peak_is_the_largest_sum_of_what_lives(scripts: Any) -> None:
    """Two tensors of 4 MB live at once, a third after both; one alone is 4 MB."""
    bench = scripts("bench_loss")
    size = 4 * 2**20

    def both() -> torch.Tensor:
        first = torch.empty(size // 4)
        second = torch.empty(size // 4)
        del first, second
        return torch.empty(size // 4)

    assert bench.peak_bytes(both) == pytest.approx(2 * size, rel=0.01)
    assert bench.peak_bytes(lambda: torch.empty(size // 4)) == pytest.approx(size, rel=0.01)
