"""False alarms, power and delay of `find_rise` and of common rules on simulated validation losses.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_trends.py [--runs 400]`. Prints
tables and writes one JSON line a number to `benchmarks/results/trends.jsonl`. On one core 400 runs
take about 6 minutes and 2000 about 30.

A decision at `t` uses points up to `t` alone, so one series of 1000 evaluations answers for every
shorter run. `find_rise` looks at every prefix up to 100 evaluations, at every fourth up to 300 and
at every fiftieth up to 1000 (alarms that come and go in between are missed); the other rules look
at every evaluation. Floors off, where the noise model stands alone, has a quarter of the runs. The
standard deviation of the noise is 0.01 unless said: 2 % of the level 0.5.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_lossacc.trends import compare, find_rise

Array = NDArray[np.float64]
Generator = np.random.Generator
Family = Callable[[Generator, int], Array]

SEED = 20240
NOISE = 0.01
LENGTHS = (10, 30, 100, 300, 1000)
START = 40
NO_FLOORS = {"relative_floor": 0.0, "absolute_floor": 0.0}
RESULTS = Path(__file__).parent / "results" / "trends.jsonl"


def decay(time_points: Array, floor: float = 0.5, amplitude: float = 1.5, scale: float = 10.0) -> Array:
    """The healthy curve: `floor + amplitude exp(-t / scale)`."""
    return floor + amplitude * np.exp(-time_points / scale)


def white(random: Generator, count: int) -> Array:
    """Independent normal noise."""
    return random.normal(0.0, NOISE, count)


def autoregression(random: Generator, count: int, correlation: float) -> Array:
    """AR(1) noise with marginal standard deviation `NOISE`."""
    shocks = random.normal(0.0, NOISE * math.sqrt(1 - correlation**2), count)
    shocks[0] = random.normal(0.0, NOISE)
    noise = np.empty(count)
    previous = 0.0
    for index, shock in enumerate(shocks):
        previous = correlation * previous + shock
        noise[index] = previous
    return noise


def warm_restarts(count: int, amplitude: float) -> Array:
    """Excess loss that follows a cosine schedule with periods 10, 20, 40, ..."""
    excess = np.empty(count)
    start, period = 0, 10
    while start < count:
        stop = min(start + period, count)
        excess[start:stop] = 0.5 * (1 + np.cos(np.pi * np.arange(stop - start) / period))
        start, period = stop, 2 * period
    return amplitude * excess


def healthy() -> dict[str, Family]:
    """Series without a rise (warm restarts: with one that goes away)."""
    steps = lambda count: np.arange(count, dtype=float)  # noqa: E731

    def spikes(random: Generator, count: int) -> Array:
        hit = random.random(count) < 0.03
        return decay(steps(count)) + white(random, count) + hit * random.uniform(0.05, 0.3, count)

    def heteroscedastic(random: Generator, count: int) -> Array:
        curve = decay(steps(count))
        return curve + curve * white(random, count) * (1.5 + np.sin(steps(count) / 25))

    def rate_drop(random: Generator, count: int) -> Array:
        after = 0.4 + 0.1 * np.exp(-np.maximum(steps(count) - 50, 0) / 3)
        return np.where(steps(count) < 50, decay(steps(count)), after) + white(random, count)

    def late_start(random: Generator, count: int) -> Array:
        curve = np.where(steps(count) < 20, 2.0, decay(np.maximum(steps(count) - 20, 0)))
        return curve + white(random, count)

    return {
        "flat, white": lambda r, n: 0.5 + white(r, n),
        "decay, white": lambda r, n: decay(steps(n)) + white(r, n),
        "decay, heteroscedastic": heteroscedastic,
        "decay, t3": lambda r, n: decay(steps(n)) + r.standard_t(3, n) * NOISE / math.sqrt(3),
        "decay, AR(0.5)": lambda r, n: decay(steps(n)) + autoregression(r, n, 0.5),
        "decay, AR(0.8)": lambda r, n: decay(steps(n)) + autoregression(r, n, 0.8),
        "decay, 3 % spikes": spikes,
        "learning-rate drop": rate_drop,
        "power law": lambda r, n: 0.5 + 1.5 / np.sqrt(1 + steps(n)) + white(r, n),
        "late start": late_start,
        "rounded, 2-4 digits": lambda r, n: np.round(decay(steps(n)) + white(r, n), int(r.integers(2, 5))),
        "irregular spacing": lambda r, n: decay(np.cumsum(r.exponential(1.0, n))) + white(r, n),
        "warm restarts, +4 %": lambda r, n: decay(steps(n)) + warm_restarts(n, 0.02) + white(r, n),
        "warm restarts, +20 %": lambda r, n: decay(steps(n)) + warm_restarts(n, 0.1) + white(r, n),
    }


def rising() -> dict[str, tuple[int, Family]]:
    """Series with a rise from a known evaluation on; the decay ends where the rise starts."""

    def since(shape: Callable[[Array], Array]) -> tuple[int, Family]:
        def family(random: Generator, count: int) -> Array:
            steps = np.arange(count, dtype=float)
            base = decay(np.minimum(steps, START)) + white(random, count)
            return base + NOISE * shape(np.maximum(steps - START, 0))

        return START, family

    def flat_step(random: Generator, count: int) -> Array:
        return 0.5 + white(random, count) + 3 * NOISE * (np.arange(count) > START)

    def digits(random: Generator, count: int) -> Array:
        steps = np.arange(count, dtype=float)
        rise = 0.02 * np.clip(steps - 40, 0, None) / 60
        return decay(steps, 0.14, 1.86, 7.0) + rise + random.normal(0, 0.002, count)

    def breast_cancer(random: Generator, count: int) -> Array:
        steps = np.arange(count, dtype=float)
        rise = 0.085 * np.clip(steps - 9, 0, None) / 290
        return decay(steps, 0.115, 0.6, 1.6) + rise + random.normal(0, 0.0005, count)

    def fine_tuning(random: Generator, count: int) -> Array:
        steps = np.arange(count, dtype=float)
        rise = 0.02 * np.maximum(steps - 3, 0)
        return decay(steps, 0.25, 0.5, 1.0) + rise + random.normal(0, 0.003, count)

    return {
        "slope 1 sd": since(lambda u: u),
        "slope 0.5 sd": since(lambda u: 0.5 * u),
        "slope 0.2 sd": since(lambda u: 0.2 * u),
        "slope 0.1 sd": since(lambda u: 0.1 * u),
        "logarithmic, 3 sd ln(1+u)": since(lambda u: 3 * np.log1p(u)),
        "step 6 sd": since(lambda u: 6.0 * (u > 0)),
        "step 3 sd": since(lambda u: 3.0 * (u > 0)),
        "step 3 sd on a flat base": (START, flat_step),
        "bump 10 sd that returns": since(lambda u: 10 * np.exp(-(((u - 15) / 6) ** 2)) * (u > 0)),
        "double descent 20 sd": since(lambda u: 20 * np.sin(np.pi * np.minimum(u, 60) / 40)),
        "digits (sd 0.002)": (40, digits),
        "breast cancer (sd 0.0005)": (9, breast_cancer),
        "fine-tuning, from 3 (sd 0.003)": (3, fine_tuning),
    }


def _first(hits: Array | NDArray[np.bool_]) -> int | None:
    found = np.flatnonzero(hits)
    return int(found[0]) if len(found) else None


def patience(series: Array, checks: int = 10, delta: float = 0.0) -> int | None:
    """First evaluation after `checks` without an improvement of more than `delta`."""
    best, waited = math.inf, 0
    for index, value in enumerate(series):
        if value < best - delta:
            best, waited = value, 0
        else:
            waited += 1
            if waited >= checks:
                return index
    return None


def generalisation_loss(series: Array, percent: float = 5.0) -> int | None:
    """First evaluation whose loss is `percent` above the lowest so far (Prechelt 1998, GL)."""
    return _first(series > np.minimum.accumulate(series) * (1 + percent / 100))


def strips_up(series: Array, strips: int, length: int = 5) -> int | None:
    """First end of a strip of 5 evaluations after `strips` successive rises (Prechelt 1998, UP)."""
    ends = series[length - 1 :: length]
    rises = np.diff(ends) > 0
    runs = np.convolve(rises, np.ones(strips), "valid") if len(rises) >= strips else np.empty(0)
    strip = _first(runs == strips)
    return None if strip is None else (strip + strips + 1) * length - 1


def scan(series: Array, **floors: float) -> int | None:
    """First evaluation at which `find_rise` finds a rise, on the schedule described on top."""
    values = series.tolist()
    for stop in _schedule(len(values)):
        if find_rise(values[:stop], **floors) is not None:
            return stop - 1
    return None


def _schedule(count: int) -> Iterator[int]:
    for stop in range(8, count + 1):
        if stop <= 100 or (stop <= 300 and stop % 4 == 0) or stop % 50 == 0:
            yield stop


def _runs(detector: str, runs: int) -> int:
    return max(runs // 4, 1) if detector.endswith("floors off") else runs


DETECTORS: dict[str, Callable[[Array], int | None]] = {
    "find_rise": scan,
    "find_rise, floors off": lambda series: scan(series, **NO_FLOORS),
    "patience 10": patience,
    "GL 5 %": generalisation_loss,
    "UP4": lambda series: strips_up(series, 4),
    "UP6": lambda series: strips_up(series, 6),
    # Rule "Overtraining" with its defaults: patience_validation 10, delta 0.01, training improving.
    "SageMaker": lambda series: patience(series, 10, 0.01),
}


def clopper_pearson(hits: int, runs: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial rate (Clopper and Pearson 1934), by bisection."""

    def tail(rate: float, counts: range) -> float:
        if rate <= 0 or rate >= 1:
            return float((0 if rate <= 0 else runs) in counts)
        return math.fsum(
            math.exp(
                math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
                + k * math.log(rate) + (runs - k) * math.log1p(-rate)
            )
            for k in counts
        )  # fmt: skip

    def solve(counts: range, increasing: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if (tail(middle, counts) > (1 - level) / 2) == increasing:
                high = middle
            else:
                low = middle
        return (low + high) / 2

    lower = solve(range(hits, runs + 1), True) if hits else 0.0
    upper = solve(range(hits + 1), False) if hits < runs else 1.0
    return lower, upper


def rate(hits: int, runs: int) -> dict[str, float]:
    """A rate with its 95 % interval."""
    low, high = clopper_pearson(hits, runs)
    return {"rate": hits / runs, "low": low, "high": high, "hits": hits, "runs": runs}


def false_alarms(runs: int) -> Iterator[dict[str, object]]:
    """Rates of runs with at least one alarm, for every family, detector and length."""
    for number, (name, family) in enumerate(healthy().items()):
        series = [family(np.random.default_rng([SEED, number, run]), LENGTHS[-1]) for run in range(runs)]
        for detector, rule in DETECTORS.items():
            looked_at = series[: _runs(detector, runs)]
            alarms = [rule(one) for one in looked_at]
            for length in LENGTHS:
                hits = sum(alarm is not None and alarm < length for alarm in alarms)
                yield {
                    "table": "false alarms",
                    "family": name,
                    "detector": detector,
                    "length": length,
                    **rate(hits, len(alarms)),
                }


def detections(runs: int) -> Iterator[dict[str, object]]:
    """Rates of runs whose first alarm comes within 30 and within 70 evaluations of the rise."""
    for number, (name, (start, family)) in enumerate(rising().items()):
        series = [family(np.random.default_rng([SEED, 100 + number, run]), start + 71) for run in range(runs)]
        for detector, rule in DETECTORS.items():
            count = _runs(detector, runs)
            alarms = [rule(one) for one in series[:count]]
            delays = [alarm - start for alarm in alarms if alarm is not None]
            after = sorted(delay for delay in delays if delay > 0)
            yield {
                "table": "power",
                "family": name,
                "detector": detector,
                "before": sum(delay <= 0 for delay in delays) / count,
                "within_70": len(after) / count,
                "median_delay": statistics.median(after) if after else None,
                **rate(sum(delay <= 30 for delay in after), count),
            }


def intervals(runs: int) -> Iterator[dict[str, object]]:
    """Errors of `compare`: the interval misses no change; `flat` where the change is the margin."""
    families = healthy()
    for number, name in enumerate(("flat, white", "decay, t3", "decay, AR(0.5)", "decay, AR(0.8)")):
        for length in (12, 30, 100):
            missed = flat = 0
            for run in range(runs):
                random = np.random.default_rng([SEED, 200 + number, run])
                # The last part of a longer run: there is no trend left.
                values = families[name](random, length + 150)[150:]
                missed += not (low := compare(values.tolist(), length // 3, 0.02)).low <= 0 <= low.high
                values[length // 3 + 5 :] += 0.02
                flat += compare(values.tolist(), length // 3, 0.02).kind == "flat"
            shared = {"table": "compare", "family": name, "length": length}
            yield {**shared, "error": "interval misses", **rate(missed, runs)}
            yield {**shared, "error": "flat at the margin", **rate(flat, runs)}


def main() -> None:
    """Runs all simulations, prints the tables and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    began = time.perf_counter()
    rows: list[dict[str, object]] = []
    print(f"runs with a false alarm, of {runs}, by length {LENGTHS}")
    names = list(DETECTORS)
    for row in false_alarms(runs):
        rows.append(row)
        if row["length"] == LENGTHS[-1]:
            last = rows[-len(LENGTHS) :]
            rates = " ".join(f"{one['rate']:.3f}" for one in last)
            if row["detector"] == names[0]:
                print(f"{row['family']}")
            upper = last[2]["high"]
            print(f"    {row['detector']:24}{rates}   (100: below {upper:.4f})", flush=True)
    print("power: family, detector, before the rise, within 30, within 70, median delay")
    for row in detections(runs):
        rows.append(row)
        delay = row["median_delay"]
        print(
            f"{row['family']:32}{row['detector']:24}{row['before']:.3f} {row['rate']:.3f} "
            f"{row['within_70']:.3f} {'-' if delay is None else delay}",
            flush=True,
        )
    print("compare: family, length, error, rate")
    for row in intervals(runs):
        rows.append(row)
        print(f"{row['family']:24}{row['length']:5} {row['error']:20}{row['rate']:.3f}")
    seconds = time.perf_counter() - began
    header = {"table": "run", "runs": runs, "seed": SEED, "seconds": round(seconds, 1)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    print(f"{seconds:.0f} s, {len(rows)} numbers in {RESULTS}")


if __name__ == "__main__":
    main()
