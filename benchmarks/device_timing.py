"""How the GPU benchmarks time: CUDA events, a cold cache, providers in turn, and bandwidth measured beside them.

Every operation is timed with the L2 cache emptied before it (small shapes would otherwise be measured from the cache),
between two events on the device, in rounds A, B, C, A, B, C, so that clocks that drift slow all of them. Read and copy
bandwidth come from the same process; numbers of other processes are not to be compared without them.

Without a CUDA device the benchmarks refuse to run; `--dry-run` runs them on a CPU in tiny shapes, to see that they do,
and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import measure
import numpy as np
import torch
from measure import Array, Quantiles, Row, Target

Shape = tuple[int, ...]
Case = tuple[Shape, str]

# More than twice the L2 cache of an H200 (50 to 60 MB).
FLUSH_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a benchmark runs, and how long.

    Attributes:
        device: `"cuda"`, or `"cpu"` in a dry run.
        seconds: device time of a case.
        dry: whether shapes are tiny and nothing is written.
    """

    device: str
    seconds: float
    dry: bool

    def time(self, operations: Mapping[str, Callable[[], object]], least: int = 5, most: int = 60) -> dict[str, Array]:
        """Seconds of every operation in each round, (rounds,) by name; the first rounds, which compile, are dropped."""
        if self.dry:
            return measure.interleave(operations, seconds=0.0, least=1, most=1)
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        for operation in operations.values():
            for _ in range(3):
                operation()
        torch.cuda.synchronize()
        began, rounds = time.perf_counter(), []
        while len(rounds) < least or (len(rounds) < most and time.perf_counter() - began < self.seconds):
            pairs = []
            for operation in operations.values():
                flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                operation()
                end.record()
                pairs.append((start, end))
            torch.cuda.synchronize()
            rounds.append([start.elapsed_time(end) / 1000 for start, end in pairs])
        return {name: np.array(column) for name, column in zip(operations, zip(*rounds, strict=True), strict=True)}

    def peak_bytes(self, operation: Callable[[], object]) -> int:
        """Largest memory that one call allocates beyond what is allocated."""
        if self.dry:
            operation()
            return 0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        operation()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def launches(self, operation: Callable[[], object]) -> tuple[int, int]:
        """(kernels, copies to the host) of one call, by the profiler."""
        if self.dry:
            return 0, 0
        operation()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            operation()
            torch.cuda.synchronize()
        on_device = torch.autograd.DeviceType.CUDA
        names = [event.name for event in profile.events() if event.device_type == on_device]
        copies = [name for name in names if "Memcpy" in name]
        return len(names) - len(copies), sum("DtoH" in name for name in copies)

    def bandwidth(self) -> Row:
        """Bytes a second of reading (a sum) and of copying (bytes read and written), of 4 GB."""
        count = 1024 if self.dry else 2**30
        source = torch.zeros(count, dtype=torch.float32, device=self.device)
        into = torch.empty_like(source)
        times = self.time({"read": source.sum, "copy": lambda: into.copy_(source)})
        size = 4 * count
        return {
            "table": "bandwidth",
            "read_bytes_per_second": size / float(np.median(times["read"])),
            "copy_bytes_per_second": 2 * size / float(np.median(times["copy"])),
        }


def start(description: str, seconds: float) -> tuple[Bench, argparse.Namespace]:
    """Reads the arguments.

    Raises:
        SystemExit: without a CUDA device, unless it is a dry run.
    """
    parser = measure.parser(description, seconds, "a case")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU; writes nothing")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device, but found none; --dry-run shows that the benchmark runs.")
    return Bench("cpu" if arguments.dry_run else "cuda", arguments.seconds, arguments.dry_run), arguments


def environment() -> Row:
    """`measure.environment` with the device, its driver and its clocks."""
    stamp = measure.environment()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        stamp |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = "driver_version,clocks.sm,clocks.mem,clocks.max.sm"
            command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
            stamp["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with contextlib.suppress(ImportError):
        import triton

        stamp["triton"] = triton.__version__
    return stamp


def providers(found: Mapping[str, Callable[[], Callable[[], object]]]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Operations by name; a provider that is not installed, or cannot do this shape, is said and left out."""
    for name, make in found.items():
        try:
            operation = make()
            operation()
        except Exception as error:
            print(f"  without {name}: {type(error).__name__}: {str(error)[:160]}", flush=True)
            continue
        yield name, operation


def timing_row(table: str, where: str, provider: str, seconds: Array, **columns: object) -> Row:
    """A result in microseconds."""
    return {"table": table, "where": where, "provider": provider, **Quantiles.of(1e6 * seconds).row(), **columns}


def sweep(
    name: str,
    description: str,
    cases: Sequence[Case],
    dry_cases: Sequence[Case],
    run: Callable[[Bench, Shape, str, float], tuple[list[Row], list[Target]]],
) -> None:
    """Runs every case and writes `<name>.jsonl` after each, so that an interrupted sweep leaves what it has.

    Args:
        name, description: of the benchmark.
        cases, dry_cases: shape and dtype of the logits.
        run: measures one case; its last argument is the read bandwidth in bytes a second.
    """
    bench, arguments = start(description, 2.0)
    stamp, speed = environment(), bench.bandwidth()
    rows, targets = [speed], []
    for shape, dtype in dry_cases if bench.dry else cases:
        found, judged = run(bench, shape, dtype, float(speed["read_bytes_per_second"]))
        rows += found
        targets += judged
        if not bench.dry:
            measure.report(name, rows, targets, stamp, arguments.results)
            torch.cuda.empty_cache()
