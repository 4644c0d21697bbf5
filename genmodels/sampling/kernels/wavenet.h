// WaveNet: a ring of past activations a layer, and one step of all layers from the level before (models/wavenet.py).
#pragma once

#include <vector>

#include "draw.h"

namespace genmodels {

// What both samplers of WaveNet read.
//
// Numbers: levels, steps, residual, skip (both multiples of 16), layers, kernel, frames, hop (0: frames divide the steps evenly).
// Tensors: dilations; embedding (levels, residual); each layer's taps (kernel residual -> 2 residual), skip (residual -> skip) and, but in the
// last one, residual (residual -> residual); the sum of the skips' biases; hidden; out.
// told: (frames, layers, 2 residual), the biases of the taps. State: the rings, each ((kernel - 1) dilation, residual).
template <class A>
struct WaveNetPlan {
  explicit WaveNetPlan(Plan plan)
      : levels(plan.number()), steps(plan.number()), residual(plan.number()), skip(plan.number()), layers(plan.number()), kernel(plan.number()),
        frames(plan.number()), hop(plan.number()), dilations(plan.integers()), embedding(plan.floats()) {
    rings.reserve(layers), taps.reserve(layers), skips.reserve(layers), residuals.reserve(layers);
    for (int64_t l = 0, at = 0; l < layers; at += (kernel - 1) * dilations[l++] * residual) {
      rings.push_back(at);
      taps.push_back(plan.matrix<A>());
      skips.push_back(plan.matrix<A>());
      if (l < layers - 1) residuals.push_back(plan.matrix<A>());
    }
    skip_bias = plan.floats();
    hidden = plan.matrix<A>(), out = plan.matrix<A>();
  }

  const float* told(const Row& row, int64_t step, int64_t l) const {
    const int64_t frame = hop ? step / hop : frames == 1 ? 0 : step * frames / steps;
    return row.told + (frame * layers + l) * 2 * residual;
  }

  // The embedded level before the next one; zeros before the first.
  void enter(const Row& row, float* h) const {
    if (row.step == 0)
      std::memset(h, 0, residual * sizeof(float));
    else
      copy(residual, embedding + row.x[row.order[row.step - 1]] * residual, h);
  }

  // The past taps of a layer, the oldest first, from its ring.
  void recall(const float* ring, int64_t l, int64_t slot, float* in) const {
    const int64_t memory = (kernel - 1) * dilations[l];
    for (int64_t tap = 0; tap < kernel - 1; tap++) {  // dilation steps further on lies the next
      copy(residual, ring + slot * residual, in + tap * residual);
      slot += dilations[l];
      if (slot >= memory) slot -= memory;
    }
  }

  int64_t levels, steps, residual, skip, layers, kernel, frames, hop;
  const int64_t* dilations;
  const float *embedding, *skip_bias;
  std::vector<int64_t> rings;  // where a layer's begins
  std::vector<Matrix<A>> taps, skips, residuals;
  Matrix<A> hidden, out;
};

template <class A>
class WaveNet {
 public:
  static constexpr int64_t kTogether = 64;

  WaveNet(Plan plan, int64_t rows)
      : p_(plan), width_(p_.skip + p_.residual), in_(rows * p_.kernel * p_.residual), pre_(rows * 2 * p_.residual), z_(rows * p_.residual),
        y_(rows * width_), hidden_(rows * p_.skip), logits_(rows * padded(p_.levels)),
        products_(rows, std::max(p_.kernel * p_.residual, p_.skip)), draw_(p_.levels) {}

  int64_t steps() const { return p_.steps; }

  // One step of n rows -> the first whose logits are not finite, or -1.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    for (int64_t r = 0; r < n; r++) {
      copy(p_.skip, p_.skip_bias, y_ + r * width_);
      p_.enter(*rows[r], y_ + r * width_ + p_.skip);
    }
    for (int64_t l = 0; l < p_.layers; l++) layer(rows, n, l);
    for (int64_t r = 0; r < n; r++) each(p_.skip, y_ + r * width_, y_ + r * width_, relu);
    products_(p_.hidden, y_, width_, hidden_, p_.skip, n);
    each(n * p_.skip, hidden_, hidden_, relu);
    products_(p_.out, hidden_, p_.skip, logits_, padded(p_.levels), n);
    for (int64_t r = 0; r < n; r++)
      if (!draw_(*rows[r], logits_ + r * padded(p_.levels), at)) return r;
    return -1;
  }

 private:
  void layer(Row* const* rows, int64_t n, int64_t l) {
    const int64_t residual = p_.residual, memory = (p_.kernel - 1) * p_.dilations[l];
    const float* told = tell(rows, n, l);
    int64_t step = rows[0]->step, slot = step % memory;
    for (int64_t r = 0; r < n; r++) {
      float *in = in_ + r * p_.kernel * residual, *ring = rows[r]->state + p_.rings[l], *h = y_ + r * width_ + p_.skip;
      if (rows[r]->step != step) step = rows[r]->step, slot = step % memory;  // a division for each row would show
      p_.recall(ring, l, slot, in);
      copy(residual, h, in + (p_.kernel - 1) * residual);
      copy(residual, h, ring + slot * residual);
    }
    products_(p_.taps[l], in_, p_.kernel * residual, told, told == pre_ ? 2 * residual : 0, pre_, 2 * residual, n);
    for (int64_t r = 0; r < n; r++) each(residual, pre_ + r * 2 * residual, pre_ + r * 2 * residual + residual, z_ + r * residual, gate);
    products_(p_.skips[l], z_, residual, y_, width_, y_, width_, n);
    if (l == p_.layers - 1) return;
    float* h = y_ + p_.skip;
    products_(p_.residuals[l], z_, residual, h, width_, h, width_, n);
    for (int64_t r = 0; r < n; r++) each(residual, h + r * width_, p_.residuals[l].bias, h + r * width_, plus);
  }

  // What the rows are told in a layer: one place where it is the same for all, else copied into pre.
  const float* tell(Row* const* rows, int64_t n, int64_t l) {
    const float* first = p_.told(*rows[0], rows[0]->step, l);
    bool same = true;
    for (int64_t r = 1; r < n; r++) same = same && p_.told(*rows[r], rows[r]->step, l) == first;
    if (same) return first;
    for (int64_t r = 0; r < n; r++) copy(2 * p_.residual, p_.told(*rows[r], rows[r]->step, l), pre_ + r * 2 * p_.residual);
    return pre_;
  }

  WaveNetPlan<A> p_;
  int64_t width_;
  Buffer<float> in_, pre_, z_, y_, hidden_, logits_;
  Products<A> products_;
  Draw draw_;
};

}  // namespace genmodels
