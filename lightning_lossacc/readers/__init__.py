"""Training logs that people already have, as `History`: what was logged, what was matched, what cannot be said.

Lightning `metrics.csv`, Keras `CSVLogger`, TensorBoard folders, Hugging Face `trainer_state.json`, our own
`history.jsonl`, JSON, JSON lines and any CSV. `find_sources` says where they are, `read_runs` reads one of them.
"""

from __future__ import annotations

import json
import math

from lightning_lossacc.history import History, Record
from lightning_lossacc.readers.columns import Columns as Columns
from lightning_lossacc.readers.discovery import Source as Source
from lightning_lossacc.readers.discovery import find_sources as find_sources
from lightning_lossacc.readers.exports import runs_in
from lightning_lossacc.readers.files import Table, read_json, read_json_lines, read_table
from lightning_lossacc.readers.tables import NOT_JUDGED as NOT_JUDGED
from lightning_lossacc.readers.tables import Run as Run
from lightning_lossacc.readers.tables import Sharpening as Sharpening
from lightning_lossacc.readers.tables import UnreadableError as UnreadableError
from lightning_lossacc.readers.tables import runs_of
from lightning_lossacc.readers.tensorboard import read_events
from lightning_lossacc.readers.text import text_of

MIN_TREND = 8  # Evaluations below which jitter cannot be estimated.


def read_runs(source: Source, given: Columns | None = None, sharpening: Sharpening | None = None) -> list[Run]:
    """The runs of one log.

    Args:
        source: where it is.
        given: columns that the user named; the rest is guessed.
        sharpening: what is known beside the log.

    Raises:
        UnreadableError: if no run can be read; the text is one line.
    """
    sharpening = sharpening or Sharpening()
    if source.format == "history" or (source.format == "json-lines" and _holds_records(source)):
        return [_own_history(source, sharpening)]
    if source.format == "tensorboard":
        rows, notes = read_events(source.folders)
        table = Table(rows, notes=tuple(notes))
    elif source.format == "table":
        table = read_table(source.path)
    elif source.format == "json-lines":
        table = Table(read_json_lines(source.path))
    else:
        table = Table(read_json(source.path))
    parts = runs_in(table.rows)
    several = len(parts) > 1
    return [
        run
        for name, rows in parts.items()
        for run in runs_of(
            f"{source.name}#{name}" if several else source.name, rows, given, sharpening, table.percent, table.notes
        )
    ]


def cannot_say(run: Run) -> list[str]:
    """Which statements the log of a run leaves no room for, and what would be needed."""
    records = run.history.series(run.stage, _loader(run))
    losses, accuracies = zip(*(loss_and_accuracy(record) for record in records), strict=True) if records else ((), ())
    missing: list[str] = []
    if run.stage == "train":
        missing.append("anything about new data: no validation columns were logged")
    if not any(math.isfinite(value) for value in losses):
        missing.append("loss against accuracy: no loss was logged")
    if not any(math.isfinite(value) for value in accuracies):
        missing.append("loss against accuracy: no accuracy was logged")
    if len(records) < MIN_TREND:
        missing.append(f"trends beyond jitter: {len(records)} evaluations, {MIN_TREND} are needed to estimate it")
    if not any(record.values for record in records):
        missing.append(
            "the cause (over-confidence or overfitting …): that needs logits; train with LossAccuracyMonitor"
        )
        if not any("num_classes" in record.context for record in records):
            missing.append("chance level and ln C: unknown number of classes; --num-classes")
        if not any(record.num_rows for record in records):
            missing.append("sampling error of the accuracy: unknown size of the validation set; --val-size")
        if run.stage == "val" and not any("train_loss" in record.context for record in records):
            missing.append("validation against training: no training loss was logged")
    return missing


def loss_and_accuracy(record: Record) -> tuple[float, float]:
    """Loss and accuracy of one record: of a full one NLL and accuracy, else as logged; NaN where there is none."""
    if "nll" in record.values:
        return record.values["nll"], record.values.get("accuracy", math.nan)
    return record.logged.get("loss", math.nan), record.logged.get("accuracy", math.nan)


def _loader(run: Run) -> int:
    return next((loader for stage, loader in run.history.streams() if stage == run.stage), 0)


def _holds_records(source: Source) -> bool:
    """Whether a JSON-lines file holds our records under another name."""
    first = text_of(source.path).split("\n", 1)[0]
    try:
        data = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"stage", "values", "global_step"} <= data.keys()


def _own_history(source: Source, sharpening: Sharpening) -> Run:
    try:
        history = History.parse(text_of(source.path), str(source.path))
    except ValueError as error:
        raise UnreadableError(str(error).split("\n")[0]) from None
    stages = [stage for stage, _ in history.streams()]
    stage = next((name for name in ("val", "test", "train") if name in stages), "")
    if not stage:
        raise UnreadableError("no evaluation in the history")
    if sharpening.num_classes is not None:
        for record in history:
            record.context.setdefault("num_classes", float(sharpening.num_classes))
    return Run(source.name, stage, {"loss": "nll", "accuracy": "accuracy"}, history)
