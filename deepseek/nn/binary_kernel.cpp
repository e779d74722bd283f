// Products of signs: packs the signs of floats into bits, and convolves bits by XOR and popcount (arXiv:1603.05279).
//
// A bit is 1 for a value >= 0. Words are 64 bits; a pixel (or row) is `words` of them, the channels in order, the rest 0.
// Weights come in blocks of 32 output channels: [block][tap][word][32]. With AVX-512 VPOPCNTDQ a vector holds 8 channels
// of one word; elsewhere the same loops count word by word. Not here: building, loading, layouts of torch
// (binary_kernel.py).

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512VPOPCNTDQ__)
#include <immintrin.h>
#define WIDE 1
#endif

namespace {

constexpr int64_t kBlock = 32;  // output channels of a block
constexpr int64_t kTile = 4;    // output columns computed at once

struct Shape {
  int64_t batch, channels, words;       // of the input; `words` holds `channels` bits
  int64_t height, width;                // of the padded input
  int64_t pad_rows, pad_columns;        // zeros around it, on each side
  int64_t kernel_rows, kernel_columns;
  int64_t stride_rows, stride_columns;
  int64_t dilation_rows, dilation_columns;
  int64_t out_channels, out_height, out_width;
};

struct Tensors {
  const uint64_t* input;    // (batch, height, width, words)
  const uint64_t* weight;   // (blocks, taps, words, 32)
  const int64_t* ones;      // (blocks, taps, 32): the ones of each tap of the weight
  const float* weight_scale;  // (blocks * 32)
  const float* input_scale;   // (batch, out_height, out_width)
  const float* bias;          // (blocks * 32), or null
  float* output;              // (batch, out_height, out_width, out_channels)
};

// Returns the signs of up to 64 floats and adds their magnitudes to `sum`, in double: any order then gives one result.
uint64_t signs_of_word(const float* values, int64_t count, double* sum) {
  uint64_t word = 0;
#ifdef WIDE
  const __m512 zero = _mm512_setzero_ps();
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  for (int64_t start = 0; start < count; start += 16) {
    const int64_t left = count - start;
    const __mmask16 valid = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
    const __m512 part = _mm512_maskz_loadu_ps(valid, values + start);
    word |= static_cast<uint64_t>(_mm512_mask_cmp_ps_mask(valid, part, zero, _CMP_GE_OQ)) << start;
    const __m512 magnitude = _mm512_abs_ps(part);
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(magnitude)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(magnitude, 1)));
  }
  *sum += _mm512_reduce_add_pd(_mm512_add_pd(low, high));
#else
  for (int64_t i = 0; i < count; ++i) {
    word |= static_cast<uint64_t>(values[i] >= 0.0f) << i;
    *sum += std::fabs(static_cast<double>(values[i]));
  }
#endif
  return word;
}

// Turns the differing bits of a pixel into its output values: each operation is one rounding, as torch does them.
void finish(const int64_t* differing, int64_t bits, const Tensors& t, int64_t first, int64_t count, float input_scale,
            float* output) {
  const float* weight_scale = t.weight_scale + first;
  int64_t c = 0;
#ifdef WIDE
  const __m512i all = _mm512_set1_epi64(bits);
  const __m256 factor = _mm256_set1_ps(input_scale);
  for (; c + 8 <= count; c += 8) {
    const __m512i twice = _mm512_slli_epi64(_mm512_loadu_si512(differing + c), 1);
    __m256 value = _mm512_cvtepi64_ps(_mm512_sub_epi64(all, twice));
    value = _mm256_mul_ps(_mm256_mul_ps(value, _mm256_loadu_ps(weight_scale + c)), factor);
    if (t.bias != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(t.bias + first + c));
    _mm256_storeu_ps(output + c, value);
  }
#endif
  for (; c < count; ++c) {
    const float value = static_cast<float>(bits - 2 * differing[c]) * weight_scale[c] * input_scale;
    output[c] = t.bias == nullptr ? value : value + t.bias[first + c];
  }
}

// Taps that lie on padding count for nothing: their input bits are zero, so they added the ones of the weight.
int64_t correct_padding(const Shape& s, const Tensors& t, int64_t block, int64_t row, int64_t column, int64_t* differing) {
  const int64_t last_row = s.height - s.pad_rows, last_column = s.width - s.pad_columns;
  const int64_t top = row * s.stride_rows, left = column * s.stride_columns;
  const int64_t bottom = top + (s.kernel_rows - 1) * s.dilation_rows;
  const int64_t right = left + (s.kernel_columns - 1) * s.dilation_columns;
  if (top >= s.pad_rows && bottom < last_row && left >= s.pad_columns && right < last_column)
    return s.kernel_rows * s.kernel_columns * s.channels;
  int64_t valid = 0;
  for (int64_t ky = 0, tap = 0; ky < s.kernel_rows; ++ky) {
    const int64_t y = row * s.stride_rows + ky * s.dilation_rows;
    for (int64_t kx = 0; kx < s.kernel_columns; ++kx, ++tap) {
      const int64_t x = column * s.stride_columns + kx * s.dilation_columns;
      if (y >= s.pad_rows && y < last_row && x >= s.pad_columns && x < last_column) {
        ++valid;
        continue;
      }
      const int64_t* ones = t.ones + (block * s.kernel_rows * s.kernel_columns + tap) * kBlock;
      for (int64_t c = 0; c < kBlock; ++c) differing[c] -= ones[c];
    }
  }
  return valid * s.channels;
}

template <int Tile>
void count_differing(const Shape& s, const Tensors& t, int64_t sample, int64_t block, int64_t row, int64_t column,
                     int64_t differing[][kBlock]) {
  const uint64_t* weight = t.weight + block * s.kernel_rows * s.kernel_columns * s.words * kBlock;
  const int64_t step = s.stride_columns * s.words;
#ifdef WIDE
  __m512i sums[Tile][4];
  for (int p = 0; p < Tile; ++p)
    for (int v = 0; v < 4; ++v) sums[p][v] = _mm512_setzero_si512();
#else
  for (int p = 0; p < Tile; ++p) std::memset(differing[p], 0, sizeof(differing[p]));
#endif
  for (int64_t ky = 0; ky < s.kernel_rows; ++ky) {
    const int64_t y = row * s.stride_rows + ky * s.dilation_rows;
    for (int64_t kx = 0; kx < s.kernel_columns; ++kx) {
      const int64_t x = column * s.stride_columns + kx * s.dilation_columns;
      const uint64_t* pixel = t.input + ((sample * s.height + y) * s.width + x) * s.words;
      for (int64_t w = 0; w < s.words; ++w, weight += kBlock) {
#ifdef WIDE
        __m512i kernel[4];
        for (int v = 0; v < 4; ++v) kernel[v] = _mm512_loadu_si512(weight + 8 * v);
        for (int p = 0; p < Tile; ++p) {
          const __m512i word = _mm512_set1_epi64(static_cast<int64_t>(pixel[p * step + w]));
          for (int v = 0; v < 4; ++v)
            sums[p][v] = _mm512_add_epi64(sums[p][v], _mm512_popcnt_epi64(_mm512_xor_si512(kernel[v], word)));
        }
#else
        for (int p = 0; p < Tile; ++p) {
          const uint64_t word = pixel[p * step + w];
          for (int64_t c = 0; c < kBlock; ++c) differing[p][c] += __builtin_popcountll(weight[c] ^ word);
        }
#endif
      }
    }
  }
#ifdef WIDE
  for (int p = 0; p < Tile; ++p)
    for (int v = 0; v < 4; ++v) _mm512_storeu_si512(differing[p] + 8 * v, sums[p][v]);
#endif
}

template <int Tile>
void tile(const Shape& s, const Tensors& t, int64_t sample, int64_t block, int64_t row, int64_t column) {
  alignas(64) int64_t differing[Tile][kBlock];
  count_differing<Tile>(s, t, sample, block, row, column, differing);
  const int64_t first = block * kBlock;
  const int64_t count = s.out_channels - first < kBlock ? s.out_channels - first : kBlock;
  const bool padded = s.pad_rows > 0 || s.pad_columns > 0;
  for (int p = 0; p < Tile; ++p) {
    int64_t bits = s.channels * s.kernel_rows * s.kernel_columns;
    if (padded) bits = correct_padding(s, t, block, row, column + p, differing[p]);
    const int64_t place = (sample * s.out_height + row) * s.out_width + column + p;
    finish(differing[p], bits, t, first, count, t.input_scale[place], t.output + place * s.out_channels + first);
  }
}

void columns(const Shape& s, const Tensors& t, int64_t sample, int64_t block, int64_t row, int64_t from, int64_t to) {
  int64_t column = from;
  for (; column + kTile <= to; column += kTile) tile<kTile>(s, t, sample, block, row, column);
  if (to - column == 3) tile<3>(s, t, sample, block, row, column);
  if (to - column == 2) tile<2>(s, t, sample, block, row, column);
  if (to - column == 1) tile<1>(s, t, sample, block, row, column);
}

}  // namespace

extern "C" {

// 2 where the vector form was built, 1 for the plain one.
int binary_kernel_form() {
#ifdef WIDE
  return 2;
#else
  return 1;
#endif
}

// Packs (batch, rows, columns, channels) into the middle of (batch, height, width, words), zeros around it, and writes
// the mean magnitude of each pixel to (batch, rows, columns).
void binary_pack(const float* values, uint64_t* packed, float* magnitude, const Shape* shape, int threads) {
  const Shape& s = *shape;
  const int64_t rows = s.height - 2 * s.pad_rows, inside = s.width - 2 * s.pad_columns;
  const int64_t chunk = 64;  // columns of one piece of work
  const int64_t chunks = (s.width + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t item = 0; item < s.batch * s.height * chunks; ++item) {
    const int64_t line = item / chunks, from = item % chunks * chunk;
    const int64_t to = from + chunk < s.width ? from + chunk : s.width;
    const int64_t row = line % s.height - s.pad_rows;
    uint64_t* out = packed + (line * s.width + from) * s.words;
    for (int64_t at = from; at < to; ++at, out += s.words) {
      const int64_t column = at - s.pad_columns;
      if (row < 0 || row >= rows || column < 0 || column >= inside) {
        std::memset(out, 0, sizeof(uint64_t) * s.words);
        continue;
      }
      const int64_t place = (line / s.height * rows + row) * inside + column;
      const float* pixel = values + place * s.channels;
      double sum = 0;
      for (int64_t w = 0; w < s.words; ++w) {
        const int64_t left = s.channels - 64 * w;
        out[w] = signs_of_word(pixel + 64 * w, left < 64 ? left : 64, &sum);
      }
      magnitude[place] = static_cast<float>(sum / static_cast<double>(s.channels));
    }
  }
}

// The product of packed signs, scaled and shifted; `shape` is the one they were packed with.
void binary_convolve(const Tensors* tensors, const Shape* shape, int threads) {
  const Shape& s = *shape;
  const int64_t blocks = (s.out_channels + kBlock - 1) / kBlock;
  const int64_t chunk = 32;  // columns of one piece of work
  const int64_t chunks = (s.out_width + chunk - 1) / chunk;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t item = 0; item < s.batch * s.out_height * chunks * blocks; ++item) {
    const int64_t block = item % blocks, place = item / blocks;
    const int64_t from = place % chunks * chunk, line = place / chunks;
    const int64_t to = from + chunk < s.out_width ? from + chunk : s.out_width;
    columns(s, *tensors, line / s.out_height, block, line % s.out_height, from, to);
  }
}
}
