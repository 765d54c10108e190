"""The benchmarks run, write valid JSON lines, end with one JSON document, and refuse to time what measures nothing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "benchmarks"
# From Lightning 2.6 with torch 2.13, once a data loader is set up.
_PYTREE = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by name, as running it as a script does."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


def run(name: str, directory: Path, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """Lines of the result file, the last line of standard output, and all of it."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / f"bench_{name}.py"), "--seconds", "0", "--results", str(directory), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOSSACC": "0"},
        cwd=directory,
    )
    assert done.returncode == 0, done.stderr
    lines = (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [path.name for path in directory.iterdir()] == [f"{name}.jsonl"]
    return [json.loads(line) for line in lines], json.loads(done.stdout.splitlines()[-1]), done.stdout


def check(rows: list[dict[str, Any]], summary: dict[str, Any], name: str) -> None:
    """What holds for the results of every benchmark."""
    stamp = rows[0]
    assert stamp["table"] == "run" and stamp["benchmark"] == summary["benchmark"] == name
    assert stamp["threads"] == 1 and stamp["torch"] == torch.__version__ and stamp["processor"]
    for row in rows:
        if "median" in row:
            assert row["p20"] <= row["median"] <= row["p80"] and row["repeats"] >= 3, row
    bars = [row for row in rows if row["table"] == "target"]
    assert {row["target"] for row in bars} == set(summary["targets"])
    for bar, found in summary["targets"].items():
        verdicts = [row["verdict"] for row in bars if row["target"] == bar]
        assert sum(verdicts.count(verdict) for verdict in ("holds", "undecided", "missed")) == len(verdicts)
        assert all(found[verdict] == verdicts.count(verdict) for verdict in ("holds", "undecided", "missed"))


# One case with every target, one with channels first and few classes, one in half precision.
def test_bench_update(tmp_path: Path) -> None:
    rows, summary, output = run("update", tmp_path, "--cases", "64x1000", "2x7x3x4", "32x100:bfloat16")
    check(rows, summary, "update")
    times = {(tuple(row["shape"]), row["provider"]): row["median"] for row in rows if row["table"] == "update"}
    assert {shape for shape, _ in times} == {(64, 1000), (2, 7, 3, 4), (32, 100)}
    assert all(milliseconds > 0 for milliseconds in times.values())
    for shape in ((64, 1000), (2, 7, 3, 4), (32, 100)):
        assert times[shape, "torchmetrics"] > times[shape, "torchmetrics without top-5"]
    agreement = [row for row in rows if row["table"] == "agreement"]
    assert [row["dtype"] for row in agreement] == ["float32", "float32", "bfloat16"]
    assert agreement[0]["right"] == pytest.approx(0.8, abs=1.5 / 64)
    limits = {row["target"] for row in rows if row["table"] == "target" and row["where"] == "32x100 bfloat16"}
    assert not [name for name in limits if "cross_entropy" in name], "those bars are for float32"
    assert len({row["target"] for row in rows if row["table"] == "target"}) == 5
    assert "torchmetrics macro" in output and "verdict" in output


def test_bench_step(tmp_path: Path) -> None:
    # LOSSACC=0 of the environment would switch the monitor off; the benchmark must not inherit it.
    rows, summary, output = run("step", tmp_path, "--epochs", "3", "--batches", "2")
    check(rows, summary, "step")
    measured = [row for row in rows if row["table"] == "step"]
    assert {row["phase"] for row in measured} == {"training a step", "median step", "validation", "fit"}
    assert len(measured) == 2 * 4 * 4 and len({row["model"] for row in measured}) == 2
    times = {(row["model"], row["phase"], row["provider"]): row["median"] for row in measured if row["unit"] == "ms"}
    for model in {row["model"] for row in measured}:
        for provider in ("without", "with"):
            step, median = times[model, "training a step", provider], times[model, "median step", provider]
            assert 0 < median < times[model, "fit", provider] and step > 0
    assert [row["limit"] for row in rows if row["table"] == "target"] == [2.0, 2.0]
    assert "overhead" in output


@_PYTREE
def test_step_refuses_a_monitor_that_measures_nothing(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench_step = scripts("bench_step")
    monkeypatch.setenv("LOSSACC", "0")
    pair = bench_step.Pair(bench_step.wide(3), 2)
    pair.run_without()
    clock = pair.without[0]
    # The first epoch is dropped; the last step of an epoch has no next one.
    assert (len(clock.training), len(clock.steps), len(clock.validations), len(clock.fit)) == (1, 2, 1, 1)
    with pytest.raises(RuntimeError, match="Expected the monitor to measure 2 epochs"):
        pair.run_monitored()


def test_clock_leaves_nothing_out(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work between the last step and the next epoch is training, unless it is within the validation."""
    bench_step = scripts("bench_step")
    now = iter([0.0, *(10.0, 11.0, 13.0), *(20.0, 26.0), 40.0])
    monkeypatch.setattr(bench_step.time, "perf_counter", lambda: next(now))
    clock, trainer = bench_step.Clock(), SimpleNamespace(current_epoch=0)
    clock.on_train_epoch_start(trainer, None)
    for _ in range(3):
        clock.on_train_batch_start(trainer, None, 0)
    clock.on_validation_start(trainer, None)
    clock.on_validation_end(trainer, None)
    trainer.current_epoch = 1
    clock.on_train_epoch_start(trainer, None)
    assert clock.training == clock.steps == clock.validations == [], "the first epoch is dropped"
    now = iter([41.0, 42.0, 44.0, 50.0, 56.0, 61.0])
    for _ in range(3):
        clock.on_train_batch_start(trainer, None, 0)
    clock.on_validation_start(trainer, None)
    clock.on_validation_end(trainer, None)
    clock.on_train_end(trainer, None)
    # From 40 to 61 without 6 of validation, by 3 batches.
    assert (clock.training, clock.steps, clock.validations) == ([5.0], [1.0, 2.0], [6.0])


@_PYTREE
def test_step_refuses_other_weights(scripts: Any) -> None:
    bench_step = scripts("bench_step")
    fit = bench_step.wide(2)
    fits = []

    def other_seed(trainer: Any) -> Any:
        torch.manual_seed(len(fits))
        fits.append(trainer)
        return fit(trainer)

    pair = bench_step.Pair(other_seed, 2)
    pair.run_without()
    with pytest.raises(RuntimeError, match=r"same weights, but got other network\.0\.weight"):
        pair.run_without()


def test_update_refuses_other_numbers(scripts: Any) -> None:
    bench_update = scripts("bench_update")
    case = bench_update.Case.parse("64x10")
    logits, target = bench_update.classifier_logits(case)
    parts = bench_update.torchmetrics_parts(10)
    ours = bench_update.LossAccuracy(num_classes=10, temperatures=())
    assert max(bench_update.same_numbers(ours, parts, logits, target)["differences"].values()) < 2e-4
    with pytest.raises(RuntimeError, match=r"agree within 0\.0002, but they differ"):
        bench_update.same_numbers(ours, parts | {"micro": parts["top-5"]}, logits, target)


# The right share and confidence of many and of few classes, in both layouts; channels first is contiguous.
@pytest.mark.parametrize("text", ["500x1000", "2000x10", "2x5x20x30"])
def test_logits_are_of_a_calibrated_classifier(scripts: Any, text: str) -> None:
    bench_update = scripts("bench_update")
    case = bench_update.Case.parse(text)
    logits, target = bench_update.classifier_logits(case)
    assert tuple(logits.shape) == case.shape and target.shape == (case.shape[0], *case.shape[2:])
    assert logits.is_contiguous()
    assert (logits.argmax(1) == target).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert logits.softmax(1).amax(1).mean().item() == pytest.approx(0.8, abs=0.05)


def main(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Runs a benchmark's command line in this process."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
    script.main()


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_bench_watchers(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One network: both targets, and the watched copy saw all that it may see."""
    bench = scripts("bench_watchers")
    monkeypatch.setattr(bench, "NETWORKS", dict(list(bench.NETWORKS.items())[:1]))
    main(bench, monkeypatch, "--seconds", "0", "--results", str(tmp_path))
    rows = read_rows(tmp_path / "watchers.jsonl")
    assert rows[0]["benchmark"] == "watchers" and sum(row["table"] == "target" for row in rows) == 2
    (seen,) = [row for row in rows if row["table"] == "seen"]
    assert {"gradient_norm", "update_ratio", "dead_units"} <= set(seen)


def test_bench_forecast(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One real network and each simulated series once; rates lie within their intervals."""
    bench = scripts("bench_forecast")
    monkeypatch.setattr(bench, "NETWORKS", bench.NETWORKS[7:8])
    main(bench, monkeypatch, "--runs", "1", "--seeds", "1", "--results", str(tmp_path / "forecast.jsonl"))
    rows = read_rows(tmp_path / "forecast.jsonl")
    assert rows[0]["table"] == "run" and sum(row["table"] == "real" for row in rows) == 4
    assert {row["series"] for row in rows if row["table"] == "simulated"} == set(bench.families())
    given = [row for row in rows if row.get("given")]
    assert given and all(row["low"] <= row["rate"] <= row["high"] for row in given)


def test_bench_attribution(scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole runs of one plan: what is exact by construction holds; a table that is not asked for stays as it was."""
    bench = scripts("bench_attribution")
    monkeypatch.setattr(bench, "CAUSES", {"over-confidence": bench.CAUSES["over-confidence"]})
    path = tmp_path / "attribution.jsonl"
    main(bench, monkeypatch, "--runs", "1", "--tables", "temperature", "--results", str(path))
    before = read_rows(path)
    main(bench, monkeypatch, "--runs", "2", "--tables", "recovery", "--results", str(path))
    rows = read_rows(path)
    assert rows[: len(before)] == before and len(rows) > len(before)
    found = {row["what"]: row.get("rate") for row in rows if row.get("plan") == "over-confidence"}
    exact = ("the rise is reported", "flips equal those of the logits", "parts add up within 1e-9")
    assert [found[what] for what in exact] == [1.0] * 3


def test_attribution_knows_its_truth(scripts: Any) -> None:
    """Its tables hold rates and errors; a planted prior shift is found, and errors by row are smaller than by item."""
    bench = scripts("bench_attribution")
    found = list(bench.fits(2))
    rates = {(row["truth"], row["family"]): row["rate"] for row in found if "family" in row and row["classes"] == 2}
    assert rates["prior shift", "bias"] == 1.0 and rates["one temperature", "temperature"] == 1.0
    assert all(row["low"] <= row["rate"] <= row["high"] for row in found if "rate" in row)
    table = {(row["design"][:3], row["errors"], row["nominal"]): row["rate"] for row in bench.level(20, population=1)}
    assert table["150", "by row", 0.05] > table["150", "by item", 0.05]
    population = bench.Population()
    assert population.nll(1.0, 2.0) < population.nll(1.0, 1.8) < population.nll(2.0, 1.8)
    planned = bench.plan("mixed", torch.Generator().manual_seed(1), population)
    first, last = 9, len(planned.scale) - 1
    rise = population.nll(planned.scale[last], planned.separation[last]) - population.nll(
        1.0, planned.separation[first]
    )
    left = population.nll(1.0, planned.separation[last]) - population.nll(1.0, planned.separation[first])
    assert 0.25 < left / rise < 0.5


# Trains, keeps and judges in one process of its own: a training sets seeds and filters of its process.
_PLANTED = """
import gzip, json, sys
from pathlib import Path
import bench_checkpoints, bench_diagnosis, bench_healthy

cache, results = Path(sys.argv[1]), sys.argv[2]
def main(script, *arguments):
    sys.argv = [script.__name__, *arguments, "--cache", str(cache), "--results", results]
    script.main()

main(bench_healthy, "train", "--part", "dev", "--count", "1")
(path,) = (cache / "healthy-dev").glob("*.json.gz")
kept = path.stat().st_mtime_ns
main(bench_healthy, "train", "--part", "dev", "--count", "1")
assert path.stat().st_mtime_ns == kept, "what is kept is not trained again"
main(bench_healthy, "judge", "--part", "dev", "--runs")
run = json.loads(gzip.decompress(path.read_bytes())) | {"cause": "over-confidence"}
(cache / "planted-dev" / "over-confidence").mkdir(parents=True)
(cache / "planted-dev" / "over-confidence" / path.name).write_bytes(gzip.compress(json.dumps(run).encode()))
main(bench_diagnosis, "judge", "--part", "dev", "--causes", "over-confidence", "--runs")
main(bench_checkpoints, "--part", "dev")
"""


def test_planted_faults_healthy_runs_and_checkpoints(tmp_path: Path) -> None:
    """One kept run goes through the three command lines that judge; only the part "report" writes results."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PLANTED, str(tmp_path / "cache"), str(tmp_path / "results")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "1 runs, of which healthy on fresh rows: " in done.stdout
    assert "of 2 runs the loss-best checkpoint cost" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("over-confidence ")]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("text", ["1000", "8x", "0x10", "8x10:int8", "axb"])
def test_case_says_what_it_expects(scripts: Any, text: str) -> None:
    with pytest.raises(Exception, match="Expected a case to be like 16384x1000"):
        scripts("bench_update").Case.parse(text)


def test_interleave_runs_in_turn_and_drops_the_first_round(scripts: Any) -> None:
    order: list[str] = []
    operations = {name: (lambda name=name: order.append(name)) for name in "ab"}
    hooks = {"prepare": lambda: order.append("|"), "touch": lambda: order.append(".")}
    times = scripts("measure").interleave(operations, **hooks, seconds=0, least=2, most=4)
    assert "".join(order) == "|.a.b" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all((values >= 0).all() for values in times.values())


# Two ends: time left but enough rounds, and no time left but too few.
@pytest.mark.parametrize(("seconds", "rounds"), [(60.0, 4), (0.0, 2)])
def test_interleave_ends(scripts: Any, seconds: float, rounds: int) -> None:
    times = scripts("measure").interleave({"a": int}, seconds=seconds, least=2, most=4)
    assert len(times["a"]) == rounds


def test_quantiles(scripts: Any) -> None:
    found = scripts("measure").Quantiles.of(np.arange(11.0))
    assert (found.median, found.p20, found.p80, found.repeats) == (5.0, 2.0, 8.0, 11)
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite measurements"):
            scripts("measure").Quantiles.of(values)


# At, beyond and around the limit, from below and from above; equality holds. Of the numbers from 0 to 9 the 20 % and
# 80 % quantiles are 1.8 and 7.2.
@pytest.mark.parametrize(
    ("at_most", "limit", "verdict"),
    [
        (True, 7.2, "holds"),
        (True, 7.1, "undecided"),
        (True, 1.8, "undecided"),
        (True, 1.7, "missed"),
        (False, 1.8, "holds"),
        (False, 1.9, "undecided"),
        (False, 7.2, "undecided"),
        (False, 7.3, "missed"),
    ],
)
def test_verdict(scripts: Any, at_most: bool, limit: float, verdict: str) -> None:
    measure = scripts("measure")
    found = measure.Quantiles(median=4.5, p20=1.8, p80=7.2, repeats=10)
    assert measure.Quantiles.of(np.arange(10.0)) == found
    target = measure.Target("bar", "place", limit, found, at_most)
    assert target.verdict == target.row()["verdict"] == verdict


def test_report_replaces_the_file(scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure = scripts("measure")
    bars = [measure.Target("bar", place, 2.0, measure.Quantiles.of([value])) for place, value in (("x", 1), ("y", 3))]
    for number in (1, 2):
        measure.report("one", [{"table": "t", "number": number}], bars, {"threads": 1}, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["table"] for row in rows] == ["run", "t", "target", "target"] and rows[1]["number"] == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["targets"]["bar"] == {"limit": 2.0, "worst": 3.0, "holds": 1, "undecided": 0, "missed": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        measure.report("one", [{"number": math.nan}], [], {}, tmp_path)
    assert len((tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()) == 4, "the earlier file stays"


def test_environment(scripts: Any) -> None:
    measure = scripts("measure")
    stamp = json.loads(json.dumps(measure.environment()))
    assert {"processor", "cores", "threads", "python", "torch", "lightning", "torchmetrics"} <= set(stamp)
    if (ROOT / ".git").exists():
        assert len(stamp["commit"]) == 40 and stamp["dirty"] in (True, False)
    else:
        assert stamp["commit"] is None


def test_dirty_is_about_code_and_not_about_results(scripts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    measure = scripts("measure")
    monkeypatch.setattr(measure, "ROOT", tmp_path)

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, timeout=30)

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "--message", "first")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "step.jsonl").write_text("{}")
    commit, dirty = measure._commit()
    assert len(commit) == 40 and dirty is False
    (tmp_path / "code.py").write_text("2")
    assert measure._commit() == (commit, True)
    monkeypatch.setattr(measure, "ROOT", results)
    assert measure._commit() == (None, None), "another project's repository around ours says nothing"
