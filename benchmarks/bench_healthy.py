"""Healthy trainings: how many open a warning, by the fresh sample's word that they were healthy.

    PYTHONPATH=. python benchmarks/bench_healthy.py train --part dev [--count 100]
    PYTHONPATH=. python benchmarks/bench_healthy.py judge --part dev [--runs]

`train` keeps one compressed file a run in `benchmarks/cache/` and skips what is there; about two seconds a run on one
core. `judge` replays the diagnosis and prints the share of healthy runs with a warning beside that of common rules on
the same validation losses (UMLAUT: one epoch with more validation and less training loss than the epoch before;
correlation: loss and accuracy of ten evaluations with |r| < 0.5). It writes `benchmarks/results/healthy.jsonl` for the
part "report".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
from bench_trends import DETECTORS, clopper_pearson
from measure import RESULTS, environment, print_table, write_look
from planted.healthy import FIRST_SEED, fault, plans
from planted.judge import reports
from planted.run import CACHE, keep, kept, quiet, train
from planted.symptoms import Run

ON_LOSS_ALONE = ("patience 10", "GL 5 %", "UP4", "UP6", "SageMaker overtraining", "SageMaker not decreasing")


def umlaut(losses: list[float], training: list[float]) -> bool:
    """UMLAUT's rule of overfitting: validation loss above that of the epoch before while training loss is not."""
    steps = zip(losses, losses[1:], training, training[1:], strict=False)
    return any(after > before and later <= earlier for before, after, earlier, later in steps)


def uncorrelated(losses: list[float], accuracies: list[float], window: int = 10) -> bool:
    """TheDeepChecker's rule: |correlation| of loss and accuracy over a window below one half."""
    for stop in range(window, len(losses) + 1):
        pair = np.array([losses[stop - window : stop], accuracies[stop - window : stop]])
        if pair.std(axis=1).min() > 0 and abs(np.corrcoef(pair)[0, 1]) < 0.5:
            return True
    return False


def common_rules(run: Run) -> dict[str, bool]:
    """Which common rules alarm on a run's validation loss."""
    records = [json.loads(line) for line in run["records"]]
    val = [record for record in records if record["stage"] == "val"]
    losses = [record["values"].get("nll") or math.nan for record in val]
    accuracies = [record["values"].get("accuracy") or 0.0 for record in val]
    training = [record["values"].get("nll") or math.nan for record in records if record["stage"] == "train"]
    series = np.array(losses)
    found = {name: rule(series) is not None for name, rule in DETECTORS.items() if name in ON_LOSS_ALONE}
    return found | {"UMLAUT": umlaut(losses, training), "correlation": uncorrelated(losses, accuracies)}


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("train", "judge"))
    arguments.add_argument("--part", choices=("dev", "report"), default="dev")
    arguments.add_argument("--count", type=int, default=100)
    arguments.add_argument("--cache", type=Path, default=CACHE)
    arguments.add_argument("--results", type=Path, default=RESULTS)
    arguments.add_argument("--corrected", nargs="?", const="", help="as in bench_diagnosis.py")
    arguments.add_argument("--runs", action="store_true", help="one line for each healthy run with a warning")
    chosen = arguments.parse_args()
    cache = chosen.cache / f"healthy-{chosen.part}"
    if chosen.what == "train":
        quiet()
        began = time.time()
        for plan in plans(chosen.part, chosen.count):
            name = f"{plan.program}-{plan.seed}"
            if not (cache / f"{name}.json.gz").exists():
                run = train(plan)
                keep(run, cache, name)
                print(
                    f"{name} {run['seconds']} s, {time.time() - began:.0f} s in all; {fault(run) or 'healthy'}",
                    flush=True,
                )
        return
    runs = [kept(path) for path in sorted(cache.glob("*.json.gz"))]
    faults = Counter(fault(run) for run in runs)
    healthy = [run for run in runs if not fault(run)]
    alarms: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    by_group: dict[str, list[int]] = {}
    for run in healthy:
        warnings = [event for event in reports(run) if event.level == "warning" and event.status != "closed"]
        alarms["lossacc"] += bool(warnings)
        alarms["lossacc, with unknown left out"] += any(event.cause != "unknown" for event in warnings)
        causes.update({f"{event.event}: {event.cause}" for event in warnings})
        alarms.update(name for name, alarm in common_rules(run).items() if alarm)
        plan = run["plan"]
        for group in (run["program"], f"optimizer {plan['optimizer']}", f"schedule {plan['schedule']}"):
            by_group.setdefault(group, []).append(bool(warnings))
        if warnings and chosen.runs:
            named = [(event.epoch, event.event, event.cause) for event in warnings]
            print(f"{run['program']}-{run['seed']} ({len(run['truth']['path'])} evaluations): {named}")
    names = ["lossacc", "lossacc, with unknown left out", *common_rules(runs[0])]
    table: list[dict[str, object]] = []
    for name, hits, count in [
        *((name, alarms[name], len(healthy)) for name in names),
        *((f"lossacc, {group}", sum(found), len(found)) for group, found in sorted(by_group.items())),
    ]:
        low, high = clopper_pearson(hits, count)
        share = round(hits / max(count, 1), 4)
        table.append(
            {"rule": name, "alarms": hits, "runs": count, "share": share, "low": round(low, 4), "high": round(high, 4)}
        )
    print(f"{len(runs)} runs, of which healthy on fresh rows: {len(healthy)}; not: {dict(faults)}")
    print_table(table)
    print("warnings on healthy runs:", dict(causes))
    if chosen.part == "report":
        lines = [
            {"table": "run", "benchmark": "healthy", "part": chosen.part, "first_seed": FIRST_SEED[chosen.part]}
            | environment(),
            {
                "table": "counts",
                "runs": len(runs),
                "healthy": len(healthy),
                "faults": {k: n for k, n in faults.items() if k},
            },
            *({"table": "alarms", **row} for row in table),
            *({"table": "causes", "warning": name, "runs": count} for name, count in causes.items()),
        ]
        write_look(chosen.results / "healthy.jsonl", lines, {"table": "alarms", **table[0]}, chosen.corrected)


if __name__ == "__main__":
    main()
