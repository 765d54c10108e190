"""What the diagnosis says of a kept run, and whether that is right.

A run's verdict is the set of first causes of its warnings, each event as it last stood; the benign causes, which are
never warnings, are taken from `info` events. `unknown` is no verdict.

- abstained: no cause was named.
- right: the planted cause is named, and every other named cause is true on the fresh sample as well.
- half right: the planted cause is named beside one that is not true.
- wrong: something was named, but not the planted cause.
- among: the planted cause stands in some event's list of causes, at whatever rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_lossacc.diagnosis import Event
from lightning_lossacc.diagnosis.catalogue import INFO_CAUSES
from lightning_lossacc.history import History, Record
from lightning_lossacc.scan import replay
from planted.symptoms import Run, shown, true_causes

Verdict = Literal["right", "half right", "wrong", "abstained"]
BENIGN = INFO_CAUSES


@dataclass(frozen=True, slots=True)
class Judged:
    """One run and its verdict.

    Attributes:
        cause, program, seed: the run.
        shown: whether the planted fault showed on fresh rows.
        true: causes that hold on the fresh sample.
        named: first causes of the warnings (and benign ones of infos, where such a one was planted).
        among: whether the planted cause stands in some event's list.
        events: number of warnings, and how many of them name a true cause.
        verdict: see above.
        first: last epoch-count at which the planted cause had not been named; -1 if it never was.
    """

    cause: str
    program: str
    seed: int
    shown: bool
    true: tuple[str, ...]
    named: tuple[str, ...]
    among: bool
    events: tuple[int, int]
    verdict: Verdict
    first: int


def reports(run: Run) -> list[Event]:
    """Every report on the kept records, by the diagnosis of today."""
    return replay(History(Record.from_json(line) for line in run["records"]))


def judge(run: Run) -> Judged:
    """The verdict on one run."""
    cause = run["cause"]
    last: dict[str, Event] = {}
    first, among = -1, False
    for event in reports(run):
        if event.status == "closed":
            continue
        last[event.id] = event
        among = among or any(item.cause == cause for item in event.causes)
        if event.cause == cause and first < 0:
            first = event.epoch
    warnings = [event for event in last.values() if event.level == "warning" and event.cause != "unknown"]
    named = {event.cause for event in warnings}
    if cause in BENIGN:
        named |= {event.cause for event in last.values() if event.cause == cause}
    true = true_causes(run) | ({cause} if shown(run) else set())
    verdict: Verdict = "wrong"
    if not named:
        verdict = "abstained"
    elif cause in named:
        verdict = "right" if named <= true else "half right"
    return Judged(
        cause,
        run["program"],
        run["seed"],
        shown(run),
        tuple(sorted(true)),
        tuple(sorted(named)),
        among,
        (len(warnings), sum(event.cause in true for event in warnings)),
        verdict,
        first,
    )
