// Vectors of 4 floats in the compiler's own vector types: any processor (SSE2, NEON, ...).
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace visiongate {
namespace {

struct Simd {
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kTileVectors = 2;

  static Float zero() { return Float{}; }
  static Float set1(float x) { return Float{x, x, x, x}; }
  static Float load(const float* p) {
    Float x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, Float x) { memcpy(p, &x, sizeof x); }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static Float max(Float a, Float b) { return a > b ? a : b; }
  static Float min(Float a, Float b) { return a < b ? a : b; }
  static Float abs(Float a) { return a < 0.0f ? -a : a; }
  static float sum(Float a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float largest(Float a) { return fmaxf(fmaxf(a[0], a[1]), fmaxf(a[2], a[3])); }

  static Float first_lanes(int count, Float a, Float b) {
    return Int{0, 1, 2, 3} < count ? a : b;
  }

  static bool any_greater(Float a, Float b) {
    const Int is_greater = a > b;
    return (is_greater[0] | is_greater[1] | is_greater[2] | is_greater[3]) != 0;
  }

  // x + 1.5 * 2 ** 23 holds n in its lowest bits, from where it moves into the exponent of p.
  static Float split(Float x, Float& fraction) {
    x = max(x, set1(-127.0f));
    const Float moved = x + set1(12582912.0f);
    fraction = x - (moved - set1(12582912.0f));
    return moved;
  }
  static Float times_power(Float p, Float n) { return (Float)((Int)p + ((Int)n << 23)); }
  static Float round(Float a) {  // |a| < 2 ** 22
    const Float big = set1(12582912.0f);  // 1.5 * 2 ** 23
    return a + big - big;
  }

  static Int load_int(const void* p) {
    Int x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static Float load(const uint16_t* p) {
    const Int words{p[0], p[1], p[2], p[3]};
    return (Float)(words << 16);
  }
  static void store(uint16_t* p, Float x) {
    for (int i = 0; i < kLanes; ++i) p[i] = to_bfloat16(x[i]);
  }
  static void store_two(uint16_t* p, Float first, Float second) {
    store(p, first);
    store(p + kLanes, second);
  }
  static uint16_t to_bfloat16(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }

  static Float first_of_pairs(const uint16_t* p) { return (Float)(load_int(p) << 16); }
  static Float second_of_pairs(const uint16_t* p) {
    return (Float)(load_int(p) & (int32_t)0xffff0000u);
  }

  static void join_pairs(const uint16_t* first, const uint16_t* second, uint32_t* pairs) {
    for (int i = 0; i < 2 * kLanes; ++i) pairs[i] = first[i] | (uint32_t)second[i] << 16;
  }

  using Pairs = Int;
  static Pairs load_pairs(const uint16_t* p) { return load_int(p); }
  static Float add_pairs(Float sums, Pairs pairs, uint32_t x) {
    const int32_t first = (int32_t)(x << 16), second = (int32_t)(x & 0xffff0000u);
    sums = sums + (Float)(pairs << 16) * (Float)(Int{} + first);
    return sums + (Float)(pairs & (int32_t)0xffff0000u) * (Float)(Int{} + second);
  }

  static Int add_quads(Int sums, Int quads, uint32_t x) {
    sums += (quads << 24 >> 24) * (int32_t)(x & 255);
    sums += (quads << 16 >> 24) * (int32_t)(x >> 8 & 255);
    sums += (quads << 8 >> 24) * (int32_t)(x >> 16 & 255);
    return sums + (quads >> 24) * (int32_t)(x >> 24);
  }
  static Float to_float(Int a) { return __builtin_convertvector(a, Float); }

  static constexpr bool kHasPowers = false;
  // Writes the nearest whole numbers, at least 0 and at most 255, of four vectors.
  static void store_bytes(uint8_t* p, const Float (&x)[4]) {
    for (int v = 0; v < 4; ++v) {
      const Float whole = min(round(x[v]), set1(255.0f));
      for (int i = 0; i < kLanes; ++i) p[v * kLanes + i] = (uint8_t)(int)whole[i];
    }
  }
  static Int add_bytes(Int sums, const uint8_t* p) {
    const Int quads = load_int(p);
    return sums + (quads & 255) + (quads >> 8 & 255) + (quads >> 16 & 255) + (quads >> 24 & 255);
  }

  static void store_quantized(uint8_t* p, Float scaled) {
    const Float whole = add(round(scaled), set1(128.0f));
    for (int i = 0; i < kLanes; ++i) p[i] = (uint8_t)(int)whole[i];
  }

  static void expect_write(const char* p) { __builtin_prefetch(p, 1, 3); }

  static void transpose8(const uint32_t* const rows[8], uint32_t* columns, int64_t stride) {
    for (int j = 0; j < 8; ++j)
      for (int i = 0; i < 8; ++i) columns[j * stride + i] = rows[i][j];
  }
  static void transpose(const uint32_t* const rows[kLanes], uint32_t* columns, int64_t stride) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = 0; j < kLanes; ++j) columns[j * stride + i] = rows[i][j];
  }
};

}  // namespace
}  // namespace visiongate
