"""The tables of a report: checkpoints, quantities by epoch, parts of a change, worst items; numbers become text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lossacc.curves import Curves, best, last
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.history import History, Record

# Rows of the tables by epoch of all streams; of more evaluations evenly spaced ones and the best are shown.
MAX_ROWS = 150
MISSING = "–"
# Beside the epoch of the best evaluations.
MARKS = {"ᴸ": "lowest loss", "ᴬ": "highest accuracy", "ᴿ": "lowest refined NLL"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text; the first cell of each row names it.

    Attributes:
        caption: what it shows.
        columns: heads of the columns.
        rows: cells.
        note: what is left out, or empty.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One quantity of the table by epoch: its head, key, factor, digits and sign."""

    head: str
    key: str
    factor: float = 1.0
    digits: int = 4
    signed: bool = False

    def cell(self, values: Mapping[str, float]) -> str:
        """The number as text."""
        return number(self.factor * values.get(self.key, math.nan), self.digits, self.signed)


NUMBERS = (
    Column("NLL (nats)", "nll"),
    Column("accuracy (%)", "accuracy", 100, 2),
    Column("balanced (%)", "balanced_accuracy", 100, 2),
    Column("refined NLL", "refinement_nll"),
    Column("T", "temperature", digits=2),
    Column("over-conf. (pp)", "overconfidence", 100, 2, signed=True),
    Column("ECE (pp)", "ece", 100, 2),
    Column("5 % margin", "margin_p05", digits=2),
)
LOGGED = (Column("loss", "loss"), Column("accuracy (%)", "accuracy", 100, 2))
TRAINING = (Column("train NLL", "train_nll"), Column("train accuracy (%)", "train_accuracy", 100, 2))
LOGGED_TRAINING = (Column("train loss", "train_loss"), Column("train accuracy (%)", "train_accuracy", 100, 2))


def number(value: float, digits: int = 4, signed: bool = False) -> str:
    """A number with so many digits after the point; large, tiny and missing ones are told in other ways."""
    if not math.isfinite(value):
        return MISSING
    if value and (abs(value) >= 1e6 or abs(value) < 0.5 * 10**-digits):
        return f"{value:+.2g}" if signed else f"{value:.2g}"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def checkpoints(curves: Curves) -> Table | None:
    """The evaluations best by loss, accuracy and NLL after one temperature, and the last one, with their numbers."""
    name, losses = curves.loss()
    lowest = (
        (name, best(losses)),
        ("accuracy", best(curves.accuracy(), sign=-1)),
        ("refined NLL", best(curves.column("refinement_nll"))),
        ("last", len(curves.records) - 1 if curves.records else None),
    )
    columns = _columns(curves)
    rows = tuple(
        (label, str(record.epoch), str(record.global_step), *(column.cell(_values(record)) for column in columns))
        for label, record in ((label, curves.records[index]) for label, index in lowest if index is not None)
    )
    heads = ("best by", "epoch", "step", *(column.head for column in columns))
    return Table("Which checkpoint is best depends on what you ask for", heads, rows) if rows else None


def by_epoch(history: History, curves: Curves, rows: int = MAX_ROWS) -> Table | None:
    """All quantities by evaluation, in so many rows and those of the best ones."""
    if not curves.records:
        return None
    shown = list(curves.thinned(rows).records)
    marks = _best_marks(curves)
    shown += [record for record in marks.values() if all(record is not other for other in shown)]
    shown.sort(key=lambda record: (record.epoch, record.global_step))
    measured = curves.loss()[0] == "NLL"
    columns, training = _columns(curves), TRAINING if measured else LOGGED_TRAINING
    training = tuple(column for column in training if any(column.key in record.context for record in curves.records))
    cells = tuple(
        (
            f"{record.epoch}{''.join(sign for sign, other in marks.items() if other is record)}",
            str(record.global_step),
            *(column.cell(record.context) for column in training),
            *(column.cell(_values(record)) for column in columns),
        )
        for record in shown
    )
    note = ", ".join(f"{sign} {MARKS[sign]}" for sign in marks) + "." if marks else ""
    if len(shown) < len(curves.records):
        note += f" {len(shown)} of {len(curves.records)} evaluations: evenly spaced ones and the best."
    left_out = len(history.series(curves.records[0].stage, curves.records[0].loader, complete=False))
    left_out -= len(history.series(curves.records[0].stage, curves.records[0].loader))
    if left_out:
        note += f" {left_out} incomplete evaluations are left out."
    heads = ("epoch", "step", *(column.head for column in (*training, *columns)))
    return Table("Quantities by evaluation", heads, cells, note)


def worst_items(record: Record | None) -> Table | None:
    """Items whose loss rose most since the reference, by their position in the data set."""
    paired = {} if record is None else record.paired.get("nll", {})
    worst: Sequence[Mapping[str, Any]] = paired.get("worst", ())
    if not worst:
        return None
    rows = tuple(
        (
            f"#{item['index']}",
            str(item["target"]) if item["rows"] == 1 else MISSING,
            str(item["predicted"]) if item["rows"] == 1 else MISSING,
            number(item["nll_before"]),
            number(item["nll_after"]),
            number(item["change"], 5, signed=True),
        )
        for item in worst
    )
    return Table(
        f"Items whose loss rose most from epoch {paired['reference_epoch']} to {record.epoch}",
        ("item", "target", "predicted", "NLL before", "NLL now", "part of the mean change"),
        rows,
        "Position in the validation data set, from 0. Look at them: wrong labels and rare cases gather here.",
    )


def parts(attribution: Mapping[str, Any]) -> Table | None:
    """Parts of a loss change that add up to it: by rows, and by one temperature."""
    rows = [
        (name, number(value, signed=True), basis)
        for key, basis in (("by_group", "by rows"), ("by_temperature", "by one temperature"))
        for name, value in (attribution.get(key) or {}).items()
    ]
    if not rows:
        return None
    total = attribution.get("nll_change", attribution.get("full_nll_change", math.nan))
    rows.append(("together", number(total, signed=True), "each way"))
    return Table("Where the change came from", ("part", "nats", "split"), tuple(rows))


def before_and_after(event: Event) -> Table | None:
    """Loss, accuracy and temperature at the reference and at the report."""
    evidence, rows_known = event.evidence, event.num_rows > 0
    rows = []
    for name, key, factor, digits in (
        # A logged loss may be another one than the NLL.
        ("NLL (nats)" if rows_known else "loss", "nll", 1, 4),
        ("accuracy (%)", "accuracy", 100, 2),
        ("best temperature", "temperature", 1, 2),
    ):
        before, after = (_float(evidence.get(f"{key}_{when}")) * factor for when in ("before", "after"))
        if math.isfinite(before) and math.isfinite(after):
            change = number(after - before, digits, signed=True)
            rows.append((name, number(before, digits), number(after, digits), change))
    return Table("Reference and now", ("quantity", "reference", "now", "change"), tuple(rows)) if rows else None


def newest(curves: Curves) -> Record | None:
    """The last evaluation with a finite loss."""
    index = last(curves.loss()[1])
    return None if index is None else curves.records[index]


def _columns(curves: Curves) -> tuple[Column, ...]:
    columns = NUMBERS if curves.loss()[0] == "NLL" else LOGGED
    return tuple(column for column in columns if any(column.key in _values(record) for record in curves.records))


def _values(record: Record) -> Mapping[str, float]:
    return record.values or record.logged


def _best_marks(curves: Curves) -> dict[str, Record]:
    lowest = (best(curves.loss()[1]), best(curves.accuracy(), sign=-1), best(curves.column("refinement_nll")))
    return {sign: curves.records[index] for sign, index in zip(MARKS, lowest, strict=True) if index is not None}


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
