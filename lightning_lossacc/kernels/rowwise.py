"""Triton: one row after the other, for many classes side by side in memory; the logits are read once.

Every lane keeps an online softmax of its own (Milakov and Gimelshein, 2018: the sums are rescaled when the maximum
grows), so that the loop has neither a shuffle nor a barrier; lanes are combined once a row. The target's logit is read
first: the running maximum starts there, and the largest other logit needs a mask only in the one block that holds the
target. Rows with few neighbours are split over programs, whose partial sums the last one to arrive combines in a fixed
order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_lossacc.kernels.gradient import write_row
from lightning_lossacc.kernels.tally import (
    LN_2,
    LOWEST,
    confidence_cell,
    exact,
    exponentials,
    half_of,
    lane_reduce_max,
    lane_reduce_sum,
    log2_difference,
    margin_cell,
    mixed_bits,
    next_below,
    select_flags,
    sort_target,
)

NEVER = tl.constexpr(2**31 - 1)
LEAST = tl.constexpr(-3.4028234663852886e38)  # the least float32


@triton.jit
def take_block(
    block, highest, top, at, beats, totals, firsts, place, threshold,
    BETAS: tl.constexpr, SOURCE: tl.constexpr, FIRSTS: tl.constexpr, RANK: tl.constexpr,
    STATS: tl.constexpr,
):  # fmt: skip
    """Adds a block (A, LANES, VEC) without the target to the running values of the lanes.

    `highest` is the largest other logit of a lane, `top` the maximum to which its sums refer.
    """
    largest = lane_reduce_max(block)
    if STATS:
        at = tl.where(largest > highest, place, at)
    if RANK:
        beats += lane_reduce_sum((block > threshold).to(tl.int32))
    highest = tl.maximum(highest, largest)
    new_top = tl.maximum(top, highest)
    # Clamped, for a lane that has seen nothing yet multiplies it by 0.
    shift = tl.maximum(log2_difference(top, new_top), LOWEST)
    difference = log2_difference(block, new_top[None, :, None])
    powers = exponentials(difference, BETAS, SOURCE)
    rescale = exponentials(shift, BETAS, SOURCE)
    if STATS:
        difference = tl.maximum(difference, LOWEST)
    new_totals, new_firsts = (), ()
    for k in tl.static_range(len(BETAS)):
        if FIRSTS[k]:
            moved = (firsts[k] + shift * totals[k]) * rescale[k]
            new_firsts = new_firsts + (moved + lane_reduce_sum(powers[k] * difference),)
        else:
            new_firsts = new_firsts + (firsts[k],)
        new_totals = new_totals + (totals[k] * rescale[k] + lane_reduce_sum(powers[k]),)
    return highest, new_top, at, beats, new_totals, new_firsts


@triton.jit
def combine(
    highest, top, beats, totals, firsts, BETAS: tl.constexpr, SOURCE: tl.constexpr, FIRSTS: tl.constexpr
):  # fmt: skip
    """Lanes (or parts of a row) to one: largest other logit, maximum, rank, sums."""
    whole = tl.max(top, 0)
    shift = tl.maximum(log2_difference(top, whole), LOWEST)
    rescale = exponentials(shift, BETAS, SOURCE)
    new_totals, new_firsts = (), ()
    for k in tl.static_range(len(BETAS)):
        new_totals = new_totals + (tl.sum(totals[k] * rescale[k], 0),)
        if FIRSTS[k]:
            new_firsts = new_firsts + (tl.sum((firsts[k] + shift * totals[k]) * rescale[k], 0),)
        else:
            new_firsts = new_firsts + (0.0,)
    return tl.max(highest, 0), whole, tl.sum(beats, 0), new_totals, new_firsts


@triton.jit
def exchange(
    parts, tickets, row, part, other, maximum, rank, totals, firsts, winner, spread,
    BETAS: tl.constexpr, SOURCE: tl.constexpr, FIRSTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Leaves a part's sums in memory; the program that comes last gets those of the whole row, in the parts' order."""
    K: tl.constexpr = 5 + 2 * len(BETAS)
    slot = parts + (row.to(tl.int64) * SPLIT + part) * K
    tl.store(slot, other)
    tl.store(slot + 1, maximum)
    tl.store(slot + 2, rank.to(tl.float32))
    tl.store(slot + 3, tl.where(winner == NEVER, 0, winner).to(tl.float32))
    tl.store(slot + 4, spread)
    for k in tl.static_range(len(BETAS)):
        tl.store(slot + 5 + 2 * k, totals[k])
        tl.store(slot + 6 + 2 * k, firsts[k])
    tl.debug_barrier()
    arrived = tl.atomic_add(tickets + row, 1, sem="acq_rel", scope="gpu")
    # Every part is loaded whoever comes last; only the last one uses what it finds.
    place = tl.arange(0, triton.next_power_of_2(SPLIT))
    there = place < SPLIT
    begin = parts + (row.to(tl.int64) * SPLIT + place) * K
    others = tl.load(begin, mask=there, other=float("-inf"), cache_modifier=".cg")
    tops = tl.load(begin + 1, mask=there, other=float("-inf"), cache_modifier=".cg")
    # A part without classes of its own has the target's logit as its maximum, as all of them.
    ranks = tl.load(begin + 2, mask=there, other=0.0, cache_modifier=".cg").to(tl.int32)
    winners = tl.load(begin + 3, mask=there, other=0.0, cache_modifier=".cg").to(tl.int32)
    spreads = tl.load(begin + 4, mask=there, other=0.0, cache_modifier=".cg")
    all_totals, all_firsts = (), ()
    for k in tl.static_range(len(BETAS)):
        all_totals = all_totals + (tl.load(begin + 5 + 2 * k, mask=there, other=0.0, cache_modifier=".cg"),)
        all_firsts = all_firsts + (tl.load(begin + 6 + 2 * k, mask=there, other=0.0, cache_modifier=".cg"),)
    tops = tl.where(there, tops, tl.max(tops, 0))
    other, maximum, rank, totals, firsts = combine(
        others, tops, ranks, all_totals, all_firsts, BETAS, SOURCE, FIRSTS
    )  # fmt: skip
    winner = tl.min(tl.where(others == other, winners, NEVER), 0)
    return other, maximum, rank, totals, firsts, winner, tl.sum(spreads, 0), arrived == SPLIT - 1


@triton.jit(do_not_specialize=["num_rows", "rows_per_item", "ignore_index"])
def row_kernel(
    logits, target, counts, sums, edges, items, weight, row_lse, row_loss, parts, tickets,
    num_rows, rows_per_item, item_stride, row_stride, target_item_stride, target_row_stride, ignore_index,
    smoothing, smoothing_weight,
    C: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr, ALIGNED: tl.constexpr, HAS_IGNORE: tl.constexpr, STATS: tl.constexpr, LOSS: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, GRID: tl.constexpr, BETAS: tl.constexpr, SOURCE: tl.constexpr,
    FIRSTS: tl.constexpr,
    ONE: tl.constexpr, TWO: tl.constexpr,
    TOP_K: tl.constexpr, NUM_BINS: tl.constexpr, PER_CLASS: tl.constexpr, BY_ITEM: tl.constexpr,
    ITEM_SIZE: tl.constexpr, COUNT_HALF: tl.constexpr, COUNT_CELLS: tl.constexpr, COUNT_MARGIN: tl.constexpr,
    COUNT_CLASS: tl.constexpr, SUM_CELLS: tl.constexpr, SUM_CLASS: tl.constexpr, SUM_GRID: tl.constexpr,
    GRADIENT: tl.constexpr = False, row_scale=None, gradient=None, item_step=0, row_step=0,
):  # fmt: skip
    """Adds the rows of a batch to `counts` and `sums`; with `LOSS` stores each row's loss and log-sum-exp.

    Args:
        row_lse: (2, num_rows) float32: the largest logit, and log2 sum_c 2^((z_c - largest) log2 e); their sum would
            lose the digits that a common offset of the logits takes.

        items: (I, ITEM_SIZE) float64 and after it (I,) int64 where `BY_ITEM`, else unused.
        weight: (C + 1,) float32 where `WEIGHTED`, the sum behind the weights.
        parts, tickets: (num_rows, SPLIT, K) float32, and (num_rows,) int32 zeros, where `SPLIT` > 1.
        smoothing, smoothing_weight: label smoothing e, and e / C.
        row_scale, gradient, item_step, row_step: as in `gradient`, one scale for all rows; where `GRADIENT`, with
            `LOSS` and without `SPLIT`.
    """
    T: tl.constexpr = len(GRID)
    GRID_SIZE: tl.constexpr = 2 * triton.next_power_of_2(T) if T > 0 else 2
    A: tl.constexpr = BLOCK // (LANES * VEC)
    RANK: tl.constexpr = STATS and TOP_K > 1 and TOP_K < C
    flag_place = tl.arange(0, 16)
    CELLS: tl.constexpr = triton.next_power_of_2(2 * NUM_BINS)
    cell_place = tl.arange(0, CELLS)
    margin_place = tl.arange(0, 256)
    grid_place = tl.arange(0, GRID_SIZE)
    columns = tl.arange(0, BLOCK)
    row_counts = tl.zeros([16], tl.int32)
    half_counts = tl.zeros([16], tl.int32)
    cell_counts = tl.zeros([CELLS], tl.int32)
    margin_counts = tl.zeros([256], tl.int32)
    row_sums = tl.zeros([8], tl.float64)
    cell_confidence = tl.zeros([CELLS], tl.float64)
    cell_nll = tl.zeros([CELLS], tl.float64)
    grid_first = tl.zeros([GRID_SIZE], tl.float64)
    grid_second = tl.zeros([GRID_SIZE], tl.float64)
    sum_place = tl.arange(0, 8)

    for unit in range(tl.program_id(0), num_rows * SPLIT, tl.num_programs(0)):
        row = unit // SPLIT
        part = unit % SPLIT
        item = (row // rows_per_item).to(tl.int64)
        within = (row % rows_per_item).to(tl.int64)
        label = tl.load(target + item * target_item_stride + within * target_row_stride).to(tl.int64)
        considered, ignored, outside, unsupported = sort_target(label, C, ignore_index, HAS_IGNORE)
        valid = considered
        nonfinite = considered & (considered == 0)
        tie, correct, top_k, has_margin = nonfinite, nonfinite, nonfinite, nonfinite
        loss = tl.full([], 0.0, tl.float32)
        top_logit, log_total = loss, loss
        # A row that is left out is counted by the program of its first part.
        last_part = part == 0
        if considered:
            # Of strides the compiler only knows whether 16 divides them; 1000 classes are whole 16-byte loads as well.
            start = logits + tl.multiple_of(item * item_stride + within * row_stride, ALIGNED)
            truth = label.to(tl.int32)
            own = tl.load(start + truth).to(tl.float32)
            lower = next_below(own)
            highest = tl.full([LANES], float("-inf"), tl.float32)
            # A lane may see nothing but -inf, and -inf minus -inf is not a number.
            top = tl.full([LANES], 0.0, tl.float32) + tl.where(own == float("-inf"), LEAST, own)
            at = tl.full([LANES], NEVER, tl.int32)
            beats = tl.zeros([LANES], tl.int32)
            smooth = tl.zeros([LANES], tl.float32)
            totals, firsts = (), ()
            for k in tl.static_range(len(BETAS)):
                totals = totals + (tl.zeros([LANES], tl.float32),)
                firsts = firsts + (tl.zeros([LANES], tl.float32),)
            for begin in range(part * CHUNK, tl.minimum(C, (part + 1) * CHUNK), BLOCK):
                place = begin + columns
                if C % BLOCK == 0 and CHUNK % BLOCK == 0:
                    flat = tl.load(start + place).to(tl.float32)
                else:
                    flat = tl.load(start + place, mask=place < C, other=float("-inf")).to(tl.float32)
                if SMOOTH:
                    # Differences from the target's logit, so that a common offset costs no digits.
                    ahead = tl.where(place < C, flat - own, 0.0)
                    if WEIGHTED:
                        ahead = ahead * tl.load(weight + place, mask=place < C, other=0.0)
                    smooth += lane_reduce_sum(tl.reshape(ahead, [A, LANES, VEC]))
                if (truth >= begin) & (truth < begin + BLOCK):
                    if RANK:
                        # Here alone an equal logit counts by its place; the target itself never beats itself.
                        earlier = (flat == own) & (place < truth)
                        beats += lane_reduce_sum(tl.reshape(earlier.to(tl.int32), [A, LANES, VEC]))
                    if GRADIENT and not STATS and BLOCK < C and C % VEC == 0:
                        # Read again: without a load in here LLVM does this in every block, at twice the instructions.
                        others = (place < C) & (place != truth)
                        flat = tl.load(start + place, mask=others, other=float("-inf")).to(tl.float32)
                    else:
                        flat = tl.where(place == truth, float("-inf"), flat)
                    threshold = own
                else:
                    threshold = tl.where(truth < begin, own, lower)
                highest, top, at, beats, totals, firsts = take_block(
                    tl.reshape(flat, [A, LANES, VEC]), highest, top, at, beats, totals, firsts, begin, threshold,
                    BETAS, SOURCE, FIRSTS, RANK, STATS,
                )  # fmt: skip
            other, maximum, rank, totals, firsts = combine(
                highest, top, beats, totals, firsts, BETAS, SOURCE, FIRSTS
            )  # fmt: skip
            winner = tl.min(tl.where(highest == other, at, NEVER), 0)
            spread = tl.sum(smooth, 0)
            if SPLIT > 1:
                other, maximum, rank, totals, firsts, winner, spread, last_part = exchange(
                    parts, tickets, row, part, other, maximum, rank, totals, firsts, winner, spread,
                    BETAS, SOURCE, FIRSTS, SPLIT,
                )  # fmt: skip
            own_difference = log2_difference(own, maximum)
            # The target was left out of the sums of its block.
            own_powers = exponentials(own_difference, BETAS, SOURCE)
            total = totals[ONE] + own_powers[ONE]
            log2_total = tl.log2(total)
            nll = log2_total * LN_2 - (own - maximum)
            nonfinite = (total != total) | (tl.abs(own) == float("inf"))
            valid = nonfinite == 0
            if LOSS:
                top_logit, log_total = maximum, log2_total
                loss = nll
                if WEIGHTED:
                    own_weight = tl.load(weight + truth)
                    loss = loss * own_weight
                if SMOOTH:
                    # e / C sum_c w_c (lse - z_c), by differences from the target's logit
                    if WEIGHTED:
                        all_weights = tl.load(weight + C)
                    else:
                        all_weights = C * 1.0
                    loss = (1.0 - smoothing) * loss + smoothing_weight * (all_weights * nll - spread)
            if STATS:
                if valid & last_part:
                    margin = own - other
                    tie = margin == 0
                    has_margin = tl.abs(margin) < float("inf")
                    confidence = 1.0 / total
                    shown = truth
                    if margin <= 0:
                        # The winning block is read again, from the cache, where the target does not win alone.
                        place = winner + columns
                        flat = tl.load(
                            start + place, mask=place < C, other=float("-inf")
                        ).to(tl.float32)  # fmt: skip
                        shown = tl.min(tl.where((flat == other) & (place != truth), place, NEVER), 0)
                        shown = tl.where(tie & (truth < shown), truth, shown)
                    correct = shown == truth
                    if RANK:
                        top_k = rank < TOP_K
                    else:
                        if TOP_K >= C:
                            top_k = valid
                        else:
                            top_k = correct
                    hopeless = tl.maximum(own_difference, LOWEST)
                    first = (firsts[ONE] + own_powers[ONE] * hopeless) * LN_2
                    entropy = log2_total * LN_2 - first / total
                    squares = totals[TWO] + own_powers[TWO]
                    brier = squares / (total * total) - 2.0 * own_powers[ONE] / total + 1.0
                    wide = exact(nll)
                    kept_margin = tl.where(has_margin, margin, 0.0)
                    value = tl.where(sum_place == 0, nll, 0.0)
                    value = tl.where(sum_place == 1, confidence, value)
                    value = tl.where(sum_place == 2, entropy, value)
                    value = tl.where(sum_place == 3, brier, value)
                    value = tl.where(sum_place == 4, kept_margin, value)
                    value = exact(value)
                    if not BY_ITEM:
                        squared = exact(wide * wide)
                        value = tl.where(sum_place == 5, squared, value)
                        value = tl.where(sum_place == 6, wide, value)
                    row_sums += value
                    cell = confidence_cell(confidence, correct, NUM_BINS)
                    cell_counts += (cell_place == cell).to(tl.int32)
                    cell_confidence += tl.where(cell_place == cell, exact(confidence), 0.0)
                    cell_nll += tl.where(cell_place == cell, wide, 0.0)
                    margin_counts += (margin_place == margin_cell(margin, edges)).to(tl.int32)
                    if PER_CLASS:
                        by_class = counts + COUNT_CLASS
                        tl.atomic_add(by_class + truth, 1, sem="relaxed")
                        tl.atomic_add(by_class + C + shown, 1, sem="relaxed")
                        tl.atomic_add(by_class + 2 * C + truth, 1, mask=correct, sem="relaxed")
                        tl.atomic_add(sums + SUM_CLASS + truth, wide, sem="relaxed")
                    if T > 0 or BY_ITEM:
                        last = tl.load(start + (C - 1))
                        mixed = mixed_bits(tl.load(start), last)
                    if T > 0:
                        vector = tl.zeros([GRID_SIZE], tl.float32)
                        for k in tl.static_range(T):
                            whole = totals[GRID[k]] + own_powers[GRID[k]]
                            moment = firsts[GRID[k]] + own_powers[GRID[k]] * hopeless
                            level = (tl.log2(whole) - BETAS[GRID[k]] * own_difference) * LN_2
                            slope = (moment / whole - own_difference) * LN_2
                            vector = tl.where(grid_place == k, level, vector)
                            vector = tl.where(grid_place == GRID_SIZE // 2 + k, slope, vector)
                        values = exact(vector)
                        if not BY_ITEM:
                            half = half_of(mixed)
                            grid_first += tl.where(half == 0, values, 0.0)
                            grid_second += tl.where(half == 1, values, 0.0)
                            half_counts += (flag_place == half).to(tl.int32)
                        else:
                            is_grid = grid_place % (GRID_SIZE // 2) < T
                            slot = 3 + grid_place % (GRID_SIZE // 2) + T * (grid_place // (GRID_SIZE // 2))
                            tl.atomic_add(items + item * ITEM_SIZE + slot, values, mask=is_grid, sem="relaxed")
                    if BY_ITEM:
                        # n_i, c_i, s_i: exact in float64.
                        slot = items + item * ITEM_SIZE
                        tl.atomic_add(slot, 1.0, sem="relaxed")
                        tl.atomic_add(slot + 1, correct.to(tl.float64), sem="relaxed")
                        tl.atomic_add(slot + 2, wide, sem="relaxed")
                        end = items + (num_rows // rows_per_item).to(tl.int64) * ITEM_SIZE
                        hashes = end.to(tl.pointer_type(tl.int64))
                        tl.atomic_add(hashes + item, mixed, sem="relaxed")
        if LOSS:
            # A target that is no class has no loss: NaN is seen, where eager code reads foreign memory or aborts.
            undefined = (ignored == 0) & (considered == 0)
            loss = tl.where(undefined, float("nan"), loss)
            tl.store(row_lse + row, top_logit, mask=last_part)
            tl.store(row_lse + num_rows + row, log_total, mask=last_part)
            tl.store(row_loss + row, loss, mask=last_part)
        if GRADIENT:
            write_row(
                logits + tl.multiple_of(item * item_stride + within * row_stride, ALIGNED),
                gradient + tl.multiple_of(item * item_step + within * row_step, ALIGNED),
                weight, label.to(tl.int32), considered, ignored, top_logit, log_total, tl.load(row_scale), smoothing,
                smoothing_weight, C, BLOCK, WEIGHTED, SMOOTH,
            )  # fmt: skip
        if STATS:
            found = select_flags(
                flag_place, valid.to(tl.int32), ignored.to(tl.int32), outside.to(tl.int32), nonfinite.to(tl.int32),
                unsupported.to(tl.int32), tie.to(tl.int32), correct.to(tl.int32), top_k.to(tl.int32),
                has_margin.to(tl.int32),
            )  # fmt: skip
            row_counts += tl.where(last_part, found, 0)

    if STATS:
        if not BY_ITEM:
            # Rows are items: n_i = 1, so that items, sum n_i^2 are rows and sum n_i c_i, sum c_i^2 are correct rows.
            rows = tl.sum(tl.where(flag_place == 0, row_counts, 0), 0)
            right = tl.sum(tl.where(flag_place == 6, row_counts, 0), 0)
            row_counts += tl.where((flag_place == 9) | (flag_place == 10), rows, 0)
            row_counts += tl.where((flag_place == 11) | (flag_place == 12), right, 0)
        tl.atomic_add(counts + flag_place, row_counts.to(tl.int64), mask=flag_place < 13, sem="relaxed")
        tl.atomic_add(
            counts + COUNT_CELLS + cell_place, cell_counts.to(tl.int64), mask=cell_place < 2 * NUM_BINS, sem="relaxed"
        )
        tl.atomic_add(
            counts + COUNT_MARGIN + margin_place, margin_counts.to(tl.int64), mask=margin_counts > 0, sem="relaxed"
        )
        tl.atomic_add(sums + sum_place, row_sums, mask=sum_place < 7, sem="relaxed")
        in_cells = cell_place < 2 * NUM_BINS
        tl.atomic_add(sums + SUM_CELLS + cell_place, cell_confidence, mask=in_cells, sem="relaxed")
        tl.atomic_add(sums + SUM_CELLS + 2 * NUM_BINS + cell_place, cell_nll, mask=in_cells, sem="relaxed")
        if T > 0 and not BY_ITEM:
            tl.atomic_add(counts + COUNT_HALF + flag_place, half_counts.to(tl.int64), mask=flag_place < 2,
                          sem="relaxed")  # fmt: skip
            is_grid = grid_place % (GRID_SIZE // 2) < T
            slot = SUM_GRID + grid_place % (GRID_SIZE // 2) + 2 * T * (grid_place // (GRID_SIZE // 2))
            tl.atomic_add(sums + slot, grid_first, mask=is_grid, sem="relaxed")
            tl.atomic_add(sums + slot + T, grid_second, mask=is_grid, sem="relaxed")
