"""Buffered rows count as if they had come at once, in order, whatever the batches; nothing is kept alive or lost."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from lightning_lossacc.buffer import BUFFER_BYTES, RowBuffer


class Seen:
    """Collects what the buffer hands on, as copies."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, logits: Tensor, target: Tensor, position: Tensor | None) -> None:
        self.parts.append((logits.clone(), target.clone(), None if position is None else position.clone()))

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.cat(column) for column in zip(*self.parts, strict=True))


def batch(items: int, classes: int = 10, rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(items, classes, rows), torch.randint(0, classes, (items, rows)), torch.randint(0, 99, (items,))


def test_everything_arrives_once_and_in_order() -> None:
    seen = Seen()
    buffer = RowBuffer(seen)
    # 26214 rows of 10 float32 fit: small batches wait, the large one passes through after them.
    batches = [batch(items) for items in (32, 32, 7, 30_000, 1, 6000, 6000, 6000, 6000, 6000, 0)]
    for part in batches:
        buffer.add(*part)
    buffer.flush()
    buffer.flush()
    for found, wanted in zip(seen.joined(), zip(*batches, strict=True), strict=True):
        assert torch.equal(found, torch.cat(wanted))
    assert len(seen.parts) == 4


def test_another_shape_or_dtype_flushes_first() -> None:
    seen = Seen()
    buffer = RowBuffer(seen)
    first, second, third = batch(4), batch(4, rows=3), batch(4, rows=3)
    third = (third[0].double(), *third[1:])
    for part in (first, second, third):
        buffer.add(*part)
    buffer.add(third[0], third[1], None)
    buffer.flush()
    assert [part[0].shape[2] for part in seen.parts] == [1, 3, 3, 3]
    assert [part[0].dtype for part in seen.parts] == [torch.float32, torch.float32, torch.float64, torch.float64]
    assert seen.parts[3][2] is None
    for found, wanted in zip(seen.parts, (first, second, third), strict=False):
        assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("items", [16, 40_000])
def test_nothing_of_the_batch_is_kept(items: int) -> None:
    buffer = RowBuffer(lambda *parts: None)
    part = batch(items)
    alive = [weakref.ref(tensor) for tensor in part]
    buffer.add(*part)
    del part
    assert all(reference() is None for reference in alive)


def test_rows_larger_than_the_buffer_pass_through() -> None:
    seen = Seen()
    buffer = RowBuffer(seen)
    buffer.add(*batch(1, classes=2, rows=BUFFER_BYTES))
    assert len(seen.parts) == 1


def test_clear_drops_what_waits() -> None:
    seen = Seen()
    buffer = RowBuffer(seen)
    buffer.add(*batch(5))
    buffer.clear()
    buffer.flush()
    assert not seen.parts
