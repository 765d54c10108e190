"""False alarms, power and delay of `find_rise` and of common rules on simulated validation losses.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_trends.py [--runs 2000] [--long 200]`. Prints
tables and writes one JSON line a number to `benchmarks/results/trends.jsonl`.

A decision at `t` uses points up to `t` alone, so one series answers for every shorter run: `runs` series of 100
evaluations, and `long` series of 1000 for the lengths 300 and 1000. Every rule looks at every evaluation. Floors off,
where the noise model stands alone, has a quarter of the runs. The standard deviation of the noise is 0.01 unless said:
2 % of the level 0.5. Two rules need a second series: the training loss (the curve without its rise) and the accuracy
`1 - loss / 3`, both with noise of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_lossacc.trends import (
    compare,
    find_oscillation,
    find_plateau,
    find_rise,
    find_spike,
    first_rise,
)

Array = NDArray[np.float64]
Generator = np.random.Generator
Family = Callable[[Generator, int], Array]

SEED = 20240
NOISE = 0.01
LENGTHS = (3, 5, 10, 30, 100)
LONG_LENGTHS = (300, 1000)
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

    def early(start: int) -> Family:
        def family(random: Generator, count: int) -> Array:
            steps = np.arange(count, dtype=float)
            fall = np.where(steps < start, 1.2 * np.exp(-steps), 0.0)
            return 0.45 + fall + 0.04 * np.maximum(steps - start, 0) + white(random, count)

        return family

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
        "minimum at 2, +0.04 each (sd 0.01)": (2, early(2)),
        "minimum at 4, +0.04 each (sd 0.01)": (4, early(4)),
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
    """First evaluation at which `find_rise` finds a rise."""
    found = first_rise(series.tolist(), **floors)
    return None if found is None else found[0] - 1


def not_decreasing(series: Array, steps: int = 10, percent: float = 0.1, increase: float = 5.0) -> int | None:
    """SageMaker's LossNotDecreasing: less than 0.1 % lower than 10 evaluations ago, or 5 % higher."""
    before, now = series[:-steps], series[steps:]
    hit = _first((now > before * (1 - percent / 100)) | (now > before * (1 + increase / 100)))
    return None if hit is None else hit + steps


def umlaut(series: Array) -> int | None:
    """UMLAUT: the validation loss rose since the last evaluation while the training loss did not."""
    random = np.random.default_rng(int(abs(series[0]) * 1e9))
    train = np.minimum.accumulate(series) + white(random, len(series))
    hit = _first((np.diff(series) > 0) & (np.diff(train) <= 0))
    return None if hit is None else hit + 1


def uncorrelated(series: Array, least: float = 0.5, fewest: int = 3) -> int | None:
    """|correlation| of loss and accuracy below 0.5 over all evaluations so far (TheDeepChecker), from the third on."""
    random = np.random.default_rng(int(abs(series[0]) * 1e9))
    accuracy = 1 - series / 3 + white(random, len(series))
    count = np.arange(1, len(series) + 1)

    def covariance(one: Array, other: Array) -> Array:
        return np.cumsum(one * other) - np.cumsum(one) * np.cumsum(other) / count

    power = covariance(series, series) * covariance(accuracy, accuracy)
    low = np.abs(covariance(series, accuracy)) < least * np.sqrt(np.maximum(power, 1e-30))
    low[: fewest - 1] = False
    return _first(low)


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
    "SageMaker overtraining": lambda series: patience(series, 10, 0.01),
    "SageMaker not decreasing": not_decreasing,
    "UMLAUT": umlaut,
    "|correlation| < 0.5": uncorrelated,
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


def false_alarms(runs: int, lengths: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Rates of runs with at least one alarm, for every family, detector and length."""
    # The slowest families stand last; each is a task of its own.
    with ProcessPoolExecutor() as pool:
        tasks = [pool.submit(_alarms, name, runs, lengths) for name in reversed(healthy())]
        for task in reversed(tasks):
            yield from task.result()


def _alarms(name: str, runs: int, lengths: tuple[int, ...]) -> list[dict[str, object]]:
    """Rows of one family."""
    number, family, found = list(healthy()).index(name), healthy()[name], []
    series = [family(np.random.default_rng([SEED, number, run]), lengths[-1]) for run in range(runs)]
    for detector, rule in DETECTORS.items():
        if detector.endswith("floors off") and (lengths == LONG_LENGTHS or "restarts" in name):
            continue
        alarms = [rule(one) for one in series[: _runs(detector, runs)]]
        for length in lengths:
            hits = sum(alarm is not None and alarm < length for alarm in alarms)
            shared = {"table": "false alarms", "family": name, "detector": detector, "length": length}
            found.append(shared | rate(hits, len(alarms)))
    return found


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
                "open_at_end": statistics.fmean(find_rise(one.tolist()) is not None for one in series[:count])
                if detector == "find_rise"
                else None,
                **rate(sum(delay <= 30 for delay in after), count),
            }


def intervals(runs: int) -> Iterator[dict[str, object]]:
    """Errors of `compare`: the interval misses no change; `flat` where the change is the margin."""
    families = healthy()
    for number, name in enumerate(("flat, white", "decay, t3", "decay, AR(0.5)", "decay, AR(0.8)")):
        for length in (12, 20, 30, 60, 100):
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


def shapes(runs: int) -> Iterator[dict[str, object]]:
    """Runs of 60 evaluations in which a shape is found at least once, looking at every fourth evaluation."""
    rules = {
        "oscillation": find_oscillation,
        "spike": find_spike,
        "plateau within 5 %": lambda values: find_plateau(values, 0.025),
    }
    swings: dict[str, Family] = {
        f"swings of {size:.0%} up and down": lambda random, count, size=size: (
            0.5 * (1 + size * (-1.0) ** np.arange(count) * random.uniform(0.5, 1.5, count))
        )
        for size in (0.1, 0.3)
    }
    for number, (name, family) in enumerate((healthy() | swings).items()):
        series = [family(np.random.default_rng([SEED, 300 + number, run]), 60).tolist() for run in range(runs)]
        for shape, rule in rules.items():
            hits = sum(any(rule(one[:stop]) is not None for stop in range(8, 61, 4)) for one in series)
            yield {"table": "shapes", "family": name, "shape": shape, **rate(hits, runs)}


def main() -> None:
    """Runs all simulations, prints the tables and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--long", type=int, default=200, help="series of 1000 evaluations")
    parser.add_argument("--only-long", action="store_true", help="these alone; the other numbers stay as they are")
    arguments = parser.parse_args()
    runs, long = arguments.runs, arguments.long
    began = time.perf_counter()
    rows: list[dict[str, object]] = []
    sizes = ((runs, LENGTHS), (long, LONG_LENGTHS))
    for count, lengths in sizes[1:] if arguments.only_long else sizes:
        print(f"runs with a false alarm, of {count}, by length {lengths}, with 95 % intervals (Clopper and Pearson)")
        for row in false_alarms(count, lengths):
            rows.append(row)
            if row["length"] == lengths[-1]:
                cells = (f"{one['rate']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for one in rows[-len(lengths) :])
                print(f"{row['family']:24}{row['detector']:26}{' '.join(cells)}", flush=True)
    if arguments.only_long:
        known = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
        head = {**known[0], "long_runs": long, "long_seconds": round(time.perf_counter() - began, 1)}
        kept = [row for row in known[1:] if row["table"] != "false alarms" or row["length"] not in LONG_LENGTHS]
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [head, *kept, *rows]), encoding="utf-8")
        return
    powered = max(runs // 4, 1)
    print(f"power, {powered} runs: before the rise, within 30 (interval), within 70, median delay, open at the end")
    for row in detections(powered):
        rows.append(row)
        delay, end = row["median_delay"], row["open_at_end"]
        print(
            f"{row['family']:36}{row['detector']:26}{row['before']:.3f} {row['rate']:.3f} "
            f"({row['low']:.3f}-{row['high']:.3f}) {row['within_70']:.3f} {'-' if delay is None else delay} "
            f"{'' if end is None else end}",
            flush=True,
        )
    print("compare: family, length, error, rate")
    for row in intervals(powered):
        rows.append(row)
        print(
            f"{row['family']:24}{row['length']:5} {row['error']:20}"
            f"{row['rate']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
        )
    print("shapes: family, shape, rate")
    for row in shapes(min(powered, 100)):
        rows.append(row)
        print(f"{row['family']:28}{row['shape']:20}{row['rate']:.3f} ({row['low']:.3f}-{row['high']:.3f})", flush=True)
    seconds = time.perf_counter() - began
    header = {"table": "run", "runs": runs, "long_runs": long, "seed": SEED, "seconds": round(seconds, 1)}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    print(f"{seconds:.0f} s, {len(rows)} numbers in {RESULTS}")


if __name__ == "__main__":
    main()
