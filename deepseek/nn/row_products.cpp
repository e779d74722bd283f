// Steps of a language model over rows, one after the other in one parallel region: token vectors looked up, products
// with the big weights and what stands between them (norms, activations, gates, rotations, sums), attention to pages.
//
// A row's result does not depend on what else is computed with it, nor on the number of threads. Source of the idea: He
// et al. 2025, "Defeating Nondeterminism in LLM Inference" (batch-invariant kernels). Not here: sums over the weights
// (row_tiles.h), attention itself (paged_attention.h).

#include <atomic>

#include "paged_attention.h"
#include "row_tiles.h"

namespace {

enum Kind { PRODUCT, ROTATION, LOOKUP, ATTENTION };
enum Norm { NO_NORM, LAYER_NORM, RMS_NORM };
enum Activation { NO_ACTIVATION, GELU, SILU };

struct Weight {  // in panels; bias may be null
    Panel panel;
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
    const int64_t* ids;  // of a lookup
    const Attention* attention;
};

constexpr int64_t SLICE = 1024;  // rows that a chain makes ready at once, which bounds its memory

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

void prepare(const Step& step, const float* input, uint8_t* to) {
    thread_local std::vector<float> held;
    held.assign(size_t(padded(step.in)), 0.0f);
    std::memcpy(held.data(), input, size_t(step.in) * 4);
    if (step.norm != NO_NORM) normalise(step, held.data());
    to_form(step.form, held.data(), padded(step.in), to);
}

inline Floats activate(Floats x, int64_t activation) {
    Floats z = activation == GELU ? (x + x * x * x * 0.044715f) * 1.5957691216f : x;
    return x / (exponential(Floats{} - z) + 1.0f);
}

Panel panel_of(const Step& step, const Panel& weight, int64_t number) {
    const int64_t groups = step.in / GROUP * LANES;
    return {weight.values + number * panel_bytes(step.form, step.in),
            weight.scale ? weight.scale + number * (step.form == INT4 ? groups * 2 : LANES * 4) : nullptr,
            weight.zero_point ? weight.zero_point + number * groups : nullptr};
}

// what a weight gives for all rows and 32 channels, with its bias
float* products(const Step& step, const Weight& weight, const uint8_t* prepared, int64_t rows, int64_t number,
                std::vector<float>& held) {
    held.resize(size_t(rows * LANES));
    multiply(step.form, prepared, rows, panel_of(step, weight.panel, number), step.in, held.data());
    if (weight.bias) {
        float bias[LANES] = {};
        std::memcpy(bias, weight.bias + number * LANES, size_t(std::min(LANES, step.out - number * LANES)) * 4);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < LANES; i++) held[size_t(r * LANES + i)] += bias[i];
    }
    return held.data();
}

void product(const Step& step, const uint8_t* prepared, int64_t slice, int64_t rows, int64_t number) {
    thread_local std::vector<float> held, held_up;
    float* y = products(step, step.weight, prepared, rows, number, held);
    const float* up = step.up.panel.values ? products(step, step.up, prepared, rows, number, held_up) : nullptr;
    if (step.activation != NO_ACTIVATION)
        for (int64_t i = 0; i < rows * LANES; i += 16) store(y + i, activate(load(y + i), step.activation));
    const int64_t count = std::min(LANES, step.out - number * LANES);
    for (int64_t r = 0; r < rows; r++, y += LANES) {
        const int64_t place = (slice + r) * step.output_stride + number * LANES;
        if (up)
            for (int64_t i = 0; i < count; i++) y[i] *= up[r * LANES + i];
        if (step.residual)
            for (int64_t i = 0; i < count; i++) y[i] = step.residual[place + i] + y[i];
        std::memcpy(step.output + place, y, size_t(count) * 4);
    }
}

// halves of each head turned in place: `in` values a row, heads of width `out`; cosines in norm_weight, sines in
// norm_bias
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

void look_up(const Step& step, int64_t row) {
    float* to = step.output + row * step.output_stride;
    const Panel panel = panel_of(step, step.weight.panel, step.ids[row] / LANES);
    if (!step.residual) return read_channel(step.form, panel, step.ids[row] % LANES, step.in, to);
    thread_local std::vector<float> held;
    held.resize(size_t(step.in));
    read_channel(step.form, panel, step.ids[row] % LANES, step.in, held.data());
    for (int64_t i = 0; i < step.in; i++) to[i] = step.residual[row * step.output_stride + i] + held[size_t(i)];
}

// Threads take their work from counters, so that one that other programs hold up does less of it.
typedef std::atomic<int64_t> Counter;

void run_step(const Step& step, uint8_t* prepared, int64_t slice, int64_t rows, Counter& first, Counter& second) {
    if (step.kind == ROTATION || step.kind == LOOKUP) {
        auto run = step.kind == LOOKUP ? look_up : rotate;
        for (int64_t row; (row = first++) < rows;) run(step, slice + row);
    } else if (step.kind == ATTENTION) {
        write_all(*step.attention, first);
#pragma omp barrier
        attend_all(*step.attention, second);
    } else {
        if (!step.same_input) {
            const int64_t bytes = prepared_bytes(step.form, step.in);
            for (int64_t row; (row = first++) < rows;)
                prepare(step, step.input + (slice + row) * step.input_stride, prepared + row * bytes);
#pragma omp barrier
        }
        for (int64_t number; (number = second++) * LANES < step.out;) product(step, prepared, slice, rows, number);
    }
}

void run_slice(const Step* steps, int64_t count, int64_t slice, int64_t rows, int64_t threads) {
    thread_local std::vector<uint8_t> held;
    size_t most = 0;
    for (int64_t i = 0; i < count; i++)
        most = std::max(most, size_t(rows * prepared_bytes(steps[i].form, steps[i].in)));
    if (held.size() < most + 64) held.resize(most + 64);
    uint8_t* prepared = held.data() + (64 - reinterpret_cast<uintptr_t>(held.data()) % 64) % 64;
    std::vector<Counter> taken(size_t(2 * count));
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        run_step(steps[i], prepared, slice, rows, taken[size_t(2 * i)], taken[size_t(2 * i + 1)]);
#pragma omp barrier
    }
}

}  // namespace

// steps with attention are for all rows at once
extern "C" void row_chain(const Step* steps, int64_t count, int64_t rows, int64_t threads) {
    bool whole = std::any_of(steps, steps + count, [](const Step& step) { return step.kind == ATTENTION; });
    const int64_t most = whole ? rows : SLICE;
    for (int64_t slice = 0; slice < rows; slice += most)
        run_slice(steps, count, slice, std::min(most, rows - slice), threads);
}

extern "C" int64_t row_products_form() {  // 3: AVX-512 with bf16 and VNNI products, 2: AVX-512, 1: plain
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    return 3;
#elif defined(__AVX512F__)
    return 2;
#else
    return 1;
#endif
}
