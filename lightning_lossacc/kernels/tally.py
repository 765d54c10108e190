"""What every Triton kernel does with a row once its classes are reduced: values, bins, halves, exact addition.

Sums are float64 atomics of values rounded to multiples of 2^-20. Adding such multiples is exact while the total stays
below 2^33 (8.6e9 nats), so that no order of programs, batches or devices changes a bit; a value is off by at most
4.8e-7. Squared sums of items of several rows are added by one program, in order. Counts are integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Stands for a difference of -inf in products such as e * d; 2^-14427 is 0 in float32.
LOWEST = tl.constexpr(-14427.0)
# Adding and subtracting 1.5 * 2^52 / 2^20 rounds a float64 to a multiple of 2^-20.
ROUNDER = tl.constexpr(1.5 * 2.0**32)
UNSUPPORTED = tl.constexpr(-(2**63))
MARGIN_CELLS = tl.constexpr(130)
# Half of the bins over asinh(64): where a margin's bin is guessed before the edges are asked.
BINS_PER_ASINH = tl.constexpr(64 / 4.852030263919617)


@triton.jit
def exact(value):
    """Float64 at the nearest multiple of 2^-20."""
    return (value.to(tl.float64) + ROUNDER) - ROUNDER


@triton.jit
def log2_difference(value, maximum):
    """(value - maximum) log2 e; subtracted first: a maximum times log2 e is rounded by more than 1 from 1e7 on."""
    return (value - maximum) * LOG2_E


@triton.jit
def lane_reduce_max(block):
    """(A, LANES, VEC) -> (LANES,) without a shuffle."""
    return tl.max(tl.max(block, 2), 0)


@triton.jit
def lane_reduce_sum(block):
    """(A, LANES, VEC) -> (LANES,) without a shuffle."""
    return tl.sum(tl.sum(block, 2), 0)


@triton.jit
def next_below(value):
    """The largest float32 below a finite value, so that x > next_below(v) means x >= v."""
    bits = value.to(tl.int32, bitcast=True)
    lower = tl.where(value > 0, bits - 1, bits + 1)
    lower = tl.where(value == 0, -2147483647, lower)
    return lower.to(tl.float32, bitcast=True)


@triton.jit
def sort_target(target, num_classes: tl.constexpr, ignore_index, HAS_IGNORE: tl.constexpr):
    """(considered, ignored, outside, unsupported) of int64 targets."""
    in_range = (target >= 0) & (target < num_classes)
    if HAS_IGNORE:
        ignored = target == ignore_index
    else:
        ignored = target != target
    unsupported = (target == UNSUPPORTED) & (ignored == 0)
    outside = (in_range == 0) & (ignored == 0) & (unsupported == 0)
    return in_range & (ignored == 0), ignored, outside, unsupported


@triton.jit
def exponentials(difference, BETAS: tl.constexpr, SOURCE: tl.constexpr):
    """2^(b d) for every b of `BETAS`, ascending; the square of an earlier one where `SOURCE` names it."""
    powers = ()
    for place in tl.static_range(len(BETAS)):
        if SOURCE[place] >= 0:
            half = powers[SOURCE[place]]
            powers = powers + (half * half,)
        else:
            if BETAS[place] == 1.0:
                powers = powers + (tl.exp2(difference),)
            else:
                powers = powers + (tl.exp2(difference * BETAS[place]),)
    return powers


@triton.jit
def margin_cell(margin, edges):
    """Number of the 129 edges that are <= margin; the guess is put right by the edges themselves."""
    size = tl.abs(margin)
    guess = tl.log2(size + tl.sqrt(size * size + 1.0)) * (LN_2 * BINS_PER_ASINH)
    guess = tl.where(margin < 0, -guess, guess) + 64.0
    guess = tl.minimum(tl.maximum(guess, 0.0), 128.0).to(tl.int32)
    # The guess is the bin between edges[cell] and edges[cell + 1], or a neighbour of it.
    below = margin < tl.load(edges + guess)
    above = (guess < 128) & (margin >= tl.load(edges + tl.minimum(guess + 1, 128)))
    return guess + 1 - below.to(tl.int32) + above.to(tl.int32)


@triton.jit
def confidence_cell(confidence, correct, NUM_BINS: tl.constexpr):
    """Bin of equal width on [0, 1], shifted by the number of bins for right rows."""
    # Clamped as a float: what no integer holds may become any integer.
    cell = tl.minimum(confidence * NUM_BINS, NUM_BINS - 1.0).to(tl.int32)
    return cell + NUM_BINS * correct.to(tl.int32)


@triton.jit
def mixed_bits(first, last):
    """A row's share in the hash of its item; int64 arithmetic wraps as in the reference."""
    low = first.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    high = last.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    mixed = low * 0x9E3779B1 + high * 0x85EBCA77
    return (mixed ^ (mixed >> 29)) * 0x1B873593


@triton.jit
def half_of(total):
    """0 or 1 from an item's hash."""
    return (((total ^ (total >> 17)) * 0x2C1B3C6D) >> 33) & 1


@triton.jit
def select_flags(place, valid, ignored, outside, nonfinite, unsupported, tie, correct, top_k, has_margin):
    """The first nine counts of the layout as one vector, from sums or flags of rows."""
    vector = tl.where(place == 0, valid, 0)
    vector = tl.where(place == 1, ignored, vector)
    vector = tl.where(place == 2, outside, vector)
    vector = tl.where(place == 3, nonfinite, vector)
    vector = tl.where(place == 4, unsupported, vector)
    vector = tl.where(place == 5, tie, vector)
    vector = tl.where(place == 6, correct, vector)
    vector = tl.where(place == 7, top_k, vector)
    return tl.where(place == 8, has_margin, vector)


@triton.jit
def add_rows(index, mask, base):
    """Counts a tile's rows into int64 `base[index]`: those of its largest index at once, then the others.

    Neighbouring rows often share their index (a class, the last confidence bin), and atomics on one address wait for
    each other.
    """
    common = tl.max(tl.where(mask, index, -1), 0)
    hit = mask & (index == common)
    tl.atomic_add(base + common, tl.sum(hit.to(tl.int32), 0).to(tl.int64), mask=common >= 0, sem="relaxed")
    rest = mask & (index != common)
    tl.atomic_add(base + index, rest.to(tl.int64), mask=rest, sem="relaxed")


@triton.jit
def add_flagged_rows(index, flag, value, mask, row_base, flag_base, value_base):
    """As `add_rows`, with the rows that have a flag and the sum of a float64 value beside; fewer than 2^16 rows."""
    common = tl.max(tl.where(mask, index, -1), 0)
    hit = mask & (index == common)
    packed = tl.sum(hit.to(tl.int32) + 65536 * (hit & flag).to(tl.int32), 0)
    found = common >= 0
    tl.atomic_add(row_base + common, (packed & 65535).to(tl.int64), mask=found, sem="relaxed")
    tl.atomic_add(flag_base + common, (packed >> 16).to(tl.int64), mask=found, sem="relaxed")
    tl.atomic_add(value_base + common, tl.sum(tl.where(hit, value, 0.0), 0), mask=found, sem="relaxed")
    rest = mask & (index != common)
    tl.atomic_add(row_base + index, rest.to(tl.int64), mask=rest, sem="relaxed")
    tl.atomic_add(flag_base + index, rest.to(tl.int64), mask=rest & flag, sem="relaxed")
    tl.atomic_add(value_base + index, value, mask=rest, sem="relaxed")


@triton.jit
def add_binned_rows(index, first, second, mask, row_base, first_base, second_base):
    """As `add_rows`, with the sums of two float64 values beside."""
    common = tl.max(tl.where(mask, index, -1), 0)
    hit = mask & (index == common)
    found = common >= 0
    tl.atomic_add(row_base + common, tl.sum(hit.to(tl.int32), 0).to(tl.int64), mask=found, sem="relaxed")
    tl.atomic_add(first_base + common, tl.sum(tl.where(hit, first, 0.0), 0), mask=found, sem="relaxed")
    tl.atomic_add(second_base + common, tl.sum(tl.where(hit, second, 0.0), 0), mask=found, sem="relaxed")
    rest = mask & (index != common)
    tl.atomic_add(row_base + index, rest.to(tl.int64), mask=rest, sem="relaxed")
    tl.atomic_add(first_base + index, first, mask=rest, sem="relaxed")
    tl.atomic_add(second_base + index, second, mask=rest, sem="relaxed")
