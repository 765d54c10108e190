"""Every configuration shows what it was made for, while it trains and from its log alone.

Proved here: a full training of each opens the events that its header promises with the planted cause first, the
control opens none; the log of that very run, which holds no logits, gets the verdict that belongs to it, names the same
kind of event and no cause that the live run has not named.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_lossacc import cli
from lightning_lossacc.readers import find_sources
from lightning_lossacc.scan import Scanned, scan_source

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))

pytestmark = [
    # Lightning's own import of a deprecated torch name.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


@dataclass(frozen=True)
class Place:
    """One event that a run must report: how its name begins, live and from a log of scalars, and what may stand first
    when it is reported last.
    """

    event: str
    causes: frozenset[str]
    logged: str


@dataclass(frozen=True)
class Planted:
    """What a run must say, live and from its log."""

    places: tuple[Place, ...]
    verdict: str


def place(event: str, *causes: str, logged: str = "") -> Place:
    return Place(event, frozenset(causes), logged or event)


EXPECTED = {
    "article": Planted(
        (place("loss-down-accuracy-down", "class-trade-off"), place("loss-up-accuracy-", "over-confidence")),
        "diverging",
    ),
    # A dozen wrong rows carry the rise, so that its share of confidence is known only roughly.
    "breast_cancer": Planted((place("loss-up-accuracy-", "over-confidence", "mixed"),), "diverging"),
    # Units are watched, and seen dead before accuracy has stood still for long enough; a log has accuracy alone.
    "dead_relu": Planted((place("dead-layer", "dead-activations", logged="accuracy-stuck"),), "stuck"),
    "digits": Planted((place("loss-up-accuracy-", "over-confidence"),), "diverging"),
    "digits_label_noise": Planted((place("loss-up-accuracy-down", "label-noise"),), "diverging"),
    # Its accuracy is pinned to a class share, which is asked before the rise of its loss.
    "fraud": Planted((place("loss-up-accuracy-flat", "majority-collapse"),), "stuck"),
    "healthy": Planted((), "healthy"),
    "learning_rate_too_high": Planted((place("loss-up-accuracy-", "learning-rate-too-high"),), "unstable"),
}
SLOW = {"article", "breast_cancer", "digits", "healthy"}


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user's shell in an empty folder; what a command changes in this process is put back."""
    monkeypatch.chdir(tmp_path)
    # Lightning calls a method of jsonargparse by its former name.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def train(name: str, *words: str) -> list[dict[str, Any]]:
    """All reports of one full training, oldest first; its log is `csv/version_0/metrics.csv`."""
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "name": "csv"}}
    options = ("--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false")
    assert cli.main(["fit", "--config", name, f"--trainer.logger={json.dumps([logger])}", *options, *words]) == 0
    paths = list(Path("csv").rglob("events.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def scanned() -> Scanned:
    """What the log of that training says by itself."""
    (source,), missing = find_sources(["csv/version_0/metrics.csv"])
    (result,) = scan_source(source)
    assert missing == [] and isinstance(result, Scanned)
    return result


def names(event: dict[str, Any]) -> list[str]:
    return [cause["cause"] for cause in event["causes"]]


def test_every_config_is_expected_to_show_something() -> None:
    assert [path.stem for path in CONFIGS] == sorted(EXPECTED)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EXPECTED]
)
def test_training_names_the_planted_cause_and_its_log_agrees(name: str) -> None:
    planted, reports = EXPECTED[name], train(name)
    warnings = [event for event in reports if event["level"] == "warning"]
    if not planted.places:
        assert warnings == []
    for wanted in planted.places:
        there = [event for event in warnings if event["event"].startswith(wanted.event)]
        assert there, [(event["event"], names(event)) for event in reports]
        assert names(there[-1])[0] in wanted.causes, [(event["event"], names(event)) for event in there]
    result = scanned()
    assert result.verdict == planted.verdict, result.reason
    said = [event for event in result.events if event.level == "warning"]
    for wanted in planted.places:
        assert any(event.event.startswith(wanted.logged) for event in said), result.events
    assert planted.places or said == []
    known = {cause for event in reports for cause in names(event)} | {"unknown"}
    assert {cause.cause for event in said for cause in event.causes} <= known
    assert result.warns == bool(planted.places)


def test_two_causes_of_fraud_stand_together() -> None:
    reports = train("fraud", "--trainer.max_epochs=12")
    risen = [event for event in reports if event["event"].startswith("loss-up")]
    assert names(risen[-1])[0] == "majority-collapse" and "over-confidence" in names(risen[-1])


def test_the_two_places_of_the_article_do_not_overlap() -> None:
    """The dip alone, in the fifth of the run that holds it."""
    reports = train("article", "--trainer.max_epochs=75")
    dip = [event for event in reports if event["event"] == "loss-down-accuracy-down"]
    assert [event["status"] for event in dip][:: len(dip) - 1] == ["open", "closed"]
    assert {names(event)[0] for event in dip} == {"class-trade-off"}
    assert not any(event["event"].startswith("loss-up") for event in reports)
