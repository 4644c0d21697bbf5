// The gated PixelCNN's two stacks (models/pixelcnn.py): the vertical one a line of the picture at a time, once the line is complete, the horizontal one
// pixel by pixel.
#pragma once

#include "raster.h"

namespace genmodels {

template <class A>
class Gated {
 public:
  // Numbers: layers, hidden (a multiple of 16), reach; then Context's.
  // Matrices, of each layer: the vertical kernel; the hint (2 hidden -> 2 hidden); with a condition what its places add to the horizontal gates and,
  // but in the last layer, to the vertical ones. Then of each layer: the horizontal kernel; out (hidden -> hidden).
  // The first layer's vertical kernel is one matrix, (columns, lines, channels and a one) -> 2 hidden, and hidden more of the skip unless it is the
  // last; the others' are one a line, the highest first, (columns, hidden) -> 2 hidden.
  // Tensor: (height, width, hidden), the map of places and the first out's bias.
  // told: a layer's biases of 2 hidden: vertical, horizontal in the first line, horizontal in the others. Then Context's.
  // State behind the heads': a layer's hints (width, 2 hidden); but in the first its vertical input of the last `reach` lines, as a ring, each
  // (reach + width + reach, hidden); its horizontal input of the last `reach` pixels, as a ring.
  Gated(Plan& plan, const Picture& picture, int64_t rows)
      : picture_(picture), layers_(plan.number()), hidden_(plan.number()), reach_(plan.number()), context_(plan),
        line_((picture.width + 2 * reach_) * hidden_), inputs_((reach_ + 1) * (picture.channels + 1)),
        v_(rows * line_), seen_((picture.width + 2 * reach_) * inputs_), risen_(picture.width * 3 * hidden_),
        across_(picture.width * 2 * hidden_), down_(picture.width * 2 * hidden_), left_(rows * first()), h_(rows * window()),
        pre_(rows * 2 * hidden_), z_(rows * hidden_),
        products_(std::max(picture.width, rows), std::max({(2 * reach_ + 1) * hidden_, padded((2 * reach_ + 1) * inputs_), first(), context_.features()})) {
    for (int64_t l = 0; l < layers_; l++) {
      for (int64_t t = 0; t < (l ? reach_ + 1 : 1); t++) vertical_.push_back(plan.matrix<A>());
      hint_.push_back(plan.matrix<A>());
      if (context_.there()) across_mix_.push_back(plan.matrix<A>());
      if (context_.there() && l < layers_ - 1) down_mix_.push_back(plan.matrix<A>());
    }
    for (int64_t l = 0; l < layers_; l++) horizontal_.push_back(plan.matrix<A>()), out_.push_back(plan.matrix<A>());
    place_ = plan.floats();
  }

  int64_t features() const { return hidden_; }

  // The features of the next pixel of n rows, to the front of their states.
  void operator()(Row* const* rows, int64_t n) {
    starting_.clear();
    for (int64_t r = 0; r < n; r++)
      if (picture_.column(*rows[r]) == 0) starting_.push_back(rows[r]);
    for (int64_t l = 0; l < layers_; l++)
      for (size_t r = 0; r < starting_.size(); r++) start(*starting_[r], l, v_ + r * line_);
    for (int64_t l = 0; l < layers_; l++) pixel(rows, n, l);
    for (int64_t r = 0; r < n; r++) each(hidden_, h_ + r * window() + reach_ * hidden_, rows[r]->state, elu);
  }

 private:
  int64_t first() const { return padded(reach_ * (picture_.channels + 1)); }
  int64_t window() const { return (reach_ + 1) * hidden_; }

  float* hints(const Row& row, int64_t l) const {
    return row.state + Heads<A>::state(picture_, hidden_) + l * picture_.width * 2 * hidden_;
  }
  float* above(const Row& row, int64_t l) const { return hints(row, layers_) + (l - 1) * reach_ * line_; }
  float* left(const Row& row, int64_t l) const { return above(row, layers_) + (l - 1) * reach_ * hidden_; }

  // A layer's part in the beginning of a line: the vertical stack over the line before, and what the pixels of this one hear of it.
  // v: the vertical stack's input over the line before, zeros at both ends; becomes its output.
  void start(Row& row, int64_t l, float* v) {
    const int64_t i = picture_.line(row), width = picture_.width, size = 2 * hidden_;
    const float* biases = row.told + l * 3 * size;
    if (l) std::memset(left(row, l), 0, reach_ * hidden_ * sizeof(float));
    const Heard h = context_.along(products_, picture_, row, i, across_mix_.data() + l, biases + (i ? 2 : 1) * size, across_);
    if (i == 0) {
      for (int64_t j = 0; j < width; j++) copy(size, h.vectors + j * h.step, hints(row, l) + j * size);
      return;
    }
    const int64_t stride = l ? rise(row, l, i - 1, v) : rise_first(row, i - 1);
    products_(hint_[l], risen_, stride, h.vectors, h.step, hints(row, l), size, width);
    if (l == layers_ - 1) return;
    const Heard d = context_.along(products_, picture_, row, i - 1, down_mix_.data() + l, biases, down_);
    for (int64_t j = 0; j < width; j++) {
      float *risen = risen_ + j * stride, *to = v + (reach_ + j) * hidden_;
      const float *bias = d.vectors + j * d.step, *skip = l ? to : risen + size;
      for (int64_t f = 0; f < hidden_; f += kWidth)
        store(to + f, load(skip + f) + gate(load(risen + f) + load(bias + f), load(risen + hidden_ + f) + load(bias + hidden_ + f)));
    }
  }

  // The vertical kernel over line i -> risen, and the floats from one column of it to the next. The lines above come from the state's ring, which
  // takes line i in the place of the oldest.
  int64_t rise(Row& row, int64_t l, int64_t i, const float* v) {
    const Matrix<A>* kernel = vertical_.data() + 1 + (l - 1) * (reach_ + 1);
    const int64_t size = 2 * hidden_;
    for (int64_t t = 0; t <= reach_; t++) {
      const float* line = t < reach_ ? above(row, l) + (i + t) % reach_ * line_ : v;
      products_(kernel[t], line, hidden_, t ? risen_ : kernel[0].bias, t ? size : 0, risen_, size, picture_.width);
    }
    copy(line_, v, above(row, l) + i % reach_ * line_);
    return size;
  }

  int64_t rise_first(const Row& row, int64_t i) {
    const int64_t channels = picture_.channels + 1;
    for (int64_t j = -reach_; j < picture_.width + reach_; j++)
      for (int64_t t = 0; t <= reach_; t++) picture_.input(row, i - reach_ + t, j, seen_ + (j + reach_) * inputs_ + t * channels);
    products_(vertical_[0], seen_, inputs_, risen_, vertical_[0].outputs, picture_.width);
    return vertical_[0].outputs;
  }

  // A layer of the horizontal stack. Its input stands last in each row's window of h, and its output then stands there.
  void pixel(Row* const* rows, int64_t n, int64_t l) {
    const int64_t size = 2 * hidden_;
    for (int64_t r = 0; r < n; r++) {
      copy(size, hints(*rows[r], l) + picture_.column(*rows[r]) * size, pre_ + r * size);
      l ? recall(*rows[r], l, h_ + r * window()) : look(*rows[r], left_ + r * first());
    }
    products_(horizontal_[l], l ? h_ : left_, l ? window() : first(), pre_, size, pre_, size, n);
    for (int64_t r = 0; r < n; r++) {
      each(hidden_, pre_ + r * size, pre_ + r * size + hidden_, z_ + r * hidden_, gate);
      float* h = h_ + r * window() + reach_ * hidden_;
      if (l)
        each(hidden_, h, out_[l].bias, h, [](Vector a, Vector b) { return a + b; });
      else
        copy(hidden_, place_ + rows[r]->step / picture_.channels * hidden_, h);
    }
    float* h = h_ + reach_ * hidden_;
    products_(out_[l], z_, hidden_, h, window(), h, window(), n);
  }

  // The pixels to the left, as the first layer reads them.
  void look(const Row& row, float* out) const {
    for (int64_t t = 0; t < reach_; t++)
      picture_.input(row, picture_.line(row), picture_.column(row) - reach_ + t, out + t * (picture_.channels + 1));
  }

  // A layer's input left of the pixel goes before the pixel's own, which takes the place of the oldest in the ring.
  void recall(const Row& row, int64_t l, float* window) const {
    const int64_t slot = picture_.column(row) % reach_;
    float* ring = left(row, l);
    for (int64_t t = 0; t < reach_; t++) copy(hidden_, ring + (slot + t) % reach_ * hidden_, window + t * hidden_);
    copy(hidden_, window + reach_ * hidden_, ring + slot * hidden_);
  }

  const Picture& picture_;
  int64_t layers_, hidden_, reach_;
  Context<A> context_;
  int64_t line_, inputs_;
  std::vector<Matrix<A>> vertical_, hint_, across_mix_, down_mix_, horizontal_, out_;
  const float* place_;
  std::vector<Row*> starting_;
  Buffer<float> v_, seen_, risen_, across_, down_, left_, h_, pre_, z_;
  Products<A> products_;
};

template <class A>
using GatedPixelCNN = Raster<A, Gated>;

}  // namespace genmodels
