"""From rows of a log to the evaluations of a run: merged, in order, without what a resumed run wrote twice.

A row is what was logged at one moment: a cell is absent if nothing was logged, and NaN or infinite if that was logged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from lightning_lossacc.history import History, Record
from lightning_lossacc.readers.columns import Columns, guess, is_error, not_judged
from lightning_lossacc.readers.epochs import epochs_of
from lightning_lossacc.readers.units import unit_of

Row = dict[str, float]
# The role of columns that are matched and not read: those of other loaders and stages.
NOT_JUDGED = "not_judged"
# A test after the training is no curve.
MIN_CURVE = 3


class UnreadableError(ValueError):
    """A log from which no run can be read; the text is one line that says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run as it was logged.

    Attributes:
        name: path of the file or folder, with `#2`, `#3` … where one file holds several trainings.
        stage: stage of the records that are judged: `"val"`, or `"train"` if nothing else was logged.
        matched: column names by role; `"1 - x"` where the column `x` holds an error rate; under `not_judged` those of
            other loaders and stages.
        history: records with `logged` loss and accuracy (or full records of our own history).
        notes: what was done to the log so that it could be read, one sentence each.
    """

    name: str
    stage: str
    matched: dict[str, str]
    history: History
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Evaluation:
    """Cells of one evaluation and the index of the first row that they came from."""

    cells: Row
    row: int
    key: float


@dataclass(frozen=True, slots=True)
class Sharpening:
    """What the user knows and the log does not say.

    Attributes:
        num_classes: number of classes, for the chance level and ln C.
        val_size: rows of the validation set, for its sampling error.
    """

    num_classes: int | None = None
    val_size: int | None = None


@dataclass(slots=True)
class _Reading:
    """One table while it is read."""

    rows: list[Row]
    columns: Columns
    percent: set[str]
    sharpening: Sharpening
    stage: str = "val"
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def runs_of(
    name: str,
    rows: list[Row],
    given: Columns | None = None,
    sharpening: Sharpening | None = None,
    percent: frozenset[str] = frozenset(),
    notes: Sequence[str] = (),
) -> list[Run]:
    """The runs of one table of logged rows, oldest first.

    Args:
        name: how the run is called.
        rows: rows in the order in which they were written.
        given: columns that the user named.
        sharpening: what is known beside the log.
        percent: columns that were written with a percent sign.
        notes: what was done so far to read them.

    Raises:
        UnreadableError: if no loss and no accuracy is found, or a given column is not there.
    """
    names = list(dict.fromkeys(key for row in rows for key in row))
    try:
        columns = guess(names, given)
    except KeyError as error:
        raise UnreadableError(f"no column {error.args[0]!r}; there are: {_listed(names)}") from None
    stage = "val"
    if columns.loss is None and columns.accuracy is None:
        if columns.train_loss is None and columns.train_accuracy is None:
            raise UnreadableError(f"no column that looks like a loss or an accuracy among: {_listed(names)}")
        stage = "train"
        columns = Columns(
            loss=columns.train_loss,
            accuracy=columns.train_accuracy,
            epoch=columns.epoch,
            step=columns.step,
            learning_rate=columns.learning_rate,
        )
    reading = _Reading(rows, columns, set(percent), sharpening or Sharpening(), stage, list(notes))
    _decide_units(reading)
    _name_others(reading, names)
    evaluations = _evaluations(reading)
    if not evaluations:
        raise UnreadableError(f"no row has a value of {_listed(_judged(columns))}")
    trainings = _trainings(reading, evaluations)
    rows, runs, start = reading.rows, [], 0
    for number, training in enumerate(trainings, start=1):
        label = name if len(trainings) == 1 else f"{name}#{number}"
        stop = len(rows) if number == len(trainings) else max(entry.row for entry in training) + 1
        runs.append(_run(label, reading, training, rows[:stop], start))
        start = stop
    return runs


def _name_others(reading: _Reading, names: list[str]) -> None:
    """Losses and accuracies of other loaders and stages that were logged more than once in a while."""
    others = not_judged(names, reading.columns)
    reading.others = [name for name in others if sum(name in row for row in reading.rows) >= MIN_CURVE]
    if reading.others:
        reading.notes.append(f"not judged: {_listed(reading.others)}; --loss and --accuracy choose them")


def _judged(columns: Columns) -> list[str]:
    return [name for name in (columns.loss, columns.accuracy) if name is not None]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return shown + (f" … ({len(names)} columns)" if len(names) > 12 else "") if names else "(none)"


def _decide_units(reading: _Reading) -> None:
    """Percent or fraction, for each column as a whole; single values that can be neither are left out."""
    for role in ("accuracy", "train_accuracy"):
        name = getattr(reading.columns, role)
        if name is None:
            continue
        values = [row[name] for row in reading.rows if name in row]
        unit = unit_of(name, values, name in reading.percent)
        if unit is None:
            finite = [value for value in values if math.isfinite(value)]
            raise UnreadableError(
                f"column {name!r} was taken for an accuracy, but holds values from {min(finite):g} to {max(finite):g}; "
                f"name the right one with --{role.replace('_', '-')}"
            )
        if unit.is_percent:
            reading.percent.add(name)
            reading.notes.append(f"{name} read as percent")
        else:
            reading.percent.discard(name)
        if unit.strays:
            reading.rows = [
                {column: value for column, value in row.items() if column != name or not _is_stray(value, unit.largest)}
                for row in reading.rows
            ]
            reading.notes.append(
                f"left out, as no accuracy is so large or small: {unit.strays} of {len(values)} {name}"
            )


def _is_stray(value: float, largest: float) -> bool:
    return math.isfinite(value) and not 0 <= value <= largest


def _evaluations(reading: _Reading) -> list[_Evaluation]:
    """Rows with a judged value, neighbours of one moment merged, in the order of the file."""
    columns, judged = reading.columns, _judged(reading.columns)
    found: list[_Evaluation] = []
    last_key = math.nan
    for index, row in enumerate(reading.rows):
        cells = {name: row[name] for name in judged if name in row}
        if not cells or _is_filler(row, cells, columns):
            continue
        for name in (columns.epoch, columns.step, columns.learning_rate):
            if name is not None and name in row:
                cells[name] = row[name]
        key = _key(row, columns, len(found))
        # Loss and accuracy of one evaluation may stand on different rows.
        if found and key == last_key and not any(name in found[-1].cells for name in judged if name in cells):
            found[-1].cells.update(cells)
            continue
        found.append(_Evaluation(cells, index, key))
        last_key = key
    return _joined(found, judged)


def _joined(found: list[_Evaluation], judged: list[str]) -> list[_Evaluation]:
    """Evaluations whose loss and accuracy were written far apart, as one for each key."""
    lacking = [entry for entry in found if not all(name in entry.cells for name in judged)]
    if len(judged) < 2 or not lacking:
        return found
    partners: dict[float, _Evaluation] = {}
    joined: list[_Evaluation] = []
    for entry in found:
        partner = partners.get(entry.key)
        if partner is not None and not any(name in partner.cells for name in judged if name in entry.cells):
            partner.cells.update({**entry.cells, **partner.cells})
        else:
            partners[entry.key] = entry
            joined.append(entry)
    return joined


def _is_filler(row: Row, cells: Row, columns: Columns) -> bool:
    """Whether NaN stands for "not logged here": nothing judged is finite while the training loss of the row is."""
    if any(math.isfinite(value) for value in cells.values()) or any(math.isinf(value) for value in cells.values()):
        return False
    return math.isfinite(row.get(columns.train_loss or "", math.nan))


def _key(row: Row, columns: Columns, position: int) -> float:
    for name in (columns.step, columns.epoch):
        if name is not None and math.isfinite(row.get(name, math.nan)):
            return row[name]
    return float(position)


def _trainings(reading: _Reading, evaluations: list[_Evaluation]) -> list[list[_Evaluation]]:
    """Evaluations of each training in a log, in order: sorted, resumed ones without what was written twice."""
    keys = [entry.key for entry in evaluations]
    if len(set(keys)) == len(keys):
        if keys != sorted(keys):
            reading.notes.append("rows were not in order and have been sorted")
            return [sorted(evaluations, key=lambda entry: entry.key)]
        return [evaluations]
    falls = [index for index in range(1, len(keys)) if keys[index] < keys[index - 1]]
    if not falls and 2 * len(set(keys)) <= len(keys) + 1:
        # Every key comes again: several evaluations an epoch, and nothing finer to tell them apart.
        return [evaluations]
    if any(keys[index] not in keys[:index] for index in falls):
        reading.notes.append(
            "rows were not in order and have been sorted; of several rows an epoch the last one counts"
        )
        latest = {entry.key: entry for entry in evaluations}
        return [[latest[key] for key in sorted(latest)]]
    trainings: list[list[_Evaluation]] = []
    current: list[_Evaluation] = []
    for entry in evaluations:
        if current and entry.key <= current[-1].key:
            if entry.key <= current[0].key and len(current) > 1:
                if _goes_on(reading, current, entry):
                    _shift(reading, evaluations, entry, current[-1])
                else:
                    trainings.append(current)
                    current = []
            else:
                kept = [earlier for earlier in current if earlier.key < entry.key]
                if len(kept) < len(current) - 1 or entry.key < current[-1].key:
                    reading.notes.append(f"resumed at {entry.key:g}: what was logged from there on before is dropped")
                current = kept
        current.append(entry)
    trainings.append(current)
    if len(trainings) > 1:
        reading.notes.append(f"the log holds {len(trainings)} trainings")
    return trainings


def _goes_on(reading: _Reading, current: list[_Evaluation], entry: _Evaluation) -> bool:
    """Whether a training whose count starts again continues the one before: it starts where that one ended."""
    for name in _judged(reading.columns):
        values = [where.cells.get(name, math.nan) for where in (current[0], current[-1], entry)]
        if all(math.isfinite(value) for value in values):
            first, last, start = values
            return abs(start - last) < abs(start - first) / 2
    return False


def _shift(reading: _Reading, evaluations: list[_Evaluation], entry: _Evaluation, last: _Evaluation) -> None:
    """Counts `entry` and all after it on from `last`."""
    reading.notes.append("the count starts again while the training goes on: counted on")
    places = [evaluation.key for evaluation in evaluations]
    spacing = min((b - a for a, b in pairwise(places) if b > a), default=1.0)
    offset = last.key + spacing - entry.key
    for name in (reading.columns.epoch, reading.columns.step):
        if name is None or name not in entry.cells or name not in last.cells:
            continue
        own = offset if entry.cells[name] == entry.key else last.cells[name] + 1 - entry.cells[name]
        for later in evaluations[evaluations.index(entry) :]:
            if name in later.cells:
                later.cells[name] += own
    for later in evaluations[evaluations.index(entry) :]:
        later.key += offset


def _run(name: str, reading: _Reading, training: list[_Evaluation], rows: list[Row], start: int) -> Run:
    columns, notes = reading.columns, list(reading.notes)
    epochs = epochs_of(columns, [entry.cells for entry in training], notes)
    during = _training_values(reading, training, rows, start)
    records = []
    for place, (entry, epoch) in enumerate(zip(training, epochs, strict=True)):
        logged = {
            role: _in_unit(reading, column, entry.cells[column])
            for role, column in (("loss", columns.loss), ("accuracy", columns.accuracy))
            if column is not None and column in entry.cells
        }
        context = during[place]
        if reading.sharpening.num_classes is not None:
            context["num_classes"] = float(reading.sharpening.num_classes)
        step = entry.cells.get(columns.step or "", math.nan)
        size = reading.sharpening.val_size or 0
        records.append(
            Record(
                stage=reading.stage,
                loader=0,
                epoch=epoch,
                global_step=int(step) if math.isfinite(step) else place,
                time=math.nan,
                complete=True,
                num_rows=size,
                num_items=size,
                values={},
                logged=logged,
                context=context,
            )
        )
    matched = columns.named()
    for role in ("accuracy", "train_accuracy"):
        if role in matched and is_error(matched[role]):
            matched[role] = f"1 - {matched[role]}"
    if reading.others:
        matched[NOT_JUDGED] = ", ".join(reading.others)
    return Run(name, reading.stage, matched, History(records), tuple(dict.fromkeys(notes)))


def _in_unit(reading: _Reading, column: str, value: float) -> float:
    """An accuracy as a fraction, an error rate turned round; anything else as it is."""
    if column not in (reading.columns.accuracy, reading.columns.train_accuracy):
        return value
    share = value / 100 if column in reading.percent else value
    return 1 - share if is_error(column) else share


def _training_values(
    reading: _Reading, training: list[_Evaluation], rows: list[Row], start: int
) -> list[dict[str, float]]:
    """Loss, accuracy and learning rate of the training for each evaluation, from `rows[start:]`.

    Of the same row or epoch where that has one, else of the rows since the evaluation before.
    """
    columns = reading.columns
    wanted = (
        ("train_loss", columns.train_loss),
        ("train_accuracy", columns.train_accuracy),
        ("learning_rate", columns.learning_rate),
    )
    found: list[dict[str, float]] = [{} for _ in training]
    for role, column in wanted:
        if column is None:
            continue
        by_epoch: dict[float, list[float]] = {}
        if columns.epoch is not None:
            for row in rows[start:]:
                if column in row and columns.epoch in row:
                    by_epoch.setdefault(row[columns.epoch], []).append(row[column])
        previous = start - 1
        for place, entry in enumerate(training):
            own = rows[entry.row]
            epoch = own.get(columns.epoch or "", math.nan)
            if column in own:
                values = [own[column]]
            elif epoch in by_epoch:
                values = by_epoch[epoch]
            else:
                values = [row[column] for row in rows[previous + 1 : entry.row + 1] if column in row]
            if values:
                value = values[-1] if role == "learning_rate" else math.fsum(values) / len(values)
                found[place][role] = _in_unit(reading, column, value)
            previous = entry.row
    return found
