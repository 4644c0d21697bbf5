// What is asked of a sampler, row by row, and the draw of one value from its logits.
#pragma once

#include <cmath>
#include <cstdint>

#include "matrix.h"

namespace genmodels {

// One example half drawn. Everything it points at is its caller's; rows of one call may stand at different steps.
struct Row {
  int64_t step;             // the next one
  float* state;             // what the family keeps
  const float* told;        // what label and condition add, as the family lays it out
  const float* uniforms;    // by place
  const int64_t* order;     // the places as they are visited
  uint8_t* x;               // levels by place
  const int64_t* given;     // levels by place, or null
  const uint8_t* known;     // by place, or null
  double* log_weight;       // nats of the values that were given
  float* logits;            // of the steps of this call, levels each, or null
  double temperature;
};

// Steps of rows by the kernel of a plan, as the caller keeps it from one call to the next.
struct Call {
  int64_t plan;  // no other plan of the process has this number
  const int64_t* numbers;
  const void* const* tensors;
  Row* rows;
  int64_t n;
  int64_t k;
  int64_t threads;
};

// A plan: numbers and packed tensors in the order that a kernel reads them.
class Plan {
 public:
  Plan(const int64_t* numbers, const void* const* tensors) : numbers_(numbers), tensors_(tensors) {}
  int64_t number() { return *numbers_++; }
  const float* floats() { return static_cast<const float*>(*tensors_++); }
  const int64_t* integers() { return static_cast<const int64_t*>(*tensors_++); }
  // What is read after so many numbers and tensors more.
  Plan after(int64_t numbers, int64_t tensors) const { return Plan(numbers_ + numbers, tensors_ + tensors); }
  template <class A>
  Matrix<A> matrix() {
    Matrix<A> m;
    m.inputs = number(), m.outputs = number();
    m.weights = static_cast<const typename A::Word*>(*tensors_++);
    m.bias = floats();
    return m;
  }

 private:
  const int64_t* numbers_;
  const void* const* tensors_;
};

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// The draw of values with `levels` levels; scratch for one thread.
class Draw {
 public:
  explicit Draw(int64_t levels) : levels_(levels), padded_(padded(levels)), weights_(padded_), logits_(padded_) {}

  // Draws the row's next value from logits (padded to 16) by inverse CDF in level order, or takes the given one, and counts the step.
  // at: the how-many-th step of this call. False where a logit is not finite; nothing is written then.
  bool operator()(Row& row, const float* logits, int64_t at) {
    std::memcpy(logits_, logits, levels_ * sizeof(float));
    const float fill = logits_[0];  // padding weighs nothing: it is cut off below, here it must only be finite
    for (int64_t i = levels_; i < padded_; i++) logits_[i] = fill;
    Vector nothing = all(0);
    for (int64_t i = 0; i < padded_; i += kWidth) nothing = fma(load(logits_ + i), all(0), nothing);
    float zeros[kWidth];
    store(zeros, nothing);
    for (float zero : zeros)
      if (zero != 0) return false;
    if (row.logits) std::memcpy(row.logits + at * levels_, logits_, levels_ * sizeof(float));
    const int64_t place = row.order[row.step];
    int64_t level;
    if (row.known && row.known[place]) {
      level = row.given[place];
      const float top = weigh();
      double total = 0;
      for (int64_t i = 0; i < padded_; i += 16) total += sum16(weights_ + i);
      *row.log_weight += static_cast<double>(logits_[level]) - top - std::log(total);
    } else {
      if (row.temperature != 1) each(padded_, logits_, logits_, [t = all(static_cast<float>(row.temperature))](Vector l) { return l / t; });
      weigh();
      level = inverse_cdf(row.uniforms[place]);
    }
    row.x[place] = static_cast<uint8_t>(level);
    row.step++;
    return true;
  }

 private:
  // weights = exp(logits - their largest), 0 in the padding -> the largest.
  float weigh() {
    Vector top = load(logits_);
    for (int64_t i = kWidth; i < padded_; i += kWidth) top = max(top, load(logits_ + i));
    float tops[kWidth];
    store(tops, top);
    float most = tops[0];
    for (int i = 1; i < kWidth; i++) most = tops[i] > most ? tops[i] : most;
    // Where float32 has nothing left a level must have no mass at all, or a uniform of 0 would draw it.
    each(padded_, logits_, weights_, [most = all(most)](Vector l) { return where_positive(l - most + all(87.f), exp(l - most), all(0)); });
    for (int64_t i = levels_; i < padded_; i++) weights_[i] = 0;
    return most;
  }

  int64_t inverse_cdf(float u) const {
    float sums[17];
    const int64_t groups = padded_ / 16;
    sums[0] = 0;
    for (int64_t g = 0; g < groups; g++) sums[g + 1] = sums[g] + sum16(weights_ + 16 * g);
    const float target = u * sums[groups];
    int64_t g = 0;
    while (g < groups - 1 && sums[g + 1] <= target) g++;
    float sum = sums[g];
    const int64_t last = 16 * g + 15 < levels_ - 1 ? 16 * g + 15 : levels_ - 1;
    for (int64_t i = 16 * g; i < last; i++)
      if ((sum += weights_[i]) > target) return i;
    return last;
  }

  int64_t levels_, padded_;
  Buffer<float> weights_, logits_;
};

}  // namespace genmodels
