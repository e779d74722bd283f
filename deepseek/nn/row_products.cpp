// Products of rows with the big weights of a language model, with what stands between them: norms, activations, gates,
// rotations and sums. A chain of steps runs in one parallel region. Weights lie as torch has them, (out, in) row by row,
// in float32, bfloat16, int8 (a scale a row) or 4 bits (a scale for 32), so that they are stored once for all uses.
//
// A sum over the inputs is always taken in the same order, whatever the number of rows and threads: a row's result does
// not depend on what else is computed with it. Source of the idea: He et al. 2025, "Defeating Nondeterminism in LLM
// Inference" (batch-invariant kernels). Not here: attention (paged_attention.cpp).

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define WIDE 1
#else
#define WIDE 0
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

enum Form { FP32, BF16, INT8, INT4 };
enum Kind { PRODUCT, ROTATION };
enum Norm { NO_NORM, LAYER_NORM, RMS_NORM };
enum Activation { NO_ACTIVATION, GELU, SILU };

struct Weight {  // zero_point: levels that mean zero, null for 8; bias may be null
    const uint8_t* values;
    const uint8_t* scale;
    const uint8_t* zero_point;
    const float* bias;
};

struct Step {
    int64_t kind, form, in, out;
    Weight weight, up;  // with `up`, the result is activation(weight x) * (up x)
    int64_t activation, norm;
    const float *norm_weight, *norm_bias;
    double norm_eps;
    const float* input;
    int64_t input_stride;
    const float* residual;  // laid out as the output, added to it
    float* output;
    int64_t output_stride;
    int64_t same_input;  // the step before has prepared this step's input already
};

constexpr int64_t PAD = 128, GROUP = 32;
constexpr int64_t CHANNELS = 32, PANEL_BYTES = 1 << 15;  // what a thread takes at once; rows that stay in its first cache
constexpr int64_t SLICE = 1024;                          // rows that a chain makes ready at once, which bounds its memory

inline int64_t padded(int64_t count, int64_t to = PAD) { return (count + to - 1) / to * to; }

inline Floats load(const float* from) {
    Floats found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline float total(Floats v) {  // halves onto halves, always in this order
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
}

inline uint16_t to_bf16(float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t value) {
    uint32_t bits = uint32_t(value) << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}

// e^x to 2 units in the last place: 2^n times a polynomial of the rest (Cody and Waite 1980)
inline Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

inline Floats activate(Floats x, int64_t activation) {
    Floats z = activation == GELU ? (x + x * x * x * 0.044715f) * 1.5957691216f : x;
    return x / (exponential(Floats{} - z) + 1.0f);
}

// ---- a row made ready: normalised, then in the form that the product of its weights reads ----

int64_t prepared_bytes(int64_t form, int64_t in) {
    int64_t wide = padded(in);
    return form == FP32 ? wide * 4 : form == INT4 ? wide * 2 : wide * 2 + 64;
}

// the largest |integer| of a row: sums of products with -127..127 must fit 32 bits in each of 16 lanes
float largest_integer(int64_t in) { return float(std::min<int64_t>(32767, 2147483647LL * 16 / (127 * padded(in)))); }

void normalise(const Step& step, float* row) {
    int64_t wide = padded(step.in, 16);
    Floats sum{}, squares{};
    if (step.norm == LAYER_NORM) {
        for (int64_t i = 0; i < wide; i += 16) sum += load(row + i);
        float mean = total(sum) / float(step.in);
        for (int64_t i = 0; i < step.in; i++) row[i] -= mean;
    }
    for (int64_t i = 0; i < wide; i += 16) squares += load(row + i) * load(row + i);
    float factor = 1.0f / std::sqrt(total(squares) / float(step.in) + float(step.norm_eps));
    for (int64_t i = 0; i < step.in; i++) row[i] = row[i] * factor * step.norm_weight[i];
    if (step.norm_bias)
        for (int64_t i = 0; i < step.in; i++) row[i] += step.norm_bias[i];
}

// the largest magnitude of `count` values, a multiple of 16; NaN if one of them is not finite
float largest(const float* row, int64_t count) {
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

void to_int16(const float* row, int64_t in, uint8_t* to) {
    float most = largest(row, padded(in, 16)), limit = largest_integer(in);
    float factor = most > 1e-30f ? limit / most : 0.0f, scale = most > 1e-30f ? most / limit : most * 0.0f;
    int16_t* integers = reinterpret_cast<int16_t*>(to);
    for (int64_t i = 0; i < padded(in); i++) integers[i] = int16_t(int32_t((row[i] * factor + 12582912.0f) - 12582912.0f));
    std::memcpy(to + padded(in) * 2, &scale, 4);
}

// Of 128 inputs: 64 even ones, 64 odd ones as int8, then for 16 lanes of 8 inputs each their scale (one for 32 inputs,
// float) and -sum of the integers (float): 256 bytes, as the packed levels are met.
void to_int8_groups(const float* row, int64_t in, uint8_t* to) {
    for (int64_t block = 0; block < padded(in); block += PAD, to += 2 * PAD) {
        int8_t* integers = reinterpret_cast<int8_t*>(to);
        float lanes[16];
        int32_t sums[16] = {};
        for (int group = 0; group < 4; group++) {
            const float* x = row + block + group * GROUP;
            float most = largest(x, GROUP), factor = most > 1e-30f ? 127.0f / most : 0.0f;
            for (int i = 0; i < GROUP; i++) {
                int8_t q = int8_t(int32_t((x[i] * factor + 12582912.0f) - 12582912.0f));
                integers[(i & 1) * 64 + group * 16 + i / 2] = q;
                sums[group * 4 + i / 8] -= q;
            }
            for (int lane = 0; lane < 4; lane++) lanes[group * 4 + lane] = most > 1e-30f ? most / 127.0f : most * 0.0f;
        }
        std::memcpy(to + 128, lanes, 64);
        std::memcpy(to + 192, sums, 64);
    }
}

void prepare(const Step& step, const float* input, uint8_t* to) {
    thread_local std::vector<float> held;
    held.assign(size_t(padded(step.in)), 0.0f);
    float* row = held.data();
    std::memcpy(row, input, size_t(step.in) * 4);
    if (step.norm != NO_NORM) normalise(step, row);
    if (step.form == FP32) std::memcpy(to, row, size_t(padded(step.in)) * 4);
    if (step.form == BF16)
        for (int64_t i = 0; i < padded(step.in); i++) reinterpret_cast<uint16_t*>(to)[i] = to_bf16(row[i]);
    if (step.form == INT8) to_int16(row, step.in, to);
    if (step.form == INT4) to_int8_groups(row, step.in, to);
}

// ---- the products of R rows with C channels ----

template <int R, int C>
struct Tile {
    const uint8_t* row[R];
    const uint8_t *values, *scale, *zero_point;  // of the first channel
    int64_t in;
    float y[R][C];
};

#if WIDE
// the sums of four vectors' lanes: a fourth of the shuffles that four separate sums take
inline __m128 totals(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <int R, int C>
inline void add_lanes(const __m512 (&sum)[R][C], float (&y)[R][C]) {
    const __m512 none = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        if constexpr (C == 4)
            _mm_storeu_ps(y[r], totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
        else
            y[r][0] = _mm_cvtss_f32(totals(sum[r][0], none, none, none));
    }
}

struct Fp32Product {
    static constexpr int rows = 6;
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        __m512 sum[R][C] = {};
        for (int64_t k = 0; k < t.in; k += 16) {
            __mmask16 mask = t.in - k >= 16 ? 0xffff : __mmask16((1u << (t.in - k)) - 1);
            __m512 w[C];
            for (int c = 0; c < C; c++) w[c] = _mm512_maskz_loadu_ps(mask, t.values + (c * t.in + k) * 4);
            for (int r = 0; r < R; r++) {
                __m512 x = _mm512_loadu_ps(t.row[r] + k * 4);
                for (int c = 0; c < C; c++) sum[r][c] = _mm512_fmadd_ps(w[c], x, sum[r][c]);
            }
        }
        add_lanes(sum, t.y);
    }
};

struct Bf16Product {
    static constexpr int rows = 6;
    template <int R, int C>
    static inline void add(const Tile<R, C>& t, int64_t k, __mmask32 mask, __m512 (&sum)[R][C]) {
#if defined(__AVX512BF16__)
        __m512i w[C];
        for (int c = 0; c < C; c++) w[c] = _mm512_maskz_loadu_epi16(mask, t.values + (c * t.in + k) * 2);
        for (int r = 0; r < R; r++) {
            __m512i x = _mm512_loadu_si512(t.row[r] + k * 2);
            for (int c = 0; c < C; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)w[c], (__m512bh)x);
        }
#else
        const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
        for (int c = 0; c < C; c++) {
            __m512i w = _mm512_maskz_loadu_epi16(mask, t.values + (c * t.in + k) * 2);
            __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), odd = _mm512_castsi512_ps(_mm512_and_si512(w, high));
            for (int r = 0; r < R; r++) {
                __m512i x = _mm512_loadu_si512(t.row[r] + k * 2);
                sum[r][c] = _mm512_fmadd_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(x, high)), sum[r][c]);
                sum[r][c] = _mm512_fmadd_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), sum[r][c]);
            }
        }
#endif
    }
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        __m512 sum[R][C] = {};
        int64_t k = 0;
        for (; k + 32 <= t.in; k += 32) add(t, k, 0xffffffff, sum);
        if (k < t.in) add(t, k, __mmask32((1u << (t.in - k)) - 1), sum);
        add_lanes(sum, t.y);
    }
};

// Steps of integer sums, with VNNI or without. Sums are `Ints` wherever they are kept: of the compiler's own integer
// vectors, which stand for all widths of integers, it would write each step's sums to memory.
inline Ints add_pairs(Ints sum, __m512i a, __m512i b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, a, b);
#else
    return (Ints)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(a, b));
#endif
}

inline Ints add_quads(Ints sum, __m512i levels, __m512i x) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, levels, x);
#else  // levels are at most 15: their pairs do not leave 16 bits
    __m512i pairs = _mm512_madd_epi16(_mm512_maddubs_epi16(levels, x), _mm512_set1_epi16(1));
    return (Ints)_mm512_add_epi32((__m512i)sum, pairs);
#endif
}

struct Int8Product {
    static constexpr int rows = 6;
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        Ints sum[R][C] = {};
        for (int64_t k = 0; k < t.in; k += 32) {
            __m512i w[C];
            if (k + 32 <= t.in) {
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    w[c] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(t.values + c * t.in + k)));
            } else {
                __mmask32 mask = (1u << (t.in - k)) - 1;
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    w[c] = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, t.values + c * t.in + k));
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512i x = _mm512_loadu_si512(t.row[r] + k * 2);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) sum[r][c] = add_pairs(sum[r][c], w[c], x);
            }
        }
        __m512 lanes[R][C];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) lanes[r][c] = _mm512_cvtepi32_ps((__m512i)sum[r][c]);
        add_lanes(lanes, t.y);
        for (int r = 0; r < R; r++) {
            float scale;
            std::memcpy(&scale, t.row[r] + padded(t.in) * 2, 4);
            for (int c = 0; c < C; c++) t.y[r][c] *= reinterpret_cast<const float*>(t.scale)[c] * scale;
        }
    }
};

struct Int4Product {
    static constexpr int rows = 4;
    template <int R, int C, bool whole, bool zeros>
    static inline void add(const Tile<R, C>& t, int64_t block, __m512 (&sum)[R][C]) {
        const __m512i low = _mm512_set1_epi8(15);
        const __m512i first = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        const int64_t groups = t.in / GROUP, bytes = t.in / 2;
        const __mmask64 mask = whole ? ~0ull : (1ull << (bytes - block * 64)) - 1;
        const __mmask8 some = whole ? 15 : __mmask8((1u << (groups - block * 4)) - 1);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            const uint8_t *values = t.values + c * bytes + block * 64, *scale = t.scale + (c * groups + block * 4) * 2;
            __m512i packed = whole ? _mm512_loadu_si512(values) : _mm512_maskz_loadu_epi8(mask, values);
            __m128i shorts = whole ? _mm_loadl_epi64((const __m128i*)scale) : _mm_maskz_loadu_epi16(some, scale);
            __m512i even = _mm512_and_si512(packed, low), odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
            __m512i scales = _mm512_castsi128_si512(_mm_slli_epi32(_mm_cvtepu16_epi32(shorts), 16));
            __m512 w = _mm512_castsi512_ps(_mm512_permutexvar_epi32(first, scales));
            __m512i zero = low;
            if (zeros) {
                __m128i levels = _mm_maskz_loadu_epi8(some, t.zero_point + c * groups + block * 4);
                zero = _mm512_permutexvar_epi32(first, _mm512_castsi128_si512(_mm_cvtepu8_epi32(levels)));
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const uint8_t* x = t.row[r] + block * 2 * PAD;
                __m512i less = _mm512_loadu_si512(x + 192);
                Ints d = (Ints)(zeros ? _mm512_mullo_epi32(zero, less) : _mm512_slli_epi32(less, 3));
                d = add_quads(d, even, _mm512_loadu_si512(x));
                d = add_quads(d, odd, _mm512_loadu_si512(x + 64));
                __m512 scale = _mm512_mul_ps(w, _mm512_loadu_ps(x + 128));
                sum[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)d), scale, sum[r][c]);
            }
        }
    }
    template <int R, int C, bool zeros>
    static inline void sum_up(Tile<R, C>& t) {
        __m512 sum[R][C] = {};
        int64_t block = 0;
        for (; (block + 1) * PAD <= t.in; block++) add<R, C, true, zeros>(t, block, sum);
        if (block * PAD < t.in) add<R, C, false, zeros>(t, block, sum);
        add_lanes(sum, t.y);
    }
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        t.zero_point ? sum_up<R, C, true>(t) : sum_up<R, C, false>(t);
    }
};
#else
// the same sums for any other processor: 16 lanes that the compiler makes vectors of
struct Fp32Product {
    static constexpr int rows = 1;
    static inline float dot(const float* w, const float* x, int64_t in) {
        Floats sum{};
        int64_t k = 0;
        for (; k + 16 <= in; k += 16) sum += load(w + k) * load(x + k);
        float rest = 0;
        for (; k < in; k++) rest += w[k] * x[k];
        return total(sum) + rest;
    }
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        const float* w = reinterpret_cast<const float*>(t.values);
        for (int c = 0; c < C; c++) t.y[0][c] = dot(w + c * t.in, reinterpret_cast<const float*>(t.row[0]), t.in);
    }
};

struct Bf16Product {
    static constexpr int rows = 1;
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        const uint16_t* x = reinterpret_cast<const uint16_t*>(t.row[0]);
        for (int c = 0; c < C; c++) {
            const uint16_t* w = reinterpret_cast<const uint16_t*>(t.values) + c * t.in;
            float lanes[16] = {}, rest = 0;
            int64_t k = 0;
            for (; k + 16 <= t.in; k += 16)
                for (int i = 0; i < 16; i++) lanes[i] += from_bf16(w[k + i]) * from_bf16(x[k + i]);
            for (; k < t.in; k++) rest += from_bf16(w[k]) * from_bf16(x[k]);
            t.y[0][c] = total(load(lanes)) + rest;
        }
    }
};

struct Int8Product {
    static constexpr int rows = 1;
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        const int16_t* x = reinterpret_cast<const int16_t*>(t.row[0]);
        float scale;
        std::memcpy(&scale, t.row[0] + padded(t.in) * 2, 4);
        for (int c = 0; c < C; c++) {
            const int8_t* w = reinterpret_cast<const int8_t*>(t.values) + c * t.in;
            int64_t sum = 0;
            for (int64_t k = 0; k < t.in; k += 128) {  // 128 products of 15 and 7 bits fit 32
                int32_t part = 0;
                for (int64_t i = k; i < std::min(k + 128, t.in); i++) part += int32_t(w[i]) * x[i];
                sum += part;
            }
            t.y[0][c] = float(sum) * (reinterpret_cast<const float*>(t.scale)[c] * scale);
        }
    }
};

struct Int4Product {
    static constexpr int rows = 1;
    template <int R, int C>
    static inline void run(Tile<R, C>& t) {
        const int64_t groups = t.in / GROUP;
        for (int c = 0; c < C; c++) {
            const uint16_t* scales = reinterpret_cast<const uint16_t*>(t.scale) + c * groups;
            float sum = 0;
            for (int64_t g = 0; g < groups; g++) {
                const uint8_t *w = t.values + (c * groups + g) * 16, *block = t.row[0] + g / 4 * 2 * PAD;
                const int8_t* x = reinterpret_cast<const int8_t*>(block) + g % 4 * 16;
                int32_t dot = 0, zero = t.zero_point ? t.zero_point[c * groups + g] : 8;
                for (int i = 0; i < 16; i++) dot += ((w[i] & 15) - zero) * x[i] + ((w[i] >> 4) - zero) * x[64 + i];
                float scale;
                std::memcpy(&scale, block + 128 + g % 4 * 16, 4);
                sum += float(dot) * (from_bf16(scales[g]) * scale);
            }
            t.y[0][c] = sum;
        }
    }
};
#endif

int64_t row_bytes(int64_t form, int64_t in) { return form == FP32 ? in * 4 : form == BF16 ? in * 2 : form == INT8 ? in : in / 2; }

int64_t scale_bytes(int64_t form, int64_t in) { return form == INT8 ? 4 : form == INT4 ? in / GROUP * 2 : 0; }

// rows [0, count) with channels [channel, channel + C), stored in to[row * stride + c]
template <class Product, int C, int R = Product::rows>
void channels_of(const Step& step, const Weight& weight, const uint8_t* row, int64_t count, int64_t channel, float* to,
                 int64_t stride) {
    int64_t bytes = prepared_bytes(step.form, step.in), scale = scale_bytes(step.form, step.in);
    Tile<R, C> tile;
    tile.values = weight.values + channel * row_bytes(step.form, step.in);
    tile.scale = weight.scale ? weight.scale + channel * scale : nullptr;
    tile.zero_point = weight.zero_point ? weight.zero_point + channel * (step.in / GROUP) : nullptr;
    tile.in = step.in;
    int64_t first = 0;
    for (; first + R <= count; first += R) {
        for (int r = 0; r < R; r++) tile.row[r] = row + (first + r) * bytes;
        Product::run(tile);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                to[(first + r) * stride + c] = tile.y[r][c] + (weight.bias ? weight.bias[channel + c] : 0.0f);
    }
    if constexpr (R > 1)
        if (first < count)
            channels_of<Product, C, R - 1>(step, weight, row + first * bytes, count - first, channel, to + first * stride, stride);
}

template <class Product>
void some_channels(const Step& step, const Weight& weight, const uint8_t* row, int64_t count, int64_t begin, int64_t end,
                   float* to) {
    int64_t channel = begin;
    for (; channel + 4 <= end; channel += 4)
        channels_of<Product, 4>(step, weight, row, count, channel, to + channel - begin, CHANNELS);
    for (; channel < end; channel++)
        channels_of<Product, 1>(step, weight, row, count, channel, to + channel - begin, CHANNELS);
}

void multiply(const Step& step, const Weight& weight, const uint8_t* row, int64_t count, int64_t begin, int64_t end, float* to) {
    auto run = step.form == FP32   ? some_channels<Fp32Product>
               : step.form == BF16 ? some_channels<Bf16Product>
               : step.form == INT8 ? some_channels<Int8Product>
                                   : some_channels<Int4Product>;
    run(step, weight, row, count, begin, end, to);
}

// channels [begin, end), at most CHANNELS, of all rows of a slice, a panel of rows at a time
void product(const Step& step, const uint8_t* prepared, int64_t slice, int64_t rows, int64_t begin, int64_t end) {
    int64_t bytes = prepared_bytes(step.form, step.in), panel = std::max<int64_t>(6, PANEL_BYTES / bytes / 6 * 6);
    thread_local std::vector<float> held, held_up;
    held.resize(size_t(std::min(rows, panel) * CHANNELS));
    if (step.up.values) held_up.resize(held.size());
    for (int64_t first = 0; first < rows; first += panel) {
        int64_t count = std::min(panel, rows - first);
        multiply(step, step.weight, prepared + first * bytes, count, begin, end, held.data());
        if (step.up.values) multiply(step, step.up, prepared + first * bytes, count, begin, end, held_up.data());
        for (int64_t r = 0; r < count; r++) {
            float* y = held.data() + r * CHANNELS;
            if (step.activation != NO_ACTIVATION)
                for (int64_t i = 0; i < CHANNELS; i += 16) store(y + i, activate(load(y + i), step.activation));
            int64_t place = (slice + first + r) * step.output_stride + begin;
            for (int64_t i = 0; i < end - begin; i++) {
                float value = step.up.values ? y[i] * held_up[size_t(r * CHANNELS + i)] : y[i];
                step.output[place + i] = step.residual ? step.residual[place + i] + value : value;
            }
        }
    }
}

// halves of each head turned in place: `in` values a row, heads of width `out`; cosines in norm_weight, sines in norm_bias
void rotate(const Step& step, int64_t row) {
    int64_t half = step.out / 2;
    const float *cosine = step.norm_weight + row * half, *sine = step.norm_bias + row * half;
    for (int64_t head = 0; head < step.in; head += step.out) {
        float *first = step.output + row * step.output_stride + head, *second = first + half;
        for (int64_t i = 0; i < half; i++) {
            float a = first[i], b = second[i];
            first[i] = a * cosine[i] - b * sine[i];
            second[i] = b * cosine[i] + a * sine[i];
        }
    }
}

// Steps one after the other for the rows [slice, slice + rows). Threads take their work from counters, so that one that
// other programs hold up does less of it.
void run_slice(const Step* steps, int64_t count, int64_t slice, int64_t rows, int64_t threads) {
    thread_local std::vector<uint8_t> held;
    size_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max(most, size_t(rows * prepared_bytes(steps[i].form, steps[i].in)));
    if (held.size() < most + 64) held.resize(most + 64);
    uint8_t* prepared = held.data() + (64 - reinterpret_cast<uintptr_t>(held.data()) % 64) % 64;
    std::vector<std::atomic<int64_t>> taken(size_t(2 * count));
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        const Step& step = steps[i];
        if (step.kind == ROTATION) {
            for (int64_t row; (row = taken[size_t(2 * i)]++) < rows;) rotate(step, slice + row);
        } else {
            if (!step.same_input) {
                int64_t bytes = prepared_bytes(step.form, step.in);
                for (int64_t row; (row = taken[size_t(2 * i)]++) < rows;)
                    prepare(step, step.input + (slice + row) * step.input_stride, prepared + row * bytes);
#pragma omp barrier
            }
            for (int64_t begin; (begin = CHANNELS * taken[size_t(2 * i + 1)]++) < step.out;)
                product(step, prepared, slice, rows, begin, std::min(begin + CHANNELS, step.out));
        }
#pragma omp barrier
    }
}

}  // namespace

extern "C" void row_chain(const Step* steps, int64_t count, int64_t rows, int64_t threads) {
    for (int64_t slice = 0; slice < rows; slice += SLICE) run_slice(steps, count, slice, std::min(SLICE, rows - slice), threads);
}

extern "C" int64_t row_products_form() {  // 3: AVX-512 with bf16 and VNNI products, 2: AVX-512, 1: plain
#if WIDE && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    return 3;
#else
    return WIDE ? 2 : 1;
#endif
}
