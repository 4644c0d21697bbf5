// Products with weights of eight bits: a scale an output, inputs rounded to eight bits by a scale a row.
//
// Four inputs of a row and four weights of an output meet in one instruction (VNNI), which takes the inputs without a sign: they are moved up by 128,
// and what that adds, 128 times the sum of an output's weights, is taken off again. Whole numbers add up exactly, so no order of sums shows.
// A quarter of the bytes of float32: where a step waits for its weights, as a single sound of a large WaveNet does, it is several times as fast.
#pragma once

#include <type_traits>

#include "matrix.h"

namespace genmodels {

struct Int8 {
  using Word = int32_t;
};

// Behind the blocks of a matrix lie its outputs' scales and corrections.
template <>
class Products<Int8> {
 public:
  using Word = Int8::Word;

  Products(int64_t rows, int64_t inputs) : stride_((inputs / 4 + 15) / 16 * 16), words_(rows * stride_), scales_(rows) {}

  // As in matrix.h. Inputs are a multiple of 16.
  void operator()(const Matrix<Int8>& m, const float* x, int64_t xs, const float* init, int64_t is, float* y, int64_t ys, int64_t rows) const {
    for (int64_t r = 0; r < rows; r++) scales_[r] = convert(x + r * xs, m.inputs, reinterpret_cast<uint8_t*>(words_ + r * stride_));
    const int64_t words = m.inputs / 4;
    const auto* scales = reinterpret_cast<const float*>(m.weights + words * m.outputs);
    const Word* w = m.weights;
    int64_t o = 0;
    const auto strip = [&](auto vectors) {
      constexpr int width = vectors * 16;
      for (; o + width <= m.outputs; o += width, w += width * words) {
        const Block block{w, words, scales + o, reinterpret_cast<const Word*>(scales + m.outputs) + o};
        int64_t r = 0;
        for (; r + 6 <= rows; r += 6) tile<vectors, 6>(block, init + o, is, y + o, ys, r);
        for (; r + 2 <= rows; r += 2) tile<vectors, 2>(block, init + o, is, y + o, ys, r);
        for (; r < rows; r++) tile<vectors, 1>(block, init + o, is, y + o, ys, r);
      }
    };
    strip(std::integral_constant<int, 4>{});
    strip(std::integral_constant<int, 2>{});
    strip(std::integral_constant<int, 1>{});
  }

  void operator()(const Matrix<Int8>& m, const float* x, int64_t xs, float* y, int64_t ys, int64_t rows) const {
    (*this)(m, x, xs, m.bias, 0, y, ys, rows);
  }

 private:
  struct Block {
    const Word* weights;
    int64_t words;
    const float* scales;
    const Word* corrections;
  };

  // x rounded to -127..127 of its largest magnitude, moved up by 128 -> what one unit stands for.
  static float convert(const float* x, int64_t n, uint8_t* out) {
    Vector most = all(0);
    for (int64_t k = 0; k < n; k += 16) most = max(most, _mm512_abs_ps(load(x + k)));
    const float top = _mm512_reduce_max_ps(most);
    const Vector units = all(top > 0 ? 127.f / top : 0.f);
    for (int64_t k = 0; k < n; k += 16) {
      const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(load(x + k) * units), _mm512_set1_epi32(128));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), _mm512_cvtepi32_epi8(whole));
    }
    return top / 127.f;
  }

  template <int kVectors, int kRows>
  inline __attribute__((always_inline)) void tile(const Block& block, const float* init, int64_t is, float* y, int64_t ys, int64_t first) const {
    __m512i sums[kRows][kVectors];
    const Word *w = block.weights, *x = words_ + first * stride_;
    GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
      GENMODELS_UNROLL for (int n = 0; n < kVectors; n++) sums[r][n] = _mm512_setzero_si512();
    for (int64_t k = 0; k < block.words; k++, w += 16 * kVectors)
      GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
        GENMODELS_UNROLL for (int n = 0; n < kVectors; n++)
          sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], _mm512_set1_epi32(x[r * stride_ + k]), _mm512_loadu_si512(w + 16 * n));
    GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
      GENMODELS_UNROLL for (int n = 0; n < kVectors; n++) {
        const Vector whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][n], _mm512_loadu_si512(block.corrections + 16 * n)));
        const Vector scale = all(scales_[first + r]) * load(block.scales + 16 * n);
        store(y + (first + r) * ys + 16 * n, fma(whole, scale, load(init + (first + r) * is + 16 * n)));
      }
  }

  int64_t stride_;
  Buffer<Word> words_;
  Buffer<float> scales_;
};

}  // namespace genmodels
