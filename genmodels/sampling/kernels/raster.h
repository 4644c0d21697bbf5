// Pictures in raster order, as nn/raster.py and nn/heads.py have them: a stack of layers makes one vector of features a pixel, and the channels of the
// pixel are drawn from it one after the other.
#pragma once

#include <vector>

#include "draw.h"

namespace genmodels {

// The size of a picture, and what its levels are to a network.
class Picture {
 public:
  const int64_t levels, channels, height, width;

  // Numbers: levels, channels, height, width. Tensors: the levels scaled.
  explicit Picture(Plan& plan)
      : levels(plan.number()), channels(plan.number()), height(plan.number()), width(plan.number()), values_(plan.floats()) {}

  int64_t steps() const { return height * width * channels; }
  int64_t line(const Row& row) const { return row.step / (width * channels); }
  int64_t column(const Row& row) const { return row.step / channels % width; }

  float value(const Row& row, int64_t step) const { return values_[row.x[row.order[step]]]; }

  // Pixel (i, j) as a first layer reads it: its channels and a one; zeros outside the picture.
  void input(const Row& row, int64_t i, int64_t j, float* out) const {
    const bool inside = i >= 0 && j >= 0 && j < width;
    for (int64_t c = 0; c < channels; c++) out[c] = inside ? value(row, (i * width + j) * channels + c) : 0;
    out[channels] = inside;
  }

 private:
  const float* values_;
};

// What label and condition add along a line of the picture: one vector for all columns (step 0), or one each.
struct Heard {
  const float* vectors;
  int64_t step;
};

// The condition's features at its own resolution (nn/local.py); they lie in `told` behind the vectors that hold for a whole picture.
template <class A>
class Context {
 public:
  // Numbers: height, width and features of the context (0: none); floats of `told` before it.
  explicit Context(Plan& plan) : height_(plan.number()), width_(plan.number()), features_(plan.number()), start_(plan.number()) {}

  bool there() const { return features_ > 0; }
  int64_t features() const { return features_; }

  // A layer's bias for line i: the vector that holds for all places, and what `mix` makes of each place's context. space: (width, outputs).
  Heard along(const Products<A>& products, const Picture& picture, const Row& row, int64_t i, const Matrix<A>* mix, const float* bias,
              float* space) const {
    if (!there()) return {bias, 0};
    const int64_t across = picture.width / width_, outputs = mix->outputs;
    const float* context = row.told + start_ + i / (picture.height / height_) * width_ * features_;
    products(*mix, context, features_, bias, 0, space, across * outputs, width_);
    for (int64_t j = 0; j < picture.width; j++)
      if (j % across) copy(outputs, space + j / across * across * outputs, space + j * outputs);
    return {space, outputs};
  }

 private:
  int64_t height_, width_, features_, start_;
};

// One head a channel: features and the earlier channels -> hidden, ELU -> logits. Both kinds of input are the first floats of a row's state.
template <class A>
class Heads {
 public:
  static int64_t state(const Picture& picture, int64_t features) { return features + padded(picture.channels); }

  // Numbers: hidden, a multiple of 16. A channel's matrices: (features, then the earlier channels -> hidden), (hidden -> levels).
  Heads(Plan& plan, const Picture& picture, int64_t features, int64_t rows)
      : picture_(picture), features_(features), inputs_(state(picture, features)), hidden_(plan.number()), in_(rows * inputs_),
        between_(rows * hidden_), logits_(rows * padded(picture.levels)), products_(rows, std::max(inputs_, hidden_)), draw_(picture.levels) {
    for (int64_t c = 0; c < picture.channels; c++) first_.push_back(plan.matrix<A>()), last_.push_back(plan.matrix<A>());
  }

  // Draws a channel of n rows -> the first whose logits are not finite, or -1.
  int64_t operator()(Row* const* rows, int64_t n, int64_t channel, int64_t at) {
    const int64_t inputs = first_[channel].inputs, levels = padded(picture_.levels);
    for (int64_t r = 0; r < n; r++) copy(inputs, rows[r]->state, in_ + r * inputs_);
    products_(first_[channel], in_, inputs_, between_, hidden_, n);
    each(n * hidden_, between_, between_, elu);
    products_(last_[channel], between_, hidden_, logits_, levels, n);
    for (int64_t r = 0; r < n; r++) {
      if (!draw_(*rows[r], logits_ + r * levels, at)) return r;
      rows[r]->state[features_ + channel] = picture_.value(*rows[r], rows[r]->step - 1);
    }
    return -1;
  }

 private:
  const Picture& picture_;
  int64_t features_, inputs_, hidden_;
  std::vector<Matrix<A>> first_, last_;
  Buffer<float> in_, between_, logits_;
  Products<A> products_;
  Draw draw_;
};

// A kernel: a Stack's features of a pixel, then its heads.
template <class A, template <class> class Stack>
class Raster {
 public:
  static constexpr int64_t kTogether = 16;

  // The plan holds Picture's part, Stack's and Heads'. State: that of Heads, then that of Stack.
  Raster(Plan plan, int64_t rows)
      : picture_(plan), stack_(plan, picture_, rows), heads_(plan, picture_, stack_.features(), rows), channels_(rows), group_(rows), whose_(rows) {}

  int64_t steps() const { return picture_.steps(); }

  // One step of n rows -> the first whose logits are not finite, or -1. Rows that stand at the same channel go together.
  int64_t step(Row* const* rows, int64_t n, int64_t at) {
    for (int64_t r = 0; r < n; r++) channels_[r] = rows[r]->step % picture_.channels;
    for (int64_t c = 0; c < picture_.channels; c++) {
      int64_t count = 0;
      for (int64_t r = 0; r < n; r++)
        if (channels_[r] == c) group_[count] = rows[r], whose_[count++] = r;
      if (count == 0) continue;
      if (c == 0) stack_(group_.data(), count);
      const int64_t bad = heads_(group_.data(), count, c, at);
      if (bad >= 0) return whose_[bad];
    }
    return -1;
  }

 private:
  Picture picture_;
  Stack<A> stack_;
  Heads<A> heads_;
  std::vector<int64_t> channels_;
  std::vector<Row*> group_;
  std::vector<int64_t> whose_;
};

}  // namespace genmodels
