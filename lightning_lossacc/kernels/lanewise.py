"""Triton: one row a lane, for few classes, and for logits whose classes lie apart (channels-first images, tokens).

Neighbouring rows are neighbouring lanes, so that channels-first logits are read without permuting. The classes are
walked twice, for the maximum and for the sums; with few classes they stay in registers, with many the second walk hits
the cache. The binary task has one logit a row and reads as two, 0 and z.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_lossacc.kernels.gradient import write_lanes
from lightning_lossacc.kernels.tally import (
    LN_2,
    LOWEST,
    MARGIN_CELLS,
    add_binned_rows,
    add_flagged_rows,
    add_rows,
    confidence_cell,
    exact,
    exponentials,
    half_of,
    log2_difference,
    margin_cell,
    mixed_bits,
    select_flags,
    sort_target,
)


@triton.jit
def compare(value, place, truth, own, other, shown, beats, RANK: tl.constexpr):
    """First walk: the largest other logit, the class it has first, and how many classes beat the target."""
    is_own = truth == place
    rival = tl.where(is_own, float("-inf"), value)
    shown = tl.where(rival > other, place, shown)
    other = tl.maximum(other, rival)
    if RANK:
        beats += ((rival > own) | ((rival == own) & (place < truth))).to(tl.int32)
    return other, shown, beats


@triton.jit
def gather_sums(
    value, maximum, totals, firsts, BETAS: tl.constexpr, SOURCE: tl.constexpr, FIRSTS: tl.constexpr,
    STATS: tl.constexpr,
):  # fmt: skip
    """Second walk: sums of the powers, and of their products with the difference."""
    difference = log2_difference(value, maximum)
    powers = exponentials(difference, BETAS, SOURCE)
    if STATS:
        difference = tl.maximum(difference, LOWEST)
    new_totals, new_firsts = (), ()
    for k in tl.static_range(len(BETAS)):
        new_totals = new_totals + (totals[k] + powers[k],)
        if FIRSTS[k]:
            new_firsts = new_firsts + (firsts[k] + powers[k] * difference,)
        else:
            new_firsts = new_firsts + (firsts[k],)
    return new_totals, new_firsts


@triton.jit
def add_to_item(slot, value, mask, ONE_ITEM: tl.constexpr):
    """Adds rows to their items: at once where a tile has one item, which all of its lanes point to."""
    if ONE_ITEM:
        tl.atomic_add(slot, tl.sum(value, 0), sem="relaxed")
    else:
        tl.atomic_add(slot, value, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def lane_kernel(
    logits, target, counts, sums, edges, items, weight, row_lse, row_loss,
    num_rows, rows_per_item, item_stride, row_stride, class_stride, target_item_stride, target_row_stride, ignore_index,
    smoothing, smoothing_weight,
    C: tl.constexpr, ROWS: tl.constexpr, BINARY: tl.constexpr, KEEP: tl.constexpr, HAS_IGNORE: tl.constexpr,
    STATS: tl.constexpr, LOSS: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, GRID: tl.constexpr,
    BETAS: tl.constexpr, SOURCE: tl.constexpr, FIRSTS: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    TOP_K: tl.constexpr, NUM_BINS: tl.constexpr, PER_CLASS: tl.constexpr, BY_ITEM: tl.constexpr,
    ONE_ITEM: tl.constexpr, ITEM_SIZE: tl.constexpr, COUNT_HALF: tl.constexpr, COUNT_CELLS: tl.constexpr,
    COUNT_MARGIN: tl.constexpr, COUNT_CLASS: tl.constexpr, SUM_CELLS: tl.constexpr, SUM_CLASS: tl.constexpr,
    SUM_GRID: tl.constexpr,
    GRADIENT: tl.constexpr = False, row_scale=None, gradient=None, item_step=0, row_step=0, class_step=0,
):  # fmt: skip
    """Adds a tile of `ROWS` rows; arguments as `rowwise.row_kernel`."""
    T: tl.constexpr = len(GRID)
    RANK: tl.constexpr = STATS and TOP_K > 1 and TOP_K < C
    if ONE_ITEM:
        # Tiles end with their item, so that an item's sums are those of its tiles.
        tiles = tl.cdiv(rows_per_item, ROWS)
        item = (tl.program_id(0) // tiles).to(tl.int64)
        within = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = within < rows_per_item
        row = item * rows_per_item + within
    else:
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = row < num_rows
        item = row // rows_per_item
        within = row % rows_per_item
    label = tl.load(target + item * target_item_stride + within * target_row_stride, mask=inside, other=0).to(tl.int64)
    considered, ignored, outside, unsupported = sort_target(label, C, ignore_index, HAS_IGNORE)
    considered = considered & inside
    truth = tl.where(considered, label, 0).to(tl.int32)
    start = logits + item * item_stride + within * row_stride

    zero = tl.zeros([ROWS], tl.float32)
    if BINARY:
        single = tl.load(start, mask=considered, other=0.0).to(tl.float32)
        own = tl.where(truth == 1, single, 0.0)
    else:
        own = tl.load(start + truth.to(tl.int64) * class_stride, mask=considered, other=0.0).to(tl.float32)
    other = zero + float("-inf")
    shown = tl.zeros([ROWS], tl.int32)
    beats = tl.zeros([ROWS], tl.int32)
    smooth = zero
    kept = ()
    # A pointer that walks from class to class: products of class and stride can leave 32 bits.
    walk = start
    if KEEP:
        for place in tl.static_range(C):
            if BINARY:
                value = zero if place == 0 else single
            else:
                value = tl.load(walk, mask=considered, other=0.0).to(tl.float32)
                walk += class_stride
            kept = kept + (value,)
            other, shown, beats = compare(value, place, truth, own, other, shown, beats, RANK)
            if SMOOTH:
                smooth += (value - own) * tl.load(weight + place) if WEIGHTED else value - own
    else:
        for place in range(C):
            value = tl.load(walk, mask=considered, other=0.0).to(tl.float32)
            walk += class_stride
            other, shown, beats = compare(value, place, truth, own, other, shown, beats, RANK)
            if SMOOTH:
                smooth += (value - own) * tl.load(weight + place) if WEIGHTED else value - own
    maximum = tl.maximum(other, own)
    totals, firsts = (), ()
    for k in tl.static_range(len(BETAS)):
        totals = totals + (zero,)
        firsts = firsts + (zero,)
    if KEEP:
        for place in tl.static_range(C):
            totals, firsts = gather_sums(
                kept[place], maximum, totals, firsts, BETAS, SOURCE, FIRSTS, STATS
            )  # fmt: skip
    else:
        again = start
        for place in range(C):
            value = tl.load(again, mask=considered, other=0.0).to(tl.float32)
            again += class_stride
            totals, firsts = gather_sums(value, maximum, totals, firsts, BETAS, SOURCE, FIRSTS, STATS)

    own_difference = log2_difference(own, maximum)
    total = totals[ONE]
    log2_total = tl.log2(total)
    nll = log2_total * LN_2 - (own - maximum)
    nonfinite = considered & ((total != total) | (tl.abs(own) == float("inf")))
    valid = considered & (nonfinite == 0)
    if LOSS:
        loss = nll
        if WEIGHTED:
            loss = loss * tl.load(weight + truth)
        if SMOOTH:
            all_weights = tl.load(weight + C) if WEIGHTED else C * 1.0
            loss = (1.0 - smoothing) * loss + smoothing_weight * (all_weights * nll - smooth)
        loss = tl.where(considered, loss, tl.where(ignored, 0.0, float("nan")))
        tl.store(row_lse + row, tl.where(considered, maximum, 0.0), mask=inside)
        tl.store(row_lse + num_rows + row, tl.where(considered, log2_total, 0.0), mask=inside)
        tl.store(row_loss + row, loss, mask=inside)
    if GRADIENT:
        write_lanes(
            start, class_stride, kept, gradient + item * item_step + within * row_step, class_step, weight, truth,
            considered, ignored, inside, maximum, log2_total, tl.load(row_scale), smoothing, smoothing_weight, C,
            WEIGHTED, SMOOTH, KEEP,
        )  # fmt: skip
    if STATS:
        margin = own - other
        tie = valid & (margin == 0)
        has_margin = valid & (tl.abs(margin) < float("inf"))
        shown = tl.where(margin > 0, truth, tl.where(tie & (truth < shown), truth, shown))
        correct = valid & (shown == truth)
        if RANK:
            top_k = valid & (beats < TOP_K)
        else:
            top_k = valid if TOP_K >= C else correct
        confidence = tl.where(valid, 1.0 / total, 0.0)
        entropy = (log2_total - firsts[ONE] / total) * LN_2
        own_power = tl.exp2(own_difference)
        brier = totals[TWO] / (total * total) - 2.0 * own_power / total + 1.0
        wide = tl.where(valid, exact(nll), 0.0)
        sure = exact(confidence)

        flag_place = tl.arange(0, 16)
        # Three counts to an integer of ten bits each: a sum over lanes costs ten instructions.
        packed = valid.to(tl.int32) + (correct.to(tl.int32) << 10) + (top_k.to(tl.int32) << 20)
        packed = tl.sum(packed, 0)
        num_valid, num_correct = packed & 1023, (packed >> 10) & 1023
        excluded = nonfinite.to(tl.int32) + ((ignored & inside).to(tl.int32) << 10)
        excluded = tl.sum(excluded + ((outside & inside).to(tl.int32) << 20), 0)
        marked = tie.to(tl.int32) + (has_margin.to(tl.int32) << 10)
        marked = tl.sum(marked + ((unsupported & inside).to(tl.int32) << 20), 0)
        flags = select_flags(
            flag_place, num_valid, (excluded >> 10) & 1023, excluded >> 20, excluded & 1023, marked >> 20,
            marked & 1023, num_correct, packed >> 20, (marked >> 10) & 1023,
        )  # fmt: skip
        if not BY_ITEM:
            flags += tl.where((flag_place == 9) | (flag_place == 10), num_valid, 0)
            flags += tl.where((flag_place == 11) | (flag_place == 12), num_correct, 0)
        tl.atomic_add(counts + flag_place, flags.to(tl.int64), mask=flag_place < 13, sem="relaxed")

        sum_place = tl.arange(0, 8)
        value = tl.where(sum_place == 0, tl.sum(wide, 0), 0.0)
        value = tl.where(sum_place == 1, tl.sum(sure, 0), value)
        value = tl.where(sum_place == 2, tl.sum(tl.where(valid, exact(entropy), 0.0), 0), value)
        value = tl.where(sum_place == 3, tl.sum(tl.where(valid, exact(brier), 0.0), 0), value)
        value = tl.where(sum_place == 4, tl.sum(tl.where(has_margin, exact(margin), 0.0), 0), value)
        if not BY_ITEM:
            value = tl.where(sum_place == 5, tl.sum(exact(wide * wide), 0), value)
            value = tl.where(sum_place == 6, tl.sum(wide, 0), value)
        tl.atomic_add(sums + sum_place, value, mask=sum_place < 7, sem="relaxed")

        cell = confidence_cell(confidence, correct, NUM_BINS)
        cell = tl.where(valid, cell, 0)
        add_binned_rows(
            cell, sure, wide, valid, counts + COUNT_CELLS, sums + SUM_CELLS, sums + SUM_CELLS + 2 * NUM_BINS
        )
        bin_of = margin_cell(tl.where(valid, margin, 0.0), edges)
        found = tl.histogram(bin_of, 256, mask=valid)
        margin_place = tl.arange(0, 256)
        tl.atomic_add(
            counts + COUNT_MARGIN + margin_place, found.to(tl.int64), mask=(found > 0) & (margin_place < MARGIN_CELLS),
            sem="relaxed",
        )  # fmt: skip
        if PER_CLASS:
            by_class = counts + COUNT_CLASS
            add_flagged_rows(truth, correct, wide, valid, by_class, by_class + 2 * C, sums + SUM_CLASS)
            add_rows(shown, valid, by_class + C)
        if T > 0 or BY_ITEM:
            begin = tl.load(start, mask=valid, other=0.0)
            end = begin
            if not BINARY:
                end = tl.load(walk - class_stride, mask=valid, other=0.0)
            mixed = mixed_bits(begin, end)
        if BY_ITEM:
            slot = items + item * ITEM_SIZE
            hashes = (items + (num_rows // rows_per_item).to(tl.int64) * ITEM_SIZE).to(tl.pointer_type(tl.int64))
            mixed = tl.where(valid, mixed, 0)
            add_to_item(slot, valid.to(tl.float64), valid, ONE_ITEM)
            add_to_item(slot + 1, correct.to(tl.float64), valid, ONE_ITEM)
            add_to_item(slot + 2, wide, valid, ONE_ITEM)
            add_to_item(hashes + item, mixed, valid, ONE_ITEM)
        elif T > 0:
            half = half_of(mixed)
            second = valid & (half == 1)
            num_second = tl.sum(second.to(tl.int64), 0)
            tl.atomic_add(counts + COUNT_HALF, num_valid - num_second, sem="relaxed")
            tl.atomic_add(counts + COUNT_HALF + 1, num_second, sem="relaxed")
        for k in tl.static_range(T):
            level = exact((tl.log2(totals[GRID[k]]) - BETAS[GRID[k]] * own_difference) * LN_2)
            slope = exact((firsts[GRID[k]] / totals[GRID[k]] - own_difference) * LN_2)
            level = tl.where(valid, level, 0.0)
            slope = tl.where(valid, slope, 0.0)
            if BY_ITEM:
                add_to_item(slot + 3 + k, level, valid, ONE_ITEM)
                add_to_item(slot + 3 + T + k, slope, valid, ONE_ITEM)
            else:
                tl.atomic_add(sums + SUM_GRID + k, tl.sum(tl.where(second, 0.0, level), 0), sem="relaxed")
                tl.atomic_add(sums + SUM_GRID + T + k, tl.sum(tl.where(second, level, 0.0), 0), sem="relaxed")
                tl.atomic_add(sums + SUM_GRID + 2 * T + k, tl.sum(tl.where(second, 0.0, slope), 0), sem="relaxed")
                tl.atomic_add(sums + SUM_GRID + 3 * T + k, tl.sum(tl.where(second, slope, 0.0), 0), sem="relaxed")


@triton.jit(do_not_specialize=["num_items"])
def item_kernel(
    items, counts, sums, num_items, ITEMS: tl.constexpr, ITEM_SIZE: tl.constexpr, T: tl.constexpr,
    COUNT_HALF: tl.constexpr, SUM_GRID: tl.constexpr,
):  # fmt: skip
    """Adds what needs whole items, from (I, ITEM_SIZE) of n_i, c_i, s_i and the grid, and the hashes after them.

    One program, because squares of items' sums leave the range in which addition is exact.
    """
    place = tl.arange(0, 4)
    whole = tl.zeros([4], tl.int64)
    squared = tl.full([], 0.0, tl.float64)
    crossed = squared
    halves = tl.zeros([2], tl.int64)
    hashes = (items + num_items.to(tl.int64) * ITEM_SIZE).to(tl.pointer_type(tl.int64))
    for begin in range(0, num_items, ITEMS):
        item = begin + tl.arange(0, ITEMS)
        inside = item < num_items
        slot = items + item.to(tl.int64) * ITEM_SIZE
        rows = tl.load(slot, mask=inside, other=0.0)
        right = tl.load(slot + 1, mask=inside, other=0.0)
        nll = tl.load(slot + 2, mask=inside, other=0.0)
        value = tl.where(place == 0, tl.sum((rows > 0).to(tl.int64), 0), 0)
        value = tl.where(place == 1, tl.sum((rows * rows).to(tl.int64), 0), value)
        value = tl.where(place == 2, tl.sum((rows * right).to(tl.int64), 0), value)
        whole += tl.where(place == 3, tl.sum((right * right).to(tl.int64), 0), value)
        squared += tl.sum(nll * nll, 0)
        crossed += tl.sum(rows * nll, 0)
        if T > 0:
            second = half_of(tl.load(hashes + item, mask=inside, other=0)) == 1
            num_second = tl.sum(tl.where(second, rows, 0.0).to(tl.int64), 0)
            num_first = tl.sum(rows.to(tl.int64), 0) - num_second
            halves += tl.where(tl.arange(0, 2) == 0, num_first, num_second)
            for k in tl.static_range(2 * T):
                value = tl.load(slot + 3 + k, mask=inside, other=0.0)
                base = SUM_GRID + (k % T) + 2 * T * (k // T)
                tl.atomic_add(sums + base, tl.sum(tl.where(second, 0.0, value), 0), sem="relaxed")
                tl.atomic_add(sums + base + T, tl.sum(tl.where(second, value, 0.0), 0), sem="relaxed")
    tl.atomic_add(counts + 9 + place, whole, sem="relaxed")
    tl.atomic_add(sums + 5, squared, sem="relaxed")
    tl.atomic_add(sums + 6, crossed, sem="relaxed")
    if T > 0:
        tl.atomic_add(counts + COUNT_HALF + tl.arange(0, 2), halves, sem="relaxed")
