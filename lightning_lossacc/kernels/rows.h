// Where the rows of a batch are, whatever its dtype and strides, and how they are cut into slices.
#pragma once

#include "vectors.h"

#include <cmath>
#include <cstdlib>

extern "C" struct Source {
    const void* logits;  // (I, C, R)
    int64_t dtype, classes, items, rows_per_item, item_stride, class_stride, row_stride, threads;
    const int64_t* target;  // (I, R)
};

namespace {

constexpr float INFINITE = __builtin_inff();
// A slice has at most so many rows and about so many logits: its buffers stay in the cache, and few rows of many
// classes still make work for several threads.
constexpr int64_t SLICE_ROWS = 1024, SLICE_LOGITS = 1 << 18;
// Up to so many classes a vector of rows of them stay in the first cache, and no vector need be summed over its lanes.
constexpr int64_t LANE_CLASSES = 512;
// So many logits are worth waking a thread: some 15 microseconds of one.
constexpr int64_t THREAD_LOGITS = 1 << 14;

struct BFloat { uint16_t bits; };
typedef _Float16 Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t Words __attribute__((vector_size(2 * LANES)));

inline float wide(float value) { return value; }
inline float wide(_Float16 value) { return (float)value; }
inline float wide(BFloat value) {
    const uint32_t bits = (uint32_t)value.bits << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}
inline Floats load_wide(const float* from) { return load(from); }
inline Floats load_wide(const _Float16* from) {
    Halves value; std::memcpy(&value, from, sizeof value); return __builtin_convertvector(value, Floats);
}
inline Floats load_wide(const BFloat* from) {
    Words value; std::memcpy(&value, from, sizeof value); return (Floats)(__builtin_convertvector(value, Ints) << 16);
}

// Products of small powers are 0, not numbers that the processor computes a hundred times more slowly.
struct FlushToZero {
#if defined(__SSE2__)
    unsigned kept = __builtin_ia32_stmxcsr();
    FlushToZero() { __builtin_ia32_ldmxcsr(kept | 0x8000); }
    ~FlushToZero() { __builtin_ia32_ldmxcsr(kept); }
#endif
};

template <class T> struct Buffer {
    T* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
    T* get(int64_t wanted) {
        if (wanted > size) {
            std::free(data);
            data = static_cast<T*>(std::aligned_alloc(64, (wanted * sizeof(T) + 63) / 64 * 64));
            if (!data) std::abort();
            size = wanted;
        }
        return data;
    }
};

// Where the logits of a batch are, and as many of its rows as a vector has lanes.
template <class E> struct Rows {
    const E* data;
    int64_t classes, class_stride, row_stride, extent;
    bool binary, by_lane;  // by lane: a vector holds one class of several rows, not several classes of one
    int64_t offset[LANES];
    int count;
    int32_t target[LANES];

    Rows(const Source& source, bool binary)
        : data(static_cast<const E*>(source.logits)), classes(source.classes), class_stride(source.class_stride),
          row_stride(source.rows_per_item == 1 ? 0 : source.row_stride), binary(binary),
          by_lane(binary || classes <= LANE_CLASSES || class_stride != 1) {
        extent = 1 + (source.items - 1) * source.item_stride + (source.rows_per_item - 1) * source.row_stride +
                 (binary ? 0 : (classes - 1) * class_stride);
    }

    int64_t scratch() const { return by_lane ? LANES * classes : (classes + LANES - 1) / LANES * LANES; }

    // The rows from `first`; lanes without a row repeat the last one.
    void place(const Source& source, int64_t first, int64_t left) {
        count = (int)(left < LANES ? left : LANES);
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t n = first + (lane < count ? lane : count - 1);
            const int64_t item = n / source.rows_per_item, row = n % source.rows_per_item;
            offset[lane] = item * source.item_stride + row * source.row_stride;
        }
    }

    float at(int lane, int64_t c) const {
        if (binary) return c == 0 ? 0.0f : wide(data[offset[lane]]);
        return wide(data[offset[lane] + c * class_stride]);
    }

    // (C, 16)
    void fill(float* into) const {
        if (binary) {
            for (int lane = 0; lane < LANES; ++lane) { into[lane] = 0; into[LANES + lane] = wide(data[offset[lane]]); }
            return;
        }
        // The last row that stands for missing ones may lie as far from the first as a whole vector's would.
        if (count == LANES && offset[LANES - 1] - offset[0] == LANES - 1 && row_stride == 1) {
            for (int64_t c = 0; c < classes; ++c)
                store(into + LANES * c, load_wide(data + offset[0] + c * class_stride));
            return;
        }
        int64_t c = 0;
        if (class_stride == 1) {
            int64_t last = 0;
            for (int lane = 0; lane < LANES; ++lane) last = offset[lane] > last ? offset[lane] : last;
            // A block may hold the beginning of the next row, but nothing beyond the last logit.
            for (; c < classes && last + c + LANES <= extent; c += LANES) {
                Floats rows[LANES];
                for (int lane = 0; lane < LANES; ++lane) rows[lane] = load_wide(data + offset[lane] + c);
                transpose(rows);
                const int64_t columns = classes - c < LANES ? classes - c : LANES;
                for (int64_t k = 0; k < columns; ++k) store(into + LANES * (c + k), rows[k]);
            }
        }
        for (; c < classes; ++c)
            for (int lane = 0; lane < LANES; ++lane)
                into[LANES * c + lane] = wide(data[offset[lane] + c * class_stride]);
    }
};

// A vector of classes of a row; what fills the last vector is -inf.
template <class E> inline Floats row_vector(const E* row, int64_t c, int64_t classes) {
    if (c + LANES <= classes) return load_wide(row + c);
    Floats value = all(-INFINITE);
    for (int64_t k = c; k < classes; ++k) value[k - c] = wide(row[k]);
    return value;
}

// How a batch is cut: slices of whole items, or of equal parts of one.
struct Cuts {
    int64_t rows, parts, slices, total, rows_per_item;
    Cuts(int64_t items, int64_t rows_per_item, int64_t classes)
        : total(items * rows_per_item), rows_per_item(rows_per_item) {
        rows = classes > 0 ? SLICE_LOGITS / classes : 1;
        rows = rows > SLICE_ROWS ? SLICE_ROWS : rows < 1 ? 1 : rows >= LANES ? rows / LANES * LANES : rows;
        parts = rows_per_item > rows ? (rows_per_item + rows - 1) / rows : 1;
        if (parts == 1) rows = rows / rows_per_item * rows_per_item;
        slices = parts == 1 ? (total + rows - 1) / rows : items * parts;
    }
    int threads(const Source& source) const {
        const int64_t worth = total * source.classes / THREAD_LOGITS;
        const int64_t most = source.threads < slices ? source.threads : slices;
        return (int)(worth < 1 ? 1 : worth < most ? worth : most);
    }
    int64_t first(int64_t slice) const {
        return parts == 1 ? slice * rows : slice / parts * rows_per_item + slice % parts * rows;
    }
    int64_t count(int64_t slice) const {
        const int64_t end = parts == 1 ? total : (slice / parts + 1) * rows_per_item;
        return first(slice) + rows < end ? rows : end - first(slice);
    }
};

}  // namespace
