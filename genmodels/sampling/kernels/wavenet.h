// WaveNet: a ring of past activations a layer, and one step of all layers from the level before (models/wavenet.py).
#pragma once

#include <vector>

#include "draw.h"

namespace genmodels {

template <class A>
class WaveNet {
 public:
  static constexpr int64_t kTogether = 32;

  // Numbers: levels, steps, residual, skip (both multiples of 16), layers, kernel, frames, hop (0: frames divide the steps evenly).
  // Tensors: dilations; embedding (levels, residual); each layer's taps (kernel residual -> 2 residual); each layer's outs
  // (residual -> skip, then residual but in the last layer); the residuals' biases (layers - 1, residual); the skips' (skip,); hidden; out.
  // told: (frames, layers, 2 residual), the biases of the taps. State: the rings, each ((kernel - 1) dilation, residual).
  WaveNet(Plan plan, int64_t rows)
      : levels_(plan.number()), steps_(plan.number()), residual_(plan.number()), skip_(plan.number()), layers_(plan.number()),
        kernel_(plan.number()), frames_(plan.number()), hop_(plan.number()), dilations_(plan.integers()), embedding_(plan.floats()),
        in_(rows * kernel_ * residual_), pre_(rows * 2 * residual_), z_(rows * residual_), y_(rows * (skip_ + residual_)), hidden_(rows * skip_),
        logits_(rows * padded(levels_)), products_(rows, std::max(kernel_ * residual_, skip_)), draw_(levels_) {
    for (int64_t l = 0; l < layers_; l++) taps_.push_back(plan.matrix<A>());
    for (int64_t l = 0; l < layers_; l++) outs_.push_back(plan.matrix<A>());
    residual_bias_ = plan.floats(), skip_bias_ = plan.floats();
    head_ = plan.matrix<A>(), out_ = plan.matrix<A>();
  }

  int64_t steps() const { return steps_; }

  // One step of n rows -> the first whose logits are not finite, or -1.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    const int64_t width = skip_ + residual_;
    for (int64_t r = 0; r < n; r++) {
      const Row& row = *rows[r];
      copy(skip_, skip_bias_, y_ + r * width);
      float* h = y_ + r * width + skip_;
      if (row.step == 0)
        std::memset(h, 0, residual_ * sizeof(float));
      else
        copy(residual_, embedding_ + row.x[row.order[row.step - 1]] * residual_, h);
    }
    int64_t ring = 0;
    for (int64_t l = 0; l < layers_; l++) {
      layer(rows, n, l, ring);
      ring += (kernel_ - 1) * dilations_[l] * residual_;
    }
    for (int64_t r = 0; r < n; r++) each(skip_, y_ + r * width, y_ + r * width, relu);
    products_(head_, y_, width, hidden_, skip_, n);
    each(n * skip_, hidden_, hidden_, relu);
    products_(out_, hidden_, skip_, logits_, padded(levels_), n);
    for (int64_t r = 0; r < n; r++)
      if (!draw_(*rows[r], logits_ + r * padded(levels_), at)) return r;
    return -1;
  }

 private:
  void layer(Row* const* rows, int64_t n, int64_t l, int64_t ring) {
    const int64_t width = skip_ + residual_, memory = (kernel_ - 1) * dilations_[l];
    const float* told = tell(rows, n, l);
    for (int64_t r = 0; r < n; r++) {
      float *in = in_ + r * kernel_ * residual_, *kept = rows[r]->state + ring, *h = y_ + r * width + skip_;
      int64_t slot = rows[r]->step % memory;
      float* oldest = kept + slot * residual_;
      for (int64_t tap = 0; tap < kernel_ - 1; tap++) {  // the oldest first; dilation steps further on lies the next
        copy(residual_, kept + slot * residual_, in + tap * residual_);
        slot += dilations_[l];
        if (slot >= memory) slot -= memory;
      }
      copy(residual_, h, in + (kernel_ - 1) * residual_);
      copy(residual_, h, oldest);
    }
    products_(taps_[l], in_, kernel_ * residual_, told, told == pre_ ? 2 * residual_ : 0, pre_, 2 * residual_, n);
    for (int64_t r = 0; r < n; r++) each(residual_, pre_ + r * 2 * residual_, pre_ + r * 2 * residual_ + residual_, z_ + r * residual_, gate);
    products_(outs_[l], z_, residual_, y_, width, y_, width, n);
    if (l == layers_ - 1) return;
    for (int64_t r = 0; r < n; r++) {
      float* h = y_ + r * width + skip_;
      each(residual_, h, residual_bias_ + l * residual_, h, [](Vector a, Vector b) { return a + b; });
    }
  }

  // What the rows are told in a layer: one place where it is the same for all, else copied into pre.
  const float* tell(Row* const* rows, int64_t n, int64_t l) {
    const auto at = [&](int64_t r) { return rows[r]->told + (frame(rows[r]->step) * layers_ + l) * 2 * residual_; };
    const float* first = at(0);
    bool same = true;
    for (int64_t r = 1; r < n; r++) same = same && at(r) == first;
    if (same) return first;
    for (int64_t r = 0; r < n; r++) copy(2 * residual_, at(r), pre_ + r * 2 * residual_);
    return pre_;
  }

  int64_t frame(int64_t step) const { return hop_ ? step / hop_ : frames_ == 1 ? 0 : step * frames_ / steps_; }

  int64_t levels_, steps_, residual_, skip_, layers_, kernel_, frames_, hop_;
  const int64_t* dilations_;
  const float *embedding_, *residual_bias_, *skip_bias_;
  std::vector<Matrix<A>> taps_, outs_;
  Matrix<A> head_, out_;
  Buffer<float> in_, pre_, z_, y_, hidden_, logits_;
  Products<A> products_;
  Draw draw_;
};

}  // namespace genmodels
