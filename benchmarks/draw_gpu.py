"""Draws the figure of the README's section on cost from the results of `make gpu`, if there are any.

    PYTHONPATH=. python benchmarks/draw_gpu.py        writes docs/gpu.png

Left: the share of the read bandwidth that counting reaches, against the number of classes, of (N, C) logits. Right: the
time of loss, gradient and statistics as a multiple of eager `F.cross_entropy` without statistics, beside the peers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
# Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#A03A75", "#222222")
COUNTING = ("ours, no grid", "ours, octaves", "ours, half octaves", "F.cross_entropy forward", "torchmetrics")


def rows_of(path: Path, table: str) -> list[Row]:
    """Rows of one table of a result file; none where the file is missing."""
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in found if row.get("table") == table]


def draw(results: Path, path: Path) -> bool:
    """Writes the figure; returns whether there was something to draw."""
    counting, losses = rows_of(results / "gpu_update.jsonl", "update"), rows_of(results / "gpu_loss.jsonl", "loss")
    if not counting and not losses:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for colour, name in zip(COLOURS, COUNTING, strict=False):
        for dtype, style in (("float32", "-o"), ("bfloat16", "--s")):
            points = sorted(
                (int(row["where"].split()[0].split("x")[1]), 100 * row["share_of_read_bandwidth"])
                for row in counting
                if row["provider"] == name and row["where"].endswith(dtype) and row["where"].count("x") == 1
            )
            if points:
                left.plot(*zip(*points, strict=True), style, color=colour, label=f"{name}, {dtype}", markersize=4)
    left.set(xscale="log", xlabel="classes", ylabel="share of the read bandwidth (%)", ylim=(0, None))
    left.legend(fontsize=7)
    places = list(dict.fromkeys(row["where"] for row in losses))
    names = [name for name in dict.fromkeys(row["provider"] for row in losses) if name != "F.cross_entropy"]
    time_of = {(row["where"], row["provider"]): row["median"] for row in losses}
    height = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        known = [place for place in places if (place, name) in time_of]
        right.barh(
            [places.index(place) + number * height for place in known],
            [time_of[place, name] / time_of[place, "F.cross_entropy"] for place in known],
            height, color=COLOURS[number % len(COLOURS)], label=name,
        )  # fmt: skip
    right.axvline(1.0, color="#6E6E6E", linewidth=1)
    right.set(yticks=[place + 0.4 for place in range(len(places))], xlabel="time / eager F.cross_entropy")
    right.set_yticklabels(places, fontsize=8)
    right.invert_yaxis()
    right.legend(fontsize=7)
    figure.savefig(path)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "gpu.png")
    arguments = parser.parse_args()
    if not draw(arguments.results, arguments.picture):
        raise SystemExit("Expected results of `make gpu` under benchmarks/results/, but found none.")


if __name__ == "__main__":
    main()
