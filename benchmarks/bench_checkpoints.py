"""Checkpoint regret: what the checkpoint with the best validation loss, accuracy or refined loss costs on a test set.

    PYTHONPATH=. python benchmarks/bench_checkpoints.py

Takes all kept runs of `bench_healthy.py` (ordinary ones, healthy or not) and those of the over-trained causes of
`bench_diagnosis.py` (part "report"; no training). In each run the validation rows chose one checkpoint by each of
three rules; all checkpoints were measured on the same 1 000 test rows. Regret: test NLL, test NLL after the temperature
fitted on the validation rows, or accuracy, against the best checkpoint of the run in hindsight. Hindsight picks on the
test rows themselves, which flatters it and so overstates the regret of all rules alike. Intervals: bootstrap over runs.
Writes `benchmarks/results/checkpoints.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, environment, print_table
from numpy.typing import NDArray
from planted.run import CACHE, kept

Array = NDArray[np.float64]
OVERTRAINED = ("over-confidence", "overfitting", "label-noise", "hard-tail")
RULES: dict[str, tuple[str, int]] = {
    "loss": ("nll", -1),
    "accuracy": ("accuracy", 1),
    "refined loss": ("refinement_nll", -1),
}
DRAWS = 2000


def regrets(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Regret of each rule in NLL, NLL at the validation temperature (nats) and accuracy; {} if not measured."""
    path = run["truth"]["path"]
    records = [json.loads(line) for line in run["records"]]
    values = [record["values"] for record in records if record["stage"] == "val"]
    needed = ("nll", "accuracy", "tempered_nll")
    if any(point.get(key) is None for point in path for key in needed) or len(values) != len(path):
        return {}
    found = {}
    for rule, (key, sign) in RULES.items():
        scores = [sign * (value.get(key) if value.get(key) is not None else -math.inf * sign) for value in values]
        place = max(range(len(scores)), key=scores.__getitem__)
        found[rule] = {
            "nll": path[place]["nll"] - min(point["nll"] for point in path),
            "tempered_nll": path[place]["tempered_nll"] - min(point["tempered_nll"] for point in path),
            "accuracy": max(point["accuracy"] for point in path) - path[place]["accuracy"],
        }
    return found


def interval(
    values: Array, statistic: Callable[[Array], float], random: np.random.Generator
) -> tuple[float, float, float]:
    """A statistic over runs with its 95 % bootstrap interval."""
    draws = [statistic(values[random.integers(len(values), size=len(values))]) for _ in range(DRAWS)]
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return statistic(values), low, high


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cache", type=Path, default=CACHE)
    arguments.add_argument("--part", choices=("dev", "report"), default="report")
    arguments.add_argument("--results", type=Path, default=RESULTS)
    chosen = arguments.parse_args()
    folders = {"ordinary": chosen.cache / f"healthy-{chosen.part}"}
    folders |= {cause: chosen.cache / f"planted-{chosen.part}" / cause for cause in OVERTRAINED}
    found = [
        (group, regrets(kept(path))) for group, folder in folders.items() for path in sorted(folder.glob("*.json.gz"))
    ]
    found = [(group, run) for group, run in found if run]
    groups = {"all": [run for _, run in found]}
    groups["ordinary"] = [run for group, run in found if group == "ordinary"]
    groups["over-trained"] = [run for group, run in found if group != "ordinary"]
    groups |= {cause: [run for group, run in found if group == cause] for cause in OVERTRAINED}
    random = np.random.default_rng(0)
    table: list[dict[str, object]] = []
    for group, runs in groups.items():
        if not runs:
            continue
        for rule in RULES:
            for quantity in ("nll", "tempered_nll", "accuracy"):
                values = np.array([run[rule][quantity] for run in runs])
                mean, low, high = interval(values, lambda drawn: float(drawn.mean()), random)
                row: dict[str, object] = {"group": group, "runs": len(runs), "best": rule, "regret": quantity}
                row |= {"mean": round(mean, 5), "low": round(low, 5), "high": round(high, 5)}
                row["median"] = round(float(np.median(values)), 5)
                row["p90"] = round(float(np.quantile(values, 0.9)), 5)
                limit = 0.01
                share, least, most = interval(values, lambda drawn: float((drawn >= 0.01 - 1e-9).mean()), random)
                row |= {
                    "limit": limit,
                    "share": round(share, 4),
                    "share low": round(least, 4),
                    "share high": round(most, 4),
                }
                table.append(row)
    print_table(table)
    one = next(row for row in table if (row["group"], row["best"], row["regret"]) == ("all", "loss", "accuracy"))
    share, least, most = (100 * float(str(one[key])) for key in ("share", "share low", "share high"))
    print(
        f"in {share:.0f} % ({least:.0f} ... {most:.0f} %) of {one['runs']} runs the loss-best checkpoint cost at least "
        "1 pp of accuracy"
    )
    if chosen.part == "report":
        lines = [{"table": "run", "benchmark": "checkpoints", **environment()}]
        lines += [{"table": "regret", **row} for row in table]
        chosen.results.mkdir(parents=True, exist_ok=True)
        (chosen.results / "checkpoints.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
