// Mixtures of discretised logistics over the levels of one value (nn/likelihood.py): the nats of every level, and what a known level says of the
// components.
//
// A level's mass within a component is (1 - q) t / ((1 + t) (1 + q t)), where t = exp(half - distance), half = 1 / (2 scale), q = exp(-1 / scale) and
// distance = |level - mean| / scale: no difference of two sigmoids, so that nothing cancels. Where masses would be too small for float32 they are
// counted from each level's heaviest component, so that a level has its nats however far it lies from all means.
#pragma once

#include "draw.h"

namespace genmodels {

// Components lie side by side, padded to 16; means and scales are counted in levels. Scratch for one thread.
class Mixture {
 public:
  Mixture(int64_t levels, int64_t components)
      : levels_(levels), components_(components), lanes_(padded(components)), inverse_(lanes_), half_(lanes_), q_(lanes_), within_(lanes_),
        mass_(lanes_), nats_(lanes_), every_(padded(levels)), tops_(padded(levels)),
        above_(padded(levels)), below_(padded(levels)), sums_(padded(levels)) {
    for (int64_t k = 0; k < padded(levels); k++) every_[k] = static_cast<float>(k);
  }

  // Log weights that add up to one.
  void normalise(float* weights) {
    each(lanes_, weights, weights, [total = all(total(weights))](Vector a) { return a - total; });
  }

  // Nats of all levels (padded to 16) under log weights that are normalised.
  void operator()(const float* weights, const float* means, const float* scales, float* nats) {
    measure(scales);
    if (levels_ > 2) inside(weights, means, nats);
    for (int64_t end : {int64_t{0}, levels_ - 1}) {
      under(end, weights, means);
      nats[end] = total(nats_);
    }
  }

  // Log weights given a level: Bayes' rule.
  void learn(int64_t level, float* weights, const float* means, const float* scales) {
    measure(scales);
    under(level, weights, means);
    copy(lanes_, nats_, weights);
    normalise(weights);
  }

 private:
  void measure(const float* scales) {
    for (int64_t i = 0; i < lanes_; i += kWidth) {
      const Vector inverse = all(1.f) / load(scales + i);
      store(inverse_ + i, inverse), store(half_ + i, inverse * all(0.5f));
      store(q_ + i, exp(all(0) - inverse)), store(within_ + i, log(one_minus_exp(inverse)));
    }
  }

  // 1 - exp(-a) for a > 0, a series where that would cancel.
  static Vector one_minus_exp(Vector a) {
    Vector series = all(1.f);
    for (int i = 8; i > 1; i--) series = all(1.f) - a * all(1.f / i) * series;
    return where_positive(a - all(0.5f), all(1.f) - exp(all(0) - a), a * series);
  }

  static Vector log_sigmoid(Vector a) { return min(a, all(0)) - log(all(1.f) + exp(min(a, all(0) - a))); }

  // nats_ = each component's log weight and its nats of one level.
  void under(int64_t level, const float* weights, const float* means) {
    for (int64_t i = 0; i < lanes_; i += kWidth) {
      const Vector from = all(static_cast<float>(level)) - load(means + i), inverse = load(inverse_ + i);
      const Vector below = log_sigmoid((from + all(0.5f)) * inverse), above = log_sigmoid((all(0.5f) - from) * inverse);
      store(nats_ + i, load(weights + i) + (level == 0 ? below : level == levels_ - 1 ? above : below + above + load(within_ + i)));
    }
  }

  float largest(const float* nats) const {
    float most = nats[0];
    for (int64_t m = 1; m < components_; m++) most = nats[m] > most ? nats[m] : most;
    return most;
  }

  // log sum exp over the components.
  float total(const float* nats) {
    const float most = largest(nats);
    float sum = 0, logs[kWidth];
    each(lanes_, nats, mass_, [most = all(most)](Vector a) { return exp(a - most); });
    for (int64_t m = 0; m < components_; m++) sum += mass_[m];
    store(logs, log(all(sum)));
    return most + logs[0];
  }

  // All levels as if none was an end one. Every pass but the first runs over levels, which wait for nothing of each other.
  void inside(const float* weights, const float* means, float* nats) {
    each(lanes_, weights, within_, nats_, [](Vector a, Vector b) { return a + b; });
    const Vector most = all(largest(nats_));
    each(lanes_, nats_, nats_, [most](Vector a) { return a - most; });
    each(lanes_, nats_, mass_, [](Vector a) { return exp(a); });
    const int64_t size = padded(levels_);
    const bool flat = is_flat(static_cast<float>(size - 1), means);
    each(size, sums_, sums_, [](Vector) { return all(0); });
    if (!flat) tallest(size, means);
    for (int64_t m = 0; m < components_; m += kShared)
      flat ? masses<true>(size, m, std::min(m + kShared, components_), means) : masses<false>(size, m, std::min(m + kShared, components_), means);
    for (int64_t k = 0; k < size; k += kWidth) store(nats + k, log(load(sums_ + k)) + (flat ? most : load(tops_ + k) + most));
  }

  // Whether one component alone gives every level enough mass that all can be counted from the heaviest one's weight.
  bool is_flat(float last, const float* means) const {
    for (int64_t m = 0; m < components_; m++) {
      const float below = means[m] < 0 ? -means[m] : means[m], above = last - means[m] < 0 ? means[m] - last : last - means[m];
      if (nats_[m] - std::max(below, above) * inverse_[m] > -20) return true;
    }
    return false;
  }

  // log t of some levels; from 17 on a mass is 1 in float32.
  static Vector exponent(Vector level, Vector mean, Vector inverse, Vector half) {
    const Vector from = level - mean;
    return min(half - max(from, all(0) - from) * inverse, all(17.f));
  }

  // tops_ = the largest log-mass of any component, within a factor of 4.
  void tallest(int64_t size, const float* means) {
    each(size, tops_, tops_, [](Vector) { return all(-3e38f); });
    for (int64_t m = 0; m < components_; m++) {
      const Vector mean = all(means[m]), inverse = all(inverse_[m]), half = all(half_[m]), weight = all(nats_[m]), zero = all(0);
      for (int64_t k = 0; k < size; k += kWidth)
        store(tops_ + k, max(load(tops_ + k), min(exponent(load(every_ + k), mean, inverse, half), zero) + weight));
    }
  }

  // Adds the masses of some components, counted from exp(top), to sums_: fractions that are brought together, so that they share a division.
  template <bool kFlat>
  void masses(int64_t size, int64_t first, int64_t last, const float* means) {
    const Vector one = all(1.f);
    for (int64_t m = first; m < last; m++) {
      const Vector mean = all(means[m]), inverse = all(inverse_[m]), half = all(half_[m]), weight = all(nats_[m]), q = all(q_[m]);
      const Vector mass = all(kFlat && nats_[m] < -kDeepest ? 0 : mass_[m]);  // no smaller numbers than float32 holds at full speed
      for (int64_t k = 0; k < size; k += kWidth) {
        const Vector z = exponent(load(every_ + k), mean, inverse, half);
        const Vector t = exp(kFlat ? max(z, all(-kDeepest)) : z);
        // In a tail t may be less than float32 holds, and a mass not, as it is counted from the heaviest one there.
        const Vector share = kFlat ? t * mass : exp(z + weight - load(tops_ + k));
        const Vector divisor = (one + t) * fma(t, q, one), below = m == first ? one : load(below_ + k);
        store(above_ + k, m == first ? share : fma(load(above_ + k), divisor, share * below));
        store(below_ + k, below * divisor);
      }
    }
    for (int64_t k = 0; k < size; k += kWidth) store(sums_ + k, load(sums_ + k) + load(above_ + k) / load(below_ + k));
  }

  static constexpr float kDeepest = 40.f;  // nats; below it nothing counts beside the heaviest
  static constexpr int64_t kShared = 5;  // components that share a division; the product of more divisors could be too large

  int64_t levels_, components_, lanes_;
  Buffer<float> inverse_, half_, q_, within_, mass_, nats_, every_, tops_, above_, below_, sums_;
};

}  // namespace genmodels
