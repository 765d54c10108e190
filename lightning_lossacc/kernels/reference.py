"""Every per-row quantity and every sum in plain PyTorch: the definition, and the path where no other can run.

With z the logits of a row, y its target, m = max_j z_j, d_j = z_j - m, e_j = exp(d_j), S = sum e_j, p_j = e_j / S:

    nll         log S - d_y                             nats, [0, inf)
    margin      z_y - max_{j != y} z_j                  > 0 exactly when correct without a tie (Pleiss et al. 2020)
    correct     y is the lowest index among the maxima
    confidence  1 / S                                   the largest probability, [1/C, 1]
    entropy     log S - sum(e_j d_j) / S                nats, [0, ln C]
    brier       sum p_j^2 - 2 p_y + 1                   [0, 2] (Brier 1950)
    rank        classes that beat y: larger logit, or equal logit and lower index
    at temperature T, b = 1/T, S_T = sum e_j^b:  nll log S_T - b d_y, slope (d nll / d b) sum(e_j^b d_j) / S_T - d_y

exp dominates, so an octave of temperatures is squared, not exponentiated. Half-precision logits are widened to float32
before any arithmetic and float64 stays float64. Inputs are never written to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_lossacc.kernels.chunks import chunks, gather_rows, rows_per_chunk
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import Layout

# exp(-1e4 / 8) is 0 in float64 too, so that this stands for a logit of -inf in products such as e * d.
LOWEST_DIFFERENCE = -1.0e4
# e^60 times 262 144 classes is far from float32's largest number.
LARGEST_EXPONENT = 60.0
# Sentinel of targets that are no single class (soft labels); outside every possible range of classes.
UNSUPPORTED_TARGET = torch.iinfo(torch.int64).min


class RowValues(NamedTuple):
    """Quantities of N rows; entries of rows that are not `valid` mean nothing."""

    valid: Tensor  # (N,) bool
    finite: Tensor  # (N,) bool
    nll: Tensor  # (N,) nats
    margin: Tensor  # (N,)
    correct: Tensor  # (N,) bool
    predicted: Tensor  # (N,) int64
    top_k: Tensor  # (N,) bool
    confidence: Tensor  # (N,)
    entropy: Tensor  # (N,) nats
    brier: Tensor  # (N,)
    temperature_nll: Tensor  # (T, N) nats
    temperature_slope: Tensor  # (T, N)


def row_values(logits: Tensor, target: Tensor, layout: Layout) -> RowValues:
    """All quantities of every row.

    Args:
        logits: (I, C, R) of a float dtype: I items of R rows each; (I, 1, R) for the binary task.
        target: (I, R) int64.

    Returns:
        Values of N = I * R rows, item by item.
    """
    flat_target = target.reshape(-1)
    in_range = (flat_target >= 0) & (flat_target < layout.num_classes)
    considered = in_range if layout.ignore_index is None else in_range & (flat_target != layout.ignore_index)
    safe_target = torch.where(considered, flat_target, 0)  # (N,)
    grid = len(layout.temperatures)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if layout.task == "binary":
        own = torch.where(safe_target == 1, logits.reshape(-1).to(wide), 0)  # (N,)
    else:
        own = logits.gather(1, safe_target.view(target.shape).unsqueeze(1)).reshape(-1).to(wide)
    # A chunk gives only what needs all classes; the rest is computed once for all rows, not once a chunk.
    raw = torch.empty((5 + 2 * grid, len(flat_target)), dtype=wide, device=logits.device)
    workspace: list[Tensor] = []
    for start, chunk, class_dim in chunks(logits, layout):
        rows = slice(start, start + chunk.shape[1 - class_dim])
        workspace = workspace or [chunk.new_empty(chunk.numel()) for _ in range(5 if grid else 3)]
        buffers = [buffer[: chunk.numel()].view(chunk.shape) for buffer in workspace]
        reduce_classes(chunk, safe_target[rows], own[rows], class_dim, layout, buffers, raw[:, rows])

    other, shift, total, first, squares = raw[:5]
    # NaN and +inf reach the largest difference, so that one test of it and the target finds every non-finite row.
    finite = torch.isfinite(own) & (other < math.inf)
    margin = -other
    correct, predicted, top_k = _ranks(logits, safe_target, margin > 0, layout)
    # The sums lack the target, whose difference from the common shift is minus the shift.
    own_power = (-shift).exp()
    total = total + own_power
    first = first - shift * own_power
    log_total = total.log()
    inverse = torch.tensor([1 / temperature for temperature in layout.temperatures], dtype=wide, device=logits.device)
    own_powers = torch.exp(-inverse[:, None] * shift)  # (T, N)
    totals = raw[5 : 5 + grid] + own_powers
    firsts = raw[5 + grid :] - shift * own_powers
    return RowValues(
        valid=finite & considered,
        finite=finite,
        nll=log_total + shift,
        margin=margin,
        correct=correct,
        predicted=predicted,
        top_k=top_k,
        confidence=(other.clamp_min(0) - shift).exp() / total,
        entropy=log_total - first / total,
        brier=(squares + own_power * own_power) / (total * total) - 2 * own_power / total + 1,
        temperature_nll=totals.log() + inverse[:, None] * shift,
        temperature_slope=firsts / totals + shift,
    )


def count_rows(logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> Tensor:
    """Adds a batch to the two vectors of `layout`, in place, and returns the NLL of every row, (N,).

    Args:
        logits: (I, C, R) of a float dtype; (I, 1, R) for the binary task.
        target: (I, R) int64.
        counts: (layout.size_counts,) int64.
        sums: (layout.size_sums,) float64.
    """
    values = row_values(logits, target, layout)
    add_values(values, logits, target, counts, sums, layout)
    return values.nll


def add_values(values: RowValues, logits: Tensor, target: Tensor, counts: Tensor, sums: Tensor, layout: Layout) -> None:
    """Adds what `row_values` gave to the two vectors, in place; arguments as in `count_rows`."""
    items, _, rows_per_item = logits.shape
    flat_target = target.reshape(-1)
    valid = values.valid
    into = layout.parts(counts, sums)
    # Masks and columns are stacked and summed at once: on small batches the number of operations is the cost.
    ignored = _equals(flat_target, layout.ignore_index)
    unsupported = flat_target == UNSUPPORTED_TARGET
    outside = (flat_target < 0) | (flat_target >= layout.num_classes)
    correct = values.correct & valid
    has_margin = torch.isfinite(values.margin)
    flags = torch.stack(
        (
            valid,
            ignored,
            outside & ~ignored & ~unsupported,
            ~(outside | ignored | values.finite),
            unsupported & ~ignored,
            (values.margin == 0) & valid,
            correct,
            values.top_k & valid,
            has_margin & valid,
        )
    )  # (9, N)
    counts[_span(layout.count_slices, "rows", "margin_rows")] += flags.sum(1)
    columns = torch.stack((values.nll, values.confidence, values.entropy, values.brier, values.margin))
    columns = torch.where(flags[[0, 0, 0, 0, 8]], columns, 0).double()  # (5, N)
    sums[_span(layout.sum_slices, "nll", "margin")] += columns.sum(1)
    nll, confidence = columns[0], columns[1]

    by_item = torch.stack((valid.double(), correct.double(), nll)).view(3, items, rows_per_item).sum(2)  # n_i, c_i, s_i
    products = by_item @ by_item.T
    into["items"] += (by_item[0] > 0).sum()
    # Exact below 2^53: sums of products of integers in float64.
    integers = products.long()
    into["items_rows_squared"] += integers[0, 0]
    into["items_rows_correct"] += integers[0, 1]
    into["items_correct_squared"] += integers[1, 1]
    into["items_rows_nll"] += products[0, 2]
    into["items_nll_squared"] += products[2, 2]

    bins = layout.num_bins
    edges = torch.linspace(0, 1, bins + 1, dtype=values.confidence.dtype, device=logits.device)
    cell = (torch.bucketize(values.confidence, edges, right=True) - 1).clamp_(0, bins - 1)
    cell += bins * correct
    into["bin_rows"] += _bucket_counts(cell, valid, 2 * bins)
    into["bin_confidence"] += _bucket_sums(cell, confidence, 2 * bins)
    into["bin_nll"] += _bucket_sums(cell, nll, 2 * bins)
    steps = torch.tensor(margin_edges(), dtype=values.margin.dtype, device=logits.device)
    bin_index = torch.bucketize(values.margin, steps, right=True)
    into["margin_histogram"] += _bucket_counts(bin_index, valid, steps.numel() + 1)

    if layout.per_class:
        label = torch.where(valid, flat_target, 0)
        into["class_rows"] += _bucket_counts(label, valid, layout.num_classes)
        into["class_predicted"] += _bucket_counts(values.predicted, valid, layout.num_classes)
        into["class_correct"] += _bucket_counts(label, correct, layout.num_classes)
        into["class_nll"] += _bucket_sums(label, nll, layout.num_classes)

    if layout.temperatures:
        second = (_item_halves(logits, valid).repeat_interleave(rows_per_item) == 1) & valid  # (N,)
        into["half_rows"] += torch.stack((valid & ~second, second)).sum(1)
        grid = torch.stack((values.temperature_nll, values.temperature_slope))  # (2, T, N)
        grid = torch.where(valid, grid, 0).double()
        # Not by a product with 0 and 1, in which one infinite row would spoil the other half.
        by_half = torch.stack((torch.where(second, 0, grid).sum(2), torch.where(second, grid, 0).sum(2)), dim=1)
        sums[_span(layout.sum_slices, "temperature_nll", "temperature_slope")] += by_half.reshape(-1)


def item_values(logits: Tensor, target: Tensor, layout: Layout) -> Tensor:
    """What a probe keeps of each item.

    Args:
        logits: (I, C, R); (I, 1, R) for the binary task.
        target: (I, R) int64.

    Returns:
        (I, 5 + 2 T) float64: rows, summed NLL, correct rows, target and predicted class of the first row, summed NLL
        and summed slope at each temperature of the layout.
    """
    items, _, rows_per_item = logits.shape
    values = row_values(logits, target, layout)

    def by_item(rows: Tensor) -> Tensor:
        return torch.where(values.valid, rows, 0).double().view(*rows.shape[:-1], items, rows_per_item).sum(-1)

    first = slice(0, items * rows_per_item, rows_per_item)
    return torch.cat(
        (
            by_item(values.valid)[:, None],
            by_item(values.nll)[:, None],
            by_item(values.correct)[:, None],
            target.reshape(-1)[first].double()[:, None],
            values.predicted[first].double()[:, None],
            by_item(values.temperature_nll).T,
            by_item(values.temperature_slope).T,
        ),
        dim=1,
    )


def reduce_classes(
    logits: Tensor,
    target: Tensor,
    own: Tensor,
    class_dim: int,
    layout: Layout,
    buffers: list[Tensor],
    result: Tensor,
) -> None:
    """What needs all classes of a chunk's rows; the buffers are overwritten.

    With d_j = z_j - z_y - s over the classes but the target, and a shift s that keeps every power representable:

    Args:
        logits: (rows, C) or (C, rows), not written to.
        target: (rows,) within 0 ... C-1.
        own: (rows,) the target's logits.
        class_dim: dimension of the classes.
        buffers: three of the chunk's shape, five with a grid.
        result: (5 + 2 T, rows) largest z_j - z_y, s, sum exp(d_j), sum exp(d_j) d_j, sum exp(2 d_j), then
            sum exp(b d_j) and sum exp(b d_j) d_j at each temperature.
    """
    difference, power, product, *free = buffers
    index = target.unsqueeze(class_dim)
    grid = len(layout.temperatures)
    other, shift = result[0], result[1]
    torch.sub(logits, own.unsqueeze(class_dim), out=difference)
    difference.scatter_(class_dim, index, -math.inf)
    torch.amax(difference, class_dim, out=other)
    # A row is shifted by itself alone, so that no row changes another's bits; most chunks have none to be shifted.
    steepest = max([2.0, *(1 / temperature for temperature in layout.temperatures)])
    shift.copy_(other).masked_fill_(other * steepest < LARGEST_EXPONENT, 0)
    if logits.device.type != "cpu" or bool(shift.any()):
        # From the maximum itself: a hopeless target's distance would round the others' away.
        base = torch.where(shift == 0, own, logits.amax(class_dim))
        torch.sub(logits, base.unsqueeze(class_dim), out=difference)
    difference.scatter_(class_dim, index, LOWEST_DIFFERENCE)

    torch.exp(difference, out=power)
    _weighted_sum(power, difference, class_dim, product, result[3])
    if logits.device.type != "cpu" or not math.isfinite(float(result[3].sum())):
        # -inf is a legal mask of a class, but 0 * -inf is not a number; the clamp costs a pass, so only here.
        difference.clamp_min_(LOWEST_DIFFERENCE)
        _weighted_sum(power, difference, class_dim, product, result[3])
    torch.sum(power, class_dim, out=result[2])
    if class_dim == 1:
        # A norm squares and adds in one pass, without a buffer; across rows it is slow.
        torch.linalg.vector_norm(power, dim=class_dim, out=result[4])
        result[4].square_()
    else:
        _weighted_sum(power, power, class_dim, product, result[4])

    # A chain is a buffer that is squared from octave to octave; temperatures that continue no chain start a new one.
    chains: dict[float, Tensor] = {}
    for place in reversed(range(grid)):
        inverse = 1 / layout.temperatures[place]
        half = next((known for known in chains if math.isclose(2 * known, inverse, rel_tol=1e-9)), None)
        if inverse == 1.0:
            current = power
            if half is not None:
                free.append(chains.pop(half))
        elif half is not None:
            current = chains.pop(half)
            current.mul_(current)
        else:
            current = torch.mul(difference, inverse, out=free.pop() if free else None).exp_()
        chains[inverse] = current
        torch.sum(current, class_dim, out=result[5 + place])
        _weighted_sum(current, difference, class_dim, product, result[5 + grid + place])


def _ranks(logits: Tensor, target: Tensor, sole_maximum: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Correct, predicted class and top-k hit of each row, (N,).

    Classes are ranked only where the target is not the sole maximum, and ties counted only where there are some:
    comparisons and argmax cost more than the exponentials. On another device than the CPU all rows take part, without a
    host read.
    """
    on_host = logits.device.type == "cpu"
    correct, predicted, top_k = sole_maximum.clone(), target.clone(), sole_maximum.clone()
    every = torch.arange(len(target), device=target.device)
    position = torch.arange(layout.num_classes, device=target.device)
    for rows in (every[~sole_maximum] if on_host else every).split(rows_per_chunk(logits, layout)):
        open_rows = gather_rows(logits, rows, layout)  # (rows, C), a copy
        highest, index = open_rows.argmax(1), target[rows].unsqueeze(1)
        predicted[rows] = highest
        correct[rows] = highest == index.squeeze(1)
        signs = open_rows.sub_(open_rows.gather(1, index)).sign_()
        unequal = signs.abs().sum(1)
        greater = (unequal + signs.sum(1)) / 2
        tied = unequal < layout.num_classes - 1
        places = tied.nonzero().squeeze(1) if on_host else torch.arange(len(rows), device=target.device)
        if places.numel():
            earlier = (signs[places] == 0) & (position < index[places])
            greater[places] += earlier.sum(1)
        top_k[rows] = greater < layout.top_k
    return correct, predicted, top_k


def _weighted_sum(left: Tensor, right: Tensor, class_dim: int, product: Tensor, result: Tensor) -> None:
    torch.sum(torch.mul(left, right, out=product), class_dim, out=result)


def _item_halves(logits: Tensor, valid: Tensor) -> Tensor:
    """0 or 1 for each item, (I,) int64: a hash of the bits of its counted rows' first and last logits.

    A hash of the content needs no index, so that batches, order and ranks do not change the halves; equal items fall
    into the same half, and ignored rows have no say.
    """
    items, _, rows_per_item = logits.shape
    ends = logits[:, [0, -1], :].to(torch.float32).contiguous().view(torch.int32).long()  # (I, 2, R)
    mixed = ends[:, 0] * 0x9E3779B1 + ends[:, 1] * 0x85EBCA77
    mixed = (mixed ^ (mixed >> 29)) * 0x1B873593
    total = torch.where(valid.view(items, rows_per_item), mixed, 0).sum(1)
    total = (total ^ (total >> 17)) * 0x2C1B3C6D
    return (total >> 33) & 1


def _span(slices: dict[str, slice], first: str, last: str) -> slice:
    """The parts from `first` to `last`, which lie side by side."""
    return slice(slices[first].start, slices[last].stop)


def _equals(target: Tensor, value: int | None) -> Tensor:
    return torch.zeros_like(target, dtype=torch.bool) if value is None else target == value


def _bucket_counts(index: Tensor, weight: Tensor, size: int) -> Tensor:
    if index.device.type == "cpu":
        return torch.bincount(index[weight], minlength=size)
    # bincount reads its largest index on the host; integer scatter does not, and is exact in any order.
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, index, weight.long())


def _bucket_sums(index: Tensor, values: Tensor, size: int) -> Tensor:
    if index.device.type == "cpu":
        return torch.bincount(index, weights=values, minlength=size)
    # Float atomics add in any order; 2^-32 fixed point is bitwise repeatable and loses less than 1e-9 nats a row.
    fixed = torch.zeros(size, dtype=torch.int64, device=index.device)
    fixed.scatter_add_(0, index, (values * 2.0**32).round().long())
    return fixed.double() / 2.0**32
