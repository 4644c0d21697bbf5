// WaveNet's one row on two threads, for a machine that has both to spare: each keeps half of the weights in its own cache.
//
// The first walks the layers: the present tap, the gate, the residual. The second follows with the skips, and takes the past taps of the next step
// ahead. They wait for each other by spinning, so this is only done where it is asked for. Every sum is made in the order in which one thread makes
// it, so the bytes are the same.
#pragma once

#include <atomic>
#include <thread>

#include "wavenet.h"

namespace genmodels {

template <class A>
class WaveNetPair {
 public:
  explicit WaveNetPair(Plan plan)
      : p_(plan), in_((p_.kernel - 1) * p_.residual), pasts_(p_.layers * 2 * p_.residual), gates_(2 * p_.layers * p_.residual),
        inputs_(2 * p_.layers * p_.residual), skips_(2 * p_.skip), h_(p_.residual), pre_(2 * p_.residual), skip_(p_.skip), hidden_(p_.skip),
        logits_(padded(p_.levels)), ahead_(1, (p_.kernel - 1) * p_.residual), walk_(1, std::max(p_.residual, p_.skip)), draw_(p_.levels) {}

  // k steps, or as many as are left, of one row -> false where a logit is not finite.
  bool run(Row& row, int64_t k) {
    begin_ = row.step, count_ = std::min(k, p_.steps - row.step);
    for (int64_t l = 0; l < p_.layers; l++) past(row, l, begin_);
    taken_ = p_.layers;
    std::thread second([&] { follow(row); });
    const bool finite = walk(row);
    stop_ = true;
    second.join();
    return finite;
  }

 private:
  bool walk(Row& row) {
    const int64_t residual = p_.residual;
    for (int64_t t = 0; t < count_; t++) {
      float *gates = gates_ + t % 2 * p_.layers * residual, *inputs = inputs_ + t % 2 * p_.layers * residual;
      p_.enter(row, h_);
      for (int64_t l = 0; l < p_.layers; l++) {
        await(taken_, t * p_.layers + l + 1);
        copy(residual, h_, inputs + l * residual);
        walk_(p_.taps[l].part((p_.kernel - 1) * residual, residual), h_, residual, pasts_ + l * 2 * residual, 0, pre_, 2 * residual, 1);
        each(residual, pre_, pre_ + residual, gates + l * residual, gate);
        gated_.store(t * p_.layers + l + 1, std::memory_order_release);
        if (l == p_.layers - 1) break;
        walk_(p_.residuals[l], gates + l * residual, residual, h_, 0, h_, residual, 1);
        each(residual, h_, p_.residuals[l].bias, h_, plus);
      }
      await(skipped_, t + 1);
      each(p_.skip, skips_ + t % 2 * p_.skip, skip_, relu);
      walk_(p_.hidden, skip_, p_.skip, hidden_, p_.skip, 1);
      each(p_.skip, hidden_, hidden_, relu);
      walk_(p_.out, hidden_, p_.skip, logits_, padded(p_.levels), 1);
      if (!draw_(row, logits_, t)) return false;
    }
    return true;
  }

  void follow(const Row& row) {
    const int64_t residual = p_.residual;
    for (int64_t t = 0; t < count_; t++) {
      const float *gates = gates_ + t % 2 * p_.layers * residual;
      float* skip = skips_ + t % 2 * p_.skip;
      copy(p_.skip, p_.skip_bias, skip);
      int64_t ahead = 0;
      for (int64_t l = 0; l < p_.layers; l++) {
        while (gated_.load(std::memory_order_acquire) < t * p_.layers + l + 1) {
          if (stop_) return;
          if (ahead < l) next(row, t, ahead++);
        }
        ahead_(p_.skips[l], gates + l * residual, residual, skip, 0, skip, p_.skip, 1);
      }
      skipped_.store(t + 1, std::memory_order_release);
      while (ahead < p_.layers) next(row, t, ahead++);
    }
  }

  // Keeps what layer l read at step t of this call, and takes its past taps of the step after.
  void next(const Row& row, int64_t t, int64_t l) {
    const int64_t step = begin_ + t, memory = (p_.kernel - 1) * p_.dilations[l];
    copy(p_.residual, inputs_ + (t % 2 * p_.layers + l) * p_.residual, row.state + p_.rings[l] + step % memory * p_.residual);
    if (t + 1 < count_) past(row, l, step + 1);
    taken_.store((t + 1) * p_.layers + l + 1, std::memory_order_release);
  }

  void past(const Row& row, int64_t l, int64_t step) {
    const int64_t memory = (p_.kernel - 1) * p_.dilations[l], inputs = (p_.kernel - 1) * p_.residual;
    p_.recall(row.state + p_.rings[l], l, step % memory, in_);
    ahead_(p_.taps[l].part(0, inputs), in_, inputs, p_.told(row, step, l), 0, pasts_ + l * 2 * p_.residual, 2 * p_.residual, 1);
  }

  void await(const std::atomic<int64_t>& flag, int64_t value) const {
    for (int spins = 0; flag.load(std::memory_order_acquire) < value; spins++)
      if (spins > 10000) std::this_thread::yield();  // the other thread has no core: let it have this one
  }

  WaveNetPlan<A> p_;
  int64_t begin_ = 0, count_ = 0;
  Buffer<float> in_, pasts_, gates_, inputs_, skips_, h_, pre_, skip_, hidden_, logits_;
  Products<A> ahead_, walk_;
  Draw draw_;
  alignas(64) std::atomic<int64_t> taken_{0};    // layers whose past taps are ready, of all steps
  alignas(64) std::atomic<int64_t> gated_{0};    // layers whose gates are, of all steps
  alignas(64) std::atomic<int64_t> skipped_{0};  // steps whose skips are summed
  std::atomic<bool> stop_{false};
};

}  // namespace genmodels
