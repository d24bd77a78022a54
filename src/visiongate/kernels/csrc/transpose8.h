// 8 rows of 8 words become 8 columns, with AVX2; for the levels that have it.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace visiongate {
namespace {

// Word j of row i goes to columns[j * stride + i]. Columns are written in order, each with 8 words.
inline void transpose8(const uint32_t* const rows[8], uint32_t* columns, int64_t stride) {
  __m256i a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_si256((const __m256i*)rows[i]);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[c] now holds columns c and 4 + c of rows 0 to 3, a[4 + c] the same of rows 4 to 7.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c)
    _mm256_storeu_si256((__m256i*)(columns + c * stride),
                        _mm256_permute2x128_si256(a[c], a[4 + c], 0x20));
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c)
    _mm256_storeu_si256((__m256i*)(columns + (4 + c) * stride),
                        _mm256_permute2x128_si256(a[c], a[4 + c], 0x31));
}

}  // namespace
}  // namespace visiongate
