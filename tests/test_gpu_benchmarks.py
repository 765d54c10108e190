"""The benchmarks for a GPU run in tiny shapes without one, write nothing then, and refuse to measure on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
NAMES = ("bench_gpu_update", "bench_gpu_loss", "bench_gpu_step")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_dry_run(name: str, tmp_path: Path) -> None:
    """Every provider that is installed runs, gradients agree, and no number is written."""
    done = run(name, "--dry-run", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ours" in done.stdout or "fused" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure on")
def test_refused_without_a_device(tmp_path: Path) -> None:
    """A CPU's time is never written down as a GPU's."""
    done = run("bench_gpu_update", "--results", str(tmp_path))
    assert done.returncode != 0
    assert "Expected a CUDA device, but found none" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_figure_is_drawn_from_results(tmp_path: Path) -> None:
    """Result files give a picture; none give a clear refusal, not an empty picture."""
    picture, script = tmp_path / "gpu.png", str(ROOT / "benchmarks" / "draw_gpu.py")
    command = [sys.executable, script, "--results", str(tmp_path), "--picture", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "but found none" in done.stderr
    assert not picture.exists()
    counted = {"table": "update", "provider": "ours, octaves", "share_of_read_bandwidth": 0.9}
    lines = [{**counted, "where": f"8192x{classes} float32"} for classes in (1000, 32768)]
    (tmp_path / "gpu_update.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timed = [("F.cross_entropy", 9.0), ("ours with statistics", 3.0), ("QuACK", 4.0)]
    lines = [{"table": "loss", "where": "8x9 float32", "provider": name, "median": time} for name, time in timed]
    (tmp_path / "gpu_loss.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    subprocess.run(command, check=True, timeout=120)
    assert picture.read_bytes()[:4] == b"\x89PNG"
