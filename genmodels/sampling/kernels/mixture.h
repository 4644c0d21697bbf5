// Mixtures of discretised logistics over the levels of one value (nn/likelihood.py): the nats of every level, and what a known level says of the
// components.
//
// A level's mass within a component is (1 - q) t / ((1 + t) (1 + q t)), where t = exp(half - distance), half = 1 / (2 scale), q = exp(-1 / scale) and
// distance = |level - mean| / scale: no difference of two sigmoids, so that nothing cancels. Masses are counted from each level's heaviest component,
// so that a level has its nats however far it lies from all means. A component weighs at least e^-60 of the heaviest one.
#pragma once

#include "draw.h"

namespace genmodels {

// Components lie side by side, padded to 16; means and scales are counted in levels. Scratch for one thread.
class Mixture {
 public:
  Mixture(int64_t levels, int64_t components)
      : levels_(levels), components_(components), lanes_(padded(components)), inverse_(lanes_), half_(lanes_), q_(lanes_), within_(lanes_),
        mass_(lanes_), nats_(lanes_), exponents_(components * 16), every_(padded(levels)) {
    for (int64_t k = 0; k < padded(levels); k++) every_[k] = static_cast<float>(k);
  }

  // Log weights that add up to one.
  void normalise(float* weights) {
    each(lanes_, weights, weights, [total = all(total(weights))](Vector a) { return a - total; });
  }

  // Nats of all levels (padded to 16) under log weights that are normalised.
  void operator()(const float* weights, const float* means, const float* scales, float* nats) {
    measure(scales);
    inside(weights, means, nats);
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

  // All levels as if none was an end one.
  void inside(const float* weights, const float* means, float* nats) {
    each(lanes_, weights, within_, nats_, [](Vector a, Vector b) { return a + b; });
    const Vector most = all(largest(nats_));
    each(lanes_, nats_, nats_, [most](Vector a) { return max(a - most, all(-60.f)); });
    each(lanes_, nats_, mass_, [](Vector a) { return exp(a); });
    for (int64_t k = 0; k < padded(levels_); k += kWidth) {
      const Vector top = tallest(load(every_ + k), means);
      store(nats + k, log(masses(top)) + (top + most));
    }
  }

  // exponents_ = each component's log t at these levels -> the largest log-mass of any, within a factor of 4.
  Vector tallest(Vector level, const float* means) {
    Vector top = all(-3e38f);
    for (int64_t m = 0; m < components_; m++) {
      const Vector from = level - all(means[m]), distance = max(from, all(0) - from) * all(inverse_[m]);
      const Vector z = min(all(half_[m]) - distance, all(17.f));  // from there on a mass is 1 in float32
      store(exponents_ + m * kWidth, z);
      top = max(top, min(z, all(0)) + all(nats_[m]));
    }
    return top;
  }

  // The sum of the masses, counted from exp(top). Five components share a division: their fractions are brought together.
  Vector masses(Vector top) const {
    const Vector from = exp(all(0) - top), one = all(1.f), none = all(0);
    Vector sum = none;
    for (int64_t first = 0; first < components_; first += 5) {
      Vector above = none, below = one;
      for (int64_t m = first; m < std::min(first + 5, components_); m++) {
        const Vector z = load(exponents_ + m * kWidth), relative = min(z, none) + all(nats_[m]) - top;
        // Deep in a tail t is nothing beside 1, and exp(z) may be nothing at all: there the mass comes of its own logarithm.
        const Vector near = min(z + all(20.f), relative + all(40.f)), e = exp(where_positive(near, z, relative));
        const Vector t = where_positive(near, e, none), mass = e * where_positive(near, all(mass_[m]) * from, one);
        const Vector divisor = (one + t) * fma(t, all(q_[m]), one);
        above = fma(above, divisor, mass * below), below = below * divisor;
      }
      sum = sum + above / below;
    }
    return sum;
  }

  int64_t levels_, components_, lanes_;
  Buffer<float> inverse_, half_, q_, within_, mass_, nats_, exponents_, every_;
};

}  // namespace genmodels
