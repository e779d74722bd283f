// Attention of a step's new tokens to keys and values that lie in pages, and writing those: for many texts at once.
//
// Each query is treated alike whatever else is in the step: scores of all its keys, softmax over them, then the weighted
// values, each sum in the order of the text. So an answer does not depend on the other texts, nor on how a prompt was cut
// into pieces. Source of the pages: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
// PagedAttention", arXiv:2309.06180. Not here: products with weights (row_products.cpp).

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

struct Pages {  // strides in values
    void* data;
    int64_t page, token, head, dim;
};

struct Call {
    const float* query;
    int64_t query_token, query_head;  // strides
    Pages keys, values;
    const int32_t* block_table;
    const int32_t *starts, *lengths;  // starts: one more than there are sequences
    float* output;                    // (tokens, heads, values.dim)
    int64_t sequences, max_blocks, block_size, heads, kv_heads, bf16;
    double scale;
};

constexpr int ROWS = 8, WIDTH = 4;  // query rows of a task; rows that are summed side by side

inline Floats load(const float* from) {
    Floats found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline Floats load(const uint16_t* from) {  // bfloat16
    Shorts found;
    std::memcpy(&found, from, sizeof found);
    return (Floats)(__builtin_convertvector(found, Words) << 16);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline float single(float value) { return value; }

inline float single(uint16_t value) {
    uint32_t bits = uint32_t(value) << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}

inline Floats add_product(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#else
    return a * b + sum;
#endif
}

inline float total(Floats v) {  // halves onto halves, always in this order
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

// e^x for x <= 0: 2^n times a polynomial of the rest (Cody and Waite 1980); 0 far below
inline Floats exponential(Floats x) {
    Floats far = x < -87.0f ? Floats{} : Floats{} + 1.0f;
    x = x < -87.0f ? Floats{} - 87.0f : x;
    Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23) * far;
}

struct Row {  // one head of one new token
    const float* query;
    float* output;
    int64_t keys;   // that it looks at
    float* weights; // room for them, up to a multiple of 16
};

// call `use(position, place)` for the first `count` positions of a text, in order
template <class T, class Use>
inline void walk(const Call& call, const Pages& pages, const int32_t* table, int64_t head, int64_t count, Use use) {
    for (int64_t first = 0; first < count; first += call.block_size) {
        const T* place = static_cast<const T*>(pages.data) + *table++ * pages.page + head * pages.head;
        const int64_t end = std::min(first + call.block_size, count);
        for (int64_t j = first; j < end; j++, place += pages.token) use(j, place);
    }
}

template <class T, int R>
void score(const Call& call, const Row* rows, const int32_t* table, int64_t count, int64_t head) {
    const int64_t dim = call.keys.dim, whole = dim / 16 * 16;
    walk<T>(call, call.keys, table, head, count, [&](int64_t j, const T* key) {
        Floats sum[R] = {};
        for (int64_t d = 0; d < whole; d += 16) {
            Floats k = load(key + d);
            for (int r = 0; r < R; r++) sum[r] = add_product(k, load(rows[r].query + d), sum[r]);
        }
        for (int r = 0; r < R; r++) {
            float found = total(sum[r]);
            for (int64_t d = whole; d < dim; d++) found += single(key[d]) * rows[r].query[d];
            if (j < rows[r].keys) rows[r].weights[j] = found * float(call.scale);
        }
    });
}

void softmax(const Row& row, int64_t count) {  // weights beyond the row's keys become 0
    const int64_t wide = (row.keys + 15) / 16 * 16;
    for (int64_t j = row.keys; j < wide; j++) row.weights[j] = -INFINITY;
    Floats most = load(row.weights), sum{};
    for (int64_t j = 16; j < wide; j += 16) {
        Floats x = load(row.weights + j);
        most = x > most ? x : most;
    }
    float highest = most[0];
    for (int i = 1; i < 16; i++) highest = most[i] > highest ? most[i] : highest;
    for (int64_t j = 0; j < wide; j += 16) {
        Floats x = exponential(load(row.weights + j) - highest);
        store(row.weights + j, x);
        sum += x;
    }
    const float factor = 1.0f / total(sum);
    for (int64_t j = 0; j < wide; j++) row.weights[j] *= factor;
    for (int64_t j = wide; j < count; j++) row.weights[j] = 0.0f;
}

template <class T, int R, int V>
void mix(const Call& call, const Row* rows, const int32_t* table, int64_t count, int64_t head, int64_t first) {
    Floats sum[R][V] = {};
    walk<T>(call, call.values, table, head, count, [&](int64_t j, const T* value) {
        for (int v = 0; v < V; v++) {
            Floats x = load(value + first + v * 16);
            for (int r = 0; r < R; r++) sum[r][v] = add_product(x, Floats{} + rows[r].weights[j], sum[r][v]);
        }
    });
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(rows[r].output + first + v * 16, sum[r][v]);
}

template <class T, int R>
void attend(const Call& call, const Row* rows, const int32_t* table, int64_t head) {
    int64_t count = 0, dim = call.values.dim, d = 0;
    for (int r = 0; r < R; r++) count = std::max(count, rows[r].keys);
    score<T, R>(call, rows, table, count, head);
    for (int r = 0; r < R; r++) softmax(rows[r], count);
    for (; d + 64 <= dim; d += 64) mix<T, R, 4>(call, rows, table, count, head, d);
    for (; d + 16 <= dim; d += 16) mix<T, R, 1>(call, rows, table, count, head, d);
    for (; d < dim; d++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            walk<T>(call, call.values, table, head, rows[r].keys,
                    [&](int64_t j, const T* value) { sum += rows[r].weights[j] * single(value[d]); });
            rows[r].output[d] = sum;
        }
}

// the heads that share one head of keys, of some tokens of one sequence
template <class T>
void task(const Call& call, int64_t sequence, int64_t head, int64_t first, int64_t last) {
    const int64_t group = call.heads / call.kv_heads, end = call.starts[sequence + 1], length = call.lengths[sequence];
    const int64_t room = (length + 15) / 16 * 16;
    const int32_t* table = call.block_table + sequence * call.max_blocks;
    thread_local std::vector<float> held;
    if (int64_t(held.size()) < room * WIDTH) held.resize(size_t(room * WIDTH));
    Row rows[WIDTH];
    int count = 0;
    for (int64_t token = first; token < last; token++)
        for (int64_t h = head * group; h < (head + 1) * group; h++) {
            rows[count] = {call.query + token * call.query_token + h * call.query_head,
                           call.output + (token * call.heads + h) * call.values.dim, length - (end - 1 - token),
                           held.data() + count * room};
            count++;
            if (count == WIDTH) attend<T, WIDTH>(call, rows, table, head), count = 0;
        }
    for (int r = 0; r < count; r++) attend<T, 1>(call, rows + r, table, head);
}

template <class T>
void run(const Call& call, int64_t threads) {
    const int64_t group = call.heads / call.kv_heads, tokens = std::max<int64_t>(1, ROWS / group);
    std::vector<int64_t> before(size_t(call.sequences + 1), 0);  // tasks before each sequence's
    for (int64_t s = 0; s < call.sequences; s++) {
        int64_t pieces = (call.starts[s + 1] - call.starts[s] + tokens - 1) / tokens;
        before[size_t(s + 1)] = before[size_t(s)] + pieces * call.kv_heads;
    }
    const int64_t all = before.back();
    std::atomic<int64_t> taken{0};
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    for (int64_t next; (next = taken++) < all;) {
        int64_t s = std::upper_bound(before.begin(), before.end(), next) - before.begin() - 1;
        int64_t place = next - before[size_t(s)], first = call.starts[s] + place / call.kv_heads * tokens;
        task<T>(call, s, place % call.kv_heads, first, std::min<int64_t>(first + tokens, call.starts[s + 1]));
    }
}

void put(const float* from, float* to, int64_t count) { std::memcpy(to, from, size_t(count) * 4); }

void put(const float* from, uint16_t* to, int64_t count) {  // to the nearest bfloat16, ties to even; NaN stays NaN
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, from + i, 4);
        bool wrong = (bits & 0x7fffffff) > 0x7f800000;
        to[i] = wrong ? uint16_t(bits >> 16 | 64) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

template <class T>
void write(const float* from, int64_t token, int64_t head, const Pages& pages, const int64_t* slots, int64_t tokens,
           int64_t heads, int64_t block_size) {
    for (int64_t t = 0; t < tokens; t++) {
        T* place = static_cast<T*>(pages.data) + slots[t] / block_size * pages.page + slots[t] % block_size * pages.token;
        for (int64_t h = 0; h < heads; h++) put(from + t * token + h * head, place + h * pages.head, pages.dim);
    }
}

}  // namespace

extern "C" void paged_attention(const Call* call, int64_t threads) {
    call->bf16 ? run<uint16_t>(*call, threads) : run<float>(*call, threads);
}

// `from` (tokens, heads, dim) with strides `token` and `head` to places `slots` = block * block_size + offset
extern "C" void write_pages(const float* from, int64_t token, int64_t head, const Pages* pages, const int64_t* slots,
                            int64_t tokens, int64_t heads, int64_t block_size, int64_t bf16) {
    (bf16 ? write<uint16_t> : write<float>)(from, token, head, *pages, slots, tokens, heads, block_size);
}
