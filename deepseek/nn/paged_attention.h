// Attention of a step's new tokens to keys and values that lie in pages, and writing those: for many texts at once.
//
// Each query is treated alike whatever else is in the step: scores of all its keys, softmax over them, then the
// weighted values, each sum in the order of the text. So an answer does not depend on the other texts, nor on how a
// prompt was cut into pieces. Source of the pages: Kwon et al. 2023, "Efficient Memory Management for Large Language
// Model Serving with PagedAttention", arXiv:2309.06180. Not here: products with weights (row_tiles.h).

#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "vectors.h"

namespace {

struct Pages {  // strides in values
    void* data;
    int64_t page, token, head, dim;
};

struct Texts {  // where a step's tokens belong; `starts`: one more than there are texts
    const int32_t *block_table, *starts, *lengths;
    const int64_t* slots;  // block * block_size + place in it, of each token
    int64_t count, max_blocks;
};

struct Rows {  // (tokens, heads, dim), strides in values; null: nothing to write
    const float* data;
    int64_t token, head;
};

struct Attention {
    const Texts* texts;
    Rows query, new_keys, new_values;
    Pages keys, values;
    float* output;  // (tokens, heads, values.dim)
    int64_t block_size, heads, kv_heads, bf16;
    double scale;
};

constexpr int ROWS = 8, WIDTH = 4;  // query rows of a task; rows that are summed side by side

// e^x for x <= 0, and 0 far below
inline Floats weight_of(Floats x) { return x < -87.0f ? Floats{} : exponential(x); }

struct Row {  // one head of one new token
    const float* query;
    float* output;
    int64_t keys;   // that it looks at
    float* weights; // room for them, up to a multiple of 16
};

// call `use(position, place)` for every `step`th of the first `count` positions of each page of a text, in order; what
// the next head has there, which the next task reads, is asked for
template <class T, class Use>
inline void walk(const Attention& call, const Pages& pages, const int32_t* table, int64_t head, int64_t count, int step,
                 Use use) {
    for (int64_t first = 0; first < count; first += call.block_size) {
        const T* place = static_cast<const T*>(pages.data) + *table++ * pages.page + head * pages.head;
        const int64_t end = std::min(first + call.block_size, count);
        for (int64_t j = first; j < end; j += step, place += step * pages.token) {
            for (int i = 0; i < step; i++)
                for (int64_t d = 0; d < pages.dim; d += 64 / int64_t(sizeof(T)))
                    __builtin_prefetch(place + i * pages.token + pages.head + d);
            use(j, place, std::min<int64_t>(step, end - j));
        }
    }
}

// four products at once: of four rows with a key, or of a row with four keys
template <class T, int R>
void score(const Attention& call, const Row* rows, const int32_t* table, int64_t count, int64_t head) {
    static_assert(R == 1 || R == 4);
    const int64_t dim = call.keys.dim, whole = dim / 16 * 16;
    walk<T>(call, call.keys, table, head, count, R == 1 ? 4 : 1, [&](int64_t j, const T* key, int64_t some) {
        Floats sum[4] = {};
        float found[4];
        const T* keys[4];
        for (int i = 0; i < 4; i++) keys[i] = key + (i < some ? i : 0) * call.keys.token;
        for (int64_t d = 0; d < whole; d += 16)
            for (int i = 0; i < 4; i++)
                sum[i] = add_product(load(keys[R == 1 ? i : 0] + d), load(rows[R == 1 ? 0 : i].query + d), sum[i]);
        totals(sum, found);
        for (int i = 0; i < (R == 1 ? int(some) : 4); i++) {
            const Row& row = rows[R == 1 ? 0 : i];
            for (int64_t d = whole; d < dim; d++) found[i] += single(keys[R == 1 ? i : 0][d]) * row.query[d];
            if (R == 1) row.weights[j + i] = found[i] * float(call.scale);
            else if (j < row.keys) row.weights[j] = found[i] * float(call.scale);
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
        Floats x = weight_of(load(row.weights + j) - highest);
        store(row.weights + j, x);
        sum += x;
    }
    const float factor = 1.0f / total(sum);
    for (int64_t j = 0; j < wide; j++) row.weights[j] *= factor;
    for (int64_t j = wide; j < count; j++) row.weights[j] = 0.0f;
}

template <class T, int R, int V>
void mix(const Attention& call, const Row* rows, const int32_t* table, int64_t count, int64_t head, int64_t first) {
    Floats sum[R][V] = {};
    walk<T>(call, call.values, table, head, count, 1, [&](int64_t j, const T* value, int64_t) {
        for (int v = 0; v < V; v++) {
            Floats x = load(value + first + v * 16);
            for (int r = 0; r < R; r++) sum[r][v] = add_product(x, Floats{} + rows[r].weights[j], sum[r][v]);
        }
    });
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(rows[r].output + first + v * 16, sum[r][v]);
}

template <class T, int R>
void attend(const Attention& call, const Row* rows, const int32_t* table, int64_t head) {
    int64_t count = 0, dim = call.values.dim, d = 0;
    for (int r = 0; r < R; r++) count = std::max(count, rows[r].keys);
    score<T, R>(call, rows, table, count, head);
    for (int r = 0; r < R; r++) softmax(rows[r], count);
    for (; d + 64 <= dim; d += 64) mix<T, R, 4>(call, rows, table, count, head, d);
    for (; d + 16 <= dim; d += 16) mix<T, R, 1>(call, rows, table, count, head, d);
    for (; d < dim; d++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            walk<T>(call, call.values, table, head, rows[r].keys, 1,
                    [&](int64_t j, const T* value, int64_t) { sum += rows[r].weights[j] * single(value[d]); });
            rows[r].output[d] = sum;
        }
}

// the heads that share one head of keys, of some tokens of one sequence
template <class T>
void task(const Attention& call, int64_t text, int64_t head, int64_t first, int64_t last) {
    const int64_t group = call.heads / call.kv_heads;
    const int64_t end = call.texts->starts[text + 1], length = call.texts->lengths[text];
    const int64_t room = (length + 15) / 16 * 16;
    const int32_t* table = call.texts->block_table + text * call.texts->max_blocks;
    thread_local std::vector<float> held;
    if (int64_t(held.size()) < room * WIDTH) held.resize(size_t(room * WIDTH));
    Row rows[WIDTH];
    int count = 0;
    for (int64_t token = first; token < last; token++)
        for (int64_t h = head * group; h < (head + 1) * group; h++) {
            rows[count] = {call.query.data + token * call.query.token + h * call.query.head,
                           call.output + (token * call.heads + h) * call.values.dim, length - (end - 1 - token),
                           held.data() + count * room};
            count++;
            if (count == WIDTH) attend<T, WIDTH>(call, rows, table, head), count = 0;
        }
    for (int r = 0; r < count; r++) attend<T, 1>(call, rows + r, table, head);
}

// threads take tasks from `taken`
template <class T>
void attend_some(const Attention& call, std::atomic<int64_t>& taken) {
    const Texts& texts = *call.texts;
    const int64_t group = call.heads / call.kv_heads, tokens = std::max<int64_t>(1, ROWS / group);
    thread_local std::vector<int64_t> before;  // tasks before each text's
    before.assign(size_t(texts.count + 1), 0);
    for (int64_t s = 0; s < texts.count; s++) {
        int64_t pieces = (texts.starts[s + 1] - texts.starts[s] + tokens - 1) / tokens;
        before[size_t(s + 1)] = before[size_t(s)] + pieces * call.kv_heads;
    }
    const int64_t all = before.back();
    for (int64_t next; (next = taken++) < all;) {
        int64_t s = std::upper_bound(before.begin(), before.end(), next) - before.begin() - 1;
        int64_t place = next - before[size_t(s)], first = texts.starts[s] + place / call.kv_heads * tokens;
        task<T>(call, s, place % call.kv_heads, first, std::min<int64_t>(first + tokens, texts.starts[s + 1]));
    }
}

inline void attend_all(const Attention& call, std::atomic<int64_t>& taken) {
    call.bf16 ? attend_some<uint16_t>(call, taken) : attend_some<float>(call, taken);
}

template <class T>
void write(const Attention& call, const Rows& from, const Pages& pages, int64_t t) {
    const int64_t slot = call.texts->slots[t];
    T* place = static_cast<T*>(pages.data) + slot / call.block_size * pages.page + slot % call.block_size * pages.token;
    for (int64_t h = 0; h < call.kv_heads; h++)
        put(from.data + t * from.token + h * from.head, place + h * pages.head, pages.dim);
}

inline void write_all(const Attention& call, std::atomic<int64_t>& taken) {
    const int64_t tokens = call.texts->starts[call.texts->count];
    auto put_row = call.bf16 ? write<uint16_t> : write<float>;
    for (int64_t t; (t = taken++) < tokens;) {
        if (call.new_keys.data) put_row(call, call.new_keys, call.keys, t);
        if (call.new_values.data) put_row(call, call.new_values, call.values, t);
    }
}

}  // namespace
