"""How often does the 90 % interval of `forecast` hold what comes, on simulated and on real runs?

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_forecast.py [--runs 100] [--seeds 4]`. Prints tables
and writes one JSON line a number to `benchmarks/results/forecast.jsonl`; about 10 minutes on one busy core.

Simulated: the series of `bench_trends.py` (losses, noise 0.01), a random walk, a line, and three that nobody can
foresee (a learning rate that drops, a curve that bends, a loss that moves late). Real: small networks on scikit-learn's
bundled tables, NLL and accuracy of the validation rows after every epoch. Each forecast is made from the first t
evaluations and judged on evaluation t + h. Beside it stands the plain rule "the last value ± 1.645 jitter".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_trends import Array, Family, Generator, healthy, rate, white

from lightning_lossacc import demo, trends
from lightning_lossacc.forecast import forecast
from lightning_lossacc.history import Record

SEED = 71
CASES = ((25, 5), (40, 10), (60, 10), (100, 10))  # evaluations seen, horizon
RESULTS = Path(__file__).parent / "results" / "forecast.jsonl"
EPOCHS = 90
# data set, hidden units, optimizer, learning rate, dropout, cosine schedule
NETWORKS = (
    ("digits", (64,), "sgd", 0.02, 0.0, False),
    ("digits", (128,), "adam", 1e-3, 0.5, False),
    ("digits", (32, 32), "adam", 3e-4, 0.0, True),
    ("noisy digits", (128,), "adam", 1e-3, 0.0, False),
    ("noisy digits", (64,), "sgd", 0.05, 0.0, True),
    ("biopsies", (64,), "adam", 1e-3, 0.0, False),
    ("biopsies", (16,), "sgd", 0.02, 0.0, False),
    ("wines", (32,), "adam", 3e-3, 0.0, False),
    ("frauds", (32,), "adam", 3e-4, 0.0, False),
)


def families() -> dict[str, Family]:
    """Series that can be foreseen, then some that cannot."""

    def line(random: Generator, count: int) -> Array:
        return 2 - 0.01 * np.arange(count) + white(random, count)

    def walk(random: Generator, count: int) -> Array:
        return 1 + np.cumsum(white(random, count) / 2)

    def bend(random: Generator, count: int) -> Array:
        return 0.5 + 0.004 * np.maximum(np.arange(count) - 45, 0) + white(random, count)

    def late(random: Generator, count: int) -> Array:
        return 0.5 + 0.5 / (1 + np.exp((np.arange(count) - 65) / 4)) + white(random, count)

    return {
        **healthy(),
        "line": line,
        "random walk": walk,
        "bend at 45 (not foreseen)": bend,
        "late (not foreseen)": late,
    }


def records(values: Array, key: str) -> list[Record]:
    """One record a value."""
    return [Record("val", 0, place, place, 0.0, True, 1, 1, {key: float(value)}) for place, value in enumerate(values)]


def plain_rule(values: Array) -> tuple[float, float]:
    """The last value ± 1.645 jitter."""
    half = 1.645 * (trends.jitter(values.tolist()) or 0.0)
    return float(values[-1]) - half, float(values[-1]) + half


class Tally:
    """Counts of one row of a table."""

    def __init__(self) -> None:
        self.asked = self.given = self.held = self.plain = 0
        self.widths: list[float] = []

    def ask(self, values: Array, seen: int, horizon: int, key: str) -> None:
        """One forecast and its outcome."""
        outcome = float(values[seen + horizon - 1])
        made = forecast(records(values[:seen], key), key, horizon)
        self.asked += 1
        if made is not None:
            low, high = plain_rule(values[:seen])
            self.given += 1
            self.held += made.low <= outcome <= made.high
            self.plain += low <= outcome <= high
            self.widths.append(made.high - made.low)

    def row(self) -> dict[str, object]:
        """Coverage among those given, the plain rule's on the same ones, and the share given."""
        return {
            **(rate(self.held, self.given) if self.given else {"rate": None, "hits": 0, "runs": 0}),
            "given": self.given / self.asked,
            "plain_rule": self.plain / self.given if self.given else None,
            "median_width": float(np.median(self.widths)) if self.widths else None,
        }


def simulated(runs: int) -> Iterator[dict[str, object]]:
    """Coverage for every family and case."""
    for number, (name, family) in enumerate(families().items()):
        for seen, horizon in CASES:
            tally = Tally()
            for run in range(runs):
                values = family(np.random.default_rng([SEED, number, run]), seen + horizon)
                tally.ask(values, seen, horizon, "nll")
            yield {"table": "simulated", "series": name, "seen": seen, "horizon": horizon, **tally.row()}


def table(name: str, seed: int) -> demo.Table:
    """A bundled data set, split by seed."""
    return {
        "digits": lambda: demo.Digits(num_train=600, seed=seed),
        "noisy digits": lambda: demo.Digits(num_train=400, label_noise=0.2, seed=seed),
        "biopsies": lambda: demo.BreastCancer(num_train=200, seed=seed),
        "wines": lambda: demo.Wine(num_train=80, seed=seed),
        "frauds": lambda: demo.Fraud(num_rows=1600, num_train=600, seed=seed),
    }[name]()


def train(
    name: str, hidden: tuple[int, ...], optimizer: str, learning_rate: float, dropout: float, cosine: bool, seed: int
) -> dict[str, Array]:
    """Validation NLL and accuracy (EPOCHS,) of one small network."""
    torch.manual_seed(seed)
    data = table(name, seed)
    data.setup()
    features, target = data.train_dataloader().dataset.tensors
    val_features, val_target = data.val_dataloader().dataset.tensors
    data.teardown()
    model = demo.Classifier(
        features.shape[1],
        int(target.max()) + 1,
        hidden,
        dropout=dropout,
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=learning_rate,
    )
    steps = model.configure_optimizers()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, EPOCHS) if cosine else None
    found: dict[str, list[float]] = {"nll": [], "accuracy": []}
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(target)).split(64):
            steps.zero_grad()
            F.cross_entropy(model(features[batch]), target[batch]).backward()
            steps.step()
        if schedule is not None:
            schedule.step()
        model.eval()
        with torch.no_grad():
            logits = model(val_features).double()
        found["nll"].append(float(F.cross_entropy(logits, val_target)))
        found["accuracy"].append(float((logits.argmax(1) == val_target).double().mean()))
    return {key: np.array(values) for key, values in found.items()}


def real(seeds: int) -> Iterator[dict[str, object]]:
    """Coverage on real runs, a forecast at every fifth evaluation from 25 on; those of one run are not independent."""
    total = {key: Tally() for key in ("nll", "accuracy")}
    for network in NETWORKS:
        tallies = {key: Tally() for key in total}
        for seed in range(seeds):
            curves = train(*network, seed=seed)
            for key, values in curves.items():
                for seen in range(25, EPOCHS - 10 + 1, 5):
                    horizon = min(10, seen // 4)
                    for tally in (tallies[key], total[key]):
                        tally.ask(values, seen, horizon, key)
        for key, tally in tallies.items():
            yield {"table": "real", "network": str(network), "key": key, "seeds": seeds, **tally.row()}
    for key, tally in total.items():
        yield {"table": "real", "network": "all", "key": key, "seeds": seeds, **tally.row()}


def line(name: str, row: dict[str, object]) -> str:
    """One row for people."""
    if not row["runs"]:
        return f"{name:60} none given"
    return (
        f"{name:60} {row['rate']:.3f} ({row['low']:.3f} … {row['high']:.3f}) of {row['given']:.2f} given; plain rule "
        f"{row['plain_rule']:.3f}; width {row['median_width']:.3g}"
    )


def main() -> None:
    """Runs everything, prints the tables and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows: list[dict[str, object]] = []
    print("coverage of the 90 % interval (95 % interval of the rate), share of cases in which one was given")
    for row in real(arguments.seeds):
        rows.append(row)
        print(line(f"{row['network']} {row['key']}", row), flush=True)
    for row in simulated(arguments.runs):
        rows.append(row)
        print(line(f"{row['series']}, {row['seen']} seen, {row['horizon']} ahead", row), flush=True)
    seconds = time.perf_counter() - began
    header = {"table": "run", "runs": arguments.runs, "seeds": arguments.seeds, "seed": SEED, "seconds": round(seconds)}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    print(f"{seconds:.0f} s, {len(rows)} rows in {arguments.results.name}")


if __name__ == "__main__":
    main()
