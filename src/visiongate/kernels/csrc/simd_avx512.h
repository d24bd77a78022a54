// Vectors of 16 floats: AVX-512 with BF16 and VNNI.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#include "transpose8.h"

namespace visiongate {
namespace {

struct Simd {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kTileVectors = 4;  // vectors of sums a row of the widest register tile

  static Float zero() { return _mm512_setzero_ps(); }
  static Float set1(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float abs(Float a) { return _mm512_abs_ps(a); }
  static float sum(Float a) { return _mm512_reduce_add_ps(a); }
  static float largest(Float a) { return _mm512_reduce_max_ps(a); }

  // The first `count` lanes of a, the others of b.
  static Float first_lanes(int count, Float a, Float b) {
    return _mm512_mask_blend_ps((__mmask16)((1u << count) - 1), b, a);
  }

  // Whether a > b in any lane.
  static bool any_greater(Float a, Float b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
  }

  // The whole number n nearest x, in a form that only `times_power` reads, and x - n.
  static Float split(Float x, Float& fraction) {
    fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_sub_ps(x, fraction);
  }
  // p times 2 ** n.
  static Float times_power(Float p, Float n) { return _mm512_scalef_ps(p, n); }
  static Float round(Float a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }

  static Float load(const uint16_t* p) {  // bfloat16
    const __m256i halves = _mm256_loadu_si256((const __m256i*)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static void store(uint16_t* p, Float x) {
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
  }
  static void store_two(uint16_t* p, Float first, Float second) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(second, first));
  }

  // Of 16 pairs of bfloat16, the first or the second of each as float32.
  static Float first_of_pairs(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
  }
  static Float second_of_pairs(const uint16_t* p) {
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask));
  }

  // Pairs of 32 numbers and 32 others.
  static void join_pairs(const uint16_t* first, const uint16_t* second, uint32_t* pairs) {
    const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
    const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i odd = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(pairs, _mm512_permutex2var_epi64(low, even, high));
    _mm512_storeu_si512(pairs + kLanes, _mm512_permutex2var_epi64(low, odd, high));
  }

  // sums + first * first + second * second, over 16 pairs of bfloat16 and one pair x for all.
  using Pairs = __m512bh;
  static Pairs load_pairs(const uint16_t* p) { return (Pairs)_mm512_loadu_si512(p); }
  static Float add_pairs(Float sums, Pairs pairs, uint32_t x) {
    return _mm512_dpbf16_ps(sums, pairs, (Pairs)_mm512_set1_epi32((int)x));
  }

  // The same over 16 quads of int8 and one quad x of unsigned 8-bit numbers.
  static Int load_int(const void* p) { return _mm512_loadu_si512(p); }
  static Int add_quads(Int sums, Int quads, uint32_t x) {
    // GCC 12 copies and spills the sums around the intrinsic: half the speed.
    const Int four = _mm512_set1_epi32((int)x);
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(four), "v"(quads));
    return sums;
  }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }

  // Writes 255 * 2 ** (-x / 64) of four vectors, after rounding x, as bytes: adds 256ths, which go
  // to the numbers in an order of their own, and cuts off fractions. The words of `powers` are 256
  // times that for x from 0 to 63.
  static constexpr bool kHasPowers = true;
  static void store_powers(uint8_t* p, const Float (&x)[4], const uint16_t* parts) {
    alignas(64) static const uint16_t powers[64] = {
        65280, 64577, 63881, 63193, 62512, 61839, 61173, 60514, 59862, 59217, 58579, 57948, 57324,
        56707, 56096, 55491, 54894, 54302, 53717, 53139, 52566, 52000, 51440, 50886, 50338, 49796,
        49259, 48729, 48204, 47684, 47171, 46663, 46160, 45663, 45171, 44684, 44203, 43727, 43256,
        42790, 42329, 41873, 41422, 40976, 40534, 40098, 39666, 39238, 38816, 38398, 37984, 37575,
        37170, 36770, 36374, 35982, 35594, 35211, 34831, 34456, 34085, 33718, 33355, 32995,
    };
    const Int first = power(_mm512_packs_epi32(whole(x[0]), whole(x[1])), powers, parts);
    const Int second = power(_mm512_packs_epi32(whole(x[2]), whole(x[3])), powers, parts + 32);
    const Int order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
  }
  static Int whole(Float x) { return _mm512_cvtps_epi32(x); }
  // Words that are negative stand for x beyond their range.
  static Int power(Int x, const uint16_t* powers, const uint16_t* parts) {
    const Int first = _mm512_permutex2var_epi16(load_int(powers), x, load_int(powers + 32));
    const Int power = _mm512_srlv_epi16(first, _mm512_srli_epi16(x, 6));
    return _mm512_srli_epi16(_mm512_add_epi16(power, load_int(parts)), 8);
  }
  // Adds 64 such bytes, four to a lane.
  static Int add_bytes(Int sums, const uint8_t* p) {
    return _mm512_dpbusd_epi32(sums, load_int(p), _mm512_set1_epi8(1));
  }

  // Writes the nearest whole numbers of 16 in [-127, 127], plus 128.
  static void store_quantized(uint8_t* p, Float scaled) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
    _mm_storeu_si128((__m128i*)p, _mm_xor_si128(bytes, _mm_set1_epi8((char)0x80)));
  }

  // Fetches a line that will be written: any processor of this level has the instruction, which GCC
  // gives for the builtin only here and there.
  static void expect_write(const char* p) { __asm__ volatile("prefetchw %0" ::"m"(*p)); }

  static void transpose8(const uint32_t* const rows[8], uint32_t* columns, int64_t stride) {
    visiongate::transpose8(rows, columns, stride);
  }

  // 16 rows of 16 words become 16 columns: word j of row i goes to columns[j * stride + i].
  static void transpose(const uint32_t* const rows[kLanes], uint32_t* columns, int64_t stride) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // a[4 * g + c] now holds, for rows 4g to 4g + 3, columns c, 4 + c, 8 + c and 12 + c.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
      const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
      const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
      const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
      _mm512_storeu_si512(columns + c * stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
      _mm512_storeu_si512(columns + (4 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
      _mm512_storeu_si512(columns + (8 + c) * stride, _mm512_shuffle_i32x4(low01, low23, 0xdd));
      _mm512_storeu_si512(columns + (12 + c) * stride, _mm512_shuffle_i32x4(high01, high23, 0xdd));
    }
  }
};

}  // namespace
}  // namespace visiongate
