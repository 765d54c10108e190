// Vectors of float32 and what the kernels do with them; the extensions are those of GCC (12 or newer) and Clang.
#pragma once

#include <cstdint>
#include <cstring>

// As wide as a register: wider ones are taken apart number by number (20 times slower, GCC 12).
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float HalfFloats __attribute__((vector_size(2 * LANES)));
typedef double Doubles __attribute__((vector_size(4 * LANES)));

// Stands for a logit of -inf in products such as e * d, where e has long been negligible.
constexpr float LOWEST = -1.0e4f;
constexpr float LARGEST = 3.4028234663852886e38f;
// Below it exp leaves the normal numbers; what is added to a sum of at least 1 does not change it there.
constexpr float SMALLEST_EXPONENT = -87.33654f;
// Adding and subtracting 1.5 * 2^23 rounds a float32 to an integer, which its low bits then hold.
constexpr float ROUNDER = 12582912.0f;

inline Floats all(float value) { return Floats{} + value; }
inline Ints all(int32_t value) { return Ints{} + value; }
inline Floats larger(Floats left, Floats right) { return left > right ? left : right; }  // right where left is NaN
inline Floats smaller(Floats left, Floats right) { return left < right ? left : right; }
inline Floats load(const float* from) { Floats value; std::memcpy(&value, from, sizeof value); return value; }
inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline Ints load(const int32_t* from) { Ints value; std::memcpy(&value, from, sizeof value); return value; }
inline void store(int32_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }
inline Ints lane_numbers() {
    Ints numbers{};
    for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
    return numbers;
}
template <class T, class Vector> inline T sum_lanes(Vector value) {
    constexpr int SIZE = sizeof(Vector) / sizeof(T);
    T parts[SIZE];
    std::memcpy(parts, &value, sizeof parts);
    for (int step = SIZE / 2; step > 0; step /= 2)
        for (int lane = 0; lane < step; ++lane) parts[lane] += parts[lane + step];
    return parts[0];
}
// A sum of float32 in float64, lane by lane.
struct Sum {
    Doubles low{}, high{};
    inline void add(Floats value) {
        HalfFloats first, second;
        std::memcpy(&first, &value, sizeof first);
        std::memcpy(&second, reinterpret_cast<const char*>(&value) + sizeof first, sizeof second);
        low += __builtin_convertvector(first, Doubles);
        high += __builtin_convertvector(second, Doubles);
    }
    double total() const { return sum_lanes<double>(low + high); }
    Floats lanes() const {
        const HalfFloats first = __builtin_convertvector(low, HalfFloats);
        const HalfFloats second = __builtin_convertvector(high, HalfFloats);
        Floats value;
        std::memcpy(&value, &first, sizeof first);
        std::memcpy(reinterpret_cast<char*>(&value) + sizeof first, &second, sizeof second);
        return value;
    }
};
inline bool any(Ints mask) {
    int64_t words[LANES / 2], found = 0;
    std::memcpy(words, &mask, sizeof words);
    for (int64_t word : words) found |= word;
    return found != 0;
}

// exp(x) within 1.5 units of the last place for x up to 88: 2^n times a polynomial (Cephes, Moshier 1989).
inline Floats exponential(Floats x) {
    x = larger(x, all(SMALLEST_EXPONENT));
    const Floats shifted = x * 1.44269504088896341f + ROUNDER;
    const Floats whole = shifted - ROUNDER;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * (rest * rest) + rest + 1.0f;
    return (Floats)((Ints)sum + ((Ints)shifted << 23));
}

// The same, and 0 where nothing but numbers that are not normal is left: for factors as large as one likes.
inline Floats vanishing_exponential(Floats x) { return x < SMALLEST_EXPONENT ? Floats{} : exponential(x); }

// log(x) for finite x > 0, within 1.5 units of the last place (Cephes, Moshier 1989).
inline Floats logarithm(Floats x) {
    const Ints bits = (Ints)x;
    Ints exponent = ((bits >> 23) & 0xff) - 126;
    Floats part = (Floats)((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
    const Ints low = part < 0.707106781186547524f;
    exponent += low;
    part = (low ? part + part : part) - 1.0f;
    const Floats square = part * part;
    Floats sum = part * 7.0376836292e-2f - 1.1514610310e-1f;
    sum = sum * part + 1.1676998740e-1f;
    sum = sum * part - 1.2420140846e-1f;
    sum = sum * part + 1.4249322787e-1f;
    sum = sum * part - 1.6668057665e-1f;
    sum = sum * part + 2.0000714765e-1f;
    sum = sum * part - 2.4999993993e-1f;
    sum = sum * part + 3.3333331174e-1f;
    const Floats power = __builtin_convertvector(exponent, Floats);
    Floats tail = sum * part * square + power * -2.12194440e-4f - square * 0.5f;
    return part + tail + power * 0.693359375f;
}

// LANES rows of LANES become columns: each step exchanges one bit of the row's number with that of the lane's.
template <int STEP> inline void exchange(Floats* rows) {
    typedef Ints Places;
    Places first{}, second{};
    for (int lane = 0; lane < LANES; ++lane) {
        const bool low = (lane & STEP) == 0;
        first[lane] = low ? lane : LANES + lane - STEP;
        second[lane] = low ? lane + STEP : LANES + lane;
    }
    for (int row = 0; row < LANES; ++row) {
        if (row & STEP) continue;
        const Floats upper = rows[row], lower = rows[row + STEP];
#if defined(__clang__)
        for (int lane = 0; lane < LANES; ++lane) {
            rows[row][lane] = first[lane] < LANES ? upper[first[lane]] : lower[first[lane] - LANES];
            rows[row + STEP][lane] = second[lane] < LANES ? upper[second[lane]] : lower[second[lane] - LANES];
        }
#else
        rows[row] = __builtin_shuffle(upper, lower, first);
        rows[row + STEP] = __builtin_shuffle(upper, lower, second);
#endif
    }
}
inline void transpose(Floats* rows) {
    if constexpr (LANES > 8) exchange<8>(rows);
    if constexpr (LANES > 4) exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}
