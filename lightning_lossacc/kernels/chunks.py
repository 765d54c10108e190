"""How logits are cut into pieces that stay in the cache, class by class or row by row.

Fresh temporaries of the size of the logits cost more than the arithmetic (page faults; measured 5 to 11 times on a
2-core Zen 4), so rows are taken in chunks of about 2 MB with reused buffers. A chunk lies row by row, (rows, C), when
classes are contiguous and many; class by class, (C, rows), when classes are few or the logits are channels-first, so
that a reduction runs along the long contiguous axis.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_lossacc.sums import Layout

CHUNK_BYTES = 2 * 1024 * 1024
# Up to this many classes a row is shorter than a vector register's reduction is worth: chunks are transposed.
FEW_CLASSES = 32


def chunks(logits: Tensor, layout: Layout) -> Iterator[tuple[int, Tensor, int]]:
    """Yields (first row, chunk, dimension of the classes): (rows, C) with 1, or (C, rows) with 0.

    A chunk is a view of the logits where their dtype and strides allow it, else a reused buffer; it must not be written
    to.
    """
    items, _, rows_per_item = logits.shape
    classes = layout.num_classes
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    chunk_rows = rows_per_chunk(logits, layout)
    if layout.task == "binary":
        # Two classes with logits 0 and z: the same softmax, so that every definition above holds.
        flat = logits.reshape(-1)
        for start in range(0, flat.numel(), chunk_rows):
            part = flat[start : start + chunk_rows].to(wide)
            yield start, torch.stack((torch.zeros_like(part), part)), 0
        return
    if rows_per_item == 1 or logits.stride(1) == 1:
        by_row = logits.movedim(1, -1).reshape(-1, classes)  # (N, C); a view where the strides allow
        transposed = classes <= FEW_CLASSES
        as_it_is = not transposed and by_row.dtype == wide and by_row.stride(1) == 1
        shape = (classes, min(chunk_rows, len(by_row))) if transposed else (min(chunk_rows, len(by_row)), classes)
        buffer = torch.empty((0, 0) if as_it_is else shape, dtype=wide, device=logits.device)
        for start in range(0, len(by_row), chunk_rows):
            part = by_row[start : start + chunk_rows]
            if as_it_is:
                yield start, part, 1
            elif transposed:
                yield start, buffer[:, : len(part)].copy_(part.T), 0
            else:
                yield start, buffer[: len(part)].copy_(part), 1
        return
    if rows_per_item >= chunk_rows:
        buffer = torch.empty((classes, chunk_rows), dtype=wide, device=logits.device)
        for item in range(items):
            for first in range(0, rows_per_item, chunk_rows):
                part = logits[item, :, first : first + chunk_rows]
                yield item * rows_per_item + first, buffer[:, : part.shape[1]].copy_(part), 0
        return
    group = chunk_rows // rows_per_item
    for item in range(0, items, group):
        part = logits[item : item + group].transpose(0, 1)  # (C, items, R)
        yield item * rows_per_item, part.to(wide, copy=True).reshape(classes, -1), 0


def rows_per_chunk(logits: Tensor, layout: Layout) -> int:
    """Rows of a chunk, at least one."""
    return max(1, CHUNK_BYTES // (layout.num_classes * (8 if logits.dtype == torch.float64 else 4)))


def gather_rows(logits: Tensor, rows: Tensor, layout: Layout) -> Tensor:
    """Chosen rows with all classes, (rows, C), as a copy in float32 or float64; two logits for the binary task."""
    rows_per_item = logits.shape[2]
    if rows_per_item == 1:
        chosen = logits[:, :, 0].index_select(0, rows)
    else:
        chosen = logits[rows // rows_per_item, :, rows % rows_per_item]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    return torch.cat((torch.zeros_like(chosen), chosen), dim=1) if layout.task == "binary" else chosen
