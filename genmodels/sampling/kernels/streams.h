// Causal residual streams over several resolutions, one slice a call (nn/streams.py): whole rows of one picture, or one pixel of several.
//
// Features of neighbouring pixels lie close, `hidden` floats a pixel, so that a convolution's window is one stretch of memory. A vector may be longer
// than that: what is written goes in order, and the next pixel overwrites what stands out. What stands out in the end is met by no weight.
#pragma once

#include <vector>

#include "draw.h"

namespace genmodels {

enum NodeKind : int64_t { kBlock, kHalve, kDouble };

// One step of a stream. The places are those of the row's state where a convolution keeps its last inputs, and others as they are named.
template <class A>
struct Node {
  NodeKind kind;
  int64_t level, mirror;  // halvings; the node whose output joins in, or -1
  int64_t first, second;  // of a block's convolutions; of another node's only one, and of the coarse slice that a doubling reads
  int64_t hint;           // of what the vertical stream tells the horizontal one
  Matrix<A> shortcut, one[2], two[2], tell;
};

// What the streams of a picture have in common.
struct Canvas {
  int64_t hidden, width, depth;  // depth: resolutions

  int64_t lanes() const { return padded(hidden); }
  int64_t columns(int64_t level) const { return (width + (int64_t{1} << level) - 1) >> level; }
  // A row of a convolution's input: a zero pixel at both ends, and what stands out.
  int64_t row(int64_t level) const { return padded((columns(level) + 2) * hidden + 16); }
  int64_t gates() const { return padded(2 * hidden) + 16; }

  // out (columns, lanes) = x + a sigmoid(b).
  void glu(int64_t n, const float* x, const float* ab, float* out) const {
    for (int64_t c = 0; c < n; c++, x += lanes(), out += lanes(), ab += gates())
      for (int64_t i = 0; i < lanes(); i += kWidth) store(out + i, fma(load(ab + i), sigmoid(load(ab + hidden + i)), load(x + i)));
  }
};

// Goes down row by row: products with all columns of one picture at once.
template <class A>
class Vertical {
 public:
  // Numbers: nodes; of each kind, level, mirror, first, second, hint. Matrices of a block: the shortcut's, where it has one; those of the row before
  // and of the present one, first convolution, then second; what it tells. Of another node: row before, present row.
  // told: each block's biases of the second convolution. State: two rows of inputs a convolution, the even ones first; coarse rows (columns, lanes).
  Vertical(Plan& plan, const Canvas& canvas)
      : canvas_(canvas), nodes_(plan.number()), outs_((nodes_.size() + 1) * canvas.width * canvas.lanes()), in_(canvas.width * canvas.lanes()),
        pre_(canvas.width * canvas.lanes()), gates_(canvas.width * canvas.gates()), products_(canvas.width, 3 * canvas.hidden + 1) {
    for (Node<A>& node : nodes_) {
      node.kind = static_cast<NodeKind>(plan.number()), node.level = plan.number(), node.mirror = plan.number();
      node.first = plan.number(), node.second = plan.number(), node.hint = plan.number();
      if (node.kind == kBlock && node.mirror >= 0) node.shortcut = plan.matrix<A>();
      for (auto& half : node.one) half = plan.matrix<A>();
      if (node.kind != kBlock) continue;
      for (auto& half : node.two) half = plan.matrix<A>();
      node.tell = plan.matrix<A>();
    }
  }

  // Where the input (width, lanes) is to be written.
  float* input() { return out(0); }

  // Row `time` of a picture; the hints come to its state.
  void operator()(float* state, const float* told, int64_t time) {
    for (size_t i = 0; i < nodes_.size(); i++) {
      const Node<A>& node = nodes_[i];
      const int64_t fine = node.kind == kHalve ? node.level - 1 : node.level;
      const bool due = time % (int64_t{1} << node.level) == 0;
      if (time % (int64_t{1} << fine) == 0) {
        if (node.kind == kBlock) block(node, i, state, told, time >> fine);
        if (node.kind == kHalve) halve(node, i, state, time >> fine, due);
        if (node.kind == kDouble) twice(node, i, state, time >> fine);
      }
      if (node.kind == kBlock) told += padded(2 * canvas_.hidden);
    }
  }

 private:
  // The input, then every node's output: (columns, lanes).
  float* out(int64_t i) const { return outs_ + i * canvas_.width * canvas_.lanes(); }

  struct Rows {
    const float* before;
    float* present;
  };

  Rows rows(float* kept, int64_t level, int64_t slice) const {
    float* odd = kept + canvas_.row(level);
    return slice & 1 ? Rows{kept, odd} : Rows{odd, kept};
  }

  // x (columns, lanes) to a row of inputs.
  template <class F>
  void lay(const float* x, int64_t level, float* row, F f) const {
    const int64_t hidden = canvas_.hidden, columns = canvas_.columns(level);
    for (int64_t c = 0; c < columns; c++, x += canvas_.lanes()) each(canvas_.lanes(), x, row + (c + 1) * hidden, f);
    each(canvas_.lanes(), row + (columns + 1) * hidden, row + (columns + 1) * hidden, [](Vector) { return all(0); });
  }

  void block(const Node<A>& node, size_t i, float* state, const float* told, int64_t slice) {
    const int64_t lanes = canvas_.lanes(), hidden = canvas_.hidden, columns = canvas_.columns(node.level), gates = canvas_.gates();
    const Rows first = rows(state + node.first, node.level, slice), second = rows(state + node.second, node.level, slice);
    lay(out(i), node.level, first.present, elu);
    if (node.mirror >= 0) {
      each(columns * lanes, out(node.mirror + 1), in_, elu);
      products_(node.shortcut, in_, lanes, pre_, lanes, columns);
      products_(node.one[0], first.before, hidden, pre_, lanes, pre_, lanes, columns);
    } else {
      products_(node.one[0], first.before, hidden, pre_, lanes, columns);
    }
    products_(node.one[1], first.present, hidden, pre_, lanes, pre_, lanes, columns);
    lay(pre_, node.level, second.present, elu);
    products_(node.two[0], second.before, hidden, told, 0, gates_, gates, columns);
    products_(node.two[1], second.present, hidden, gates_, gates, gates_, gates, columns);
    canvas_.glu(columns, out(i), gates_, out(i + 1));
    each(columns * lanes, out(i + 1), in_, elu);
    products_(node.tell, in_, lanes, state + node.hint, lanes, columns);
  }

  void halve(const Node<A>& node, size_t i, float* state, int64_t slice, bool due) {
    const int64_t lanes = canvas_.lanes(), hidden = canvas_.hidden, columns = canvas_.columns(node.level);
    const Rows seen = rows(state + node.first, node.level - 1, slice);
    lay(out(i), node.level - 1, seen.present, [](Vector a) { return a; });
    if (!due) return;
    products_(node.one[0], seen.before, 2 * hidden, out(i + 1), lanes, columns);
    products_(node.one[1], seen.present, 2 * hidden, out(i + 1), lanes, out(i + 1), lanes, columns);
  }

  void twice(const Node<A>& node, size_t i, float* state, int64_t slice) {
    const int64_t lanes = canvas_.lanes(), hidden = canvas_.hidden, columns = canvas_.columns(node.level);
    float* coarse = state + node.second;
    if (slice % 2 == 0) copy(canvas_.columns(node.level + 1) * lanes, out(i), coarse);
    for (int64_t c = 0; c < columns; c++) copy(lanes, coarse + c / 2 * lanes, in_ + c * lanes);
    const Rows seen = rows(state + node.first, node.level, slice);
    lay(in_, node.level, seen.present, [](Vector a) { return a; });
    products_(node.one[0], seen.before, hidden, out(i + 1), lanes, columns);
    products_(node.one[1], seen.present, hidden, out(i + 1), lanes, out(i + 1), lanes, columns);
  }

  const Canvas& canvas_;
  std::vector<Node<A>> nodes_;
  Buffer<float> outs_, in_, pre_, gates_;
  Products<A> products_;
};

// One pixel of one picture.
struct Pixel {
  float* state;
  const float* told;  // the horizontal stream's part
  int64_t row, column;
};

// Goes right pixel by pixel: products with the pixels of several pictures, those with the coarsest slices due first.
template <class A>
class Horizontal {
 public:
  // Numbers as Vertical's. Matrices of a block: first convolution and shortcut, (three pixels, then what joins in) -> hidden, from the hint; second
  // convolution. Of another node: its only one. told as Vertical's. State: two pixels of inputs a convolution; coarse rows (columns, lanes).
  Horizontal(Plan& plan, const Canvas& canvas, int64_t rows)
      : canvas_(canvas), rows_(rows), window_(padded(4 * canvas.hidden) + 16), nodes_(plan.number()),
        outs_((nodes_.size() + 1) * rows * canvas.lanes()), in_(rows * window_), pre_(rows * canvas.gates()), due_(canvas.depth + 1),
        products_(rows, 4 * canvas.hidden) {
    for (Node<A>& node : nodes_) {
      node.kind = static_cast<NodeKind>(plan.number()), node.level = plan.number(), node.mirror = plan.number();
      node.first = plan.number(), node.second = plan.number(), node.hint = plan.number();
      node.one[0] = plan.matrix<A>();
      if (node.kind == kBlock) node.two[0] = plan.matrix<A>();
    }
  }

  // Where the inputs (pixels, lanes) are to be written, and where the outputs stand afterwards.
  float* input() { return out(0); }
  const float* output() const { return out(nodes_.size()); }

  // The next pixels of n pictures. A level is due where 2^level divides row and column; pixels come with the coarsest due level falling.
  void operator()(const Pixel* pixels, int64_t n) {
    for (int64_t level = 0; level < canvas_.depth; level++) {
      due_[level] = 0;
      for (int64_t p = 0; p < n; p++) due_[level] += (pixels[p].row | pixels[p].column) % (int64_t{1} << level) == 0;
    }
    due_[canvas_.depth] = 0;
    int64_t told = 0;
    for (size_t i = 0; i < nodes_.size(); i++) {
      const Node<A>& node = nodes_[i];
      if (node.kind == kBlock) block(node, i, pixels, told), told += padded(2 * canvas_.hidden);
      if (node.kind == kHalve) halve(node, i, pixels);
      if (node.kind == kDouble) twice(node, i, pixels);
    }
  }

 private:
  // The inputs, then every node's outputs: (pixels, lanes).
  float* out(int64_t i) const { return outs_ + i * rows_ * canvas_.lanes(); }

  // The present pixel behind the two before it, in a row of in_; the last two are kept.
  template <class F>
  void see(float* kept, const float* x, float* in, F f) const {
    const int64_t past = padded(2 * canvas_.hidden);
    copy(past, kept, in);
    each(canvas_.lanes(), x, in + 2 * canvas_.hidden, f);
    copy(past, in + canvas_.hidden, kept);
  }

  void block(const Node<A>& node, size_t i, const Pixel* pixels, int64_t told) {
    const int64_t n = due_[node.level], lanes = canvas_.lanes(), hidden = canvas_.hidden, gates = canvas_.gates();
    if (n == 0) return;
    for (int64_t p = 0; p < n; p++) {
      float* in = in_ + p * window_;
      see(pixels[p].state + node.first, out(i) + p * lanes, in, elu);
      if (node.mirror >= 0) each(lanes, out(node.mirror + 1) + p * lanes, in + 3 * hidden, elu);
      copy(lanes, pixels[p].state + node.hint + (pixels[p].column >> node.level) * lanes, pre_ + p * gates);
    }
    products_(node.one[0], in_, window_, pre_, gates, pre_, gates, n);
    bool same = true;
    for (int64_t p = 0; p < n; p++) {
      see(pixels[p].state + node.second, pre_ + p * gates, in_ + p * window_, elu);
      same = same && pixels[p].told == pixels[0].told;
    }
    if (!same)
      for (int64_t p = 0; p < n; p++) copy(padded(2 * hidden), pixels[p].told + told, pre_ + p * gates);
    products_(node.two[0], in_, window_, same ? pixels[0].told + told : pre_, same ? 0 : gates, pre_, gates, n);
    canvas_.glu(n, out(i), pre_, out(i + 1));
  }

  // The kernel covers pixels between the coarse ones, so these are kept too.
  void halve(const Node<A>& node, size_t i, const Pixel* pixels) {
    for (int64_t p = 0; p < due_[node.level - 1]; p++)
      see(pixels[p].state + node.first, out(i) + p * canvas_.lanes(), in_ + p * window_, [](Vector a) { return a; });
    if (due_[node.level]) products_(node.one[0], in_, window_, out(i + 1), canvas_.lanes(), due_[node.level]);
  }

  void twice(const Node<A>& node, size_t i, const Pixel* pixels) {
    const int64_t n = due_[node.level], lanes = canvas_.lanes();
    for (int64_t p = 0; p < n; p++) {
      float* coarse = pixels[p].state + node.second + (pixels[p].column >> (node.level + 1)) * lanes;
      if (p < due_[node.level + 1]) copy(lanes, out(i) + p * lanes, coarse);
      see(pixels[p].state + node.first, coarse, in_ + p * window_, [](Vector a) { return a; });
    }
    if (n) products_(node.one[0], in_, window_, out(i + 1), lanes, n);
  }

  const Canvas& canvas_;
  int64_t rows_, window_;
  std::vector<Node<A>> nodes_;
  Buffer<float> outs_, in_, pre_;
  std::vector<int64_t> due_;  // by level, how many pixels have a slice of it due
  Products<A> products_;
};

}  // namespace genmodels
