"""`Event`: what happened to loss and accuracy, and its ranked causes, as plain numbers and words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lightning_lossacc.history import SCHEMA, to_json

Level = Literal["info", "warning"]
Status = Literal["open", "doubled", "revised", "closed"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One possible reason of an event.

    Attributes:
        cause: name from the table of causes, such as `"over-confidence"`.
        share: part of the loss change that this cause explains; NaN where that cannot be measured.
        evidence: sentences with the numbers that speak for it.
        against: sentences with the numbers that speak against it.
    """

    cause: str
    share: float
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, when, and why; one line of `events.jsonl`.

    Attributes:
        id: unique within a run: event, stage, loader and the step at which it opened.
        event: name from the table of events, such as `"loss-up-accuracy-flat"`.
        level: `"warning"` is shown in the terminal, `"info"` only in files and loggers.
        status: `"open"` once, `"doubled"` each time the change has doubled, `"revised"` when another first cause has
            held for five evaluations or information has become a warning, `"closed"` when it has gone.
        stage, loader: where it was seen.
        epoch, global_step: the evaluation that this report is about.
        reference_epoch, reference_step: the evaluation that it is compared with; the one that the probe holds.
        onset_epoch: first epoch from which the loss stayed on the far side of the reference.
        num_rows, num_items: size of the evaluation.
        causes: ranked, the most probable first.
        cause: name of the first cause.
        generalises: `"shown"` if the change holds on new data by the corrected paired interval, else `"not-shown"`.
        evidence: the numbers behind the message, by name.
        attribution: parts of the loss change that add up to it, by name.
        remedies: what to do, most specific first.
        message: the text that is shown everywhere, at most eight lines.
    """

    id: str
    event: str
    level: Level
    status: Status
    stage: str
    loader: int
    epoch: int
    global_step: int
    reference_epoch: int
    reference_step: int
    onset_epoch: int
    num_rows: int
    num_items: int
    causes: tuple[Cause, ...]
    generalises: Literal["shown", "not-shown"]
    evidence: dict[str, Any] = field(default_factory=dict)
    attribution: dict[str, Any] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()
    message: str = ""

    @property
    def cause(self) -> str:
        """Name of the most probable cause."""
        return self.causes[0].cause

    def to_json(self) -> str:
        """One line of strict JSON."""
        return to_json({"schema": SCHEMA, **asdict(self), "cause": self.cause})

    @classmethod
    def from_json(cls, line: str) -> Event:
        """The inverse of `to_json`."""
        data = json.loads(line)
        data.pop("schema", None)
        data.pop("cause", None)
        data["causes"] = tuple(
            Cause(
                item["cause"],
                float("nan") if item["share"] is None else item["share"],
                tuple(item["evidence"]),
                tuple(item["against"]),
            )
            for item in data["causes"]
        )
        data["remedies"] = tuple(data["remedies"])
        return cls(**data)

    def with_text(self, remedies: tuple[str, ...], message: str) -> Event:
        """The same event with its remedies and its final text."""
        return replace(self, remedies=remedies, message=message)
