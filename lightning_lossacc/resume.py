"""What a checkpoint keeps of the monitor, in primitives and tensors, so that it is read with `weights_only`.

The ring of evaluations holds the scalars that trends need: 2 000 evaluations in 240 KB. Arrays and attributions are in
`history.jsonl`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lossacc.history import History, Record
from lightning_lossacc.stages import StageState
from lightning_lossacc.sums import Layout

RING = 2000
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


def save_train(state: StageState, interrupted: bool) -> dict[str, Any] | None:
    """Sums of a begun training epoch over all ranks; None between epochs.

    Adding over ranks is a collective, so that after an exception or a signal, when ranks may stand anywhere, nothing is
    added and the part is marked as missing.
    """
    if not state.batches or state.layout is None:
        return None
    counts, sums = state.counts.clone(), state.sums.clone()
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = several and torch.distributed.get_world_size() > 1
    if several and not interrupted:
        torch.distributed.all_reduce(counts)
        torch.distributed.all_reduce(sums)
    layout = state.layout
    return {
        "task": layout.task,
        "num_classes": layout.num_classes,
        "ignore_index": layout.ignore_index,
        "counts": counts.cpu(),
        "sums": sums.cpu(),
        "batches": state.batches,
        "complete": state.complete and not (several and interrupted),
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
    state.batches = saved["batches"]
    state.complete = saved["complete"]
    if first_rank:
        state.counts.copy_(saved["counts"])
        state.sums.copy_(saved["sums"])
