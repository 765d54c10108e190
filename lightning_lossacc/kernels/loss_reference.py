"""The cross-entropy and its gradient in plain PyTorch: the definition, and the path where no other can run.

With z the logits of a row, y its target, w the class weights (1 without any), W = sum_c w_c, s the label smoothing and
log p_c = z_c - max z - log sum_j exp(z_j - max z):

    row loss      (1 - s) w_y (-log p_y) + (s / C) sum_c w_c (-log p_c)     nats (Szegedy et al. 2016 for s)
    row gradient  p_c ((1 - s) w_y + (s / C) W) - (1 - s) w_y [c = y] - (s / C) w_c

Ignored rows have loss 0 and gradient 0 whatever their logits, rows with any other target outside 0 ... C-1 have NaN
for both. Rows are taken in chunks of about 2 MB that stay in the cache, so that nothing of size N x C is made but the
gradient; nothing of that size is saved for the backward pass either, which computes the probabilities again, unless the
forward pass was asked for the gradient. The caller's logits are never written to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.kernels.chunks import CHUNK_BYTES

# Below this many contiguous classes a softmax over them fills no vector register: it is 5 to 20 times slower than over
# the rows of a transposed copy (2 to 15 classes, AVX-512).
FEW_CLASSES = 16
# Fewer logits than this are not worth their copies.
FEW_LOGITS = 2048


def loss_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    nll: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of every row.

    Args:
        logits: (I, C, R) of a float dtype.
        target: (I, R) int64.
        weight: (C,), or None for ones.
        ignore_index: target of rows that do not count.
        label_smoothing: s, within 0 ... 1.
        nll: (N,) the NLL of every row, if whoever counted them knows it already.

    Returns:
        Row loss and log sum_j exp(z_j), (N,) each for N = I * R rows, float32 (float64 for float64 logits). The second
        means nothing in rows that are ignored or whose target has a logit that is not finite.
    """
    return _forward(logits, target, weight, ignore_index, label_smoothing, None, nll)


def loss_with_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_scale: Tensor,
    nll: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`loss_forward` and `loss_backward` in one: a chunk of the gradient is made while its logits are in the cache."""
    grad = torch.empty_like(logits)
    loss, lse = _forward(logits, target, weight, ignore_index, label_smoothing, (row_scale, grad), nll)
    return loss, lse, grad


def _forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    wanted: tuple[Tensor, Tensor] | None,
    known: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every row; writes the gradient if it is `wanted`: for a scale of all rows, into what."""
    rows = _Rows.of(logits, target, weight, ignore_index)
    items, num_classes, rows_per_item = logits.shape
    target_index = rows.index.view(items, 1, rows_per_item)
    target_logit = logits.gather(1, target_index).flatten().to(_wide(logits))  # (N,)
    nll = torch.empty_like(target_logit) if known is None else known
    spread = torch.empty_like(nll) if label_smoothing else None
    slopes = None if wanted is None else _Slopes.of(rows, logits, weight, label_smoothing, wanted[0])
    # The statistics know the NLL already, but no mean over the classes; probabilities know it as well, without one
    # more exponential.
    by_logarithm = spread is not None or (known is None and slopes is None)
    by_probability = known is None and not by_logarithm
    for cut in _cuts(logits) if by_logarithm or slopes is not None else ():
        if by_logarithm:
            log_p = cut.normalised(logits, torch.log_softmax)
            if known is None:
                own_p = log_p.gather(cut.class_dim, cut.by_row(rows.index)).view(-1)
                torch.neg(own_p, out=nll if cut.whole else nll[cut.rows])
            if spread is not None:
                if weight is not None:
                    log_p.mul_(cut.by_class(weight))
                spread[cut.rows] = log_p.sum(cut.class_dim).neg_().flatten()
        if slopes is not None:
            own_p = slopes.write(cut, logits, wanted[1], by_probability)
            if own_p is not None:
                torch.neg(own_p.log_().view(-1), out=nll if cut.whole else nll[cut.rows])
    if by_probability:
        _mend(nll, logits, rows)
    loss = rows.weighted(nll)
    if spread is not None:
        loss = loss * (1 - label_smoothing) + spread * (label_smoothing / num_classes)
    return rows.blank(loss), target_logit + nll


def _mend(nll: Tensor, logits: Tensor, rows: _Rows) -> None:
    """Anew where a probability below the smallest normal number has lost digits, or everything."""
    hopeless = nll > -math.log(torch.finfo(nll.dtype).tiny)
    if rows.left_out is not None:
        hopeless &= ~rows.left_out
    _, num_classes, rows_per_item = logits.shape
    for part in hopeless.nonzero().flatten().split(max(1, CHUNK_BYTES // (num_classes * nll.itemsize))):
        if part.numel():
            chosen = logits[part // rows_per_item, :, part % rows_per_item].to(nll.dtype)
            nll[part] = torch.log_softmax(chosen, 1).gather(1, rows.index[part, None]).neg_().squeeze(1)


def loss_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    row_lse: Tensor,
    row_scale: Tensor,
    grad: Tensor | None = None,
) -> Tensor:
    """Gradient of a total by the logits, a tensor of their shape and dtype.

    Args:
        logits, target, weight, ignore_index, label_smoothing: as given to `loss_forward`.
        row_lse: what it returned; not read here, since a softmax in the cache costs less than what would use it, and is
            exact for logits with a large common offset.
        row_scale: derivative of the total by the row losses, (N,) or one number for all.
        grad: what is written; None for a new tensor.
    """
    del row_lse
    rows = _Rows.of(logits, target, weight, ignore_index)
    slopes = _Slopes.of(rows, logits, weight, label_smoothing, row_scale)
    grad = torch.empty_like(logits) if grad is None else grad
    for cut in _cuts(logits):
        slopes.write(cut, logits, grad)
    return grad


def denominator(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What a mean is divided by, one number: rows that are not ignored, or the sum of their w_y.

    Args:
        target: of any shape, int64; one that is no class counts as any class, since the sum of losses is NaN then.
        weight: (C,), or None for ones.
    """
    counted = target != ignore_index
    if weight is None:
        return counted.sum()
    # A sum of float32 weights would be the largest error of the mean; MPS knows no float64.
    wide = torch.float32 if target.device.type == "mps" else torch.float64
    return torch.where(counted, weight[target.clamp(0, len(weight) - 1)], 0).sum(dtype=wide)


class _Rows(NamedTuple):
    """What the targets of N rows say."""

    index: Tensor  # (N,) int64 within 0 ... C-1, any where the target is no class
    left_out: Tensor | None  # (N,) bool, ignored or invalid; None if no row is
    invalid: Tensor | None  # (N,) bool; None if no row is left out
    weight: Tensor | None  # (N,) w_y; None for ones

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> _Rows:
        flat, num_classes = target.reshape(-1), logits.shape[1]
        wide_weight = None if weight is None else weight.to(_wide(logits))
        on_host = logits.device.type == "cpu"
        if on_host and flat.numel() and not 0 <= ignore_index < num_classes:
            low, high = flat.aminmax()
            if int(low) >= 0 and int(high) < num_classes:
                return cls(flat, None, None, None if wide_weight is None else wide_weight[flat])
        index = flat.clamp(0, num_classes - 1)
        chosen = None if wide_weight is None else wide_weight[index]
        ignored, outside = flat == ignore_index, index != flat
        left_out = ignored | outside
        # On a GPU, where nothing is read, there may always be some.
        if on_host and not bool(left_out.any()):
            return cls(index, None, None, chosen)
        return cls(index, left_out, outside & ~ignored, chosen)

    def weighted(self, values: Tensor) -> Tensor:
        """Times w_y."""
        return values if self.weight is None else values * self.weight

    def blank(self, values: Tensor) -> Tensor:
        """0 in ignored rows, NaN in invalid ones."""
        if self.left_out is None:
            return values
        return torch.where(self.left_out, 0, values).masked_fill_(self.invalid, math.nan)


class _Slopes(NamedTuple):
    """What makes a gradient of probabilities, in N rows."""

    rows: _Rows
    own: Tensor  # (N,) what the target's class gets less
    factor: Tensor  # (N,) of the probabilities
    spread: Tensor | None  # (N,) what every class gets less, times its weight
    weight: Tensor | None

    @classmethod
    def of(
        cls, rows: _Rows, logits: Tensor, weight: Tensor | None, label_smoothing: float, row_scale: Tensor
    ) -> _Slopes:
        scale = row_scale.to(_wide(logits)).expand(len(rows.index))
        own = rows.blank(rows.weighted(scale * (1 - label_smoothing) if label_smoothing else scale))
        factor, spread = own, None
        if label_smoothing:
            spread = rows.blank(scale * (label_smoothing / logits.shape[1]))
            factor = own + spread * (logits.shape[1] if weight is None else weight.to(own.dtype).sum())
        return cls(rows, own, factor, spread, weight)

    def write(self, cut: _Cut, logits: Tensor, grad: Tensor, want_own: bool = False) -> Tensor | None:
        """The gradient of some rows; the probabilities of their targets if they are wanted."""
        place = cut.of(grad)
        direct = place.dtype == self.own.dtype and place.is_contiguous()
        # Everything is added up in float32 and stored once: p_y rounded to half precision before own is taken off
        # would be wrong by a multiple of what is left.
        part = cut.normalised(logits, torch.softmax, place if direct else None)
        index = cut.by_row(self.rows.index)
        own_p = part.gather(cut.class_dim, index) if want_own else None
        part.mul_(cut.by_row(self.factor))
        if self.spread is not None:
            ones = self.own.new_ones(1) if self.weight is None else self.weight
            part.addcmul_(cut.by_row(self.spread), cut.by_class(ones), value=-1)
        part.scatter_add_(cut.class_dim, index, cut.by_row(self.own).neg())
        if self.rows.left_out is not None:
            # A row's zero must not become NaN by logits that are not finite.
            part.masked_fill_(cut.by_row(self.rows.left_out), 0)
            part.masked_fill_(cut.by_row(self.rows.invalid), math.nan)
        if not direct:
            place.copy_(part)
        return own_p


class _Cut(NamedTuple):
    """Some rows with all their classes, and how they are best laid out."""

    items: slice
    places: slice  # rows within an item
    rows: slice  # the same, counted through all items
    whole: bool  # whether they are all rows; then nothing need be sliced, which is what small batches cost
    class_dim: int  # dimension of the classes in `of`
    buffers: _Buffers

    def of(self, logits: Tensor) -> Tensor:
        """A view of logits (I, C, R) or of their gradient: (C, i, r), (i, C, r) or (i, r, C)."""
        part = logits if self.whole else logits[self.items, :, self.places]
        return part if self.class_dim == 1 else part.movedim(1, self.class_dim)

    def by_row(self, values: Tensor) -> Tensor:
        """Values of rows (N,) beside the classes."""
        part = values if self.whole else values[self.rows]
        shape = [self.items.stop - self.items.start, self.places.stop - self.places.start]
        shape.insert(self.class_dim, 1)
        return part.view(shape)

    def by_class(self, values: Tensor) -> Tensor:
        """Values of classes (C,) beside the rows."""
        return values.to(self.buffers.dtype).view(-1, *[1] * (2 - self.class_dim))

    def normalised(self, logits: Tensor, softmax: object, out: Tensor | None = None) -> Tensor:
        """Probabilities or their logarithms, in `out` or in a buffer."""
        source = self.of(logits)
        if source.dtype != self.buffers.dtype or not source.is_contiguous():
            source = self.buffers.like(source, 0).copy_(source)
        return softmax(source, self.class_dim, out=self.buffers.like(source, 1) if out is None else out)


class _Buffers:
    """Two flat tensors that are made when they are needed, and reused from cut to cut."""

    __slots__ = ("_kept", "_size", "dtype")

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self._kept: list[Tensor | None] = [None, None]
        self._size = size
        self.dtype = dtype

    def like(self, source: Tensor, which: int) -> Tensor:
        kept = self._kept[which]
        if kept is None:
            kept = self._kept[which] = torch.empty(self._size, dtype=self.dtype, device=source.device)
        numbers = source.numel()
        return (kept if numbers == self._size else kept[:numbers]).view(source.shape)


def _cuts(logits: Tensor) -> Iterator[_Cut]:
    """Cuts logits (I, C, R) into chunks: whole items, or a part of one."""
    items, classes, rows_per_item = logits.shape
    size = logits.numel()
    if size == 0:
        return
    wide = _wide(logits)
    most = max(1, CHUNK_BYTES // (classes * wide.itemsize))
    classes_last = rows_per_item == 1 or logits.stride(1) < logits.stride(2)
    transposed = classes < FEW_CLASSES and size >= FEW_LOGITS
    class_dim = 1 if not classes_last else 0 if transposed else 2
    if items * rows_per_item <= most:
        rows = slice(0, items * rows_per_item)
        yield _Cut(slice(0, items), slice(0, rows_per_item), rows, True, class_dim, _Buffers(size, wide))
        return
    group, length = max(1, most // rows_per_item), min(most, rows_per_item)
    buffers = _Buffers(min(group, items) * length * classes, wide)
    for item in range(0, items, group):
        last = min(item + group, items)
        for first in range(0, rows_per_item, length):
            end = min(first + length, rows_per_item)
            start = item * rows_per_item + first
            rows = slice(start, start + (last - item) * (end - first))
            yield _Cut(slice(item, last), slice(first, end), rows, False, class_dim, buffers)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
