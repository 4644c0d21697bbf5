// Masked networks over an order of the values: FVBN, and MADE of any depth, mixed over masks (packed by causal.py).
//
// A hidden unit is made once, when the last value that it may see is taken; sorted by that, a whole example costs one pass through the masked weights.
// The steps are cut into stretches. At the first step of one, products add up for its outputs and units all that lies before it; inside, every value
// and unit adds its share to what of the stretch comes later.
#pragma once

#include <vector>

#include "values.h"

namespace genmodels {

template <class A>
class Causal {
 public:
  static constexpr int64_t kTogether = 32;

  // Numbers: levels, outputs a value, steps, steps of a stretch, hidden layers, orders, masks; each layer's units, and those in a stretch, at most
  // and both padded. Tensors: orders (orders, steps) places; ready (members, layers, steps + 1): units that wait for no value from that step on.
  // Then, for each member (an order's masks one after the other) and stretch: weights of all values before it on its outputs and first units, and
  // of each layer on the next one's units, the last one's on the outputs; each as a matrix, and as rows of weights inside the stretch.
  // told: what those start from, (members, stretches, width). State: the order; the values as read; each mask's log weight, units and sums.
  Causal(Plan plan, int64_t rows)
      : levels_(plan.number()), outputs_(plan.number()), steps_(plan.number()), span_(plan.number()), layers_(plan.number()), orders_(plan.number()),
        masks_(plan.number()), values_(levels_, outputs_), read_(padded(steps_ * values_.inputs())), width_(padded(span_ * outputs_)),
        hidden_(hidden(plan)), places_(plan.integers()), ready_(plan.integers()), plan_(plan), now_(masks_, Stretch(1 + layers_)),
        in_(rows * std::max(read_, units_)), y_(rows * width_), nats_(rows * masks_ * padded(levels_)), joint_((masks_ + 1) * padded(levels_)),
        weights_(2 * padded(masks_)), raw_(std::max(rows, masks_)), products_(rows, std::max(read_, units_)) {}

  int64_t steps() const { return steps_; }

  // One step of n rows -> the first whose logits are not finite, or -1.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    for (int64_t r = 0; r < n; r++)
      if (rows[r]->step == 0) rows[r]->state[0] = static_cast<float>(order(rows[r]->order));
    for (int64_t r = 0, end; r < n; r = end) {
      for (end = r + 1; end < n && rows[end]->step == rows[r]->step && rows[end]->state[0] == rows[r]->state[0];) end++;
      if (rows[r]->step % span_ == 0)
        for (int64_t mask = 0; mask < masks_; mask++) enter(rows + r, end - r, mask);
    }
    const int64_t bad = masks_ == 1 ? draw(rows, n, at) : mix(rows, n, at);
    for (int64_t r = 0; r < n && bad < 0; r++) take(*rows[r], nats_ + r * masks_ * padded(levels_));
    return bad;
  }

 private:
  // A hidden layer: its units in the state, and its sums in a stretch.
  struct Layer {
    int64_t units, sums, width;
  };

  // A member's weights in a stretch: of the values, then of each layer.
  struct Stretch {
    explicit Stretch(int64_t parts) : before(parts), inside(parts) {}
    int64_t number = -1;
    std::vector<Matrix<A>> before;
    std::vector<const float*> inside;
  };

  std::vector<Layer> hidden(Plan& plan) {
    std::vector<Layer> layers;
    for (int64_t l = 0; l < layers_; l++) {
      const int64_t units = plan.number(), width = plan.number();
      layers.push_back({units_, width_, width});
      units_ += units, width_ += width;
    }
    return layers;
  }

  int64_t order(const int64_t* places) const {
    int64_t o = 0;
    while (o + 1 < orders_ && std::memcmp(places, places_ + o * steps_, steps_ * sizeof(int64_t))) o++;
    return o;
  }

  int64_t member(const Row& row, int64_t mask) const { return static_cast<int64_t>(row.state[0]) * masks_ + mask; }

  // What a mask keeps in the state: a log weight of float64, the units, the sums of the stretch.
  float* kept(const Row& row, int64_t mask) const { return row.state + 16 + read_ + mask * (16 + units_ + width_); }
  float* units(const Row& row, int64_t mask) const { return kept(row, mask) + 16; }
  float* sums(const Row& row, int64_t mask) const { return kept(row, mask) + 16 + units_; }
  const float* raw(const Row& row, int64_t mask) const { return sums(row, mask) + row.step % span_ * outputs_; }

  // How many sums the values add to (they lie first, the outputs before the units), and where those of a layer go.
  int64_t reach() const { return layers_ ? hidden_[0].sums + hidden_[0].width : width_; }
  Layer target(int64_t l) const { return l + 1 < layers_ ? hidden_[l + 1] : Layer{0, 0, layers_ ? hidden_[0].sums : width_}; }

  const Stretch& stretch(const Row& row, int64_t mask) {
    Stretch& s = now_[mask];
    const int64_t parts = 1 + layers_, number = member(row, mask) * ((steps_ + span_ - 1) / span_) + row.step / span_;
    if (number == s.number) return s;
    Plan plan = plan_.after(2 * parts * number, 3 * parts * number);
    for (int64_t p = 0; p < parts; p++) s.before[p] = plan.matrix<A>(), s.inside[p] = plan.floats();
    s.number = number;
    return s;
  }

  // The sums of a stretch from all before it, for rows at its first step that share an order.
  void enter(Row* const* rows, int64_t n, int64_t mask) {
    const Stretch& s = stretch(*rows[0], mask);
    for (int64_t r = 0; r < n; r++) copy(width_, rows[r]->told + s.number * width_, y_ + r * width_);
    if (rows[0]->step > 0) {
      const auto add = [&](int64_t part, const auto& from, int64_t into) {
        const Matrix<A>& m = s.before[part];
        for (int64_t r = 0; r < n; r++) copy(m.inputs, from(*rows[r]), in_ + r * m.inputs);
        products_(m, in_, m.inputs, y_ + into, width_, y_ + into, width_, n);
      };
      add(0, [](const Row& row) { return row.state + 16; }, 0);
      for (int64_t l = 0; l < layers_; l++) add(1 + l, [&](const Row& row) { return units(row, mask) + hidden_[l].units; }, target(l).sums);
    }
    for (int64_t r = 0; r < n; r++) copy(width_, y_ + r * width_, sums(*rows[r], mask));
  }

  int64_t draw(Row* const* rows, int64_t n, int64_t at) {
    for (int64_t r = 0; r < n; r++) raw_[r] = raw(*rows[r], 0);
    return values_(rows, n, raw_.data(), at);
  }

  // The mean over masks, each weighed by the values taken so far.
  int64_t mix(Row* const* rows, int64_t n, int64_t at) {
    const int64_t size = padded(levels_);
    float* mean = joint_ + masks_ * size;
    for (int64_t r = 0; r < n; r++) {
      float* nats = nats_ + r * masks_ * size;
      double most = log_weight(*rows[r], 0);
      for (int64_t mask = 1; mask < masks_; mask++) most = std::max(most, log_weight(*rows[r], mask));
      for (int64_t mask = 0; mask < masks_; mask++) weights_[mask] = static_cast<float>(log_weight(*rows[r], mask) - most);
      log_softmax(masks_, weights_, weights_ + padded(masks_));
      for (int64_t mask = 0; mask < masks_; mask++) raw_[mask] = raw(*rows[r], mask);
      values_.nats(masks_, raw_.data(), nats);
      for (int64_t mask = 0; mask < masks_; mask++)
        each(size, nats + mask * size, joint_ + mask * size, [w = all(weights_[mask])](Vector l) { return l + w; });
      log_sum_exp(masks_, size, joint_, mean);
      if (!values_.draw(*rows[r], mean, at)) return r;
    }
    return -1;
  }

  // The value that a row has just taken becomes known to what comes later.
  void take(const Row& row, const float* nats) {
    const int64_t step = row.step - 1, level = row.x[row.order[step]], inputs = values_.inputs();
    Row before = row;
    before.step = step;
    values_.read(level, [&](int64_t i, float a) { row.state[16 + step * inputs + i] = a; });
    for (int64_t mask = 0; mask < masks_; mask++) {
      const Stretch& s = stretch(before, mask);
      float* own = sums(row, mask);
      values_.read(level, [&](int64_t i, float a) { add(reach(), a, s.inside[0] + (step % span_ * inputs + i) * reach(), own); });
      for (int64_t l = 0; l < layers_; l++) fire(before, mask, l, s.inside[1 + l], own);
      if (masks_ > 1) set_log_weight(row, mask, log_weight(row, mask) + static_cast<double>(nats[mask * padded(levels_) + level]));
    }
  }

  // The units of a layer that waited for this step's value alone.
  void fire(const Row& row, int64_t mask, int64_t l, const float* weights, float* own) const {
    const int64_t* ready = ready_ + (member(row, mask) * layers_ + l) * (steps_ + 1);
    const int64_t first = ready[row.step / span_ * span_];
    const Layer to = target(l);
    for (int64_t j = ready[row.step]; j < ready[row.step + 1]; j++) {
      const float sum = own[hidden_[l].sums + j - first];
      if (!(sum > 0)) continue;
      units(row, mask)[hidden_[l].units + j] = sum;
      add(to.width, sum, weights + (j - first) * to.width, own + to.sums);
    }
  }

  double log_weight(const Row& row, int64_t mask) const {
    double value;
    std::memcpy(&value, kept(row, mask), sizeof value);
    return value;
  }

  void set_log_weight(const Row& row, int64_t mask, double value) const { std::memcpy(kept(row, mask), &value, sizeof value); }

  int64_t levels_, outputs_, steps_, span_, layers_, orders_, masks_;
  Values values_;
  int64_t read_, width_, units_ = 0;
  std::vector<Layer> hidden_;
  const int64_t *places_, *ready_;
  Plan plan_;
  std::vector<Stretch> now_;
  Buffer<float> in_, y_, nats_, joint_, weights_;
  std::vector<const float*> raw_;
  Products<A> products_;
};

}  // namespace genmodels
