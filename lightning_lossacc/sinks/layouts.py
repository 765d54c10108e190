"""TensorBoard's custom scalars: our charts beside the user's own layout, in one run.

A run has one layout, and the newest one replaces those before it. So what the run's event files already hold is read
back, our category is put behind the user's, and both are written as one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

CATEGORY = "lossacc: why loss and accuracy part"
TAG = b"custom_scalars__config__"
# Layouts are written when a run begins; more than this is not searched, so that a run of any length resumes at once.
SEARCHED_BYTES = 64 * 2**20


def add_charts(logger: Any, prefixed: Any) -> bool:
    """Adds our charts to the layout of a run unless they are there; False where its directory cannot be read.

    Three charts, each with training and validation together: loss and error rate; the NLL and its two parts; the
    median of the margin between its 5 % and 95 % quantiles.

    Args:
        logger: a `TensorBoardLogger` of either Lightning package.
        prefixed: gives a key as the logger's own methods would write it.
    """
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from torch.utils.tensorboard.summary import custom_scalars

    writer = logger.experiment
    writer.flush()
    directory = Path(logger.log_dir)
    if not directory.is_dir():
        return False
    summary = custom_scalars({CATEGORY: charts(prefixed)})
    mine = Layout.FromString(summary.value[0].tensor.string_val[0])
    newest = newest_layout(directory)
    merged = Layout()
    if newest is not None:
        merged.CopyFrom(newest)
        kept = [category for category in merged.category if category.title != CATEGORY]
        del merged.category[:]
        merged.category.extend(kept)
    merged.category.extend(mine.category)
    if newest is None or merged != newest:
        summary.value[0].tensor.string_val[0] = merged.SerializeToString()
        writer._get_file_writer().add_summary(summary)
        writer.flush()
    return True


def charts(prefixed: Any) -> dict[str, list[Any]]:
    """Charts by title, as `SummaryWriter.add_custom_scalars` takes them; several loaders share a chart.

    A title has at most 42 letters: a longer one wraps, and its plot becomes smaller than those beside it.
    """

    def pattern(key: str) -> str:
        return f"^{re.escape(prefixed('lossacc/' + key))}(/dataloader_idx_[0-9]+)?$"

    loss = [pattern(f"{stage}/{key}") for key in ("nll", "error_rate") for stage in ("train", "val")]
    parts = [pattern(f"val/{key}") for key in ("nll", "refinement_nll", "calibration_nll")]
    margins = [prefixed(f"lossacc/val/margin_{name}") for name in ("p50", "p05", "p95")]
    return {
        "NLL and error rate: training, validation": ["Multiline", loss],
        "validation NLL = refined NLL + calibration": ["Multiline", parts],
        "validation margin: median, 5 % to 95 %": ["Margin", margins],
    }


def newest_layout(directory: Path) -> Layout | None:
    """The layout that TensorBoard shows for a run, ours or the user's."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    newest = None
    for data in event_files(directory):
        if TAG not in data:
            continue
        for chunk in chunks(data):
            if TAG not in chunk:
                continue
            for value in Event.FromString(chunk).summary.value:
                if value.tag == TAG.decode() and value.tensor.string_val:
                    newest = Layout.FromString(value.tensor.string_val[0])
    return newest


def holds(directory: Path, tag: bytes) -> bool:
    """Whether something was written under a tag when the run began."""
    return any(tag in data for data in event_files(directory))


def event_files(directory: Path) -> Iterator[bytes]:
    """The beginnings of a run's event files, oldest first."""
    for path in sorted(directory.glob("*tfevents*")):
        with open(path, "rb") as file:
            yield file.read(SEARCHED_BYTES)


def chunks(data: bytes) -> Iterator[bytes]:
    """The records of an event file: 8 bytes of length, 4 of its checksum, the record, 4 of its checksum."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 12 + length > len(data):
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length
