"""What was measured, as plain numbers: one `Record` an evaluation, a `History` of them, JSON lines both ways.

Nothing here knows tensors, files' meaning or a Trainer, so that the diagnosis can be tested with numbers alone and run
again on a file that was written months ago. Strict JSON has no NaN or infinity: both are written as null and come back
as NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One evaluation of one stage and data loader.

    Attributes:
        stage: `"train"`, `"val"` or `"test"`.
        loader: index of the data loader; -1 for the union of several loaders whose layouts agree.
        epoch: epoch in which the evaluation ended, from 0, as Lightning counts.
        global_step: number of optimizer steps taken when the evaluation ended.
        time: seconds since the epoch of the system clock.
        complete: False if a part of the evaluation is missing (a resumed, interrupted or limited one); such a record
            is kept but stays out of every trend.
        num_rows: predictions that count (neither ignored, invalid nor non-finite).
        num_items: entries of the data set (images, sequences) that hold at least one such row; the unit of sampling.
        values: the scalars of `LossAccuracy.compute()`, by the same keys.
        arrays: reliability bins, margin histogram and per-class table as nested lists of numbers.
        logged: loss and accuracy that the user's own code logged under other names; never called `nll`.
        paired: comparison with a kept earlier evaluation of the same items, by the name of the reference (`"nll"`,
            `"accuracy"`); see `probe.py`.
        context: what training looked like up to this evaluation: NLL and accuracy of its steps, learning rate, gradient
            norm, dead units …; keys are absent where unknown.
    """

    stage: str
    loader: int
    epoch: int
    global_step: int
    time: float
    complete: bool
    num_rows: int
    num_items: int
    values: dict[str, float]
    arrays: dict[str, Any] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    paired: dict[str, dict[str, Any]] = field(default_factory=dict)
    context: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of strict JSON."""
        # Not `asdict`, whose deep copy of every number took four times as long.
        return to_json({"schema": SCHEMA} | {item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of `to_json`; unknown keys of newer schemas are dropped.

        Raises:
            ValueError: if the line is no JSON object or a required field is missing.
        """
        data = _from_null(json.loads(line))
        if not isinstance(data, dict):
            raise ValueError(f"Expected a JSON object, but got {type(data).__name__}.")
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except TypeError as error:
            raise ValueError(f"Expected the fields of a Record, but got {sorted(data)}: {error}") from None


class History:
    """Records in the order in which they were measured."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(records)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def append(self, record: Record) -> None:
        """Adds the newest record."""
        self.records.append(record)

    def series(self, stage: str = "val", loader: int = 0, complete: bool = True) -> list[Record]:
        """Records of one stage and loader, oldest first; without incomplete ones unless `complete` is False."""
        return [
            record
            for record in self.records
            if record.stage == stage and record.loader == loader and (record.complete or not complete)
        ]

    def measured(self, stage: str = "val", loader: int = 0) -> list[Record]:
        """Complete records of one stage and loader with a finite NLL: those that can be compared."""
        return [record for record in self.series(stage, loader) if math.isfinite(record.values.get("nll", math.nan))]

    def column(self, key: str, stage: str = "val", loader: int = 0) -> list[float]:
        """One scalar over the complete records of one stage and loader; NaN where a record lacks it."""
        return [record.values.get(key, math.nan) for record in self.series(stage, loader)]

    def streams(self) -> list[tuple[str, int]]:
        """The pairs of stage and loader that occur, in order of first appearance."""
        return list(dict.fromkeys((record.stage, record.loader) for record in self.records))

    def write(self, path: Path | str) -> None:
        """Writes all records as JSON lines, replacing the file."""
        Path(path).write_text("".join(record.to_json() + "\n" for record in self.records), encoding="utf-8")

    @classmethod
    def read(cls, path: Path | str) -> History:
        """Reads a JSON-lines file; a last line cut off by a crash is dropped.

        Raises:
            ValueError: if any line but the last cannot be read; the message names the line.
        """
        return cls.parse(Path(path).read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> History:
        """The same from the text of such a file, and its name for messages."""
        history = cls()
        lines = text.removesuffix("\n").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                history.append(Record.from_json(line))
            except ValueError as error:
                if number == len(lines):
                    break
                raise ValueError(f"{name}, line {number}: {error}") from None
        return history


def to_json(data: Any) -> str:
    """One line of strict JSON; NaN and infinity become null."""
    return json.dumps(_to_null(data), allow_nan=False, ensure_ascii=False)


def _to_null(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {str(key): _to_null(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_to_null(value) for value in data]
    return data


def _from_null(data: Any) -> Any:
    if data is None:
        return math.nan
    if isinstance(data, dict):
        return {key: _from_null(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_from_null(value) for value in data]
    return data
