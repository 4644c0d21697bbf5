// PixelCNN++ (models/pixelcnnpp.py): the vertical stream once a row of a picture, the horizontal one once a pixel, the mixture's logits once a value.
#pragma once

#include "mixture.h"
#include "raster.h"
#include "streams.h"

namespace genmodels {

// A pixel's channels under a mixture whose means the earlier channels move. Scratch for one thread.
class Chain {
 public:
  Chain(const Picture& picture, int64_t components)
      : picture_(picture), lanes_(padded(components)), unit_((picture.levels - 1) / 2.f),
        narrowest_(static_cast<float>(std::log(0.02 / (picture.levels - 1)))), weights_(lanes_), means_(lanes_), scales_(lanes_),
        logits_(padded(picture.levels)), mixture_(picture.levels, components) {}

  // A pixel's parameters, each that of the components side by side: log weights, means, log scales and coefficients of the channels.
  int64_t parameters() const { return (1 + 2 * picture_.channels + picture_.channels * (picture_.channels - 1) / 2) * lanes_; }

  // Nats of every level of the row's next value.
  const float* operator()(const Row& row, const float* raw) {
    const int64_t channel = row.step % picture_.channels;
    copy(lanes_, raw, weights_);
    mixture_.normalise(weights_);
    for (int64_t c = 0; c < channel; c++) {
      place(row, raw, c);
      mixture_.learn(row.x[row.order[row.step - channel + c]], weights_, means_, scales_);
    }
    place(row, raw, channel);
    mixture_(weights_, means_, scales_, logits_);
    return logits_;
  }

 private:
  // Means and scales of a channel of the row's next pixel, given the channels before it.
  void place(const Row& row, const float* raw, int64_t channel) {
    const float *mean = raw + (1 + channel) * lanes_, *scale = mean + picture_.channels * lanes_;
    const float* moved = raw + (1 + 2 * picture_.channels + channel * (channel - 1) / 2) * lanes_;
    const int64_t pixel = row.step / picture_.channels * picture_.channels;
    const Vector unit = all(unit_);
    for (int64_t i = 0; i < lanes_; i += kWidth) {
      Vector m = load(mean + i);
      for (int64_t c = 0; c < channel; c++) m = m + tanh(load(moved + c * lanes_ + i)) * all(picture_.value(row, pixel + c));
      store(means_ + i, (m + all(1.f)) * unit);
      store(scales_ + i, exp(min(max(load(scale + i) - all(2.f), all(narrowest_)), all(2.f))) * unit);
    }
  }

  const Picture& picture_;
  int64_t lanes_;
  float unit_, narrowest_;
  Buffer<float> weights_, means_, scales_, logits_;
  Mixture mixture_;
};

template <class A>
class PixelCNNPlusPlus {
 public:
  static constexpr int64_t kTogether = 16;

  // Picture's part, then numbers: hidden, resolutions, reach, components; floats of `told` for the vertical stream; where in a state the present
  // pixel's parameters lie, the row being drawn, and from where to where what the horizontal stream keeps of a row. Matrices: above, left (pixels,
  // channels and a one -> hidden); out (in float32). Tensor: (height, width, hidden), the map of places and the bias of above. Then the streams.
  PixelCNNPlusPlus(Plan plan, int64_t rows)
      : picture_(plan), canvas_{plan.number(), picture_.width, plan.number()}, reach_(plan.number()), chain_(picture_, plan.number()),
        told_(plan.number()), raw_(plan.number()), row_(plan.number()), kept_(plan.number()), kept_end_(plan.number()),
        above_(plan.matrix<A>()), left_(plan.matrix<A>()), out_(plan.matrix<F32>()), place_(plan.floats()), vertical_(plan, canvas_),
        horizontal_(plan, canvas_, rows), in_(rows * std::max(padded(reach_ * inputs()), canvas_.lanes())), raws_(rows * chain_.parameters()),
        products_(std::max(rows, picture_.width), (2 * reach_ + 1) * inputs() + 1), wide_(rows, canvas_.lanes()) {}

  int64_t steps() const { return picture_.steps(); }

  // One step of n rows -> the first whose logits are not finite, or -1.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    arrive(rows, n);
    if (!pixels_.empty()) pixel();
    for (int64_t r = 0; r < n; r++)
      if (!draw_(*rows[r], chain_(*rows[r], rows[r]->state + raw_), at)) return r;
    return -1;
  }

 private:
  int64_t inputs() const { return picture_.channels + 1; }

  // Takes in the pixels just drawn; pixels_ = those that come next, the coarsest first.
  void arrive(Row* const* rows, int64_t n) {
    pixels_.clear();
    for (int64_t level = canvas_.depth - 1; level >= 0; level--)
      for (int64_t r = 0; r < n; r++) {
        const Row& row = *rows[r];
        if (row.step % picture_.channels) continue;
        const Pixel pixel{row.state, row.told + told_, picture_.line(row), picture_.column(row)};
        if (coarsest(pixel.row | pixel.column) != level) continue;
        take(row);
        if (pixel.column == 0) begin(row, pixel.row);
        pixels_.push_back(pixel);
      }
  }

  int64_t coarsest(int64_t time) const {
    int64_t level = 0;
    while (level < canvas_.depth - 1 && (time >> level) % 2 == 0) level++;
    return level;
  }

  // The last pixel, to the row being drawn.
  void take(const Row& row) const {
    if (row.step == 0) return;
    const int64_t first = row.step - picture_.channels, column = first / picture_.channels % picture_.width;
    float* z = row.state + row_ + (reach_ + column) * inputs();
    for (int64_t c = 0; c < picture_.channels; c++) z[c] = picture_.value(row, first + c);
    z[picture_.channels] = 1;
  }

  // The vertical stream over the row just drawn, and a clean row.
  void begin(const Row& row, int64_t line) {
    const int64_t lanes = canvas_.lanes(), width = picture_.width;
    products_(above_, row.state + row_, inputs(), place_ + line * width * lanes, lanes, vertical_.input(), lanes, width);
    vertical_(row.state, row.told, line);
    std::memset(row.state + row_, 0, (reach_ + width) * inputs() * sizeof(float));
    std::memset(row.state + kept_, 0, (kept_end_ - kept_) * sizeof(float));
  }

  // The parameters of the pixels that come next, to their states.
  void pixel() {
    const int64_t n = pixels_.size(), lanes = canvas_.lanes(), window = padded(reach_ * inputs());
    for (int64_t p = 0; p < n; p++) copy(window, pixels_[p].state + row_ + pixels_[p].column * inputs(), in_ + p * window);
    products_(left_, in_, window, horizontal_.input(), lanes, n);
    horizontal_(pixels_.data(), n);
    each(n * lanes, horizontal_.output(), in_, elu);
    wide_(out_, in_, lanes, raws_, chain_.parameters(), n);
    for (int64_t p = 0; p < n; p++) copy(chain_.parameters(), raws_ + p * chain_.parameters(), pixels_[p].state + raw_);
  }

  Picture picture_;
  Canvas canvas_;
  int64_t reach_;
  Chain chain_;
  int64_t told_, raw_, row_, kept_, kept_end_;
  Matrix<A> above_, left_;
  Matrix<F32> out_;
  const float* place_;
  Vertical<A> vertical_;
  Horizontal<A> horizontal_;
  Buffer<float> in_, raws_;
  Products<A> products_;
  Products<F32> wide_;
  std::vector<Pixel> pixels_;
  Draw draw_{picture_.levels};
};

}  // namespace genmodels
