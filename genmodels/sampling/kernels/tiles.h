// Products with bf16 weights by the processor's matrix unit (AMX): sixteen rows, sixteen outputs and thirty-two inputs at a time.
//
// It sums the even and the odd inputs of such a block apart, so its bytes are neither those of f32 nor those of bf16 vectors: an equality class of its
// own. A row's sums are its own, whatever the rows beside it, so all products are made here, those of a single row too.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "matrix.h"

namespace genmodels {

// bf16 pairs, as Bf16 takes them; a word holds two inputs.
struct Amx : Bf16 {};

// Asks the system for the unit; it answers for the whole process.
inline bool allow_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

// As the instructions lay it out.
struct alignas(64) TileConfig {
  uint8_t palette = 0, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// How the unit of this thread is set up. What somebody else had set up before is put back at the end.
class Tiles {
 public:
  // Tiles 0 and 1: sums of 16 rows; 2 and 3: of the rows that are left; 4 and 5: their inputs; 6 and 7: weights.
  static void configure(int64_t left) {
    if (left == left_) return;
    if (left_ < 0) _tile_storeconfig(&before_);
    left_ = left;
    TileConfig config;
    config.palette = 1;
    for (int t = 0; t < 8; t++) config.bytes[t] = 64, config.rows[t] = 16;
    for (int t : {2, 3, 5}) config.rows[t] = static_cast<uint8_t>(left ? left : 1);
    _tile_loadconfig(&config);
  }

  static void release() {
    if (left_ < 0) return;
    left_ = -1;
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }

 private:
  static inline thread_local TileConfig before_;
  static inline thread_local int64_t left_ = -1;  // rows beside sixteens that it is set up for, -1 before
};

template <>
class Products<Amx> {
 public:
  using Word = Amx::Word;

  Products(int64_t rows, int64_t inputs) : stride_((inputs / 2 + 15) / 16 * 16), words_(rows * stride_), tail_(512) {}

  void operator()(const Matrix<Amx>& m, const float* x, int64_t xs, const float* init, int64_t is, float* y, int64_t ys, int64_t rows) const {
    const int64_t whole = (m.whole ? m.whole : m.inputs) / 2, words = m.inputs / 2;
    for (int64_t r = 0; r < rows; r++) {
      Amx::convert(x + r * xs, m.inputs, words_ + r * stride_);
      for (int64_t k = words; k % 16; k++) words_[r * stride_ + k] = 0;
    }
    Tiles::configure(rows % 16);
    const Word* w = m.weights;
    int64_t o = 0;
    for (int64_t width : {64, 32, 16})
      for (; o + width <= m.outputs; o += width, w += width * whole)
        for (int64_t part = 0; part < width; part += 32)
          columns(w + width * (m.first / 2) + part, width, words, part + 16 < width, init + o + part, is, y + o + part, ys, rows);
  }

  void operator()(const Matrix<Amx>& m, const float* x, int64_t xs, float* y, int64_t ys, int64_t rows) const {
    (*this)(m, x, xs, m.bias, 0, y, ys, rows);
  }

 private:
  // Sixteen outputs, or two times sixteen, of all rows.
  void columns(const Word* w, int64_t step, int64_t words, bool two, const float* init, int64_t is, float* y, int64_t ys, int64_t rows) const {
    const Word* x = words_;
    for (; rows >= 16; rows -= 16, x += 16 * stride_, init += 16 * is, y += 16 * ys) {
      _tile_loadd(0, init, 4 * is);
      if (two) _tile_loadd(1, init + 16, 4 * is);
      for (int64_t k = 0; k < words; k += 16) {
        const auto [from, apart] = weights(w, step, words, k, 0);
        _tile_loadd(4, x + k, 4 * stride_);
        _tile_loadd(6, from, apart);
        _tile_dpbf16ps(0, 4, 6);
        if (two) {
          const auto [beside, width] = weights(w + 16, step, words, k, 1);
          _tile_loadd(7, beside, width);
          _tile_dpbf16ps(1, 4, 7);
        }
      }
      _tile_stored(0, y, 4 * ys);
      if (two) _tile_stored(1, y + 16, 4 * ys);
    }
    if (!rows) return;
    _tile_loadd(2, init, 4 * is);
    if (two) _tile_loadd(3, init + 16, 4 * is);
    for (int64_t k = 0; k < words; k += 16) {
      const auto [from, apart] = weights(w, step, words, k, 0);
      _tile_loadd(5, x + k, 4 * stride_);
      _tile_loadd(6, from, apart);
      _tile_dpbf16ps(2, 5, 6);
      if (two) {
        const auto [beside, width] = weights(w + 16, step, words, k, 1);
        _tile_loadd(7, beside, width);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(2, y, 4 * ys);
    if (two) _tile_stored(3, y + 16, 4 * ys);
  }

  struct Place {
    const Word* from;
    int64_t bytes;
  };

  // Where sixteen words' weights lie, and how far apart; the last ones of a matrix are put beside zeros.
  Place weights(const Word* w, int64_t step, int64_t words, int64_t k, int which) const {
    if (k + 16 <= words) return {w + k * step, 4 * step};
    Word* tail = tail_ + 256 * which;
    for (int64_t i = 0; i < 16; i++)
      for (int64_t j = 0; j < 16; j++) tail[16 * i + j] = k + i < words ? w[(k + i) * step + j] : 0;
    return {tail, 64};
  }

  int64_t stride_;
  Buffer<Word> words_, tail_;
};

}  // namespace genmodels
