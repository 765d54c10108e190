"""Planted faults: trains small networks under the monitor once, and judges the kept records as often as one likes.

    PYTHONPATH=. python benchmarks/bench_diagnosis.py train --part dev [--causes overfitting,leakage] [--seeds 6]
    PYTHONPATH=. python benchmarks/bench_diagnosis.py judge --part dev [--runs] [--causes ...]

`train` writes one compressed file a run to `benchmarks/cache/` (not in the repository) and skips what is there; about
three seconds a run on one core. `judge` replays the diagnosis record by record, prints abstention, precision and the
confusion matrix, and writes `benchmarks/results/planted.jsonl` (for the part "report"): the first look at programs
that nobody had seen. Whoever changes a rule after it adds `--corrected`, or new programs.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench_trends import clopper_pearson
from measure import RESULTS, environment, print_table, write_look
from planted.faults import FAULTS, plans
from planted.judge import Judged, judge
from planted.programs import FIRST_SEED
from planted.run import CACHE, keep, kept, quiet, train
from planted.symptoms import shown


def train_all(part: str, causes: list[str], seeds: int, cache: Path, again: bool, enough: int = 0) -> None:
    """Trains what is not kept yet; with `enough`, until each cause has shown in so many runs, whatever is said of them.

    Which runs there are then depends on fresh rows alone, so that the verdicts stay unbiased.
    """
    began, count = time.time(), Counter[str]()
    todo = plans(part, causes, seeds)
    for number, plan in enumerate(todo, start=1):
        if enough and count[plan.cause] >= enough:
            continue
        path = cache / f"{plan.name}.json.gz"
        is_new = again or not path.exists()
        run = train(plan) if is_new else kept(path)
        count[plan.cause] += shown(run)
        if is_new:
            keep(run, cache, plan.name)
            gc.collect()
            done = f"{number}/{len(todo)} {plan.name} {run['seconds']} s, {time.time() - began:.0f} s in all"
            print(f"{done}, shown in {count[plan.cause]}", flush=True)


def judged(cache: Path, causes: Iterable[str]) -> list[Judged]:
    """Verdicts on all kept runs of these causes."""
    found = []
    for cause in causes:
        for path in sorted((cache / cause).glob("*.json.gz")):
            try:
                found.append(judge(kept(path)))
            except Exception as error:
                raise RuntimeError(f"{path}: {type(error).__name__}: {error}") from error
    return found


def row(name: str, runs: Sequence[Judged]) -> dict[str, object]:
    """Abstention first, then how many of the given verdicts are right."""
    judged_runs = [run for run in runs if run.shown]
    count = Counter(run.verdict for run in judged_runs)
    given = len(judged_runs) - count["abstained"]
    low, high = clopper_pearson(count["right"], given) if given else (0.0, 1.0)
    warnings, true = (sum(run.events[place] for run in judged_runs) for place in (0, 1))
    return {
        "name": name,
        "runs": len(runs),
        "shown": len(judged_runs),
        "abstained": count["abstained"],
        "abstention": round(count["abstained"] / len(judged_runs), 4) if judged_runs else None,
        "right": count["right"],
        "half right": count["half right"],
        "wrong": count["wrong"],
        "precision": round(count["right"] / given, 4) if given else None,
        "low": round(low, 4),
        "high": round(high, 4),
        "among": sum(run.among for run in judged_runs),
        "warnings": warnings,
        "true warnings": true,
    }


def confusion(runs: Sequence[Judged]) -> list[dict[str, object]]:
    """For each planted cause that showed, in how many runs each cause was named; `*` where it was not true there."""
    lines = []
    for cause in dict.fromkeys(run.cause for run in runs):
        mine = [run for run in runs if run.cause == cause and run.shown]
        named = Counter(name for run in mine for name in (run.named or ("(none)",)))
        false = Counter(name for run in mine for name in run.named if name not in run.true)
        lines.append({"planted": cause, "shown": len(mine), "named": dict(named), "not true": dict(false)})
    return lines


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("train", "judge"))
    arguments.add_argument("--part", choices=("dev", "report"), default="dev")
    arguments.add_argument("--causes", default="", help="names separated by commas; all if empty")
    arguments.add_argument("--seeds", type=int, default=6, help="runs of a program and cause, at most")
    arguments.add_argument("--enough", type=int, default=0, help="runs in which a cause must show; 0 for no such end")
    arguments.add_argument("--cache", type=Path, default=CACHE)
    arguments.add_argument("--results", type=Path, default=RESULTS)
    arguments.add_argument("--again", action="store_true", help="train what is kept already")
    arguments.add_argument(
        "--corrected",
        nargs="?",
        const="",
        help="rules were changed after a first look: add one row beside the results of that look, and leave them; "
        "with a note on what else is other",
    )
    arguments.add_argument("--runs", action="store_true", help="one line for each run that is not right")
    chosen = arguments.parse_args()
    causes = chosen.causes.split(",") if chosen.causes else list(FAULTS)
    cache = chosen.cache / f"planted-{chosen.part}"
    if chosen.what == "train":
        quiet()
        train_all(chosen.part, causes, chosen.seeds, cache, chosen.again, chosen.enough)
        return
    runs = judged(cache, causes)
    tables = {
        "cause": [row(cause, [run for run in runs if run.cause == cause]) for cause in causes],
        "program": [
            row(name, [run for run in runs if run.program == name]) for name in sorted({run.program for run in runs})
        ],
        "all": [row("all", runs)],
    }
    if chosen.runs:
        for run in runs:
            if run.verdict != "right":
                print(
                    f"{run.verdict:10} {'' if run.shown else 'NOT SHOWN '}{run.cause}/{run.program}-{run.seed}: "
                    f"named {list(run.named)}, true {list(run.true)}"
                )
        print()
    for lines in tables.values():
        print_table(lines)
    matrix = confusion(runs)
    for line in matrix:
        print(
            f"{line['planted']:24} {line['shown']:3}  {line['named']}"
            + (f"  not true: {line['not true']}" if line["not true"] else "")
        )
    head = {"table": "run", "benchmark": "planted", "part": chosen.part, "first_seed": FIRST_SEED[chosen.part]}
    lines = [head | environment()]
    lines += [{"table": table, **line} for table, found in tables.items() for line in found]
    lines += [{"table": "confusion", **line} for line in matrix]
    if chosen.part == "report" and not chosen.causes:
        write_look(chosen.results / "planted.jsonl", lines, {"table": "all", **tables["all"][0]}, chosen.corrected)


if __name__ == "__main__":
    main()
