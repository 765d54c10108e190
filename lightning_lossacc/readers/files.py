"""From one file to rows of numbers: CSV in its dialects, JSON, JSON lines, `trainer_state.json`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lossacc.readers.columns import EVALUATION_WORDS, TRAINING_WORDS, words_of
from lightning_lossacc.readers.tables import Row, UnreadableError
from lightning_lossacc.readers.text import text_of

# A column with one of these names says which data a row is about (MMEngine's `mode`, long tables' `split`).
SPLIT_NAMES = ("mode", "stage", "split", "phase", "set", "subset", "dataset")
_NUMBER = re.compile(r"(?:tensor\()?\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?nan|[-+]?inf(?:inity)?)\s*[,)%]?.*")
_SPACES = re.compile(r"\s{2,}|\t")


@dataclass(frozen=True, slots=True)
class Table:
    """A file of cells.

    Attributes:
        rows: the numbers of each row.
        percent: columns that were written with a percent sign.
        notes: what was done to read them, one sentence each.
    """

    rows: list[Row]
    percent: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Rows of a CSV file.

    The delimiter is the one of `, ; tab |` that the header has most of; an unnamed first column (pandas' index) is
    called `index`; header lines in the middle (a log that was appended to) are skipped, and so are single rows with
    more cells than the header.

    Raises:
        UnreadableError: if there is no header or no row, or most rows do not fit the header.
    """
    lines = [line for line in text_of(path).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise UnreadableError("the file is empty")
    delimiter = max(",;\t|", key=lines[0].count)
    if not lines[0].count(delimiter):
        raise UnreadableError("the first line has no columns")
    try:
        table = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise UnreadableError(f"no table: {error}") from None
    header = [name.strip() or f"index {place}".removesuffix(" 0") for place, name in enumerate(table[0])]
    if all(number_of(name) is not None for name in header if not name.startswith("index")):
        raise UnreadableError("the first line holds numbers, not column names")
    percent = set()
    raw: list[dict[str, Any]] = []
    too_long = 0
    for cells in table[1:]:
        if [cell.strip() for cell in cells] == [cell.strip() for cell in table[0]]:
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            too_long += 1
            continue
        if delimiter == ";":
            cells = [re.sub(r"^([-+]?\d+),(\d+)$", r"\1.\2", cell.strip()) for cell in cells]
        percent |= {name for name, cell in zip(header, cells, strict=False) if cell.strip().endswith("%")}
        raw.append(dict(zip(header, cells, strict=False)))
    if too_long > len(raw):
        raise UnreadableError(f"{too_long} of {too_long + len(raw)} rows have more cells than the header has columns")
    notes = [f"rows with more cells than columns are left out: {too_long}"] if too_long else []
    notes += [f"column {name!r} is there {header.count(name)} times, the last one is read" for name in _twice(header)]
    return Table(rows_of(raw), frozenset(percent), tuple(notes))


def _twice(names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def read_json(path: Path) -> list[Row]:
    """Rows of a JSON file: a list of objects, an object of lists (Keras' `history.history`), or with `log_history`.

    Raises:
        UnreadableError: if it is no JSON or holds none of these.
    """
    try:
        data = json.loads(text_of(path))
    except ValueError as error:
        raise UnreadableError(f"no JSON: {error}") from None
    except RecursionError:
        raise UnreadableError("the JSON is nested too deeply") from None
    raw = _objects(data)
    if not raw:
        raise UnreadableError("no list of logged values in the JSON")
    return rows_of(raw)


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a file with one JSON object a line; a last line that was cut off is dropped.

    Raises:
        UnreadableError: if any other line cannot be read; the text names it.
    """
    raw: list[dict[str, Any]] = []
    lines = [line for line in text_of(path).splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
        except ValueError as error:
            if number == len(lines) and number > 1:
                break
            raise UnreadableError(f"line {number} is no JSON: {error}") from None
        except RecursionError:
            raise UnreadableError(f"the JSON of line {number} is nested too deeply") from None
        if isinstance(data, dict):
            raw.append(flat(data))
    if not raw:
        raise UnreadableError("no JSON object in the file")
    return rows_of(raw)


def rows_of(raw: Iterable[dict[str, Any]]) -> list[Row]:
    """Only what is a number; a row that says which data it is about lends its columns that name."""
    rows: list[Row] = []
    for cells in raw:
        prefix = _split_of(cells)
        row: Row = {}
        for name, cell in cells.items():
            number = number_of(cell)
            if number is None:
                continue
            found = words_of(name)
            is_count = name in ("index", "epoch", "step") or found[-1:] in (("epoch",), ("step",), ("iter",), ("lr",))
            has_stage = any(word in EVALUATION_WORDS or word in TRAINING_WORDS for word in found)
            row[name if not prefix or is_count or has_stage else f"{prefix}_{name}"] = number
        rows.append(row)
    return rows


def number_of(cell: Any) -> float | None:
    """A cell as a number: also `45 %` and `tensor(0.45)`; None if it is empty or a text."""
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, int | float):
        return float(cell)
    if isinstance(cell, str):
        text = cell.strip().lower()
        try:
            return float(text)
        except ValueError:
            found = _NUMBER.fullmatch(text) if text.endswith("%") or text.startswith("tensor(") else None
            return float(found[1]) if found else None
    return None


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one: `{"val": {"loss": 1}}` as `{"val/loss": 1}`."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, dict):
            found |= flat(value, name)
        else:
            found[name] = value
    return found


def _split_of(cells: dict[str, Any]) -> str:
    for name in SPLIT_NAMES:
        value = cells.get(name)
        found = words_of(value) if isinstance(value, str) else ()
        if any(word in EVALUATION_WORDS for word in found):
            return "val"
        if any(word in TRAINING_WORDS for word in found):
            return "train"
    return ""


def _objects(data: Any) -> list[dict[str, Any]]:
    """The longest list of logged objects in a JSON value."""
    if isinstance(data, list):
        return [flat(item) for item in data if isinstance(item, dict)]
    if not isinstance(data, dict):
        return []
    if isinstance(data.get("log_history"), list):
        return _objects(data["log_history"])
    series = {name: values for name, values in _series(data).items() if values}
    if series:
        longest = max(len(values) for values in series.values())
        return [
            {name: values[place] for name, values in series.items() if place < len(values)} for place in range(longest)
        ]
    inner = [_objects(value) for value in data.values()]
    return max(inner, key=len, default=[])


def _series(data: dict[str, Any], prefix: str = "") -> dict[str, list[Any]]:
    """Lists of numbers by their path; pandas' `{"loss": {"0": 1.2, "1": 1.1}}` counts as one."""
    found: dict[str, list[Any]] = {}
    for key, value in data.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, list) and any(number_of(item) is not None for item in value):
            found[name] = value
        elif isinstance(value, dict) and value:
            places = [str(place) for place in value]
            if all(place.isdecimal() for place in places) and not any(isinstance(v, dict) for v in value.values()):
                found[name] = [value[place] for place in sorted(value, key=lambda place: int(place))]
            else:
                found |= _series(value, name)
    return found
