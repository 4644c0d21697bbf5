// A vector of floats as wide as the instruction set that this copy is built for, and the functions that networks are made of.
//
// The copies with fused multiply-add (AVX2, AVX-512) do the same operations in the same order, so their bytes are the same. Nothing here may be
// contracted or reordered by the compiler: build with -ffp-contract=off and without -ffast-math.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace genmodels {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
using Vector = __m512;
inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vector a) { _mm512_storeu_ps(p, a); }
inline Vector all(float a) { return _mm512_set1_ps(a); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
inline Vector where_positive(Vector test, Vector a, Vector b) { return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(test, all(0), _CMP_GT_OQ), a); }
#elif defined(__AVX2__)
constexpr int kWidth = 8;
using Vector = __m256;
inline Vector load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vector a) { _mm256_storeu_ps(p, a); }
inline Vector all(float a) { return _mm256_set1_ps(a); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
inline Vector where_positive(Vector test, Vector a, Vector b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(test, all(0), _CMP_GT_OQ)); }
#else
constexpr int kWidth = 4;
typedef float Vector __attribute__((vector_size(16)));
inline Vector load(const float* p) { Vector a; std::memcpy(&a, p, sizeof a); return a; }
inline void store(float* p, Vector a) { std::memcpy(p, &a, sizeof a); }
inline Vector all(float a) { return Vector{a, a, a, a}; }
inline Vector fma(Vector a, Vector b, Vector c) {
#if defined(__FP_FAST_FMAF)  // a machine whose plain instructions have it, as 64-bit Arm
  for (int i = 0; i < 4; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
inline Vector max(Vector a, Vector b) { return a > b ? a : b; }
inline Vector min(Vector a, Vector b) { return a < b ? a : b; }
inline Vector where_positive(Vector test, Vector a, Vector b) { return test > all(0) ? a : b; }
#endif

typedef int32_t Words __attribute__((vector_size(4 * kWidth)));

// exp within 2e-7 relative, by Cephes' polynomial; arguments beyond [-87, 88] count as those ends.
inline Vector exp(Vector x) {
  x = min(max(x, all(-87.f)), all(88.f));
  const Vector magic = all(12582912.f);  // adding it leaves the nearest whole number in the low bits
  Vector shifted = fma(x, all(1.44269504f), magic), n = shifted - magic;
  Vector r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Vector p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p * r, r, r + all(1.f));
  Words exponent = ((Words)shifted << 23) + (127 << 23);
  return p * (Vector)exponent;
}

// log within 1e-7 relative or absolute, by Cephes' polynomial; of positive normal numbers.
inline Vector log(Vector x) {
  const Words exponent = ((Words)x - 0x3F3504F3) >> 23;  // 0x3F3504F3: the square root of a half, from which on a mantissa counts to the next power
  const Vector n = __builtin_convertvector(exponent, Vector), r = (Vector)((Words)x - (exponent << 23)) - all(1.f), square = r * r;
  Vector p = fma(all(7.0376836292e-2f), r, all(-1.1514610310e-1f));
  p = fma(p, r, all(1.1676998740e-1f));
  p = fma(p, r, all(-1.2420140846e-1f));
  p = fma(p, r, all(1.4249322787e-1f));
  p = fma(p, r, all(-1.6668057665e-1f));
  p = fma(p, r, all(2.0000714765e-1f));
  p = fma(p, r, all(-2.4999993993e-1f));
  p = fma(p, r, all(3.3333331174e-1f));
  p = fma(n, all(-2.12194440e-4f), p * r * square);
  return fma(n, all(0.693359375f), r + fma(square, all(-0.5f), p));
}

inline Vector plus(Vector a, Vector b) { return a + b; }

inline Vector relu(Vector a) { return max(a, all(0)); }

inline Vector elu(Vector a) { return where_positive(a, a, exp(min(a, all(0))) - all(1.f)); }

inline Vector sigmoid(Vector a) { return all(1.f) / (all(1.f) + exp(all(0) - a)); }

// Beyond 9 it is 1 in float32.
inline Vector tanh(Vector a) {
  a = min(max(a, all(-9.f)), all(9.f));
  const Vector e = exp(a + a), one = all(1.f);
  return (e - one) / (e + one);
}

// tanh(a) sigmoid(b); beyond 9 a tanh is 1 in float32.
inline Vector gate(Vector a, Vector b) {
  a = min(max(a, all(-9.f)), all(9.f));
  Vector e = exp(a + a), one = all(1.f);
  return (e - one) / ((e + one) * (one + exp(all(0) - b)));
}

// The sum of 16 floats as a tree of halves: the same order at every width.
inline float sum16(const float* p) {
#if defined(__AVX512F__)
  __m512 v = load(p);
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
#elif defined(__AVX2__)
  __m256 half = _mm256_add_ps(load(p), load(p + 8));
#endif
#if defined(__AVX2__)
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  Vector quarter = (load(p) + load(p + 8)) + (load(p + 4) + load(p + 12));
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
#endif
}

// n floats, n a multiple of 16.
inline void copy(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; i += kWidth) store(y + i, load(x + i));
}

// f over n floats, n a multiple of 16: y[i] = f(x[i]).
template <class F>
inline void each(int64_t n, const float* x, float* y, F f) {
  for (int64_t i = 0; i < n; i += kWidth) store(y + i, f(load(x + i)));
}

template <class F>
inline void each(int64_t n, const float* a, const float* b, float* y, F f) {
  for (int64_t i = 0; i < n; i += kWidth) store(y + i, f(load(a + i), load(b + i)));
}

}  // namespace genmodels
