// The samplers behind a plain C interface. Built several times, once for each instruction set; see library.py for who chooses.
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "causal.h"
#include "gated.h"
#include "nade.h"
#include "pixelcnn.h"
#include "pixelcnnpp.h"
#include "wavenet_pair.h"

#if defined(__AVX512VNNI__)
#include "int8.h"
#endif
#if defined(__AMX_BF16__)
#include "tiles.h"
#endif

namespace genmodels {

#if defined(__AMX_BF16__)
using Narrow = Amx;
#elif defined(__AVX512BF16__)
using Narrow = Bf16;
#endif

namespace {

// At its end the processor is as the call found it.
struct Visit {
  ~Visit() {
#if defined(__AMX_BF16__)
    Tiles::release();
#endif
  }
};

// A thread's kernel, kept from call to call: to make one takes as long as many steps of a small model. It holds nothing of the rows, and of a plan
// that is gone by now it reads nothing.
template <class Kernel>
struct Kept {
  Kept(const Call& call, int64_t rows) : plan(call.plan), room(rows), kernel(Plan(call.numbers, call.tensors), rows) { live.reserve(rows); }

  static Kept& of(const Call& call, int64_t rows) {
    if (!last || last->plan != call.plan || last->room < rows) {
      last.reset();  // before there are two
      last = std::make_unique<Kept>(call, rows);
    }
    return *last;
  }

  int64_t plan, room;
  Kernel kernel;
  std::vector<Row*> live;
  static inline thread_local std::unique_ptr<Kept> last;
};

// The call's steps, or as many as are left, of rows that are drawn together. -1, or the index of a row with a logit that is not finite.
template <class Kernel>
int64_t run(const Call& call, Row* rows, int64_t n) {
  auto& [plan, room, kernel, live] = Kept<Kernel>::of(call, n);
  for (int64_t at = 0; at < call.k; at++) {
    live.clear();
    for (int64_t r = 0; r < n; r++)
      if (rows[r].step < kernel.steps()) live.push_back(rows + r);
    if (live.empty()) return -1;
    const int64_t bad = kernel.step(live.data(), static_cast<int64_t>(live.size()), at);
    if (bad >= 0) return live[bad] - rows;
  }
  return -1;
}

// The sampler of one row on two threads, where there is one.
template <class Kernel>
struct Pair {
  using Sampler = void;
};
template <class A>
struct Pair<WaveNet<A>> {
  using Sampler = WaveNetPair<A>;
};
#if defined(__AVX512VNNI__)
template <>
struct Pair<WaveNet<Int8>> {  // its weights fit into one core's cache, and its products have no parts
  using Sampler = void;
};
#endif

// Rows split over threads, and in each into groups small enough for its caches; no row sees another.
template <class Kernel>
int64_t advance(const Call& call) {
  const int64_t n = call.n, threads = std::max<int64_t>(call.threads, 1), share = (n + threads - 1) / threads;
  std::atomic<int64_t> bad{-1};
  const auto work = [&](int64_t begin, int64_t end) {
    const Visit visit;
    try {
      if constexpr (!std::is_void_v<typename Pair<Kernel>::Sampler>)
        if (n == 1 && threads > 1) {
          bad = typename Pair<Kernel>::Sampler(Plan(call.numbers, call.tensors)).run(*call.rows, call.k) ? -1 : 0;
          return;
        }
      for (int64_t r = begin; r < end; r += Kernel::kTogether) {
        const int64_t found = run<Kernel>(call, call.rows + r, std::min(end - r, Kernel::kTogether));
        if (found >= 0) bad = r + found, Kept<Kernel>::last.reset();  // what is not finite may lie where others are padded
      }
    } catch (const std::bad_alloc&) {
      bad = -2, Kept<Kernel>::last.reset();
    }
  };
  std::vector<std::thread> others;
  for (int64_t begin = share; begin < n; begin += share) others.emplace_back(work, begin, std::min(n, begin + share));
  work(0, std::min(share, n));
  for (std::thread& other : others) other.join();
  return bad;
}

}  // namespace
}  // namespace genmodels

#define GENMODELS_SAMPLER(name, Kernel) \
  extern "C" int64_t genmodels_##name(const genmodels::Call* call) { return genmodels::advance<Kernel>(*call); }

GENMODELS_SAMPLER(wavenet_f32, genmodels::WaveNet<genmodels::F32>)
GENMODELS_SAMPLER(pixelcnn_f32, genmodels::PixelCNN<genmodels::F32>)
GENMODELS_SAMPLER(gated_pixelcnn_f32, genmodels::GatedPixelCNN<genmodels::F32>)
GENMODELS_SAMPLER(pixelcnnpp_f32, genmodels::PixelCNNPlusPlus<genmodels::F32>)
GENMODELS_SAMPLER(causal_f32, genmodels::Causal<genmodels::F32>)
GENMODELS_SAMPLER(nade_f32, genmodels::Nade<genmodels::F32>)

#if defined(__AVX512BF16__)
GENMODELS_SAMPLER(wavenet_int8, genmodels::WaveNet<genmodels::Int8>)
GENMODELS_SAMPLER(wavenet_bf16, genmodels::WaveNet<genmodels::Narrow>)
GENMODELS_SAMPLER(pixelcnn_bf16, genmodels::PixelCNN<genmodels::Narrow>)
GENMODELS_SAMPLER(gated_pixelcnn_bf16, genmodels::GatedPixelCNN<genmodels::Narrow>)
GENMODELS_SAMPLER(pixelcnnpp_bf16, genmodels::PixelCNNPlusPlus<genmodels::Narrow>)
GENMODELS_SAMPLER(causal_bf16, genmodels::Causal<genmodels::Narrow>)
GENMODELS_SAMPLER(nade_bf16, genmodels::Nade<genmodels::Narrow>)
#endif

// Raised with every change of Call, of Row or of what a plan holds: a library of another version is not used.
extern "C" int64_t genmodels_abi() { return 3; }

// Asks the system for what the copy needs beyond its instructions -> whether it may run.
extern "C" int64_t genmodels_allowed() {
#if defined(__AMX_BF16__)
  return genmodels::allow_tiles();
#else
  return 1;
#endif
}

// Which of the copies, counted as library.py does, is the last one that this processor can run.
extern "C" int64_t genmodels_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl"))
    return 1;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return 2;
  unsigned a, b, c, d;
  constexpr unsigned units = 1u << 24 | 1u << 22;  // AMX-TILE, AMX-BF16
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & units) == units ? 4 : 3;
#else
  return 0;
#endif
}
