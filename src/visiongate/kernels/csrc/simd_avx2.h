// Vectors of 8 floats: AVX2 with FMA. bfloat16 products are done in float32, int8 ones in 16 bits.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "transpose8.h"

namespace visiongate {
namespace {

struct Simd {
  using Float = __m256;
  using Int = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kTileVectors = 2;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set1(float x) { return _mm256_set1_ps(x); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static float sum(Float a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float largest(Float a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }

  static Float first_lanes(int count, Float a, Float b) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i is_first = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(is_first));
  }

  static bool any_greater(Float a, Float b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }

  // x + 1.5 * 2 ** 23 holds n in its lowest bits, from where it moves into the exponent of p.
  static Float split(Float x, Float& fraction) {
    x = max(x, set1(-127.0f));
    const Float moved = add(x, set1(12582912.0f));
    fraction = sub(x, sub(moved, set1(12582912.0f)));
    return moved;
  }
  static Float times_power(Float p, Float n) {
    const Int exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }
  static Float round(Float a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  static Float load(const uint16_t* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  static void store(uint16_t* p, Float x) {  // to nearest, ties to even; NaN stays NaN
    const Int bits = _mm256_castps_si256(x);
    const Int odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Int bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const Int rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const Int is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const Int words = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    const Int packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }
  static void store_two(uint16_t* p, Float first, Float second) {
    store(p, first);
    store(p + kLanes, second);
  }

  static Float first_of_pairs(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 16));
  }
  static Float second_of_pairs(const uint16_t* p) {
    const Int mask = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), mask));
  }

  static void join_pairs(const uint16_t* first, const uint16_t* second, uint32_t* pairs) {
    const Int a = _mm256_loadu_si256((const Int*)first), b = _mm256_loadu_si256((const Int*)second);
    const Int low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_storeu_si256((Int*)pairs, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((Int*)(pairs + kLanes), _mm256_permute2x128_si256(low, high, 0x31));
  }

  using Pairs = __m256i;
  static Pairs load_pairs(const uint16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static Float add_pairs(Float sums, Pairs pairs, uint32_t x) {
    const Int both = _mm256_set1_epi32((int)x), mask = _mm256_set1_epi32((int)0xffff0000u);
    const Float first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    const Float second = _mm256_castsi256_ps(_mm256_and_si256(pairs, mask));
    sums = fma(first, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), sums);
    return fma(second, _mm256_castsi256_ps(_mm256_and_si256(both, mask)), sums);
  }

  static Int load_int(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static Int add_quads(Int sums, Int quads, uint32_t x) {
    const Int four = _mm256_set1_epi32((int)x), low = _mm256_set1_epi32(0x00ff00ff);
    const Int even = _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
    const Int odd = _mm256_srai_epi16(quads, 8);
    const Int x_even = _mm256_and_si256(four, low), x_odd = _mm256_srli_epi16(four, 8);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(even, x_even));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(odd, x_odd));
  }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }

  static constexpr bool kHasPowers = false;
  // Writes the nearest whole numbers, at least 0 and at most 255, of four vectors.
  static void store_bytes(uint8_t* p, const Float (&x)[4]) {
    const Int first = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
    const Int second = _mm256_packs_epi32(_mm256_cvtps_epi32(x[2]), _mm256_cvtps_epi32(x[3]));
    const Int order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const Int bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
    _mm256_storeu_si256((__m256i*)p, bytes);
  }
  static Int add_bytes(Int sums, const uint8_t* p) {
    const Int pairs = _mm256_maddubs_epi16(load_int(p), _mm256_set1_epi8(1));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  static void store_quantized(uint8_t* p, Float scaled) {
    alignas(32) int32_t words[kLanes];
    const Float whole = add(round(scaled), set1(128.0f));
    _mm256_store_si256((__m256i*)words, _mm256_cvtps_epi32(whole));
    for (int i = 0; i < kLanes; ++i) p[i] = (uint8_t)words[i];
  }

  static void expect_write(const char* p) { __builtin_prefetch(p, 1, 3); }

  static void transpose8(const uint32_t* const rows[8], uint32_t* columns, int64_t stride) {
    visiongate::transpose8(rows, columns, stride);
  }
  static void transpose(const uint32_t* const rows[kLanes], uint32_t* columns, int64_t stride) {
    transpose8(rows, columns, stride);
  }
};

}  // namespace
}  // namespace visiongate
