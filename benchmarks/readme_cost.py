"""The README's section "Cost", made from the result files of the benchmarks that exist.

Put into the README by `tests/test_readme.py`, as the numbers of `readme_numbers.py` are. What no machine has measured
yet is said to be so, and nothing is estimated in its place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- cost:begin -->", "<!-- cost:end -->"
Row = dict[str, Any]

# Column heads of the CPU tables by provider.
UPDATE = {
    "cross_entropy": "`F.cross_entropy` forward",
    "ours": "ours, without grid",
    "ours, plain": "the same in plain PyTorch",
    "ours, grid": "ours, all",
    "ours, grid, plain": "the same in plain PyTorch",
    "torchmetrics without top-5": "torchmetrics accuracy (micro, macro) + ECE",
    "torchmetrics": "the same + top-5",
}
GPU = {
    "gpu_update": "counting, against the read bandwidth and torchmetrics",
    "gpu_loss": "loss and gradient, against eager PyTorch, `torch.compile`, Liger-Kernel and QuACK",
    "gpu_step": "training steps of Lightning, and the host's time of a call",
}


def markdown(source: Any, table: Any, results: Path = RESULTS) -> str:
    """The whole section.

    Args:
        source, table: the functions of `readme_numbers` of these names.
        results: directory of the result files; parts whose file is missing are left out.
    """
    parts: list[str] = []
    for name, write in (("update", update), ("loss", loss), ("step", step), ("sm90", sm90)):
        rows = _rows(results / f"{name}.jsonl")
        if rows:
            parts += [*write(rows, table), f"<sub>{source(name, rows)}</sub>"]
    measured = [name for name in GPU if (results / f"{name}.jsonl").is_file()]
    for name in measured:
        rows = _rows(results / f"{name}.jsonl")
        parts += [*device(rows, table), f"<sub>{rows[0].get('gpu', '')} · {source(name, rows)}</sub>"]
    if measured and (ROOT / "docs" / "gpu.png").is_file():
        parts.append("![Bandwidth against classes, and time of loss and gradient against the peers](docs/gpu.png)")
    missing = [f"{GPU[name]}" for name in GPU if name not in measured]
    if missing:
        parts.append(
            "**Still to be measured on a GPU** (`make gpu`, one command on a machine with a CUDA device): "
            + "; ".join(missing)
            + ". No GPU could be had so far: the kernels were checked by Triton's interpreter and compiled for "
            "Hopper, and no time on a GPU is claimed."
        )
    return "\n\n".join(parts)


def update(rows: Sequence[Row], table: Any) -> list[str]:
    """One update on a CPU beside its peers."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("table") == "update":
            cells.setdefault("x".join(map(str, row["shape"])) + f" {row['dtype']}", {})[row["provider"]] = row
    names = [name for name in UPDATE if all(name in by_name for by_name in cells.values())]
    found = [[where, *(_number(by_name[name]["median"]) for name in names)] for where, by_name in cells.items()]
    missed = {
        how: [
            f"{where} {plain:.2g} ({grid:.2g})"
            for where, by_name in cells.items()
            for plain, grid in [[by_name[name]["of_cross_entropy"] for name in pair]]
            if plain > 1 or grid > 1.5
        ]
        for how, pair in (("compiled", ("ours", "ours, grid")),
                          ("in plain PyTorch", ("ours, plain", "ours, grid, plain")))
        if set(pair) <= set(names)
    }  # fmt: skip
    found_above = "; ".join(f"{how}: {', '.join(places) if places else 'none'}" for how, places in missed.items())
    return [
        "**Counting on a CPU**: median milliseconds of one update, side by side in one process; 'all' has the "
        "temperature grid.".replace("\\\\", ""),
        table(["logits", *(UPDATE[name] for name in names)], found),
        "'Ours' is compiled by the machine's C++ compiler; without one it is plain PyTorch. The bar is at most the "
        "forward pass of `F.cross_entropy` without the grid "
        f"and 1.5 times with it. Above it, as multiples without (with) the grid, {found_above}.",
    ]


def loss(rows: Sequence[Row], table: Any) -> list[str]:
    """Forward and backward on a CPU with our loss."""
    cells: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("table") == "loss":
            cells.setdefault(str(row["where"]) if "where" in row else _where(row), {})[row["provider"]] = row
    names = list(next(iter(cells.values())))
    found = [[where, *(_number(by_name[name]["median"]) for name in names)] for where, by_name in cells.items()]
    return [
        "**Loss and gradient on a CPU**, milliseconds of a forward and a backward pass; 'forward' has "
        '`gradient="forward"`:',
        table(["logits", *(name.replace("cross_entropy", "`F.cross_entropy`") for name in names)], found),
    ]


def step(rows: Sequence[Row], table: Any) -> list[str]:
    """A training step with the monitor on a CPU."""
    found = []
    for row in rows:
        if row.get("table") == "step" and row["provider"] == "without":
            same = [
                other for other in rows
                if other.get("table") == "step" and (other["model"], other["epochs"], other["phase"])
                == (row["model"], row["epochs"], row["phase"])
            ]  # fmt: skip
            by_name = {other["provider"]: other for other in same}
            added = by_name.get("added")
            spread = f"{_number(added['median'])} ({_number(added['p20'])} … {_number(added['p80'])})" if added else ""
            found.append([f"{row['model']}, {row['epochs']} epochs: {row['phase']}", _number(row["median"]),
                          _number(by_name["with"]["median"]), spread])  # fmt: skip
    return [
        "**The monitor on a CPU**, milliseconds without and with it, and what it adds (20 and 80 % quantiles):",
        table(["model", "without", "with", "added"], found),
    ]


def sm90(rows: Sequence[Row], table: Any) -> list[str]:
    """What the compiler makes of the kernels."""
    found = [
        [
            f"{row['kernel']} {row['dtype']}, {row['num_classes']} classes, {row['counts']}",
            row["registers"],
            row["stack"],
            f"{row['per_logit']:.1f}",
        ]
        for row in rows
        if row.get("table") == "sm90"
    ]
    return [
        "**On a GPU**, one kernel reads (N, C) logits once: `LossAccuracy(backend='auto')` takes it on a CUDA device "
        "(`metric.backend_for(logits)` says what runs and why). Compiled for Hopper (sm_90), the instructions of its "
        "main loop per logit; at the speed of an H200's memory there is time for 31 of a float32 logit and 15.6 of a "
        "bfloat16 one. 'Stack' is what does not fit the registers, in bytes:",
        table(["kernel", "registers", "stack", "instructions a logit"], found),
    ]


def device(rows: Sequence[Row], table: Any) -> list[str]:
    """Timings of a GPU, as they are in the file, and the bars."""
    timings = [row for row in rows if row.get("table") in ("update", "loss", "step", "host")]
    found = [
        [row.get("where", "host"), row["provider"], f"{_number(row['median'])} ({_number(row['p20'])} … "
         f"{_number(row['p80'])})"] for row in timings
    ]  # fmt: skip
    unit = "ms" if any(row.get("table") == "step" for row in timings) else "µs"
    bars = [
        [row["target"], row["where"], f"{row['limit']:g}", _number(row["median"]), row["verdict"]]
        for row in rows
        if row.get("table") == "target"
    ]
    return [table(["where", "what", unit], found), table(["bar", "where", "limit", "found", "verdict"], bars)]


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _where(row: Row) -> str:
    return "x".join(map(str, row["shape"])) + f" {row['dtype']}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
