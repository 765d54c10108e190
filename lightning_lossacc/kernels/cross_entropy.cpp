// The cross-entropy of every row and its gradient, as `loss_reference.py` defines them, for a CPU.
//
// Either alone or both in one pass: LANES rows are read once, their powers stay in the cache until their sum is known. A
// row's numbers depend on nothing but the row and how it lies in memory.
#include "rows.h"

extern "C" struct Loss {
    Source source;
    int64_t ignore_index;
    const float* weight;     // (C,) or null
    double smoothing;        // s
    const float* row_scale;  // derivative of the total by the row losses: one number, or (N,)
    int64_t scale_stride;    // 0 or 1
    float *row_loss, *row_lse;  // (N,) or null
    void* gradient;             // (I, C, R) or null, in the dtype of the logits
    int64_t item_stride, class_stride, row_stride;
};

namespace {

inline void store_narrow(float* to, Floats value) { store(to, value); }
inline void store_narrow(_Float16* to, Floats value) {
    const Halves narrow = __builtin_convertvector(value, Halves);
    std::memcpy(to, &narrow, sizeof narrow);
}
inline void store_narrow(BFloat* to, Floats value) {
    // To the nearest, ties to even; what is no number keeps its upper bits, one of which is set.
    const Ints bits = (Ints)value, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Ints upper = (value == value ? rounded : bits | 0x400000) >> 16;
    const Words narrow = __builtin_convertvector(upper, Words);
    std::memcpy(to, &narrow, sizeof narrow);
}

// So many are added in float32, their sums in float64: one number after another loses digits with each.
constexpr int64_t BLOCK = 16;

// What a row's gradient is made of: power * factor - spread * w_c, and at the target `own` less.
struct Slope { Floats factor, spread, own; };

template <class E> struct Work {
    const Loss& loss;
    Rows<E> rows;
    float* scratch;
    double weights;      // W
    Ints counted, wrong; // lanes with a class as target; lanes whose target is none, which are not ignored
    Floats scale, target_weight;

    Floats own_logit() const {
        Floats own{};
        for (int lane = 0; lane < LANES; ++lane) own[lane] = rows.at(lane, rows.target[lane]);
        return own;
    }

    // Loss and log-sum-exp of LANES rows, from what was found of their classes.
    void write_losses(int64_t n, Floats highest, Floats total, Floats products) {
        const float smoothing = (float)loss.smoothing, share = (float)(loss.smoothing / (double)rows.classes);
        const Floats log_total = logarithm(total), own = own_logit();
        const Floats sound = total == total ? log_total : total;
        const Floats nll = sound - (own - highest);
        Floats value = nll * target_weight;
        if (smoothing != 0) value = value * (1 - smoothing) + (sound * (float)weights - products) * share;
        value = counted ? value : wrong ? all(__builtin_nanf("")) : Floats{};
        for (int lane = 0; lane < rows.count; ++lane) {
            if (loss.row_loss) loss.row_loss[n + lane] = value[lane];
            if (loss.row_lse) loss.row_lse[n + lane] = (sound + highest)[lane];
        }
    }

    Slope slope(Floats total) const {
        const float smoothing = (float)loss.smoothing, share = (float)(loss.smoothing / (double)rows.classes);
        const Floats nan = all(__builtin_nanf(""));
        const auto blank = [&](Floats value) { return counted ? value : wrong ? nan : Floats{}; };
        Slope found;
        found.own = blank(scale * target_weight * (1 - smoothing));
        found.spread = blank(scale * share);
        // An ignored row's zero must not become NaN by logits that are not finite.
        found.factor = blank((found.own + found.spread * (smoothing != 0 ? (float)weights : 0.0f)) / total);
        return found;
    }

    void by_lane(int64_t n, E* gradient, const int64_t* place) {
        const int64_t classes = rows.classes;
        rows.fill(scratch);
        Floats highest = all(-INFINITE);
        Ints sound = all(-1);
        for (int64_t c = 0; c < classes; ++c) {
            const Floats value = load(scratch + LANES * c);
            sound &= value <= LARGEST;
            highest = larger(value, highest);
        }
        sound &= highest > -INFINITE;
        const float* weight = loss.smoothing != 0 ? loss.weight : nullptr;
        Sum totals, product_sums;
        for (int64_t start = 0; start < classes; start += BLOCK) {
            const int64_t end = start + BLOCK < classes ? start + BLOCK : classes;
            Floats part{}, product{};
            for (int64_t c = start; c < end; ++c) {
                const Floats difference = load(scratch + LANES * c) - highest;
                const Floats power = vanishing_exponential(difference);
                part += power;
                if (loss.smoothing != 0) product += weight ? difference * weight[c] : difference;
                store(scratch + LANES * c, power);
            }
            totals.add(part);
            product_sums.add(product);
        }
        const Floats total = sound ? totals.lanes() : all(__builtin_nanf("")), products = product_sums.lanes();
        if (loss.row_loss) write_losses(n, highest, total, products);
        if (!gradient) return;
        const Slope found = slope(total);
        const Ints zero = ~(counted | wrong);
        Ints own_class;
        std::memcpy(&own_class, rows.target, sizeof own_class);
        for (int64_t c = 0; c < classes; ++c) {
            Floats value = load(scratch + LANES * c) * found.factor;
            if (loss.smoothing != 0) value -= weight ? found.spread * weight[c] : found.spread;
            value = all((int32_t)c) == own_class ? value - found.own : value;
            store(scratch + LANES * c, zero ? Floats{} : value);
        }
        write_lanes(gradient, place);
    }

    // (C, LANES) to where the gradient's rows lie.
    void write_lanes(E* gradient, const int64_t* place) {
        const int64_t classes = rows.classes, class_stride = loss.class_stride;
        if (rows.count == LANES && place[LANES - 1] - place[0] == LANES - 1 && loss.row_stride == 1) {
            for (int64_t c = 0; c < classes; ++c)
                store_narrow(gradient + place[0] + c * class_stride, load(scratch + LANES * c));
            return;
        }
        for (int64_t c = 0; c < classes; c += LANES) {
            const int64_t columns = classes - c < LANES ? classes - c : LANES;
            Floats block[LANES] = {};
            for (int64_t k = 0; k < columns; ++k) block[k] = load(scratch + LANES * (c + k));
            transpose(block);
            for (int lane = 0; lane < rows.count; ++lane) {
                E narrow[LANES];
                store_narrow(narrow, block[lane]);
                E* row = gradient + place[lane] + c * class_stride;
                if (class_stride == 1) std::memcpy(row, narrow, columns * sizeof(E));
                else for (int64_t k = 0; k < columns; ++k) row[k * class_stride] = narrow[k];
            }
        }
    }

    // One row whose classes lie side by side; what is found is put into its lane.
    void by_row(int lane, Floats& highest, Floats& total, Floats& products) {
        const int64_t classes = rows.classes, vectors = (classes + LANES - 1) / LANES;
        const E* row = rows.data + rows.offset[lane];
        const float* weight = loss.smoothing != 0 ? loss.weight : nullptr;
        Floats largest = all(-INFINITE);
        Ints sound = all(-1);
        for (int64_t v = 0; v < vectors; ++v) {
            __builtin_prefetch(row + LANES * v + 1024);
            const Floats value = row_vector(row, LANES * v, classes);
            sound &= value <= LARGEST;
            largest = larger(value, largest);
        }
        float maximum = -INFINITE;
        bool finite = true;
        for (int k = 0; k < LANES; ++k) {
            maximum = largest[k] > maximum ? largest[k] : maximum;
            finite &= sound[k] != 0;
        }
        finite &= maximum > -INFINITE;
        Sum sum, product_sum;
        for (int64_t start = 0; start < vectors; start += BLOCK) {
            const int64_t end = start + BLOCK < vectors ? start + BLOCK : vectors;
            Floats part{}, product{};
            for (int64_t v = start; v < end; ++v) {
                const Floats difference = row_vector(row, LANES * v, classes) - maximum;
                const Floats power = vanishing_exponential(difference);
                part += power;
                if (loss.smoothing != 0) {
                    const bool rest = LANES * (v + 1) > classes;
                    const Floats factor = weight ? row_vector(weight, LANES * v, classes) : all(1.0f);
                    const Floats value = difference * factor;
                    product += rest ? (lane_numbers() < (int32_t)(classes - LANES * v) ? value : Floats{}) : value;
                }
                store(scratch + LANES * v, power);
            }
            sum.add(part);
            product_sum.add(product);
        }
        highest[lane] = maximum, total[lane] = finite ? (float)sum.total() : __builtin_nanf("");
        products[lane] = (float)product_sum.total();
    }

    void write_row(int lane, const Slope& found, E* row) {
        const int64_t classes = rows.classes;
        const float* weight = loss.smoothing != 0 ? loss.weight : nullptr;
        const bool zero = !counted[lane] && !wrong[lane];
        const Floats factor = all(found.factor[lane]), spread = all(found.spread[lane]);
        const int64_t target = rows.target[lane];
        const float share = loss.smoothing != 0 ? spread[0] * (weight ? weight[target] : 1.0f) : 0.0f;
        const float own = scratch[target] * factor[0] - share - found.own[lane];
        for (int64_t c = 0; c < classes; c += LANES) {
            Floats value = load(scratch + c) * factor;
            if (loss.smoothing != 0) value -= weight ? spread * row_vector(weight, c, classes) : spread;
            value = zero ? Floats{} : value;
            if (c + LANES <= classes) store_narrow(row + c, value);
            else {
                E narrow[LANES];
                store_narrow(narrow, value);
                std::memcpy(row + c, narrow, (classes - c) * sizeof(E));
            }
        }
        E narrow[LANES];
        store_narrow(narrow, all(zero ? 0.0f : own));
        row[target] = narrow[0];
    }
};

template <class E> void compute_slice(const Loss& loss, const Cuts& cuts, int64_t number, double weights) {
    static thread_local Buffer<float> kept;
    const Source& source = loss.source;
    Work<E> work{loss, Rows<E>(source, false), nullptr, weights, {}, {}, {}, {}};
    Rows<E>& rows = work.rows;
    rows.by_lane |= loss.gradient && loss.class_stride != 1;
    work.scratch = kept.get(rows.scratch());
    const int64_t begin = cuts.first(number), num_rows = cuts.count(number);
    E* gradient = static_cast<E*>(loss.gradient);
    for (int64_t at = 0; at < num_rows; at += LANES) {
        const int64_t first = begin + at;
        rows.place(source, first, num_rows - at);
        int64_t place[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t n = first + (lane < rows.count ? lane : rows.count - 1), target = source.target[n];
            const bool ignored = target == loss.ignore_index, inside = target >= 0 && target < rows.classes;
            work.counted[lane] = inside && !ignored ? -1 : 0;
            work.wrong[lane] = inside || ignored ? 0 : -1;
            rows.target[lane] = inside && !ignored ? (int32_t)target : 0;
            work.target_weight[lane] = loss.weight ? loss.weight[rows.target[lane]] : 1.0f;
            work.scale[lane] = loss.row_scale ? loss.row_scale[n * loss.scale_stride] : 0.0f;
            const int64_t item = n / source.rows_per_item, row = n % source.rows_per_item;
            place[lane] = item * loss.item_stride + row * loss.row_stride;
        }
        if (rows.by_lane) {
            work.by_lane(first, gradient, place);
            continue;
        }
        Floats highest{}, total = all(1.0f), products{};
        for (int lane = 0; lane < rows.count; ++lane) {
            work.by_row(lane, highest, total, products);
            // The powers are in the cache now, and the next row needs their place.
            if (gradient) work.write_row(lane, work.slope(total), gradient + place[lane]);
        }
        if (loss.row_loss) work.write_losses(first, highest, total, products);
    }
}

template <class E> void compute(const Loss& loss) {
    const Source& source = loss.source;
    if (source.items * source.rows_per_item * source.classes == 0) return;
    const Cuts cuts(source.items, source.rows_per_item, source.classes);
    double weights = (double)source.classes;
    if (loss.weight) {
        weights = 0;
        for (int64_t c = 0; c < source.classes; ++c) weights += loss.weight[c];
    }
    const int threads = cuts.threads(source);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t slice = 0; slice < cuts.slices; ++slice) compute_slice<E>(loss, cuts, slice, weights);
}

}  // namespace

extern "C" void lossacc_cross_entropy(const Loss* loss) {
    if (loss->source.dtype == 0) compute<float>(*loss);
    else if (loss->source.dtype == 1) compute<_Float16>(*loss);
    else compute<BFloat>(*loss);
}
