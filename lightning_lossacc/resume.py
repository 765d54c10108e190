"""What a checkpoint keeps of the monitor, in primitives and tensors, so that it is read with `weights_only`.

The ring of evaluations holds the scalars that trends need: 2 000 evaluations in 240 KB. Arrays and attributions are in
`history.jsonl`, from which they come back if the run goes on in the same directory.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lossacc.history import History, Record
from lightning_lossacc.stages import StageState, fold
from lightning_lossacc.sums import Layout

RING = 2000
EVENT_BYTES = 10_000
STAGES = ("train", "val", "test", "validate")
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
)


def save_history(history: History) -> Tensor:
    """(records, 15) float64: stage, loader and completeness in one number, epoch, step, time, rows, items, values."""
    rows = [
        [
            2 * (STAGES.index(record.stage) + len(STAGES) * (record.loader + 1)) + record.complete,
            record.epoch,
            record.global_step,
            record.time,
            record.num_rows,
            record.num_items,
            *(record.values.get(key, float("nan")) for key in KEYS),
        ]
        for record in history.records[-RING:]
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 6 + len(KEYS))


def load_history(table: Tensor) -> History:
    """The inverse of `save_history`, for the values that it keeps."""
    records = []
    for place, epoch, step, time, rows, items, *values in table.tolist():
        where, complete = divmod(int(place), 2)
        loader, stage = divmod(where, len(STAGES))
        known = {key: value for key, value in zip(KEYS, values, strict=True) if value == value}
        records.append(
            Record(
                stage=STAGES[stage],
                loader=loader - 1,
                epoch=int(epoch),
                global_step=int(step),
                time=time,
                complete=bool(complete),
                num_rows=int(rows),
                num_items=int(items),
                values=known,
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
    state.flush()
    state = replace(state)
    if state.layout is not None:
        state.counts, state.sums = state.counts.clone(), state.sums.clone()
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
