"""Are event, cause, attribution, flips and temperature recovered where the truth is set by hand?

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_attribution.py [--runs 200]`. Prints tables and
writes one JSON line a number to `benchmarks/results/attribution.jsonl`; on one core 200 runs take about 20 minutes.

Logits are scale * separation * (separation * true direction + noise), see `tests/simulated.py`: with scale 1 they are a
calibrated posterior, so that the scale is the best temperature and moves confidence alone, while the separation alone
moves the ranking. The population values of NLL and of NLL after one temperature come from 40 000 other rows.

Tables: `recovery`, whole runs with planted causes, judged at the last report of the rise; `level`, the paired
statistics and the interval of the NLL where nothing changed, for single rows and for segmentation-like items whose rows
are correlated, against errors that take rows for independent; `temperature`, one evaluation at a set scale; `fits`,
prior shift against one temperature.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_trends import rate
from torch import Tensor

from lightning_lossacc import kernels
from lightning_lossacc.attribution import flips, interval
from lightning_lossacc.diagnosis import Event
from lightning_lossacc.fits import cross_fitted
from lightning_lossacc.probe import Probe
from lightning_lossacc.quantities import summary
from lightning_lossacc.sums import Layout
from tests.simulated import Simulation, learning

SEED = 7310
POPULATION = 40_000
CLASSES = 5
LEARNT, EPOCHS = 10, 26
RESULTS = Path(__file__).parent / "results" / "attribution.jsonl"
Row = dict[str, Any]

# What may be named for each plan, by the design's shares of the rise that are left after one temperature.
CAUSES = {
    "over-confidence": {"over-confidence"},
    "overfitting": {"overfitting"},
    "mixed": {"mixed"},
    "scale-growth": {"scale-growth"},
    "healthy": set(),
}
ABSTAINED = {"unknown"}
TABLES = ["level", "temperature", "fits", "recovery"]


@dataclass
class Plan:
    """Scale and separation of every epoch, and the cause that they plant."""

    name: str
    scale: list[float]
    separation: list[float]


class Population:
    """NLL of a scale and a separation on many rows that no run sees."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.target = torch.randint(0, CLASSES, (POPULATION,), generator=generator)
        self.noise = torch.randn(POPULATION, CLASSES, dtype=torch.float64, generator=generator)
        self.known: dict[tuple[float, float], float] = {}

    def nll(self, scale: float, separation: float) -> float:
        """Mean NLL, nats; with scale 1 that after the best temperature, as the logits are then calibrated."""
        key = (scale, separation)
        if key not in self.known:
            direction = F.one_hot(self.target, CLASSES)
            logits = scale * separation * (separation * direction + self.noise)
            self.known[key] = float(F.cross_entropy(logits, self.target))
        return self.known[key]


def plan(name: str, random: torch.Generator, population: Population) -> Plan:
    """Parameters of one run: 10 epochs of learning, then 16 epochs in which the planted cause grows."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    level = uniform(1.8, 2.6)
    base = [learning(epoch, level, 2.5) for epoch in range(EPOCHS)]
    part = [max(0.0, (epoch - LEARNT + 1) / (EPOCHS - LEARNT)) for epoch in range(EPOCHS)]
    last_scale, last_separation = 1.0, 1.0
    if name == "over-confidence":
        last_scale = uniform(1.8, 3.0)
    elif name == "overfitting":
        last_separation = uniform(0.75, 0.85)
    elif name == "mixed":
        last_separation = uniform(0.90, 0.94)
        last_scale = _scale_for_share(uniform(0.33, 0.42), level, level * last_separation, population)
    elif name == "scale-growth":
        last_separation, last_scale = uniform(1.08, 1.15), uniform(3.0, 4.0)
    scale = [1 + (last_scale - 1) * share for share in part]
    separation = [value * (1 + (last_separation - 1) * share) for value, share in zip(base, part, strict=True)]
    return Plan(name, scale, separation)


def _scale_for_share(share: float, before: float, after: float, population: Population) -> float:
    """The scale for which `share` of the rise is left after one temperature, by bisection."""
    left = population.nll(1.0, after) - population.nll(1.0, before)
    low, high = 1.0, 6.0
    for _ in range(14):
        middle = (low + high) / 2
        rise = population.nll(middle, after) - population.nll(1.0, before)
        low, high = (middle, high) if left / rise > share else (low, middle)
    return (low + high) / 2


@dataclass
class Watched(Simulation):
    """A simulation that remembers every answer, apart from the package's own path."""

    answers: list[Tensor] = field(default_factory=list)

    def logits(self, scale: float, separation: float, turn: float, jitter: float) -> Tensor:
        """See `Simulation.logits`."""
        found = super().logits(scale, separation, turn, jitter)
        self.answers.append(found.argmax(1) == self.target)
        return found


def recovery(runs: int, num_rows: int) -> Iterator[Row]:
    """Whole runs with planted causes."""
    population = Population()
    pooled: dict[str, list[int]] = {}
    for place, name in enumerate(CAUSES):
        random = torch.Generator().manual_seed(SEED + place)
        reports: list[tuple[Plan, Watched, Event]] = []
        silent = first_right = 0
        for run in range(runs):
            planned = plan(name, random, population)
            simulation = Watched(num_rows=num_rows, num_classes=CLASSES, seed=1000 * place + run)
            simulation.run(EPOCHS, planned.scale.__getitem__, planned.separation.__getitem__)
            rises = [e for e in simulation.events if e.event.startswith("loss-up") and e.status != "closed"]
            if rises:
                reports.append((planned, simulation, rises[-1]))
                first_right += rises[0].cause in CAUSES[name]
            else:
                silent += 1
        for row in _recovered(name, runs, num_rows, reports, silent, first_right, population):
            yield row
            if "hits" in row:
                total = pooled.setdefault(row["what"], [0, 0])
                total[0] += row["hits"]
                total[1] += row["runs"]
    for what, (hits, count) in pooled.items():
        yield {"table": "recovery", "plan": "all", "rows": num_rows, "what": what} | rate(hits, count)


def _recovered(
    name: str,
    runs: int,
    num_rows: int,
    reports: list[tuple[Plan, Watched, Event]],
    silent: int,
    first_right: int,
    population: Population,
) -> Iterator[Row]:
    shared = {"table": "recovery", "plan": name, "rows": num_rows}
    if name == "healthy":
        yield shared | {"what": "no rise is reported"} | rate(silent, runs)
        return
    yield shared | {"what": "the rise is reported"} | rate(len(reports), runs)
    given = [event for _, _, event in reports if event.cause not in ABSTAINED]
    yield shared | {"what": "a cause is given"} | rate(len(given), max(1, len(reports)))
    right = sum(event.cause in CAUSES[name] for event in given)
    yield shared | {"what": "the given cause is the planted one"} | rate(right, max(1, len(given)))
    yield shared | {"what": "already in the first report"} | rate(first_right, max(1, len(reports)))
    exact = covered = adds_up = 0
    errors: dict[str, list[float]] = {"temperature, relative": [], "confidence part, nats": [], "share of the rise": []}
    for planned, simulation, event in reports:
        now, then = event.epoch, event.reference_epoch
        paired = simulation.history.records[now].paired["nll"]
        was, is_now = simulation.answers[then], simulation.answers[now]
        counted = flips(paired)
        exact += counted["to_right"] == int((~was & is_now).sum()) and counted["to_wrong"] == int((was & ~is_now).sum())
        refined, total = (
            population.nll(one[now], planned.separation[now]) - population.nll(one[then], planned.separation[then])
            for one in ([1.0] * EPOCHS, planned.scale)
        )
        low, high = interval(paired["refinement_change"], paired["refinement_change_error"])
        covered += low <= refined <= high
        parts = event.attribution
        adds_up += all(
            abs(math.fsum(parts[key].values()) - parts["nll_change"]) < 1e-9 for key in ("by_group", "by_temperature")
        )
        confidence = paired["nll_change"] - paired["refinement_change"]
        errors["temperature, relative"].append(paired["temperature_after"] / planned.scale[now] - 1)
        errors["confidence part, nats"].append(confidence - (total - refined))
        if name != "scale-growth":  # there it is above 1 without a limit
            errors["share of the rise"].append(confidence / paired["nll_change"] - (total - refined) / total)
    for what, hits in (
        ("flips equal those of the logits", exact),
        ("parts add up within 1e-9", adds_up),
        ("99 % interval after one temperature holds the population's change", covered),
    ):
        yield shared | {"what": what} | rate(hits, max(1, len(reports)))
    for what, values in errors.items():
        if not values:
            continue
        yield shared | {"what": f"error: {what}"} | _spread(values)


def _spread(values: list[float]) -> Row:
    ordered = sorted(map(abs, values)) or [math.nan]
    return {
        "mean": statistics.fmean(values or [math.nan]),
        "median_absolute": statistics.median(ordered),
        "q95_absolute": ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)],
        "runs": len(values),
    }


def level(runs: int, population: int = 20) -> Iterator[Row]:
    """How often a difference is found where the population has none, by its own standard error.

    Args:
        runs: for each design.
        population: samples of 200 000 rows that stand for it.
    """
    designs = {"single rows": (1000, 1, 0.0), "150 items of 49 correlated rows": (150, 49, 0.7)}
    levels = (0.05, 0.01, 0.001)
    for place, (name, (items, rows, correlation)) in enumerate(designs.items()):
        scores: dict[tuple[str, str], list[float]] = {}
        truth = _population_nll(rows, correlation, population)
        for run in range(runs):
            generator = torch.Generator().manual_seed(SEED + 100_000 * place + run)
            target, first, second = _exchangeable(items, rows, correlation, generator)
            layout = Layout(3)
            probe = Probe(items, layout)
            probe.update(torch.arange(items), first, target)
            values = []
            for logits in (first, second):
                counts, sums = layout.zeros()
                kernels.row_statistics(logits, target, counts, sums, layout)
                values.append(summary(counts, sums, layout))
            probe.keep("nll", 0, 0, values[0]["temperature"], values[0]["nll"])
            probe.update(torch.arange(items), second, target)
            paired = probe.compare("nll", values[1]["temperature"])
            assert paired is not None
            for key in ("nll", "accuracy", "refinement"):
                found = paired[f"{key}_change"] / (paired[f"{key}_change_error"] or math.inf)
                scores.setdefault((f"paired {key} change", "by item"), []).append(found)
            nll = [F.cross_entropy(logits, target, reduction="none").reshape(-1) for logits in (first, second)]
            change = nll[1] - nll[0]
            by_row = float(change.mean() / change.std()) * math.sqrt(change.numel())
            scores.setdefault(("paired nll change", "by row"), []).append(by_row)
            centred = values[1]["nll"] - truth
            scores.setdefault(("nll against the population", "by item"), []).append(
                centred / values[1]["nll_standard_error"]
            )
            scores.setdefault(("nll against the population", "by row"), []).append(
                centred / float(nll[1].std()) * math.sqrt(change.numel())
            )
        for (what, errors), found in scores.items():
            for alpha in levels:
                limit = -statistics.NormalDist().inv_cdf(alpha / 2)
                hits = sum(abs(score) > limit for score in found)
                yield {
                    "table": "level", "design": name, "what": what, "errors": errors, "nominal": alpha,
                    **rate(hits, runs),
                }  # fmt: skip


def _exchangeable(
    items: int, rows: int, correlation: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Target (I, R) and two evaluations (I, 3, R) that differ row by row but not in the population.

    A part of the noise is the same for all rows of an item, in either evaluation and in both, as in an image that is
    hard as a whole.
    """
    target = torch.randint(0, 3, (items, 1), generator=generator).expand(items, rows)
    other = torch.randint(0, 3, (items, rows), generator=generator)
    target = torch.where(torch.rand(items, rows, generator=generator) < correlation, target, other)
    hot = F.one_hot(target, 3).movedim(-1, 1)

    def noise(size: int) -> Tensor:
        return torch.randn(items, 3, size, dtype=torch.float64, generator=generator)

    def mixed(one: Tensor, two: Tensor, share: float) -> Tensor:
        return math.sqrt(share) * one + math.sqrt(1 - share) * two

    shared_item, shared_row = noise(1), noise(rows)
    found = []
    for _ in range(2):
        item = mixed(shared_item, noise(1), 0.5)
        row = mixed(shared_row, noise(rows), 0.5)
        found.append(2.5 * (1.6 * hot + mixed(item, row, correlation)))
    return target, found[0], found[1]


def _population_nll(rows: int, correlation: float, samples: int) -> float:
    totals = []
    for seed in range(samples):
        generator = torch.Generator().manual_seed(SEED * 31 + seed)
        target, logits, _ = _exchangeable(200_000 // rows, rows, correlation, generator)
        totals.append(float(F.cross_entropy(logits, target)))
    return statistics.fmean(totals)


def temperature(runs: int) -> Iterator[Row]:
    """The set scale against the temperature found in one evaluation of 2000 rows."""
    for classes in (2, 10, 100):
        for scale in (0.4, 1.0, 1.5, 3.0, 6.0):
            layout = Layout(classes)
            errors, gains = [], []
            for run in range(runs):
                generator = torch.Generator().manual_seed(SEED + 17 * run + classes)
                target = torch.randint(0, classes, (2000,), generator=generator)
                noise = torch.randn(2000, classes, dtype=torch.float64, generator=generator)
                separation = 2.0 if classes < 100 else 3.0
                logits = separation * (separation * F.one_hot(target, classes) + noise)
                counts, sums = layout.zeros()
                kernels.row_statistics(scale * logits, target, counts, sums, layout)
                values = summary(counts, sums, layout)
                errors.append(values["temperature"] / scale - 1)
                saved = float(F.cross_entropy(scale * logits, target) - F.cross_entropy(logits, target))
                gains.append(values["temperature_gain"] - saved)
            shared = {"table": "temperature", "classes": classes, "scale": scale}
            yield shared | {"what": "error: temperature, relative"} | _spread(errors)
            yield shared | {"what": "error: cross-fitted gain against the true temperature's, nats"} | _spread(gains)


def fits(runs: int) -> Iterator[Row]:
    """A bias per class is to be found for a prior shift and for nothing else, at 3 standard errors."""
    shifts = {"calibrated": (1.0, 0.0), "one temperature": (2.5, 0.0), "prior shift": (1.0, 1.0), "both": (2.0, 1.0)}
    for classes in (2, 10):
        for name, (scale, strength) in shifts.items():
            found = {"temperature": 0, "bias": 0, "vector": 0}
            errors = []
            for run in range(runs):
                generator = torch.Generator().manual_seed(SEED + 29 * run + classes)
                target = torch.randint(0, classes, (1500,), generator=generator)
                noise = torch.randn(1500, classes, dtype=torch.float64, generator=generator)
                shift = strength * torch.linspace(-1, 1, classes, dtype=torch.float64)
                logits = scale * (1.8 * (1.8 * F.one_hot(target, classes) + noise) + shift)
                result = cross_fitted(logits, target, torch.rand(1500, generator=generator) < 0.5)
                for family in found:
                    found[family] += result[f"{family}_gain"] > 3 * result[f"{family}_gain_error"]
                errors += [bias + wanted for bias, wanted in zip(result["bias_values"], shift.tolist(), strict=True)]
            for family, hits in found.items():
                planted = (family == "temperature" and scale != 1) or (family == "bias" and strength != 0)
                # A shift of classes makes confidence wrong as well, so that a temperature may save something, too.
                expected = "" if family == "temperature" and strength else "found" if planted else "not found"
                shared = {"table": "fits", "classes": classes, "truth": name, "family": family, "expected": expected}
                yield shared | rate(hits, runs)
            yield {"table": "fits", "classes": classes, "truth": name, "what": "error: bias, nats"} | _spread(errors)


def show(row: Row) -> None:
    """One line on the terminal."""
    words = " · ".join(
        str(value)
        for name, value in row.items()
        if name not in ("rate", "low", "high", "hits", "runs", "mean", "median_absolute", "q95_absolute")
    )
    if "rate" in row:
        print(f"{words:110} {row['rate']:.4f} ({row['low']:.4f} … {row['high']:.4f}) of {row['runs']}", flush=True)
    else:
        print(
            f"{words:110} mean {row['mean']:+.4f}, median |e| {row['median_absolute']:.4f}, "
            f"95 % |e| {row['q95_absolute']:.4f}",
            flush=True,
        )


def main() -> None:
    """Runs all simulations, prints the tables and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = options.runs
    tables = {
        "level": lambda: level(10 * runs),
        "temperature": lambda: temperature(runs),
        "fits": lambda: fits(runs),
        "recovery": lambda: recovery(runs, 2000),
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in options.tables:
        began = time.perf_counter()
        rows = []
        for row in tables[name]():
            rows.append(row)
            show(row)
        seconds = round(time.perf_counter() - began, 1)
        header = {"table": "run", "of": name, "runs": runs, "seed": SEED, "seconds": seconds}
        # Tables that were not asked for stay as they were.
        earlier = options.results.read_text(encoding="utf-8").splitlines() if options.results.is_file() else []
        kept = [row for row in map(json.loads, earlier) if row.get("of", row["table"]) != name]
        options.results.write_text("".join(json.dumps(row) + "\n" for row in [*kept, header, *rows]), encoding="utf-8")
    print(f"results in {options.results}")


if __name__ == "__main__":
    main()
