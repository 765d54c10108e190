"""Records and histories survive JSON lines, strictly: no NaN in the text, nothing lost but a torn last line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lightning_lossacc.history import History, Record


def record(epoch: int = 0, stage: str = "val", loader: int = 0, complete: bool = True, nll: float = 0.5) -> Record:
    return Record(
        stage=stage,
        loader=loader,
        epoch=epoch,
        global_step=10 * epoch,
        time=1.5,
        complete=complete,
        num_rows=100,
        num_items=100,
        values={"nll": nll, "accuracy": 0.9},
        arrays={"reliability": {"rows": [1, 2]}},
        logged={"val_loss": 0.6},
        paired={"nll": {"reference_epoch": 1, "nll_change": 0.1}},
    )


def test_round_trip_is_exact() -> None:
    first = record(nll=1 / 3)
    assert Record.from_json(first.to_json()) == first


def test_nan_and_infinity_become_null_and_come_back_as_nan() -> None:
    line = record(nll=math.nan).to_json()
    assert "NaN" not in line and json.loads(line)["values"]["nll"] is None
    assert math.isnan(Record.from_json(line).values["nll"])
    assert math.isnan(Record.from_json(record(nll=math.inf).to_json()).values["nll"])


def test_unknown_keys_are_dropped_and_missing_ones_named() -> None:
    data = json.loads(record().to_json())
    assert Record.from_json(json.dumps(data | {"newer": 1})) == record()
    del data["epoch"]
    with pytest.raises(ValueError, match="epoch"):
        Record.from_json(json.dumps(data))
    with pytest.raises(ValueError, match="JSON object, but got list"):
        Record.from_json("[1]")


def test_series_and_columns() -> None:
    history = History([record(0), record(1, complete=False), record(1, "train"), record(2), record(2, loader=1)])
    assert [item.epoch for item in history.series()] == [0, 2]
    assert [item.epoch for item in history.series(complete=False)] == [0, 1, 2]
    assert history.column("nll") == [0.5, 0.5]
    assert all(math.isnan(value) for value in history.column("missing"))
    assert history.streams() == [("val", 0), ("train", 0), ("val", 1)]


def test_file_round_trip_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History([record(0), record(1)])
    history.write(path)
    assert History.read(path).records == history.records
    with path.open("a") as file:
        file.write(record(2).to_json()[:40])
    assert History.read(path).records == history.records
    path.write_text("nonsense\n" + record(0).to_json() + "\n")
    with pytest.raises(ValueError, match="line 1"):
        History.read(path)


def test_a_name_with_a_line_separator_does_not_split_a_line(tmp_path: Path) -> None:
    strange = Record.from_json(record().to_json().replace("val_loss", "val\u2028loss\u0085"))
    History([strange, record(1)]).write(tmp_path / "history.jsonl")
    assert History.read(tmp_path / "history.jsonl").records == [strange, record(1)]


def test_an_empty_file_is_an_empty_history(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("")
    assert len(History.read(tmp_path / "history.jsonl")) == 0
