"""How all benchmarks measure and report: providers in turn, quantiles, the machine, JSON lines, one last JSON document.

Providers run A, B, C, A, B, C, ... in one process, because clocks and neighbours drift; a ratio is taken within each
round and then summarised, so that a slow second slows both of its sides.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Row = dict[str, object]
Verdict = Literal["holds", "undecided", "missed"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "lightning", "torchmetrics", "numpy")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Median and the 20 % and 80 % quantiles of `repeats` measurements, in the unit of the measurements."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, values: Array | Sequence[float]) -> Quantiles:
        """Quantiles with linear interpolation.

        Raises:
            ValueError: if there is no measurement, or one is not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if not array.size or not np.isfinite(array).all():
            raise ValueError(f"Expected `values` to hold finite measurements, but got {array.tolist()}.")
        low, middle, high = np.quantile(array, (0.2, 0.5, 0.8)).tolist()
        return cls(middle, low, high, array.size)

    def row(self) -> Row:
        """The columns of a result."""
        return {"median": self.median, "p20": self.p20, "p80": self.p80, "repeats": self.repeats}

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.p20:.3g} … {self.p80:.3g})"


def interleave(
    operations: Mapping[str, Callable[[], object]],
    *,
    prepare: Callable[[], object] | None = None,
    touch: Callable[[], object] | None = None,
    seconds: float = 10.0,
    least: int = 3,
    most: int = 50,
) -> dict[str, Array]:
    """Times operations in turn; the first round, with its allocations and imports, is dropped.

    Args:
        operations: by name, in the order in which they run in every round.
        prepare: called before every round, not timed.
        touch: called before every operation, not timed; reads the inputs, so that none finds them warmer than another.
        seconds: time after which no round begins, the dropped one included.
        least: rounds that are run whatever they take.
        most: rounds after which it ends.

    Returns:
        Seconds of wall time (rounds,) by name; element i of every array comes from the same round.

    Raises:
        ValueError: unless 1 <= `least` <= `most`.
    """
    if not 1 <= least <= most:
        raise ValueError(f"Expected 1 <= `least` <= `most`, but got {least} and {most}.")
    began = time.perf_counter()
    rounds: list[list[float]] = []
    while len(rounds) <= least or (len(rounds) <= most and time.perf_counter() - began < seconds):
        if prepare is not None:
            prepare()
        durations = []
        for operation in operations.values():
            if touch is not None:
                touch()
            start = time.perf_counter()
            operation()
            durations.append(time.perf_counter() - start)
        rounds.append(durations)
    return {name: np.array(column) for name, column in zip(operations, zip(*rounds[1:], strict=True), strict=True)}


def environment() -> Row:
    """What a number depends on beside the code: processor, threads, load before the run, versions, commit, time."""
    commit, dirty = _commit()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the project and whether files differ from it, results aside; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None, None


@dataclass(frozen=True, slots=True)
class Target:
    """A bar, and what was measured against it at one place.

    Attributes:
        name: the bar in words.
        where: shape, model or data.
        limit: the bar as a number.
        found: the measured quantity, in the unit of `limit`.
        at_most: whether `found` must not be above `limit`, rather than not below it.
    """

    name: str
    where: str
    limit: float
    found: Quantiles
    at_most: bool = True

    @property
    def verdict(self) -> Verdict:
        """`undecided` where the limit lies between the 20 % and the 80 % quantile: then a quieter machine must say."""
        low, high = (self.found.p20, self.found.p80) if self.at_most else (-self.found.p80, -self.found.p20)
        limit = self.limit if self.at_most else -self.limit
        return "holds" if high <= limit else "missed" if low > limit else "undecided"

    def row(self) -> Row:
        """The columns of a result."""
        named = {"table": "target", "target": self.name, "where": self.where, "limit": self.limit}
        return {**named, **self.found.row(), "verdict": self.verdict}


def parser(description: str, seconds: float, budget: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share; `seconds` is the default and `budget` says of what."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument(
        "--seconds", type=float, default=seconds, help=f"wall time of {budget} (default {seconds:g})"
    )
    arguments.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON lines")
    return arguments


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows with the same keys under their names; text to the left, everything else to the right."""
    if not rows:
        return
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    text = [isinstance(rows[0][name], str) for name in names]
    for line in lines:
        cells = zip(line, widths, text, strict=True)
        print("  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in cells).rstrip())
    print(flush=True)


def report(name: str, rows: Sequence[Row], targets: Sequence[Target], stamp: Row, directory: Path) -> None:
    """Writes `<directory>/<name>.jsonl` anew, prints the targets, and as the last line one JSON document.

    The file holds one line for the environment (table `run`), then `rows`, then the targets. It is replaced in one
    step: an interrupted run leaves the earlier file.

    Raises:
        ValueError: if a number is not finite; JSON has none such.
    """
    lines = [{"table": "run", "benchmark": name, **stamp}, *rows, *(target.row() for target in targets)]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{name}.jsonl.tmp"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(directory / f"{name}.jsonl")
    print_table(
        [
            {
                "target": target.name,
                "where": target.where,
                "limit": f"{'<=' if target.at_most else '>='} {target.limit:g}",
                "measured": str(target.found),
                "verdict": target.verdict,
            }
            for target in targets
        ]
    )
    by_name: dict[str, list[Target]] = {}
    for target in targets:
        by_name.setdefault(target.name, []).append(target)
    summary = {bar: _over_places(same) for bar, same in by_name.items()}
    print(json.dumps({"benchmark": name, "environment": stamp, "targets": summary}, allow_nan=False))


def _over_places(targets: Sequence[Target]) -> Row:
    found = [target.found.median for target in targets]
    return {
        "limit": targets[0].limit,
        "worst": max(found) if targets[0].at_most else min(found),
        **{verdict: [target.verdict for target in targets].count(verdict) for verdict in get_args(Verdict)},
    }


def write_look(
    path: Path, lines: Sequence[Mapping[str, object]], whole: Mapping[str, object], corrected: str | None
) -> None:
    """Writes a first look; or, with the note of one that was corrected, leaves it and adds the row that sums it up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_first = corrected is None
    found = after_earlier_looks(path, lines, whole) if is_first else beside_first_look(path, whole, corrected)
    path.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")


def after_earlier_looks(path: Path, lines: Sequence[Mapping[str, object]], whole: Mapping[str, object]) -> list[Row]:
    """The lines of a first look, and one row for each first look at other runs before it.

    Args:
        path: of the results, those of an earlier look if they are there.
        lines: of this look; `first_seed` of the first one tells runs apart.
        whole: the row that sums a look up; the earlier ones are found by its table and name or rule.
    """
    old: list[Row] = list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    earlier = [line for line in old if line["table"] == "earlier"]
    if old and old[0].get("first_seed") != lines[0]["first_seed"]:
        keys = [key for key in ("table", "name", "rule") if key in whole]
        last = next(line for line in old if all(line.get(key) == whole[key] for key in keys))
        earlier.append({**last, "table": "earlier", "commit": old[0]["commit"]})
    return [*map(dict, lines), *earlier]


def beside_first_look(path: Path, row: Mapping[str, object], note: str = "") -> list[Row]:
    """The lines of a first look as they are, with what rules that were corrected after it reach: one row, and what else
    is to be said of it.
    """
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    first = [line for line in lines if line["table"] != "corrected"]
    return [*first, {**row, "table": "corrected", "note": note, "commit": environment()["commit"]}]
