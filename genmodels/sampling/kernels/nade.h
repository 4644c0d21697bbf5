// NADE: a first layer summed up over the values seen, deeper layers, and the weights of the place that comes next (models/nade.py).
#pragma once

#include <vector>

#include "values.h"

namespace genmodels {

template <class A>
class Nade {
 public:
  static constexpr int64_t kTogether = 32;

  // Numbers: levels, outputs a value, steps, 1 for sigmoids, layers; each layer's units, padded. Tensors: the outputs' biases (steps, outputs); by
  // place (steps, parts, units) what an output reads of the last layer, then what the first layer's sums gain: a part for each level, or above
  // `Values::kSoftmax` levels what a level adds for its position and for being seen, then all of the lowest one, all of the highest. Each deeper
  // layer's matrix. told: the layers' biases. State: the sums.
  Nade(Plan plan, int64_t rows)
      : levels_(plan.number()), outputs_(plan.number()), steps_(plan.number()), sigmoid_(plan.number()), layers_(plan.number()), units_(units(plan)),
        values_(levels_, outputs_), bias_(plan.floats()), places_(plan.floats()),
        place_(outputs_ * last() + (levels_ <= Values::kSoftmax ? levels_ : 4) * first()), h_(rows * widest_), next_(rows * widest_),
        out_(rows * outputs_), products_(rows, widest_) {
    for (int64_t l = 1; l < layers_; l++) deeper_.push_back(plan.matrix<A>());
    for (int64_t r = 0; r < rows; r++) raw_.push_back(out_ + r * outputs_);
  }

  int64_t steps() const { return steps_; }

  // One step of n rows -> the first whose logits are not finite, or -1.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    for (int64_t r = 0; r < n; r++) {
      if (rows[r]->step == 0) copy(first(), rows[r]->told, rows[r]->state);
      activate(first(), rows[r]->state, h_ + r * widest_);
    }
    int64_t told = first();
    for (int64_t l = 1; l < layers_; told += units_[l++]) deepen(rows, n, l, told);
    for (int64_t r = 0; r < n; r++) {
      const int64_t place = rows[r]->order[rows[r]->step];
      const float* leave = places_ + place * place_;
      for (int64_t p = 0; p < outputs_; p++) out_[r * outputs_ + p] = bias_[place * outputs_ + p] + dot(last(), h_ + r * widest_, leave + p * last());
    }
    const int64_t bad = values_(rows, n, raw_.data(), at);
    for (int64_t r = 0; r < n && bad < 0; r++) take(*rows[r]);
    return bad;
  }

 private:
  std::vector<int64_t> units(Plan& plan) {
    std::vector<int64_t> all;
    for (int64_t l = 0; l < layers_; l++) all.push_back(plan.number()), widest_ = std::max(widest_, all.back());
    return all;
  }

  int64_t first() const { return units_[0]; }
  int64_t last() const { return units_[layers_ - 1]; }

  void activate(int64_t n, const float* x, float* y) const {
    if (sigmoid_)
      each(n, x, y, sigmoid);
    else
      each(n, x, y, relu);
  }

  // h of a layer from that of the one before; its biases lie at `told`.
  void deepen(Row* const* rows, int64_t n, int64_t l, int64_t told) {
    for (int64_t r = 0; r < n; r++) copy(units_[l], rows[r]->told + told, next_ + r * widest_);
    products_(deeper_[l - 1], h_, widest_, next_, widest_, next_, widest_, n);
    for (int64_t r = 0; r < n; r++) activate(units_[l], next_ + r * widest_, h_ + r * widest_);
  }

  // The value that a row has just taken adds to its sums.
  void take(const Row& row) const {
    const int64_t place = row.order[row.step - 1], level = row.x[place], n = first();
    const float* enter = places_ + place * place_ + outputs_ * last();
    const auto plus = [](Vector a, Vector b) { return a + b; };
    if (levels_ <= Values::kSoftmax) return each(n, row.state, enter + level * n, row.state, plus);
    if (level == 0) return each(n, row.state, enter + 2 * n, row.state, plus);
    if (level == levels_ - 1) return each(n, row.state, enter + 3 * n, row.state, plus);
    each(n, row.state, enter + n, row.state, plus);
    add(n, values_.position(level), enter, row.state);
  }

  int64_t levels_, outputs_, steps_, sigmoid_, layers_, widest_ = 0;
  std::vector<int64_t> units_;
  Values values_;
  const float *bias_, *places_;
  int64_t place_;
  std::vector<Matrix<A>> deeper_;
  Buffer<float> h_, next_, out_;
  std::vector<const float*> raw_;
  Products<A> products_;
};

}  // namespace genmodels
