// Products of packed matrices with a few rows of activations: y = init + W x, each output a chain of multiply-adds over the inputs in order.
//
// A matrix lies in blocks of 64 outputs (a last one of 32, a last one of 16): all inputs of a block one after the other, for each the weights of its
// outputs. Vectors run over outputs and a tile keeps several rows in registers, so what a row comes to does not depend on the rows beside it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "vector.h"

namespace genmodels {

// Sixty-four-byte aligned zeros.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = (size * sizeof(T) + 63) / 64 * 64 + 64;  // what a vector reads beyond the end is still ours
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  operator T*() const { return data_; }

 private:
  T* data_;
};

// How a weight meets an input: what a word of either holds, and how many inputs that is.
struct F32 {
  using Word = float;
  static constexpr int64_t kInputs = 1;
  static constexpr bool kConverts = false;
  static Vector add(Word input, const Word* weights, Vector sum) { return fma(all(input), load(weights), sum); }
};

#if defined(__AVX512BF16__)
// Inputs are rounded to bf16 and taken two at a time; sums are float32. An equality class of its own.
struct Bf16 {
  using Word = int32_t;
  static constexpr int64_t kInputs = 2;
  static constexpr bool kConverts = true;
  static Vector add(Word input, const Word* weights, Vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_set1_epi32(input));
  }
  static void convert(const float* x, int64_t n, Word* words) {
    for (int64_t k = 0; k < n; k += 16) {
      const __mmask16 there = n - k >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - k)) - 1);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + k / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + k)));
    }
  }
};
#endif

template <class A>
struct Matrix {
  const typename A::Word* weights;
  const float* bias;
  int64_t inputs, outputs;  // outputs a multiple of 16, inputs of A::kInputs
  int64_t first = 0, whole = 0;  // of a part: the input that it begins with, and how many the matrix has

  // Some of its inputs; the product with all of them is that with these, begun where the one with those before ended.
  Matrix part(int64_t from, int64_t count) const {
    Matrix m = *this;
    m.first = from, m.inputs = count, m.whole = inputs;
    return m;
  }
};

#define GENMODELS_UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)
constexpr int kTileVectors = 4, kTileRows = 6, kRowVectors = 4;
#elif defined(__AVX2__)
constexpr int kTileVectors = 2, kTileRows = 6, kRowVectors = 8;
#else
constexpr int kTileVectors = 2, kTileRows = 4, kRowVectors = 4;
#endif

// kRows rows of kVectors vectors of outputs that lie in kBlocks neighbouring blocks, `beside` words apart; the next input's weights lie `step` on.
template <class A, int kBlocks, int kVectors, int kRows>
inline __attribute__((always_inline)) void tile(int64_t words, const typename A::Word* w, int64_t step, int64_t beside,
                                                const typename A::Word* x, int64_t xs, const float* init, int64_t is, float* y, int64_t ys) {
  Vector sums[kRows][kBlocks][kVectors];
  GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
    GENMODELS_UNROLL for (int b = 0; b < kBlocks; b++)
      GENMODELS_UNROLL for (int n = 0; n < kVectors; n++) sums[r][b][n] = load(init + r * is + 64 * b + n * kWidth);
  for (int64_t k = 0; k < words; k++, w += step)
    GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
      GENMODELS_UNROLL for (int b = 0; b < kBlocks; b++)
        GENMODELS_UNROLL for (int n = 0; n < kVectors; n++)
          sums[r][b][n] = A::add(x[r * xs + k], w + b * beside + n * kWidth, sums[r][b][n]);
  GENMODELS_UNROLL for (int r = 0; r < kRows; r++)
    GENMODELS_UNROLL for (int b = 0; b < kBlocks; b++)
      GENMODELS_UNROLL for (int n = 0; n < kVectors; n++) store(y + r * ys + 64 * b + n * kWidth, sums[r][b][n]);
}

// kVectors vectors of outputs for all rows: tiles of kTileRows, and one of what is left.
template <class A, int kVectors>
inline void strip(int64_t words, const typename A::Word* w, int64_t step, const typename A::Word* x, int64_t xs, const float* init, int64_t is,
                  float* y, int64_t ys, int64_t rows) {
  for (; rows >= kTileRows; rows -= kTileRows, x += kTileRows * xs, init += kTileRows * is, y += kTileRows * ys)
    tile<A, 1, kVectors, kTileRows>(words, w, step, 0, x, xs, init, is, y, ys);
  switch (rows) {
    case 5: return tile<A, 1, kVectors, std::min(5, kTileRows)>(words, w, step, 0, x, xs, init, is, y, ys);
    case 4: return tile<A, 1, kVectors, std::min(4, kTileRows)>(words, w, step, 0, x, xs, init, is, y, ys);
    case 3: return tile<A, 1, kVectors, 3>(words, w, step, 0, x, xs, init, is, y, ys);
    case 2: return tile<A, 1, kVectors, 2>(words, w, step, 0, x, xs, init, is, y, ys);
    case 1: return tile<A, 1, kVectors, 1>(words, w, step, 0, x, xs, init, is, y, ys);
  }
}

// Products with weights of one arithmetic; it keeps what that needs of the inputs. For one thread.
template <class A>
class Products {
 public:
  using Word = typename A::Word;

  Products(int64_t rows, int64_t inputs) : stride_((inputs / A::kInputs + 15) / 16 * 16), words_(A::kConverts ? rows * stride_ : 0) {}

  // y (rows, outputs) = init + W x. x (rows, inputs) in steps of xs floats; init in steps of `is`, 0: the same for every row; it may be y itself.
  void operator()(const Matrix<A>& m, const float* x, int64_t xs, const float* init, int64_t is, float* y, int64_t ys, int64_t rows) const {
    const int64_t words = m.inputs / A::kInputs;
    const Word* in;
    if constexpr (A::kConverts) {
      for (int64_t r = 0; r < rows; r++) A::convert(x + r * xs, m.inputs, words_ + r * stride_);
      in = words_, xs = stride_;
    } else {
      in = x;
    }
    const int64_t whole = (m.whole ? m.whole : m.inputs) / A::kInputs, first = m.first / A::kInputs;
    const Word* w = m.weights;
    int64_t o = 0;
    if (rows == 1 && kWidth == 16)  // one row alone: twice the chains in flight
      for (; o + 128 <= m.outputs; o += 128, w += 128 * whole)
        tile<A, 2, 64 / kWidth, 1>(words, w + 64 * first, 64, 64 * whole, in, xs, init + o, is, y + o, ys);
    for (; o + 64 <= m.outputs; o += 64, w += 64 * whole) block<64>(words, w + 64 * first, in, xs, init + o, is, y + o, ys, rows);
    for (; o + 32 <= m.outputs; o += 32, w += 32 * whole) block<32>(words, w + 32 * first, in, xs, init + o, is, y + o, ys, rows);
    for (; o < m.outputs; o += 16, w += 16 * whole) block<16>(words, w + 16 * first, in, xs, init + o, is, y + o, ys, rows);
  }

  // From the matrix's own bias.
  void operator()(const Matrix<A>& m, const float* x, int64_t xs, float* y, int64_t ys, int64_t rows) const {
    (*this)(m, x, xs, m.bias, 0, y, ys, rows);
  }

 private:
  // A block, cut into strips that fit the registers.
  template <int kOutputs>
  static void block(int64_t words, const Word* w, const Word* x, int64_t xs, const float* init, int64_t is, float* y, int64_t ys, int64_t rows) {
    constexpr int vectors = kOutputs / kWidth, alone = std::min(vectors, kRowVectors), together = std::min(vectors, kTileVectors);
    if (rows == 1)
      for (int o = 0; o < kOutputs; o += alone * kWidth) tile<A, 1, alone, 1>(words, w + o, kOutputs, 0, x, xs, init + o, is, y + o, ys);
    else
      for (int o = 0; o < kOutputs; o += together * kWidth) strip<A, together>(words, w + o, kOutputs, x, xs, init + o, is, y + o, ys, rows);
  }

  int64_t stride_;
  Buffer<Word> words_;
};

}  // namespace genmodels
