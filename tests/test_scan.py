"""One verdict a run, from curves whose truth is known because they were made up.

Proved here: each verdict on the curve it is meant for and on its near misses, at several lengths, scales and numbers of
classes; rises that are not lasting are none, and noise is none (rates over many seeds); the scan gives the events of
the live engine with their epochs; a run in two logs comes once; many processes give what one gives.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lightning_lossacc.diagnosis import Diagnosis
from lightning_lossacc.floors import constant_confidence_nll, is_no_nll
from lightning_lossacc.history import History, Record
from lightning_lossacc.readers import Sharpening, Source, find_sources
from lightning_lossacc.rises import excluded_rise, whole_rise
from lightning_lossacc.scan import VERDICTS, Scanned, Unread, _agreed, replay, scan, scan_source
from lightning_lossacc.scan_text import text
from lightning_lossacc.trends import find_rise
from lightning_lossacc.verdict import RunVerdict, judge
from lightning_lossacc.workers import spread

Curve = tuple[list[float], list[float]]


@pytest.fixture
def bench_curves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, imported as running it as a script does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return import_module("bench_curves")


def curve(
    loss: Callable[[np.ndarray], np.ndarray],
    accuracy: Callable[[np.ndarray], np.ndarray],
    count: int = 60,
    noise: float = 0.01,
    seed: int = 0,
) -> Curve:
    """Loss and accuracy over `count` evaluations, with relative noise of the loss and a third of it in accuracy."""
    random, steps = np.random.default_rng(seed), np.arange(count, dtype=float)
    losses = loss(steps) * (1 + noise * random.normal(size=count))
    return losses.tolist(), np.clip(accuracy(steps) + noise / 3 * random.normal(size=count), 0, 1).tolist()


def learns(steps: np.ndarray) -> np.ndarray:
    return 0.85 - 0.75 * np.exp(-(steps + 1) / 6)


def falls(steps: np.ndarray) -> np.ndarray:
    return 0.4 + 1.9 * np.exp(-steps / 6)


def rises_from(start: float, slope: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda steps: falls(np.minimum(steps, start)) + slope * np.maximum(steps - start, 0)


def level(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda steps: np.full(len(steps), value)


def steps_between(low: float, high: float, period: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda steps: np.where((steps // period) % 2 == 0, high, low)


CURVES: dict[str, tuple[str, Curve]] = {
    "falls and stays": ("healthy", curve(falls, learns)),
    "falls and stays, 300": ("healthy", curve(falls, learns, 300)),
    "still falling": ("healthy", curve(lambda t: 2 / np.sqrt(1 + t), learns, 25)),
    "jitter of 8 %": ("healthy", curve(falls, learns, 100, 0.08)),
    "one spike": ("healthy", curve(lambda t: falls(t) + 3.0 * (t == 40), learns)),
    "blow-up at the start": ("healthy", curve(lambda t: falls(t) + 20.0 * (t == 1), learns)),
    "rose and came back": ("healthy", curve(lambda t: falls(t) + 0.4 * np.exp(-(((t - 30) / 5) ** 2)), learns, 80)),
    "four evaluations, falling": ("healthy", ([1.2, 0.8, 0.7, 0.65], [0.5, 0.6, 0.65, 0.66])),
    "accuracy perfect at once": ("healthy", curve(falls, level(1.0), noise=0.0)),
    "near ln 3, but learning": (
        "healthy",
        curve(lambda t: 1.084 + 0.09 * np.exp(-t / 20), lambda t: 0.475 - 0.11 * np.exp(-t / 10), 100, 0.001),
    ),
    "rises, accuracy level": ("diverging", curve(rises_from(20, 0.01), learns)),
    "rises, accuracy rises": ("diverging", curve(rises_from(15, 0.02), lambda t: learns(t) + t / 1000)),
    "rises, accuracy falls": ("diverging", curve(rises_from(20, 0.02), lambda t: learns(t) - t / 400)),
    "rises from the first evaluation on": ("diverging", curve(lambda t: 1.3 + t / 40, level(0.55), 40)),
    "rises after a drop at epoch 30": (
        "diverging",
        curve(lambda t: np.where(t < 30, 1.2, 1.0 + 0.015 * (t - 30)), learns, 60, 0.03),
    ),
    "rises slowly": ("diverging", curve(rises_from(30, 0.002), learns, 120)),
    "four evaluations, rising": ("diverging", ([0.35, 0.31, 0.36, 0.45], [0.86, 0.88, 0.88, 0.88])),
    "five evaluations, rising by a half": ("diverging", ([0.5, 0.31, 0.33, 0.4, 0.47], [0.8, 0.88, 0.88, 0.89, 0.88])),
    "accuracy falls, loss does not rise": (
        "diverging",
        curve(falls, lambda t: learns(t) - np.maximum(t - 30, 0) / 200),
    ),
    "rises while accuracy is pinned and training learns": (
        "diverging",
        curve(rises_from(5, 0.05), level(0.5862), noise=0),
    ),
    "ln 10 and a tenth": ("stuck", curve(level(math.log(10)), level(0.1), 30, 0.002)),
    "down to ln 3, accuracy jumps between shares": (
        "stuck",
        curve(lambda t: 1.0986 + 3 * np.exp(-t), lambda t: np.where(t % 7 < 3, 0.3, 0.25), 40, 0.001),
    ),
    "pinned to the share of a class": ("stuck", curve(lambda t: 0.35 + 0.2 * np.exp(-t / 3), level(0.9), 30, 0.0)),
    "no gain at all": ("stuck", curve(lambda t: 3.3 - 0.001 * t, level(0.08), 20, 0.005)),
    "a guess among three, over-confident": ("stuck", curve(level(1.14), level(0.345), 40, 0.01)),
    "level at 48 %, but C may be anything": ("undecided", curve(level(1.45), level(0.48), 20, 0.004)),
    "five evaluations at 86 %": (
        "undecided",
        ([0.401, 0.392, 0.408, 0.399, 0.405], [0.859, 0.8625, 0.861, 0.8632, 0.8618]),
    ),
    "accuracy creeps up step by step": (
        "undecided",
        ([0.641, 0.612, 0.598, 0.615, 0.634, 0.68], [0.779, 0.7925, 0.798, 0.8032, 0.8068, 0.809]),
    ),
    "perfect from the start": ("healthy", curve(level(0.001), level(1.0), 30, 0.0)),
    "nearly perfect from the start": ("healthy", curve(level(0.05), level(0.985), 30, 0.01)),
    "pinned while training learns": ("undecided", curve(level(0.7), level(0.5862), noise=0)),
    "too small for nats, rises": ("diverging", curve(lambda t: rises_from(20, 0.01)(t) / 100, learns)),
    "rises by a half in few nats": ("undecided", curve(lambda t: falls(t) / 500 + 2e-5 * t, level(0.9995))),
    "swings": ("unstable", curve(steps_between(0.6, 2.4, 3), steps_between(0.8, 0.4, 3), 40)),
    "accuracy swings": ("unstable", curve(level(0.7), steps_between(0.8, 0.4, 2), 40)),
    "ends in NaN": ("unstable", ([*curve(falls, learns, 20)[0], math.nan], [*curve(falls, learns, 20)[1], 0.1])),
    "ends in a blow-up": ("unstable", ([*curve(falls, learns, 20)[0], 9.0], [*curve(falls, learns, 20)[1], 0.1])),
    "leaves its start for good": ("unstable", curve(lambda t: 2.3 * np.where(t < 5, 1, 40), level(0.1), 20)),
    "two evaluations": ("undecided", ([1.0, 0.9], [0.5, 0.6])),
    "jitter of half the level": (
        "undecided",
        (curve(level(0.1), level(0.9), 15, 0.5)[0], curve(level(0.1), level(0.9), 15, 0.03)[1]),
    ),
    "five evaluations without a trend": ("undecided", ([0.5, 0.44, 0.5, 0.45, 0.52], [0.8, 0.81, 0.8, 0.82, 0.8])),
    "no accuracy": ("undecided", (curve(falls, learns)[0], [math.nan] * 60)),
    "no loss": ("undecided", ([math.nan] * 60, curve(falls, learns)[1])),
}


@pytest.mark.parametrize("name", CURVES)
def test_verdict(name: str) -> None:
    expected, (losses, accuracies) = CURVES[name]
    train = np.linspace(0.4, 0.95, len(losses)) if "training learns" in name else ()
    ends_badly = name == "ends in NaN"
    found = judge(losses, accuracies, train, has_blown_up=ends_badly)
    assert found.kind == expected, found


@pytest.mark.parametrize("scale", [0.25, 4.0])
@pytest.mark.parametrize(
    "name", ["falls and stays", "rises, accuracy level", "rises after a drop at epoch 30", "swings"]
)
def test_verdict_does_not_depend_on_the_scale_of_the_loss(name: str, scale: float) -> None:
    expected, (losses, accuracies) = CURVES[name]
    assert judge([scale * value for value in losses], accuracies).kind == expected


@pytest.mark.parametrize("classes", [2, 5, 17, 100, 1000])
def test_chance_is_recognised_for_any_number_of_classes_and_known_ones_sharpen_it(classes: int) -> None:
    losses, accuracies = curve(level(math.log(classes)), level(1 / classes), 30, 0.002)
    assert judge(losses, accuracies).kind == "stuck"
    # The same loss is good work where there are far more classes.
    start = [math.log(50 * classes) * (1 - t / 12) + math.log(classes) * t / 12 for t in range(12)]
    better = [0.02 + 0.3 * t / 12 for t in range(12)]
    assert judge(start + losses, better + [0.32] * 30, num_classes=50 * classes).kind == "healthy"


def test_pinned_accuracy_while_the_loss_of_the_training_falls_is_asked_for_its_loss_first() -> None:
    losses, accuracies = CURVES["rises while accuracy is pinned and training learns"][1]
    assert judge(losses, accuracies).kind == "stuck"
    assert judge(losses, accuracies, np.linspace(0.4, 0.95, len(losses))).kind == "diverging"


def test_constant_loss_is_that_of_an_answer_that_is_always_equally_sure() -> None:
    # Right with probability 0.7, the rest spread over two classes: entropy of (0.7, 0.15, 0.15).
    entropy = -0.7 * math.log(0.7) - 2 * 0.15 * math.log(0.15)
    assert constant_confidence_nll(0.3, 3) == pytest.approx(entropy)
    assert constant_confidence_nll(0.5, 2) == pytest.approx(math.log(2)) and constant_confidence_nll(0.0, 2) == 0.0
    assert constant_confidence_nll(1.0, 5) == pytest.approx(math.log(4))


def test_noise_is_no_rise_and_a_rise_of_half_a_standard_deviation_an_evaluation_is_one() -> None:
    def kinds(slope: float, phi: float) -> Counter[str]:
        found: Counter[str] = Counter()
        for seed in range(60):
            random, noise, previous = np.random.default_rng(seed), [], 0.0
            for shock in random.normal(size=60) * math.sqrt(1 - phi**2):
                previous = phi * previous + shock
                noise.append(previous)
            steps = np.arange(60)
            losses = falls(np.minimum(steps, 30.0)) + 0.01 * (np.array(noise) + slope * np.maximum(steps - 30, 0))
            found[judge(losses.tolist(), learns(steps).tolist()).kind] += 1
        return found

    assert kinds(0.0, 0.0)["diverging"] == 0 and kinds(0.0, 0.0)["healthy"] >= 57
    # Noise that wanders by 2.5 % of the level: 5 of 60 when this was written; a tenth is what is promised.
    assert kinds(0.0, 0.8)["diverging"] <= 6
    assert kinds(0.5, 0.0)["diverging"] == 60


def test_whole_rise_finds_a_slow_rise_behind_an_excursion_and_says_since_when() -> None:
    steps = np.arange(80.0)
    # Swings on a plateau, drops with the learning rate at 40 and rises from 45 on.
    plateau = 1.25 + 0.25 * np.sin(steps / 3)
    losses = np.where(steps < 40, plateau, 1.1 + 0.015 * np.maximum(steps - 45, 0)).tolist()
    assert find_rise(losses) is None
    rise = whole_rise(losses)
    assert rise is not None and 30 <= rise.reference <= 50 and 45 <= rise.onset <= 58 and 0.25 < rise.change < 0.6
    assert whole_rise(losses[:45]) is None
    assert whole_rise(losses[:-3] + [1.1] * 3) is None
    assert whole_rise([1.0, 2.0]) is None


def test_a_rise_is_still_there_in_the_last_three_evaluations() -> None:
    steps = np.arange(90.0)
    noise = 0.01 * np.random.default_rng(0).normal(size=90)
    up = falls(steps) + 0.2 * (steps > 60) + noise
    back = falls(steps) + 0.2 * ((steps > 60) & (steps < 87)) + noise
    assert whole_rise(up.tolist()) is not None and whole_rise(back.tolist()) is None


def test_noise_that_wanders_is_told_from_a_rise() -> None:
    found = 0
    for seed in range(60):
        level_now, noise = 0.0, []
        for shock in np.random.default_rng(seed).normal(size=100) * 0.6:
            level_now = 0.8 * level_now + shock
            noise.append(level_now)
        # AR(0.8) with a standard deviation of 6 % of the level: 1 of 60 when this was written, 8 if taken for white.
        found += whole_rise((0.5 + 1.5 * np.exp(-np.arange(100) / 10) + 0.03 * np.array(noise)).tolist()) is not None
    assert found <= 3


def test_nothing_is_excluded_in_jitter_of_half_the_level() -> None:
    steps = np.linspace(0.3, 0.1, 20)
    for seed in range(10):
        random = np.random.default_rng(seed).normal(size=20)
        assert excluded_rise((steps * (1 + 0.5 * random)).tolist(), 0.01) is None
        assert excluded_rise((steps * (1 + 0.05 * random)).tolist(), 0.01) == 0.0


# -- the scan ----------------------------------------------------------------------------------------------------------


def write(path: Path, losses: list[float], accuracies: list[float], first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{first + place},{loss},{accuracy}"
        for place, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    path.write_text("epoch,val_loss,val_acc\n" + "\n".join(rows) + "\n")
    return path


def scanned(path: Path, sharpening: Sharpening | None = None) -> Scanned:
    (source,), _ = find_sources([path])
    (result,) = scan_source(source, sharpening=sharpening)
    assert isinstance(result, Scanned)
    return result


def test_events_are_those_of_the_live_engine_with_the_epochs_of_the_log(tmp_path: Path) -> None:
    losses, accuracies = curve(rises_from(20, 0.03), learns)
    result = scanned(write(tmp_path / "run.csv", losses, accuracies, first=1))
    (event,) = [event for event in result.events if event.event.startswith("loss-up")]
    records = [
        Record("val", 0, place + 1, place, math.nan, True, 0, 0, {}, logged={"loss": loss, "accuracy": accuracy})
        for place, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    diagnosis, live = Diagnosis(), []
    for count in range(1, len(records) + 1):
        live += diagnosis.examine(History(records[:count]))
    assert [event.to_json() for event in replay(History(records))] == [event.to_json() for event in live]
    last = [report for report in live if report.id == event.id][-1]
    assert event == last and event.status == "doubled"
    assert 18 <= event.onset_epoch <= 30 and event.reference_epoch <= event.onset_epoch <= event.epoch <= 60
    opened = result.opened[result.events.index(event)]
    assert opened == min(report.epoch for report in live if report.id == event.id) < event.epoch
    assert result.verdict == "diverging" and result.warns and result.epochs == (1, 60)


def test_one_json_object_a_run(tmp_path: Path) -> None:
    losses, accuracies = curve(rises_from(20, 0.03), learns)
    data = json.loads(scanned(write(tmp_path / "run.csv", losses, accuracies)).to_json())
    assert list(data)[:4] == ["run", "matched", "verdict", "events"]
    assert data["run"].endswith("run.csv") and data["matched"]["loss"] == "val_loss" and data["verdict"] == "diverging"
    fields = {"event", "level", "status", "epoch", "reference_epoch", "onset_epoch", "causes", "cause", "remedies"}
    assert all(fields <= event.keys() and "opened_epoch" in event for event in data["events"])


def test_a_verdict_on_the_whole_run_has_an_event_of_its_own(tmp_path: Path) -> None:
    steps = np.arange(60)
    # A slow rise in the last ten evaluations: for the engine, which decides as the run goes, it is too small so far.
    losses = np.where(steps < 30, 1.0, 0.6) + 0.005 * np.sin(7 * steps) + 0.01 * np.maximum(steps - 50, 0)
    accuracies = CURVES["rises after a drop at epoch 30"][1][1]
    result = scanned(write(tmp_path / "late.csv", losses.tolist(), accuracies))
    assert not any(event.event.startswith("loss-up") for event in replay_of(tmp_path / "late.csv"))
    (event,) = [event for event in result.events if event.event.startswith("loss-up")]
    assert result.verdict == "diverging" and event.epoch == 59 and 50 <= event.onset_epoch <= 55
    assert event.evidence["decided_by"] == "the whole run, at its end" and event.message.count("\n") >= 2


def replay_of(path: Path) -> list:
    from lightning_lossacc.readers import read_runs

    (source,), _ = find_sources([path])
    return replay(read_runs(source)[0].history)


def test_no_verdict_contradicts_an_open_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = replay_of(write(tmp_path / "run.csv", *curve(rises_from(20, 0.03), learns)))
    undecided = RunVerdict("undecided", "not shown")
    assert _agreed(undecided, events).kind == "diverging" and "loss up" in _agreed(undecided, events).reason
    assert _agreed(undecided, [replace(event, status="closed") for event in events]) is undecided
    assert _agreed(undecided, []) is undecided
    assert _agreed(RunVerdict("unstable", "swings"), events).kind == "unstable"
    # The scan asks for it: where the whole run shows nothing, the engine's open event decides.
    monkeypatch.setattr("lightning_lossacc.scan.judge", lambda *_: undecided)
    assert scanned(tmp_path / "run.csv").verdict == "diverging"
    pinned = replay_of(write(tmp_path / "pinned.csv", [1.0] * 20, [0.5] * 20))
    assert _agreed(undecided, pinned).kind == "stuck"


def test_each_bad_verdict_comes_with_its_event(tmp_path: Path) -> None:
    for name, kind in (
        ("no gain at all", "accuracy-stuck"),
        ("swings", "oscillation"),
        ("ends in a blow-up", "loss-up"),
    ):
        result = scanned(write(tmp_path / f"{name}.csv", *CURVES[name][1]))
        assert result.verdict == CURVES[name][0] and result.warns
        assert any(event.event.startswith(kind) for event in result.events), name


def test_a_healthy_run_is_silent(tmp_path: Path) -> None:
    for seed in range(10):
        result = scanned(write(tmp_path / f"{seed}.csv", *curve(falls, learns, 80, 0.02, seed)))
        assert result.verdict == "healthy" and not result.warns
        assert not [event for event in result.events if event.level == "warning"]


def test_training_values_alone_are_never_healthy_or_diverging(tmp_path: Path) -> None:
    losses, accuracies = curve(falls, learns)
    path = tmp_path / "train.csv"
    path.write_text(
        "epoch,loss,accuracy\n"
        + "\n".join(f"{i},{a},{b}" for i, (a, b) in enumerate(zip(losses, accuracies, strict=True)))
    )
    result = scanned(path)
    assert result.verdict == "undecided" and result.reason.startswith("only training values were logged")


def test_what_is_known_beside_the_log_is_used(tmp_path: Path) -> None:
    losses, accuracies = curve(level(math.log(4)), level(0.4), 30, 0.001)
    path = write(tmp_path / "run.csv", losses, accuracies)
    assert scanned(path, Sharpening(num_classes=4)).run == str(path)
    text_of_known = " ".join(scanned(path, Sharpening(num_classes=4, val_size=200)).cannot_say)
    assert "--num-classes" not in text_of_known and "--val-size" not in text_of_known


def test_a_run_that_two_kinds_of_log_hold_comes_once(tmp_path: Path) -> None:
    losses, accuracies = curve(falls, learns, 12)
    write(tmp_path / "csv" / "metrics.csv", losses, accuracies)
    data = [{"epoch": i, "val_loss": a, "val_acc": b} for i, (a, b) in enumerate(zip(losses, accuracies, strict=True))]
    (tmp_path / "history.json").write_text(json.dumps(data))
    write(tmp_path / "copy.csv", losses, accuracies)
    results = list(scan(find_sources([tmp_path])[0]))
    # Two files of one format are two runs, whatever they hold.
    assert sorted(Path(result.run).name for result in results) == ["copy.csv", "metrics.csv"]


def test_a_loss_is_no_nll_if_it_is_too_small_for_its_errors() -> None:
    # Half of the answers wrong: at least 0.5 ln 2 = 0.347 nats; one evaluation without an accuracy does not matter.
    assert is_no_nll([0.3] * 4, [0.5, 0.5, math.nan, 0.5]) and not is_no_nll([0.35] * 3, [0.5] * 3)
    assert not is_no_nll([0.3] * 2, [0.5] * 2) and not is_no_nll([1e-6] * 3, [1.0] * 3)


def test_a_stuck_event_of_a_log_needs_something_that_shows_it(tmp_path: Path) -> None:
    # Accuracy within half a point and a level loss: for the live engine, which sees no more, that is stuck.
    path = write(tmp_path / "run.csv", *CURVES["nearly perfect from the start"][1])
    steady = write(tmp_path / "steady.csv", [0.05, 0.0501] * 10, [0.984, 0.985] * 10)
    assert "accuracy-stuck" in {event.event for event in replay_of(steady)}
    for result in (scanned(path), scanned(steady), scanned(steady, Sharpening(num_classes=10))):
        assert result.verdict == "healthy" and not result.warns and not result.events
    from lightning_lossacc.readers import read_runs
    from lightning_lossacc.report.rebuild import _replayed

    # Nor does a report that is made from the log.
    assert _replayed(read_runs(find_sources([steady])[0][0])[0], scanned(steady)) == []
    guess = scanned(write(tmp_path / "guess.csv", [0.693, 0.694] * 10, [0.5, 0.501] * 10))
    assert guess.verdict == "stuck" and "accuracy-stuck" in {event.event for event in guess.events}


def test_exit_status_is_one_rule(tmp_path: Path) -> None:
    result = scanned(write(tmp_path / "run.csv", *curve(rises_from(20, 0.03), learns)))
    closed = tuple(replace(event, status="closed") for event in result.events)
    info = tuple(replace(event, level="info") for event in result.events)
    for verdict in VERDICTS:
        trouble = verdict in ("diverging", "stuck", "unstable")
        assert replace(result, verdict=verdict).warns
        assert replace(result, verdict=verdict, events=closed).warns == trouble
        assert replace(result, verdict=verdict, events=info).warns == trouble


def test_what_goes_wrong_with_one_log_is_one_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path / "a.csv", *curve(falls, learns))
    write(tmp_path / "b.csv", *curve(falls, learns))
    known = import_module("lightning_lossacc.scan").judge
    calls: list[int] = []

    def judge_once(*arguments: object) -> RunVerdict:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("of a kind\nthat nobody foresaw")
        return known(*arguments)

    monkeypatch.setattr("lightning_lossacc.scan.judge", judge_once)
    first, second = scan(find_sources([tmp_path])[0], workers=1)
    assert first == Unread(str(good), "ZeroDivisionError: of a kind") and isinstance(second, Scanned)
    monkeypatch.setattr("lightning_lossacc.scan.read_runs", lambda *_: [].pop())
    (found,) = scan_source(find_sources([good])[0][0])
    assert isinstance(found, Unread) and found.reason == "IndexError: pop from empty list" and found.certain


def test_many_processes_give_what_one_gives_in_the_same_order(tmp_path: Path) -> None:
    for number in range(26):
        shape = falls if number % 2 else rises_from(10, 0.03)
        write(tmp_path / f"{number:02d}.csv", *curve(shape, learns, 20, 0.01, number))
    (tmp_path / "bad.csv").write_text("epoch,lr\n0,1\n")
    sources, _ = find_sources([tmp_path])
    calls: list[int] = []
    several = list(scan(sources, workers=2, advance=lambda: calls.append(1)))
    alone = list(scan(sources, workers=1))
    assert [_line(result) for result in several] == [_line(result) for result in alone]
    assert len(calls) == 27 and sum(isinstance(result, Unread) for result in several) == 1


@pytest.mark.parametrize(("count", "largest"), [(30, 1), (100, 6), (2000, 8)])
def test_logs_come_back_in_small_parts(monkeypatch: pytest.MonkeyPatch, count: int, largest: int) -> None:
    sizes: list[int] = []

    class Here(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, workers: int, **_: object) -> None:
            super().__init__(1)

        def submit(self, work: Callable, *arguments: list) -> concurrent.futures.Future:
            sizes.append(len(arguments[1]))
            return super().submit(work, *arguments)

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Here)
    assert list(spread(abs, range(count), workers=2)) == list(range(count)) and max(sizes) == largest


def _fatal(item: int) -> tuple[int, int]:
    """The process of a pool that meets item 7 is killed."""
    if item == 7 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return item, os.getpid()


def test_what_a_killed_process_left_is_done_here() -> None:
    found = list(spread(_fatal, range(40), workers=2))
    assert [item for item, _ in found] == list(range(40)) and dict(found)[7] == os.getpid()


def test_a_second_rise_after_the_first_one_is_over(tmp_path: Path) -> None:
    """A step of the learning rate ends a rise at a new low, and the loss rises from there."""
    first = [1 - 0.05 * place for place in range(11)] + [0.5 + 0.02 * place for place in range(1, 16)]
    second = [0.3] * 6 + [0.3 + min(0.006 * place, 0.18) for place in range(1, 60)]
    noise = 0.004 * np.random.default_rng(0).normal(size=len(first) + len(second))
    losses = (np.array(first + second) + noise).tolist()
    accuracies = (0.85 - np.array(losses) / 10).tolist()
    over = scanned(write(tmp_path / "over.csv", losses[:32], accuracies[:32]))
    assert not any(event.event.startswith("loss-up") for event in over.events if event.status != "closed")
    assert scanned(write(tmp_path / "again.csv", losses, accuracies)).verdict == "diverging"


def test_a_new_low_between_two_parts_of_a_rise_does_not_end_it(tmp_path: Path) -> None:
    losses = [1 - 0.05 * place for place in range(11)] + [0.5 + 0.03 * place for place in range(1, 11)]
    losses += [0.2] + [0.45] * 25
    noise = 0.004 * np.random.default_rng(0).normal(size=len(losses))
    accuracies = [0.6 + 0.02 * min(place, 10) + noise[place] for place in range(len(losses))]
    found = scanned(write(tmp_path / "a.csv", (np.array(losses) + noise).tolist(), accuracies))
    assert found.verdict == "diverging"


def test_three_of_four_right_is_no_chance_of_two_classes() -> None:
    steps = np.arange(40)
    found = judge((0.693 - 0.00023 * steps).tolist(), (0.5 + 0.006 * steps).tolist())
    assert found.kind != "stuck"


@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "kill"])
def test_an_interrupt_ends_a_scan_of_many_logs_at_once(tmp_path: Path, to_all: bool) -> None:
    for number in range(240):
        write(tmp_path / f"{number:03d}.csv", *curve(falls, learns, 60, 0.01, number))
    # A test run in the background may have been told to ignore interrupts, and its children with it.
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    call = "from lightning_lossacc.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", f"{heard}{call}", "scan", "--json", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True) as scan:
        assert scan.stdout is not None and json.loads(scan.stdout.readline())["verdict"] == "healthy"
        # A terminal sends it to every process that it started, `kill` to one.
        (os.killpg if to_all else os.kill)(scan.pid, signal.SIGINT)
        _, errors = scan.communicate(timeout=20)
    assert scan.returncode == 130 and errors == "lossacc: interrupted\n"


def _line(result: Scanned | Unread) -> str:
    return result.to_json() if isinstance(result, Scanned) else f"{result.run} {result.reason}"


def test_what_cannot_be_read_is_one_result_with_its_reason(tmp_path: Path) -> None:
    (found,) = scan_source(Source("gone", "table", tmp_path / "gone.csv"))
    assert isinstance(found, Unread) and "No such file" in found.reason


# -- on screen ---------------------------------------------------------------------------------------------------------


def test_a_few_runs_are_blocks_and_many_are_a_table(tmp_path: Path) -> None:
    bad = scanned(write(tmp_path / "a.csv", *curve(rises_from(20, 0.03), learns)))
    good = scanned(write(tmp_path / "b.csv", *curve(falls, learns)))
    shown = text([bad])
    assert shown.startswith(f"diverging · {bad.run}\n  the loss is up by ")
    for words in ("warning: ", "matched: loss = val_loss, accuracy = val_acc, epoch = epoch", "cannot say the cause"):
        assert words in shown
    many = text([good] * 9 + [bad])
    lines = many.splitlines()
    assert lines[0].split()[:3] == ["verdict", "run", "evaluations"] and lines[1].startswith("diverging")
    assert lines[11] == f"10 runs in {tmp_path}/: 1 diverging, 9 healthy"
    assert "  the loss is up by" not in many and "--details" in many
    assert "  the loss is up by" in text([good] * 9 + [bad], with_details=True)
    (event,) = [event for event in bad.events if event.status != "closed"]
    assert event.onset_epoch != event.reference_epoch
    # One number in both: the epoch that it is compared with.
    assert f"{event.event} since {event.reference_epoch}" in many and f"since epoch {event.reference_epoch} " in shown
    assert set(VERDICTS) == {"diverging", "stuck", "unstable", "undecided", "healthy"}


def test_steps_are_named_where_epochs_repeat(tmp_path: Path) -> None:
    losses, accuracies = curve(rises_from(20, 0.03), learns)
    rows = [
        f"{place // 20},{50 * place},{loss},{accuracy}"
        for place, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    (tmp_path / "a.csv").write_text("epoch,step,val_loss,val_acc\n" + "\n".join(rows))
    result = scanned(tmp_path / "a.csv")
    event = result.events[-1]
    assert f"by steps: step {event.reference_step} → step {event.global_step}\n" in text([result])
    assert "by steps" not in text([scanned(write(tmp_path / "b.csv", losses, accuracies))])


def test_columns_that_were_not_judged_are_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("epoch,val_loss,val_acc,test_loss\n" + "".join(f"{i},1,0.5,2\n" for i in range(5)))
    shown = text([result := scanned(path)])
    assert "  note: not judged: test_loss; --loss and --accuracy choose them\n" in shown
    assert "not_judged" not in shown and json.loads(result.to_json())["matched"]["not_judged"] == "test_loss"


# -- the benchmark -----------------------------------------------------------------------------------------------------


def test_benchmark_is_skipped_without_the_curves_and_its_labels_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bench_curves: ModuleType
) -> None:
    assert bench_curves.main(["--curves", str(tmp_path / "nowhere"), "--results", str(tmp_path / "r.jsonl")]) == 0
    assert capsys.readouterr().out == f"skipped: {tmp_path}/nowhere does not exist\n"
    assert bench_curves.main(["--curves", str(tmp_path), "--results", str(tmp_path / "r.jsonl")]) == 0
    assert "skipped: none of the labelled curves" in capsys.readouterr().out and not list(tmp_path.iterdir())
    labels = json.loads(bench_curves.LABELS.read_text(encoding="utf-8"))["runs"]
    assert Counter(label["half"] for label in labels.values()) == {"development": 30, "held-out": 30}
    assert all({label["verdict"], *label["also"]} <= set(VERDICTS) and label["reason"] for label in labels.values())
    assert all(event["onset"] >= 0 for label in labels.values() for event in label["events"] if "onset" in event)


def test_benchmark_counts_agreement_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bench_curves: ModuleType
) -> None:
    write(tmp_path / "036.csv", *curve(falls, learns))  # labelled healthy
    write(tmp_path / "047.csv", *curve(falls, learns))  # labelled diverging
    assert bench_curves.main(["--curves", str(tmp_path), "--results", str(tmp_path / "r.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "047.csv: diverging -> healthy; eye: loss doubles after epoch 17" in printed
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sum(row["same"] for row in rows if row["what"] == "verdict") == 1
    assert all(row["lightning_lossacc"] and row["python"] for row in rows)


def test_rules_of_others_and_agreement_by_hand(bench_curves: ModuleType) -> None:
    falling, rising = [1.0, 0.9, 0.8, 0.7], [1.0, 0.5, 0.52, 0.53]
    ups = [0.9 - 0.1 * place for place in range(5)] + [0.5 + 0.1 * place for place in range(25)]
    assert not bench_curves.patience(falling, [], [], 2) and bench_curves.patience(rising, [], [], 2)
    assert bench_curves.generalisation_loss(rising, [], []) and not bench_curves.generalisation_loss(falling, [], [])
    assert bench_curves.successive_strips(ups, [], []) and not bench_curves.successive_strips(ups[:20], [], [])
    assert bench_curves.sagemaker_overfit(rising, [0.4] * 4, []) and not bench_curves.sagemaker_overfit(
        rising, rising, []
    )
    assert bench_curves.sagemaker_overtraining([1.0] * 11, [], [])
    assert not bench_curves.sagemaker_overtraining([1.0] * 10, [], [])
    assert bench_curves.umlaut(rising, falling, []) and not bench_curves.umlaut(rising, rising, [])
    assert bench_curves.low_correlation([1, 2, 1, 2], [], [0.1, 0.1, 0.9, 0.9])
    assert not bench_curves.low_correlation(falling, [], [0.1, 0.2, 0.3, 0.4])
    # 20 of 25 + 15 of 25 agree: observed 0.7, expected 0.5.
    pairs = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert bench_curves.kappa(pairs) == pytest.approx(0.4)
    assert bench_curves.interval(0, 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
