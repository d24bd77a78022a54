// Small things that every kernel uses, over the `Simd` of the level that includes this.
#pragma once
#include <stdint.h>
#include <string.h>

#include "layout.h"
#include "level.h"
#include "pool.h"

namespace visiongate {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Memory of a slot for several arrays, each at a multiple of 64 bytes.
template <int kParts>
void scratch_parts(ScratchSlot slot, const int64_t (&sizes)[kParts], char* (&parts)[kParts]) {
  int64_t total = 0;
  for (int64_t size : sizes) total += round_up(size, 64);
  char* memory = (char*)scratch(slot, total);
  for (int i = 0; i < kParts; memory += round_up(sizes[i], 64), ++i) parts[i] = memory;
}

// parallel_for over a lambda.
template <class Body>
void parallel(int64_t num_items, const Body& body) {
  parallel_for(
      num_items, [](void* context, int64_t item) { (*(const Body*)context)(item); },
      (void*)&body);
}

// The same over runs of rows that are worth a thread's while: about `kRunElements` numbers each.
template <class Body>
void parallel_rows(int64_t num_rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kRunElements = 16384;
  const int64_t rows_a_run = larger(1, kRunElements / larger(1, row_elements));
  const int64_t num_runs = (num_rows + rows_a_run - 1) / rows_a_run;
  parallel(num_runs, [&](int64_t run) {
    const int64_t end = smaller(num_rows, (run + 1) * rows_a_run);
    for (int64_t row = run * rows_a_run; row < end; ++row) body(row);
  });
}

// Writes the words of one row into its place among the `num_rows` rows of a tile.
template <class Word>
void interleave(const void* row, void* tile, int64_t r, int64_t num_rows, int64_t num_words) {
  const Word* from = (const Word*)row;
  Word* to = (Word*)tile + r;
  for (int64_t i = 0; i < num_words; ++i) to[i * num_rows] = from[i];
}

inline int64_t bytes_of(Type type) { return type == kFloat32 ? 4 : 2; }

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// `count` numbers at p, then zeros.
template <class T>
Simd::Float load_part(const T* p, int64_t count) {
  if (count >= Simd::kLanes) return Simd::load(p);
  T whole[Simd::kLanes] = {};
  memcpy(whole, p, count * sizeof(T));
  return Simd::load(whole);
}

inline void store_two(float* p, Simd::Float first, Simd::Float second) {
  Simd::store(p, first);
  Simd::store(p + Simd::kLanes, second);
}
inline void store_two(uint16_t* p, Simd::Float first, Simd::Float second) {
  Simd::store_two(p, first, second);
}

template <class T>
void store_part(T* p, Simd::Float x, int64_t count) {
  if (count >= Simd::kLanes) return Simd::store(p, x);
  T whole[Simd::kLanes];
  Simd::store(whole, x);
  memcpy(p, whole, count * sizeof(T));
}

// Calls f with p as float or as bfloat16 numbers, as the type says.
template <class F>
void with_type(Type type, const void* p, const F& f) {
  if (type == kFloat32)
    f((const float*)p);
  else
    f((const uint16_t*)p);
}
template <class F>
void with_type(Type type, void* p, const F& f) {
  if (type == kFloat32)
    f((float*)p);
  else
    f((uint16_t*)p);
}

template <class P>
struct Pointed;
template <class T>
struct Pointed<const T*> {
  using Type = T;
};
template <class T>
struct Pointed<T*> {
  using Type = T;
};
template <class P>
using NumberAt = typename Pointed<P>::Type;  // float for const float*

// 2 ** x for x up to 128, to a relative error of 2e-7 (degree 5) or 1e-4 (degree 3); exactly 1 at 0,
// infinite at 128, and no more than 2 ** -126 below -126. The polynomials have the least largest
// relative error on [-0.5, 0.5] among those that are 1 at 0.
template <int Degree>
inline __attribute__((always_inline)) Simd::Float exp2(Simd::Float x) {
  static_assert(Degree == 3 || Degree == 5, "no other polynomial is here");
  Simd::Float f, p;  // f in [-0.5, 0.5]
  const Simd::Float n = Simd::split(x, f);
  if (Degree == 5) {
    p = Simd::fma(Simd::set1(1.326472725e-3f), f, Simd::set1(9.671512688e-3f));
    p = Simd::fma(p, f, Simd::set1(5.550733744e-2f));
    p = Simd::fma(p, f, Simd::set1(2.402224208e-1f));
    p = Simd::fma(p, f, Simd::set1(6.931469776e-1f));
  } else {
    p = Simd::fma(Simd::set1(5.500893142e-2f), f, Simd::set1(2.422109622e-1f));
    p = Simd::fma(p, f, Simd::set1(6.932829274e-1f));
  }
  p = Simd::fma(p, f, Simd::set1(1.0f));
  return Simd::times_power(p, n);
}

// 2 ** x of one number.
template <int Degree>
inline float exp2_of(float x) {
  float lanes[Simd::kLanes];
  Simd::store(lanes, exp2<Degree>(Simd::set1(x)));
  return lanes[0];
}

// x / (1 + exp(-a)).
inline Simd::Float sigmoid_times(Simd::Float x, Simd::Float a) {
  const Simd::Float power = Simd::mul(a, Simd::set1(-1.44269504f));
  return Simd::div(x, Simd::add(Simd::set1(1.0f), exp2<5>(Simd::min(power, Simd::set1(128.0f)))));
}

// x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x ** 3)), which is GELU's tanh form.
inline Simd::Float tanh_gelu_of(Simd::Float x) {
  const Simd::Float square = Simd::mul(x, x);
  const Simd::Float inner = Simd::fma(square, Simd::set1(0.0713548163f), Simd::set1(1.59576912f));
  return sigmoid_times(x, Simd::mul(x, inner));
}

// x * (1 + erf(x / sqrt(2))) / 2, which is GELU itself. The half of erfc is a polynomial of
// 1 / (1 + 0.2316419 * |x|) times exp(-x * x / 2), to 8e-8; it stays above 2 ** -100, so that all numbers are normal ones.
// Source: Abramowitz and Stegun, 7.1.26.
inline Simd::Float erf_gelu_of(Simd::Float x) {
  const Simd::Float size = Simd::abs(x), one = Simd::set1(1.0f);
  const Simd::Float t = Simd::div(one, Simd::fma(size, Simd::set1(0.231641888f), one));
  Simd::Float p = Simd::fma(Simd::set1(0.5307027145f), t, Simd::set1(-0.7265760135f));
  p = Simd::fma(p, t, Simd::set1(0.7107068705f));
  p = Simd::fma(p, t, Simd::set1(-0.142248368f));
  p = Simd::fma(p, t, Simd::set1(0.127414796f));
  const Simd::Float power = Simd::mul(Simd::mul(x, x), Simd::set1(-0.72134752f));
  const Simd::Float bell = exp2<5>(Simd::max(power, Simd::set1(-100.0f)));
  const Simd::Float lost = Simd::mul(Simd::mul(Simd::mul(p, t), bell), size);
  return Simd::sub(Simd::max(x, Simd::zero()), lost);
}

// Quantises one group: whole numbers in [-127, 127] plus 128; returns the scale.
template <class T>
float quantize_group(const T* x, uint8_t* row, int64_t count) {
  constexpr int64_t kAhead = 1024;  // numbers: rows of many groups come from far away
  Simd::Float top = Simd::zero();
  for (int64_t k = 0; k < count; k += Simd::kLanes) {
    __builtin_prefetch(x + k + kAhead);
    top = Simd::max(top, Simd::abs(load_part(x + k, count - k)));
  }
  const float largest = Simd::largest(top) > 1e-30f ? Simd::largest(top) : 1e-30f;
  const Simd::Float inverse = Simd::set1(127.0f / largest);
  int64_t k = 0;
  for (; k + Simd::kLanes <= count; k += Simd::kLanes)
    Simd::store_quantized(row + k, Simd::mul(Simd::load(x + k), inverse));
  if (k < count) {
    uint8_t whole[Simd::kLanes];
    Simd::store_quantized(whole, Simd::mul(load_part(x + k, count - k), inverse));
    memcpy(row + k, whole, count - k);
  }
  return largest / 127.0f;
}

}  // namespace
}  // namespace visiongate
