"""What a checkpoint keeps of the monitor, in primitives and tensors, so that it is read with `weights_only`.

The ring of evaluations holds the scalars that trends and causes need of earlier evaluations: 2 000 records in 230 KB.
Arrays and attributions are in `history.jsonl`, from which they come back if the run goes on in the same directory.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_lossacc.history import History, Record
from lightning_lossacc.ranks import fold
from lightning_lossacc.stages import StageState
from lightning_lossacc.sums import Layout

RING = 2000
RING_BYTES = 230_000
EVENT_BYTES = 10_000
STAGES = ("train", "val", "test", "validate", "train_probe")
KEYS = (
    "nll",
    "accuracy",
    "balanced_accuracy",
    "refinement_nll",
    "temperature",
    "temperature_at_edge",
    "margin_p05",
    "confidence_wrong",
    "overconfidence",
    "predicted_majority_rate",
    "majority_rate",
)
CONTEXT_KEYS = ("train_nll", "train_accuracy", "learning_rate", "update_ratio")
_PLACES = 5  # whole numbers of a record: stage with loader and completeness, epoch, step, rows, items


def save_history(history: History) -> bytes:
    """The newest evaluations, at most 2 000 and 230 000 bytes, every number exactly.

    A compressed table of (5 + 1 + 11 + 4) columns, int64 and float64: what changes little from one record to the next
    is stored by column as differences, and the bytes of equal weight of a column together, so that a record costs about
    95 bytes instead of 168; if they do not fit, the oldest ones go.
    """
    records = history.records[-RING:]
    while True:
        packed = zlib.compress(_pack(records), level=1)
        if len(packed) <= RING_BYTES:
            return packed
        records = records[max(1, len(records) * (len(packed) - RING_BYTES) // len(packed)) :]


def _pack(records: list[Record]) -> bytes:
    if not records:
        return b""
    whole = [
        [
            2 * (STAGES.index(record.stage) + len(STAGES) * (record.loader + 1)) + record.complete,
            record.epoch,
            record.global_step,
            record.num_rows,
            record.num_items,
        ]
        for record in records
    ]
    missing = float("nan")
    numbers = [
        [
            record.time,
            *(record.values.get(key, missing) for key in KEYS),
            *(record.context.get(key, missing) for key in CONTEXT_KEYS),
        ]
        for record in records
    ]
    places = torch.tensor(whole, dtype=torch.int64)
    changes = torch.cat((places[:1], places[1:] - places[:-1]))
    values = torch.tensor(numbers, dtype=torch.float64)
    table = torch.cat((changes, values.view(torch.int64)), dim=1).T  # (columns, records)
    # Flat first: the rows of a single record are contiguous with any stride, and have no bytes next to each other.
    weights = table.reshape(-1).view(torch.uint8).view(len(table), -1, 8).transpose(1, 2)
    return weights.contiguous().numpy().tobytes()


def load_history(packed: bytes) -> History:
    """The inverse of `save_history`, for the values that it keeps."""
    raw = bytearray(zlib.decompress(packed))
    if not raw:
        return History()
    columns = _PLACES + 1 + len(KEYS) + len(CONTEXT_KEYS)
    weights = torch.frombuffer(raw, dtype=torch.uint8).view(columns, 8, -1)
    table = weights.transpose(1, 2).reshape(-1).view(torch.int64).view(columns, -1)
    places = table[:_PLACES].cumsum(1).T.tolist()
    values = table[_PLACES:].view(torch.float64).T.tolist()
    records = []
    for (place, epoch, step, rows, items), (time, *numbers) in zip(places, values, strict=True):
        where, complete = divmod(place, 2)
        loader, stage = divmod(where, len(STAGES))
        known = {key: number for key, number in zip((*KEYS, *CONTEXT_KEYS), numbers, strict=True) if number == number}
        records.append(
            Record(
                stage=STAGES[stage],
                loader=loader - 1,
                epoch=epoch,
                global_step=step,
                time=time,
                complete=bool(complete),
                num_rows=rows,
                num_items=items,
                values={key: known[key] for key in KEYS if key in known},
                context={key: known[key] for key in CONTEXT_KEYS if key in known},
            )
        )
    return History(records)


def complete_history(history: History, path: Path) -> None:
    """Gives records of a checkpoint back what only `history.jsonl` holds; those that it lacks stay as they are.

    Lines that were written after the checkpoint belong to a run that was given up, and are left out.
    """
    try:
        written = {_place(record): record for record in History.read(path)}
    except (OSError, ValueError):
        return
    history.records = [written.get(_place(record), record) for record in history]


def drop_abandoned(history: History, path: Path) -> None:
    """Moves lines that were written after the checkpoint into `history-abandoned.jsonl`; the run goes on without them.

    Lines older than the oldest record of the checkpoint, which keeps the newest ones only, stay.
    """
    try:
        written = History.read(path)
        known = {_place(record) for record in history}
        oldest = min((record.time for record in history), default=0.0)
        kept = [record for record in written if _place(record) in known or record.time < oldest]
        abandoned = [record for record in written if _place(record) not in known and record.time >= oldest]
        if abandoned:
            with path.with_name("history-abandoned.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(record.to_json() + "\n" for record in abandoned)
            part = path.with_name("history.jsonl.part")
            History(kept).write(part)
            part.replace(path)
    except (OSError, ValueError):
        return


def free_directory(wanted: Path, own: set[str]) -> Path:
    """`wanted`, numbered if another run has written there; `own` are the directories of this run."""
    number, candidate = 0, wanted
    while str(candidate) not in own and _exists(candidate / "history.jsonl"):
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _place(record: Record) -> tuple[str, int, int, int, float]:
    # The time tells two branches of one run apart; JSON gives back the very same number.
    return record.stage, record.loader, record.epoch, record.global_step, record.time


def pack(lines: Sequence[str], limit: int = EVENT_BYTES) -> bytes:
    """The newest lines, compressed, in at most `limit` bytes."""
    kept = list(lines)
    while True:
        packed = zlib.compress("\n".join(kept).encode())
        if len(packed) <= limit or not kept:
            return packed
        kept = kept[max(1, len(kept) // 8) :]


def unpack(packed: bytes) -> list[str]:
    """The inverse of `pack`."""
    return [line for line in zlib.decompress(packed).decode().split("\n") if line]


def is_interrupted() -> bool:
    """Whether an exception or a signal is being handled, when ranks may stand anywhere."""
    if sys.exc_info()[0] is not None:
        return True
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("signal_connector.py"):
            return True
        frame = frame.f_back
    return False


def save_train(state: StageState, device: torch.device, num_processes: int, interrupted: bool) -> dict[str, Any] | None:
    """Sums of a begun training epoch over all ranks; None between epochs.

    Adding over ranks is a collective, so that after an exception or a signal nothing is added and the part is marked as
    missing. Else every rank takes part, whether it has captured anything or not.
    """
    if not state.batches:
        return None
    state = state.copy()
    problem = None
    if num_processes > 1:
        problem = "not added over ranks" if interrupted else fold([state], device)
    layout = state.layout
    if layout is None:
        return None
    return {
        "task": layout.task,
        "num_classes": layout.num_classes,
        "ignore_index": layout.ignore_index,
        "counts": state.counts.cpu(),
        "sums": state.sums.cpu(),
        "batches": state.batches,
        "complete": state.complete and problem is None,
    }


def load_train(state: StageState, saved: dict[str, Any], device: torch.device, first_rank: bool) -> None:
    """Continues a begun training epoch; the sums of all ranks go to the first one alone."""
    layout = Layout(
        num_classes=saved["num_classes"],
        task=saved["task"],
        num_bins=state.settings.num_bins,
        top_k=state.settings.top_k,
        temperatures=(),
        ignore_index=saved["ignore_index"],
    )
    state.adopt(layout, device)
    state.batches, state.complete = saved["batches"], saved["complete"]
    if first_rank:
        state.counts.copy_(saved["counts"])
        state.sums.copy_(saved["sums"])
