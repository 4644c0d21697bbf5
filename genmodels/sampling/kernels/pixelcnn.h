// The plain PixelCNN's stack of masked convolutions (models/pixelcnn.py): what they see in the line above is added up for all columns when a line
// begins, what they see in the pixel's own line pixel by pixel.
#pragma once

#include "raster.h"

namespace genmodels {

template <class A>
class Masked {
 public:
  // Numbers: layers, wide, hidden (multiples of 16: features between blocks and inside them), taps of the first kernel; then Context's.
  // Matrices, of each layer: the kernel's line above (3 hidden -> hidden) and, with a condition, what its places add to that. Then the first kernel
  // (taps, channels and a one -> wide), and of each layer: down (wide -> hidden), the kernel's own line (2 hidden -> hidden), up (hidden -> wide).
  // Tensors: the first kernel's taps, (lines up, columns to the right) each; (height, width, wide), the map of places and the first kernel's bias.
  // told: the label of the first kernel (wide); each layer's kernel's bias and label (hidden). Then Context's.
  // State behind the heads': a layer's sums over the line above (width, hidden); its kernel's input, (1 + width + 1, hidden): left of the pixel this
  // line's, elsewhere the one's above.
  Masked(Plan& plan, const Picture& picture, int64_t rows)
      : picture_(picture), layers_(plan.number()), wide_(plan.number()), hidden_(plan.number()), taps_(plan.number()), context_(plan),
        line_((picture.width + 2) * hidden_), along_(picture.width * hidden_), seen_(rows * first()), h_(rows * wide_), active_(rows * wide_),
        in_(rows * 2 * hidden_), sum_(rows * hidden_),
        products_(std::max(picture.width, rows), std::max({3 * hidden_, first(), wide_, context_.features()})) {
    for (int64_t l = 0; l < layers_; l++) {
      above_.push_back(plan.matrix<A>());
      if (context_.there()) mix_.push_back(plan.matrix<A>());
    }
    first_ = plan.matrix<A>();
    for (int64_t l = 0; l < layers_; l++) down_.push_back(plan.matrix<A>()), own_.push_back(plan.matrix<A>()), up_.push_back(plan.matrix<A>());
    offsets_ = plan.integers(), place_ = plan.floats();
  }

  int64_t features() const { return wide_; }

  // The features of the next pixel of n rows, to the front of their states.
  void operator()(Row* const* rows, int64_t n) {
    for (int64_t l = 0; l < layers_; l++)
      for (int64_t r = 0; r < n; r++)
        if (picture_.column(*rows[r]) == 0) start(*rows[r], l);
    for (int64_t r = 0; r < n; r++) {
      look(*rows[r], seen_ + r * first());
      each(wide_, place_ + rows[r]->step / picture_.channels * wide_, rows[r]->told, h_ + r * wide_, add);
    }
    products_(first_, seen_, first(), h_, wide_, h_, wide_, n);
    for (int64_t l = 0; l < layers_; l++) block(rows, n, l);
    for (int64_t r = 0; r < n; r++) each(wide_, h_ + r * wide_, rows[r]->state, relu);
  }

 private:
  static Vector add(Vector a, Vector b) { return a + b; }

  int64_t first() const { return padded(taps_ * (picture_.channels + 1)); }

  float* sums(const Row& row, int64_t l) const { return row.state + Heads<A>::state(picture_, wide_) + l * picture_.width * hidden_; }
  float* line(const Row& row, int64_t l) const { return sums(row, layers_) + l * line_; }

  // A layer's part in the beginning of a line: bias, label, condition and the line above, for all columns.
  void start(const Row& row, int64_t l) {
    const float* bias = row.told + wide_ + l * hidden_;
    const Heard heard = context_.along(products_, picture_, row, picture_.line(row), mix_.data() + l, bias, along_);
    products_(above_[l], line(row, l), hidden_, heard.vectors, heard.step, sums(row, l), hidden_, picture_.width);
  }

  // The pixels before this one, as the first kernel sees them.
  void look(const Row& row, float* out) const {
    const int64_t i = picture_.line(row), j = picture_.column(row);
    for (int64_t t = 0; t < taps_; t++) picture_.input(row, i - offsets_[2 * t], j + offsets_[2 * t + 1], out + t * (picture_.channels + 1));
  }

  void block(Row* const* rows, int64_t n, int64_t l) {
    each(n * wide_, h_, active_, relu);
    products_(down_[l], active_, wide_, in_ + hidden_, 2 * hidden_, n);
    for (int64_t r = 0; r < n; r++) {
      const int64_t j = picture_.column(*rows[r]);
      float *left = line(*rows[r], l) + j * hidden_, *in = in_ + r * 2 * hidden_;
      copy(hidden_, left, in);
      each(hidden_, in + hidden_, in + hidden_, relu);
      copy(hidden_, in + hidden_, left + hidden_);
      copy(hidden_, sums(*rows[r], l) + j * hidden_, sum_ + r * hidden_);
      each(wide_, h_ + r * wide_, up_[l].bias, h_ + r * wide_, add);
    }
    products_(own_[l], in_, 2 * hidden_, sum_, hidden_, sum_, hidden_, n);
    each(n * hidden_, sum_, sum_, relu);
    products_(up_[l], sum_, hidden_, h_, wide_, h_, wide_, n);
  }

  const Picture& picture_;
  int64_t layers_, wide_, hidden_, taps_;
  Context<A> context_;
  int64_t line_;
  std::vector<Matrix<A>> above_, mix_, down_, own_, up_;
  Matrix<A> first_;
  const int64_t* offsets_;
  const float* place_;
  Buffer<float> along_, seen_, h_, active_, in_, sum_;
  Products<A> products_;
};

template <class A>
using PixelCNN = Raster<A, Masked>;

}  // namespace genmodels
