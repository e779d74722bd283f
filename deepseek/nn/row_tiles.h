// Rows made ready for products, and the products of up to 12 of them with a panel of 32 channels.
//
// Weights lie in panels: for each pair (bfloat16), four (int8) or one (float32) of the inputs in order, the numbers of
// 32 channels stand side by side, so that a panel is read from its beginning to its end and no sum crosses lanes.
// int8 weights are kept 128 higher, without sign. 4 bits: for 32 inputs 4 times 32 channels of 4 bytes; the byte j of
// the time q has the level of input 4 q + j in its low half and that of 16 + 4 q + j in its high half.
//
// A lane's sum is taken over the inputs in their order, whatever the number of rows: a row's result does not depend on
// what else is computed with it.

#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

enum Form { FP32, BF16, INT8, INT4 };

constexpr int64_t LANES = 32, GROUP = 32, GROUP_BYTES = 40;  // a group of a row: 32 int8, its scale, -sum
constexpr int V = LANES / 16;
#if defined(__AVX512F__)
constexpr int FLOAT_ROWS = 12, BYTE_ROWS = 6, GROUP_ROWS = 8;  // side by side: their sums fill the registers
#else
constexpr int FLOAT_ROWS = 2, BYTE_ROWS = 1, GROUP_ROWS = 1;
#endif
constexpr int64_t AHEAD = 4096;  // bytes that are asked for before they are read

inline int64_t padded(int64_t count, int64_t to = 32) { return (count + to - 1) / to * to; }

struct Panel {  // zero_point: levels that mean zero, null for 8
    const uint8_t *values, *scale, *zero_point;
};

// ---- a row made ready ----

inline int64_t prepared_bytes(int64_t form, int64_t in) {
    int64_t wide = padded(in);
    if (form == INT4) return wide / GROUP * GROUP_BYTES;
    return form == INT8 ? 2 * wide + 32 : form == FP32 ? wide * 4 : wide * 2;
}

// the largest magnitude of `count` values, a multiple of 16; NaN if one of them is not finite
inline float largest(const float* row, int64_t count) {
    Floats most{}, wrong{};
    for (int64_t i = 0; i < count; i += 16) {
        Floats x = load(row + i), size = x < 0.0f ? -x : x;
        most = size > most ? size : most;
        wrong += x * 0.0f;
    }
    float found = 0;
    for (int i = 0; i < 16; i++) found = most[i] > found ? most[i] : found;
    return found + total(wrong);
}

inline Ints rounded(Floats x) { return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, Ints); }

inline void put_bytes(Ints values, uint8_t* to) {
    Bytes bytes = __builtin_convertvector((Words)values, Bytes);
    std::memcpy(to, &bytes, 16);
}

inline int32_t total(Ints v) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += v[i];
    return sum;
}

// Integers of 15 bits as 128 high + low, -127..127 and -64..63: all high ones, all low ones, then the scale and -128
// times both sums, which takes back what the weights are kept too high.
inline void to_two_bytes(const float* row, int64_t wide, uint8_t* to) {
    float most = largest(row, wide), limit = 127.0f * 128;
    float factor = most > 1e-30f ? limit / most : 0.0f, scale = most > 1e-30f ? most / limit : most * 0.0f;
    Ints highs{}, lows{};
    for (int64_t i = 0; i < wide; i += 16) {
        Ints x = rounded(load(row + i) * factor), high = (x + 64) >> 7, low = x - (high << 7);
        put_bytes(high, to + i), put_bytes(low, to + wide + i);
        highs += high, lows += low;
    }
    int32_t sums[2] = {-128 * total(highs), -128 * total(lows)};
    std::memcpy(to + 2 * wide, &scale, 4);
    std::memcpy(to + 2 * wide + 4, sums, 8);
}

inline void to_groups(const float* row, int64_t wide, uint8_t* to) {
    for (int64_t group = 0; group < wide; group += GROUP, to += GROUP_BYTES) {
        const float* x = row + group;
        float most = largest(x, GROUP), factor = most > 1e-30f ? 127.0f / most : 0.0f;
        float scale = most > 1e-30f ? most / 127.0f : most * 0.0f;
        Ints first = rounded(load(x) * factor), second = rounded(load(x + 16) * factor);
        put_bytes(first, to), put_bytes(second, to + 16);
        int32_t less = -total(first + second);
        std::memcpy(to + GROUP, &scale, 4);
        std::memcpy(to + GROUP + 4, &less, 4);
    }
}

inline void to_form(int64_t form, const float* row, int64_t wide, uint8_t* to) {  // `row`: zeros up to `wide`
    if (form == FP32) std::memcpy(to, row, size_t(wide) * 4);
    if (form == BF16) {
#if defined(__AVX512BF16__)
        for (int64_t i = 0; i < wide; i += 16)
            _mm256_storeu_si256((__m256i*)(to + i * 2), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(row + i)));
#else
        put(row, reinterpret_cast<uint16_t*>(to), wide);
#endif
    }
    if (form == INT8) to_two_bytes(row, wide, to);
    if (form == INT4) to_groups(row, wide, to);
}

// ---- one step of a sum: the lanes' own weights times inputs that are the same for all ----

inline Floats add_bf16(Floats sum, Ints w, int32_t x) {  // a pair of bfloat16 in each
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
#else
    const float even = single(uint16_t(x)), odd = single(uint16_t(uint32_t(x) >> 16));
    sum = add_product((Floats)(w & int32_t(0xffff0000)), Floats{} + odd, sum);
    return add_product((Floats)(w << 16), Floats{} + even, sum);
#endif
}

inline Ints add_bytes(Ints sum, Ints w, int32_t x) {  // four bytes in each: those of w without sign, those of x with
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    const int32_t even = (int8_t(x) & 0xffff) | int32_t(int8_t(x >> 16)) * 65536;
    const int32_t odd = (int8_t(x >> 8) & 0xffff) | int32_t(int8_t(x >> 24)) * 65536;
    const __m256i mask = _mm256_set1_epi32(0x00ff00ff);
    __m256i parts[2], sums[2];
    std::memcpy(parts, &w, 64), std::memcpy(sums, &sum, 64);
    for (int i = 0; i < 2; i++) {
        __m256i low = _mm256_and_si256(parts[i], mask), high = _mm256_and_si256(_mm256_srli_epi32(parts[i], 8), mask);
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(low, _mm256_set1_epi32(even)));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(high, _mm256_set1_epi32(odd)));
    }
    std::memcpy(&sum, sums, 64);
    return sum;
#else
    for (int j = 0; j < 4; j++) sum += (w >> (8 * j) & 255) * int32_t(int8_t(x >> (8 * j)));
    return sum;
#endif
}

// ---- the products of R rows with a panel: to[r * LANES + channel] ----

#define EACH_ROW _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)
#define EACH_VECTOR _Pragma("GCC unroll 4") for (int v = 0; v < V; v++)

inline const uint8_t* ask_ahead(const uint8_t* at) {
    EACH_VECTOR __builtin_prefetch(at + AHEAD + 64 * v);
    return at;
}

struct Fp32Tile {
    static constexpr int rows = FLOAT_ROWS;
    template <int R>
    static void run(const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
        Floats sum[R][V] = {};
        for (int64_t k = 0; k < in; k++) {
            const uint8_t* at = ask_ahead(panel.values + k * LANES * 4);
            Floats w[V];
            EACH_VECTOR w[v] = read<Floats>(at + 64 * v);
            EACH_ROW {
                Floats x = Floats{} + read<float>(row[r] + k * 4);
                EACH_VECTOR sum[r][v] = add_product(w[v], x, sum[r][v]);
            }
        }
        EACH_ROW EACH_VECTOR store(to + r * LANES + v * 16, sum[r][v]);
    }
};

struct Bf16Tile {
    static constexpr int rows = FLOAT_ROWS;
    template <int R>
    static void run(const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
        Floats sum[R][V] = {};
        for (int64_t k = 0; k < (in + 1) / 2; k++) {
            const uint8_t* at = ask_ahead(panel.values + k * LANES * 4);
            Ints w[V];
            EACH_VECTOR w[v] = read<Ints>(at + 64 * v);
            EACH_ROW {
                const int32_t x = read<int32_t>(row[r] + k * 4);
                EACH_VECTOR sum[r][v] = add_bf16(sum[r][v], w[v], x);
            }
        }
        EACH_ROW EACH_VECTOR store(to + r * LANES + v * 16, sum[r][v]);
    }
};

struct Int8Tile {
    static constexpr int rows = BYTE_ROWS;
    template <int R>
    static void run(const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
        const int64_t wide = padded(in);
        Ints high[R][V] = {}, low[R][V] = {};
        for (int64_t k = 0; k < (in + 3) / 4; k++) {
            const uint8_t* at = ask_ahead(panel.values + k * LANES * 4);
            Ints w[V];
            EACH_VECTOR w[v] = read<Ints>(at + 64 * v);
            EACH_ROW {
                const int32_t x = read<int32_t>(row[r] + k * 4), y = read<int32_t>(row[r] + wide + k * 4);
                EACH_VECTOR high[r][v] = add_bytes(high[r][v], w[v], x), low[r][v] = add_bytes(low[r][v], w[v], y);
            }
        }
        EACH_ROW EACH_VECTOR {
            const uint8_t* last = row[r] + 2 * wide;
            Floats sum = __builtin_convertvector(high[r][v] + read<int32_t>(last + 4), Floats) * 128.0f;
            sum += __builtin_convertvector(low[r][v] + read<int32_t>(last + 8), Floats);
            store(to + r * LANES + v * 16, sum * (read<Floats>(panel.scale + 64 * v) * read<float>(last)));
        }
    }
};

struct Int4Tile {
    static constexpr int rows = GROUP_ROWS;
    template <int R, bool zeros>
    static inline void add(const uint8_t* const* row, const Panel& panel, int64_t group, int v, Floats (&sum)[R][V]) {
        const uint8_t* at = panel.values + group * LANES * 16 + 64 * v;
        Ints low[4], high[4];
        _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++) {
            Ints packed = read<Ints>(at + q * LANES * 4);
            __builtin_prefetch(at + q * LANES * 4 + AHEAD);
            low[q] = packed & 0x0f0f0f0f, high[q] = packed >> 4 & 0x0f0f0f0f;
        }
        Floats scale = load(reinterpret_cast<const uint16_t*>(panel.scale) + group * LANES + 16 * v);
        Ints zero{};
        if (zeros) zero = __builtin_convertvector(read<Bytes>(panel.zero_point + group * LANES + 16 * v), Ints);
        EACH_ROW {
            const uint8_t* x = row[r] + group * GROUP_BYTES;
            const int32_t less = read<int32_t>(x + GROUP + 4);
            Ints d = zeros ? zero * less : Ints{} + 8 * less;
            _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++) {
                d = add_bytes(d, low[q], read<int32_t>(x + 4 * q));
                d = add_bytes(d, high[q], read<int32_t>(x + 16 + 4 * q));
            }
            sum[r][v] = add_product(__builtin_convertvector(d, Floats), scale * read<float>(x + GROUP), sum[r][v]);
        }
    }
    template <int R, bool zeros>
    static inline void sum_up(const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
        Floats sum[R][V] = {};
        for (int64_t group = 0; group < in / GROUP; group++)
            EACH_VECTOR add<R, zeros>(row, panel, group, v, sum);
        EACH_ROW EACH_VECTOR store(to + r * LANES + v * 16, sum[r][v]);
    }
    template <int R>
    static void run(const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
        panel.zero_point ? sum_up<R, true>(row, panel, in, to) : sum_up<R, false>(row, panel, in, to);
    }
};

// the same for `count` rows, at most Tile::rows
template <class Tile, int R = Tile::rows>
void tile(int count, const uint8_t* const* row, const Panel& panel, int64_t in, float* to) {
    if (count == R) return Tile::template run<R>(row, panel, in, to);
    if constexpr (R > 1) tile<Tile, R - 1>(count, row, panel, in, to);
}

// rows [0, count), `bytes` apart, in tiles of nearly the same size
template <class Tile>
void all_rows(const uint8_t* first, int64_t bytes, int64_t count, const Panel& panel, int64_t in, float* to) {
    for (int64_t tiles = (count + Tile::rows - 1) / Tile::rows; tiles; tiles--) {
        const int64_t some = (count + tiles - 1) / tiles;
        const uint8_t* row[Tile::rows];
        for (int64_t r = 0; r < some; r++) row[r] = first + r * bytes;
        tile<Tile>(int(some), row, panel, in, to);
        first += some * bytes, to += some * LANES, count -= some;
    }
}

inline void multiply(int64_t form, const uint8_t* rows, int64_t count, const Panel& panel, int64_t in, float* to) {
    auto run = form == FP32   ? all_rows<Fp32Tile>
               : form == BF16 ? all_rows<Bf16Tile>
               : form == INT8 ? all_rows<Int8Tile>
                              : all_rows<Int4Tile>;
    run(rows, prepared_bytes(form, in), count, panel, in, to);
}

inline int64_t panel_bytes(int64_t form, int64_t in) {
    return LANES * (form == FP32 ? in * 4 : form == BF16 ? padded(in, 2) * 2 : form == INT8 ? padded(in, 4) : in / 2);
}

// the weights of one channel as a row; not for 4 bits
inline void read_channel(int64_t form, const Panel& panel, int64_t lane, int64_t in, float* to) {
    const int64_t side = form == FP32 ? 1 : form == BF16 ? 2 : 4;  // inputs that stand together
    for (int64_t i = 0; i < in; i++) {
        const int64_t place = (i / side * LANES + lane) * side + i % side;
        if (form == FP32) to[i] = read<float>(panel.values + place * 4);
        if (form == BF16) to[i] = single(read<uint16_t>(panel.values + place * 2));
        if (form == INT8) to[i] = float(int(panel.values[place]) - 128) * read<float>(panel.scale + lane * 4);
    }
}

}  // namespace
