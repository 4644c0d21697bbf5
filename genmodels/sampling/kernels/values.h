// Levels as the numbers that a network reads and predicts, and the draw of a level from them (nn/values.py).
#pragma once

#include "draw.h"
#include "mixture.h"

namespace genmodels {

// The sum of n products, n a multiple of 16: every lane of 64 keeps a sum, and those are added as a tree, at every width alike.
inline float dot(int64_t n, const float* x, const float* w) {
  constexpr int kGroups = 4, kVectors = 16 / kWidth;
  Vector sums[kGroups][kVectors];
  for (auto& group : sums)
    for (Vector& sum : group) sum = all(0);
  int64_t i = 0;
  for (; i + 16 * kGroups <= n; i += 16 * kGroups)
    GENMODELS_UNROLL for (int g = 0; g < kGroups; g++)
      GENMODELS_UNROLL for (int v = 0; v < kVectors; v++)
        sums[g][v] = fma(load(x + i + 16 * g + v * kWidth), load(w + i + 16 * g + v * kWidth), sums[g][v]);
  for (; i < n; i += 16)
    GENMODELS_UNROLL for (int v = 0; v < kVectors; v++) sums[0][v] = fma(load(x + i + v * kWidth), load(w + i + v * kWidth), sums[0][v]);
  float lanes[16];
  GENMODELS_UNROLL for (int v = 0; v < kVectors; v++) store(lanes + v * kWidth, (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]));
  return sum16(lanes);
}

// y += a x over n floats, n a multiple of 16.
inline void add(int64_t n, float a, const float* x, float* y) {
  for (int64_t i = 0; i < n; i += kWidth) store(y + i, fma(all(a), load(x + i), load(y + i)));
}

// n logits -> their log probabilities, in place; both arrays padded.
inline void log_softmax(int64_t n, float* logits, float* scratch) {
  const int64_t size = padded(n);
  float most = logits[0], total = 0;
  for (int64_t i = 1; i < n; i++) most = logits[i] > most ? logits[i] : most;
  each(size, logits, scratch, [most = all(most)](Vector l) { return exp(l - most); });
  for (int64_t i = n; i < size; i++) scratch[i] = 0;
  for (int64_t i = 0; i < size; i += 16) total += sum16(scratch + i);
  each(size, logits, logits, [most = all(most), total = log(all(total))](Vector l) { return l - most - total; });
}

// y[i] = log sum_m exp(x[m][i]) over n floats, n a multiple of 16.
inline void log_sum_exp(int64_t terms, int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; i += kWidth) {
    Vector top = load(x + i), sum = all(0);
    for (int64_t m = 1; m < terms; m++) top = max(top, load(x + m * n + i));
    for (int64_t m = 0; m < terms; m++) sum = sum + exp(load(x + m * n + i) - top);
    store(y + i, top + log(sum));
  }
}

// log(1 + exp(-|a|)): what a log sigmoid is short of a ramp.
inline Vector rounding(Vector a) { return log(all(1.f) + exp(min(a, all(0) - a))); }

// How a family's values are read and predicted; scratch for one thread.
class Values {
 public:
  static constexpr int64_t kSoftmax = 16;  // the most levels that are told apart one by one

  Values(int64_t levels, int64_t outputs)
      : levels_(levels), outputs_(outputs), components_(levels > kSoftmax ? outputs / 3 : 1), nats_(padded(levels)), raw_(3 * padded(components_)),
        mixture_(levels, components_), draw_(levels) {}

  int64_t inputs() const { return levels_ == 2 ? 1 : levels_ <= kSoftmax ? levels_ - 1 : 3; }

  float position(int64_t level) const { return static_cast<float>(level) * static_cast<float>(2.0 / static_cast<double>(levels_ - 1)) - 1.f; }

  // The numbers that a level is read as, all but those that are 0: f(which, number).
  template <class F>
  void read(int64_t level, F f) const {
    if (levels_ > 2 && levels_ <= kSoftmax) {
      if (level > 0) f(level - 1, 1.f);
      return;
    }
    f(0, position(level));
    if (levels_ == 2) return;
    if (level == 0) f(1, 1.f);
    if (level == levels_ - 1) f(2, 1.f);
  }

  // raw (outputs,) -> nats (levels, padded) of every level.
  void nats(const float* raw, float* out) {
    if (levels_ == 2) return of_signs(1, &raw, out);
    if (levels_ <= kSoftmax) return of_softmax(raw, out);
    of_mixture(raw, out);
  }

  // The same of n values.
  void nats(int64_t n, const float* const* raw, float* out) {
    if (levels_ == 2) return of_signs(n, raw, out);
    for (int64_t i = 0; i < n; i++) nats(raw[i], out + i * padded(levels_));
  }

  // Draws the next value of n rows, or takes the given ones, and counts the step -> the first row whose logits are not finite, or -1.
  int64_t operator()(Row* const* rows, int64_t n, const float* const* raw, int64_t at) {
    if (levels_ == 2) return bits(rows, n, raw, at);
    for (int64_t r = 0; r < n; r++) {
      nats(raw[r], nats_);
      if (!draw_(*rows[r], nats_, at)) return r;
    }
    return -1;
  }

  bool draw(Row& row, const float* nats, int64_t at) { return draw_(row, nats, at); }

 private:
  static void of_signs(int64_t n, const float* const* raw, float* out) {
    for (int64_t first = 0; first < n; first += kWidth) {
      const int64_t some = std::min<int64_t>(n - first, kWidth);
      float logits[kWidth] = {}, low[kWidth], high[kWidth];
      for (int64_t i = 0; i < some; i++) logits[i] = raw[first + i][0];
      const Vector l = load(logits), zero = all(0), short_of = rounding(l);
      store(low, min(zero - l, zero) - short_of), store(high, min(l, zero) - short_of);
      for (int64_t i = 0; i < some; i++) out[16 * (first + i)] = low[i], out[16 * (first + i) + 1] = high[i];
    }
  }

  void of_softmax(const float* raw, float* out) const {
    float scratch[kSoftmax];
    for (int64_t i = 0; i < kSoftmax; i++) out[i] = i < levels_ ? raw[i] : raw[0];
    log_softmax(levels_, out, scratch);
  }

  void of_mixture(const float* raw, float* out) {
    const int64_t size = padded(components_);
    for (int64_t part = 0; part < 3; part++)
      for (int64_t m = 0; m < components_; m++) raw_[part * size + m] = raw[part * components_ + m];
    float *weights = raw_, *means = raw_ + size, *scales = raw_ + 2 * size;
    const float unit = static_cast<float>(levels_ - 1) / 2, count = static_cast<float>(components_);
    for (int64_t m = 0; m < components_; m++) means[m] = (means[m] + (static_cast<float>(2 * m + 1) / count - 1.f) + 1.f) * unit;
    const Vector narrowest = log(all(0.01f / unit)), shift = log(all(count));
    each(size, scales, scales, [&](Vector s) { return exp(min(max(s - shift, narrowest), all(2.f))) * all(unit); });
    mixture_.normalise(weights);
    mixture_(weights, means, scales, out);
  }

  // Sixteen rows' signs at a time, as Draw would draw them one by one.
  int64_t bits(Row* const* rows, int64_t n, const float* const* raw, int64_t at) {
    for (int64_t first = 0; first < n; first += 16) {
      const int64_t some = std::min<int64_t>(n - first, 16);
      float logits[16] = {}, uniforms[16] = {}, low[16], target[16];
      for (int64_t i = 0; i < some; i++) {
        Row& row = *rows[first + i];
        const float logit = raw[first + i][0];
        if (!(logit - logit == 0)) return first + i;
        if (row.logits) {
          nats(raw[first + i], nats_);
          row.logits[2 * at] = nats_[0], row.logits[2 * at + 1] = nats_[1];
        }
        logits[i] = row.temperature == 1 ? logit : logit / static_cast<float>(row.temperature);
        uniforms[i] = row.uniforms[row.order[row.step]];
      }
      for (int i = 0; i < 16; i += kWidth) weigh(load(logits + i), load(uniforms + i), low + i, target + i);
      for (int64_t i = 0; i < some; i++) put(*rows[first + i], raw[first + i][0], low[i] > target[i] ? 0 : 1);
    }
    return -1;
  }

  // The mass of level 0 and what it must exceed.
  static void weigh(Vector logit, Vector u, float* low, float* target) {
    const Vector zero = all(0), top = max(logit, zero), deepest = all(87.f);
    const Vector a = where_positive(deepest - top, exp(zero - top), zero), b = where_positive(logit - top + deepest, exp(logit - top), zero);
    store(low, a), store(target, u * (a + b));
  }

  static void put(Row& row, float logit, int64_t drawn) {
    const int64_t place = row.order[row.step];
    if (row.known && row.known[place]) {
      drawn = row.given[place];
      const double wrong = drawn ? -static_cast<double>(logit) : static_cast<double>(logit);
      *row.log_weight -= std::max(wrong, 0.0) + std::log1p(std::exp(-std::fabs(wrong)));
    }
    row.x[place] = static_cast<uint8_t>(drawn);
    row.step++;
  }

  int64_t levels_, outputs_, components_;
  Buffer<float> nats_, raw_;
  Mixture mixture_;
  Draw draw_;
};

}  // namespace genmodels
