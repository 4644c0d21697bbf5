// What a core of this machine does at most: multiply-adds a second, and bytes a second read from a buffer of some size.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float Vector __attribute__((vector_size(32)));
#else
typedef float Vector __attribute__((vector_size(16)));
#endif
#if defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = sizeof(Vector) / 4, kChains = 12;
volatile float sink;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Chains that the compiler cannot know to be equal.
template <class Chain>
struct Chains {
  Chain at[kChains] = {};
  Chains() {
    for (auto& each : at) asm volatile("" : "+v"(each));
  }
};

template <class Chain, class Step>
double rate(Step step, int64_t turns) {
  Chains<Chain> begin;
  Chain* chains = begin.at;
  const double begun = now();
  for (int64_t t = 0; t < turns; t++)
    for (int i = 0; i < kChains; i++) chains[i] = step(chains[i]);
  for (int i = 0; i < kChains; i++) asm volatile("" : "+v"(chains[i]));
  return static_cast<double>(turns) * kChains / (now() - begun);
}

}  // namespace

// Multiply-adds a second in float32.
extern "C" double peak_f32() {
  Vector a = Vector{} + 0.999f, b = Vector{} + 0.001f;
  asm volatile("" : "+v"(a), "+v"(b));
  return kLanes * rate<Vector>([&](Vector c) { return c * a + b; }, 20'000'000);
}

// Multiply-adds a second of bf16 pairs; 0 where the processor has no such instruction.
extern "C" double peak_bf16() {
#if defined(__AVX512BF16__)
  __m512i a = _mm512_set1_epi32(0x3f803f80);
  asm volatile("" : "+v"(a));
  return 32 * rate<__m512>([&](__m512 c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)a); }, 10'000'000);
#else
  return 0;
#endif
}

// Multiply-adds a second of eight-bit fours; 0 where the processor has no such instruction.
extern "C" double peak_int8() {
#if defined(__AVX512VNNI__)
  __m512i a = _mm512_set1_epi32(0x01010101);
  asm volatile("" : "+v"(a));
  return 64 * rate<__m512i>([&](__m512i c) { return _mm512_dpbusd_epi32(c, a, a); }, 10'000'000);
#else
  return 0;
#endif
}

// Bytes a second, read in order from a buffer of so many bytes, again and again.
extern "C" double read_rate(int64_t bytes) {
  const int64_t count = bytes / sizeof(Vector) / 8 * 8;
  auto* data = static_cast<Vector*>(std::aligned_alloc(1 << 21, (bytes + (1 << 21)) >> 21 << 21));
  std::memset(data, 0, bytes);
  Vector sums[8] = {};
  const auto pass = [&] {
    for (int64_t i = 0; i < count; i += 8)
      for (int j = 0; j < 8; j++) sums[j] += data[i + j];
    asm volatile("" ::: "memory");
  };
  pass(), pass();
  int64_t passes = 0;
  const double begun = now();
  while (now() - begun < 0.2) pass(), passes++;
  const double seconds = now() - begun;
  float sum = 0;
  for (auto& each : sums) sum += each[0];
  sink = sum;
  std::free(data);
  return static_cast<double>(passes) * count * sizeof(Vector) / seconds;
}
