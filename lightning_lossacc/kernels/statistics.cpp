// Every statistic of a batch in one pass over the logits: what `reference.py` defines, for a CPU.
//
// Compiled where it runs, for its processor and one temperature grid (GRID_SIZE, BETAS, SOURCES, IN_GRID, ONE and TWO
// are those of `plan.py`). Rows are taken in slices that depend on their shape alone and are added in order, so that no
// number of threads changes a bit. A vector holds one class of LANES rows where classes are few or lie apart, else
// LANES classes of one row.
#include "rows.h"

namespace {

constexpr float BETA[] = {BETAS};
constexpr int PLACES = sizeof(BETA) / sizeof(float);
constexpr int SOURCE[] = {SOURCES};      // the square of which place this power is; -1 for an exponential of its own
constexpr int GRID[] = {IN_GRID, -1};    // place of each temperature
constexpr int MARGIN_EDGES = 129;
constexpr float BINS_PER_ASINH = 64 / 4.852030263919617f;
constexpr float LARGEST_EXPONENT = 60.0f;
constexpr int64_t UNSUPPORTED = INT64_MIN;
// Slices that are in flight before their sums are added, so that memory does not grow with the batch.
constexpr int64_t ROUND = 256;
// Bits of a row, in the order of the layout's first counts.
constexpr int32_t VALID = 1, IGNORED = 2, OUTSIDE = 4, NOT_FINITE = 8, UNSUPPORTED_ROW = 16, TIE = 32, CORRECT = 64,
                  TOP_K = 128;
constexpr int NUM_FLAGS = 8;
enum Column { NLL, CONFIDENCE, ENTROPY, BRIER, MARGIN, NUM_COLUMNS };

}  // namespace

extern "C" struct Setup {
    int64_t binary, has_ignore, ignore_index, bins, top_k, per_class;
    const float *bin_edges, *margin_edges;
    int64_t count_half, count_cells, count_margin, count_class, sum_cells, sum_class, sum_grid;
};

extern "C" struct Batch {
    Source source;
    int64_t* counts;
    double* sums;
    // Of every row, or null: NLL (N,), predicted class (N,), flags (N,), NLL and slope at each temperature (2 T, N).
    float* row_nll;
    int32_t* row_predicted;
    uint8_t* row_flags;
    float* row_grid;
};

namespace {

// Sums over classes of exp(b d) and exp(b d) d at every b.
struct Powers {
    Floats total[PLACES], first[PLACES];
    inline void clear() { for (int p = 0; p < PLACES; ++p) total[p] = first[p] = Floats{}; }
};

inline constexpr bool wants_first(int place) {
    if (place == ONE) return true;
    for (int t = 0; t < GRID_SIZE; ++t) if (GRID[t] == place) return true;
    return false;
}

__attribute__((always_inline)) inline void add_powers(Floats difference, Powers& into) {
    Floats power[PLACES];
#pragma GCC unroll 20
    for (int p = 0; p < PLACES; ++p) {
        if (SOURCE[p] >= 0) power[p] = power[SOURCE[p] < 0 ? 0 : SOURCE[p]] * power[SOURCE[p] < 0 ? 0 : SOURCE[p]];
        else power[p] = exponential(BETA[p] == 1.0f ? difference : difference * BETA[p]);
        into.total[p] += power[p];
        if (wants_first(p)) into.first[p] += power[p] * difference;
    }
}

struct Sums {
    Sum total[PLACES], first[PLACES];
};

// 64 at a time, and these in float64: one number after another loses digits with each.
inline void reduce(const float* difference, int64_t vectors, Sums& result) {
    for (int64_t start = 0; start < vectors; start += 64) {
        Powers part;
        part.clear();
        const int64_t end = start + 64 < vectors ? start + 64 : vectors;
        for (int64_t v = start; v < end; ++v) add_powers(load(difference + LANES * v), part);
        for (int p = 0; p < PLACES; ++p) {
            result.total[p].add(part.total[p]);
            if (wants_first(p)) result.first[p].add(part.first[p]);
        }
    }
}

// A vector of rows: what needs all their classes.
struct Tile {
    Floats other, shift;      // largest z_j - z_y, and what every difference was lowered by
    Ints best, beat, sound;   // class of the largest other logit; classes that beat the target; no NaN, no +inf
    Powers powers;
};

constexpr float STEEPEST = BETA[PLACES - 1];

inline Ints must_shift(Floats other) { return other * STEEPEST >= LARGEST_EXPONENT; }

template <class E> void reduce_lanes(const Rows<E>& rows, float* scratch, Tile& tile) {
    const int64_t classes = rows.classes;
    rows.fill(scratch);
    Ints own_class;
    std::memcpy(&own_class, rows.target, sizeof own_class);
    Floats own;
    for (int lane = 0; lane < LANES; ++lane) own[lane] = scratch[LANES * (int64_t)rows.target[lane] + lane];
    Floats other = all(-INFINITE);
    Ints best{}, beat{}, sound = all(-1);
    for (int64_t c = 0; c < classes; ++c) {
        const Ints place = all((int32_t)c);
        Floats difference = load(scratch + LANES * c) - own;
        sound &= difference <= LARGEST;
        beat -= (difference > 0.0f) | ((difference == 0.0f) & (place < own_class));
        difference = place == own_class ? all(-INFINITE) : difference;
        const Ints better = difference > other;
        best = better ? place : best;
        other = better ? difference : other;
        store(scratch + LANES * c, larger(difference, all(LOWEST)));
    }
    tile.other = other, tile.best = best, tile.beat = beat, tile.sound = sound, tile.shift = Floats{};
    const Ints shifted = must_shift(other);
    if (any(shifted)) {
        // From the maximum itself: a hopeless target's distance would round the others' away.
        rows.fill(scratch);
        Floats highest = own;
        for (int64_t c = 0; c < classes; ++c) highest = larger(load(scratch + LANES * c), highest);
        const Floats base = shifted ? highest : own;
        tile.shift = shifted ? other : Floats{};
        for (int64_t c = 0; c < classes; ++c) {
            const Floats difference = larger(load(scratch + LANES * c) - base, all(LOWEST));
            store(scratch + LANES * c, all((int32_t)c) == own_class ? all(LOWEST) : difference);
        }
    }
    FlushToZero flush;
    Sums sums;
    reduce(scratch, classes, sums);
    for (int p = 0; p < PLACES; ++p) {
        tile.powers.total[p] = sums.total[p].lanes();
        tile.powers.first[p] = sums.first[p].lanes();
    }
}

template <class E> void reduce_row(const Rows<E>& rows, int lane, float* scratch, Tile& tile) {
    const int64_t classes = rows.classes, vectors = (classes + LANES - 1) / LANES;
    const E* row = rows.data + rows.offset[lane];
    const Floats own = all(wide(row[rows.target[lane]]));
    const Ints own_class = all(rows.target[lane]);
    Floats largest = all(-INFINITE);
    Ints sound = all(-1), place = lane_numbers();
    for (int64_t v = 0; v < vectors; ++v, place += LANES) {
        // The processor's own prefetching ends with a page of memory, 4 KB.
        __builtin_prefetch(row + LANES * v + 1024);
        Floats difference = row_vector(row, LANES * v, classes) - own;
        sound &= difference <= LARGEST;
        difference = place == own_class ? all(-INFINITE) : difference;
        largest = larger(difference, largest);
        store(scratch + LANES * v, larger(difference, all(LOWEST)));
    }
    float other = -INFINITE;
    bool finite = std::isfinite(own[0]);
    for (int k = 0; k < LANES; ++k) {
        other = largest[k] > other ? largest[k] : other;
        finite &= sound[k] != 0;
    }
    int32_t beaten = 0, best = 0;
    if (other >= 0) {
        Ints beat{}, lowest = all((int32_t)classes);
        place = lane_numbers();
        for (int64_t v = 0; v < vectors; ++v, place += LANES) {
            const Floats difference = load(scratch + LANES * v);
            beat -= (difference > 0.0f) | ((difference == 0.0f) & (place < own_class));
            lowest = (difference == other) & (place < lowest) ? place : lowest;
        }
        best = (int32_t)classes - 1;
        for (int k = 0; k < LANES; ++k) {
            beaten += beat[k];
            best = lowest[k] < best ? lowest[k] : best;
        }
    }
    tile.other[lane] = other, tile.beat[lane] = beaten, tile.best[lane] = best;
    tile.sound[lane] = finite ? -1 : 0, tile.shift[lane] = 0;
    if (finite && other * STEEPEST >= LARGEST_EXPONENT) {
        Floats highest = own;
        for (int64_t v = 0; v < vectors; ++v) highest = larger(row_vector(row, LANES * v, classes), highest);
        float base = own[0];
        for (int k = 0; k < LANES; ++k) base = highest[k] > base ? highest[k] : base;
        for (int64_t v = 0; v < vectors; ++v)
            store(scratch + LANES * v, larger(row_vector(row, LANES * v, classes) - base, all(LOWEST)));
        scratch[rows.target[lane]] = LOWEST;
        tile.shift[lane] = other;
    }
    FlushToZero flush;
    Sums sums;
    reduce(scratch, vectors, sums);
    for (int p = 0; p < PLACES; ++p) {
        tile.powers.total[p][lane] = (float)sums.total[p].total();
        if (wants_first(p)) tile.powers.first[p][lane] = (float)sums.first[p].total();
    }
}

#include "statistics_rows.h"

}  // namespace

extern "C" void lossacc_count(const Setup* setup, const Batch* batch) {
    if (batch->source.dtype == 0) count_batch<float>(*setup, *batch);
    else if (batch->source.dtype == 1) count_batch<_Float16>(*setup, *batch);
    else count_batch<BFloat>(*setup, *batch);
}
