// Attention of few rows, as an answer's next token is: keys and values are read once, where they lie in
// the cache. Packing them first, as many rows do, would take longer than their products.
//
// The products are those of the packed path in the same order, so the bits are the same.
#pragma once
#include "keys.h"

namespace visiongate {
namespace {

constexpr int64_t kAheadBytes = 8192;  // how far ahead keys and values are fetched

// Whether rows of T do: one tile of them, over rows of whole vectors of words.
template <class T>
bool reads_in_place(const AttentionCall& call, int64_t num_rows) {
  const int64_t row_bytes = call.D * sizeof(T);
  return call.block_table && num_rows <= kMaxRows && row_bytes % (Simd::kLanes * 4) == 0;
}

// Keys [begin, end), their values, and then the keys after them, in the order in which they are read.
template <class T>
struct Reading {
  const Keys& keys;
  int64_t begin, end, num_keys;

  const T* key(int64_t position) const { return keys.key<T>(smaller(position, end - 1)); }

  // What comes `kAheadBytes` after a key, or after a value.
  const T* after_key(int64_t position) const {
    position += num_ahead();
    if (position < end) return keys.key<T>(position);
    return keys.value<T>(smaller(begin + position - end, end - 1));
  }
  const T* after_value(int64_t position) const {
    position += num_ahead();
    if (position < end) return keys.value<T>(position);
    if (position < num_keys) return keys.key<T>(position);
    const Keys next{keys.call, keys.sequence, smaller(keys.head + 1, keys.call.Hkv - 1), 0};
    return next.key<T>(smaller(position - end, num_keys - 1));
  }

 private:
  int64_t num_ahead() const { return kAheadBytes / (keys.call.D * (int64_t)sizeof(T)); }
};

// Fetches the rows that a tile of columns will read later.
struct RowsAhead {
  const char* next;
  int64_t stride;
  inline __attribute__((always_inline)) void fetch() {
    constexpr int64_t kBytes = Simd::kTileVectors * Simd::kLanes * 4;
    for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(next + i, 0, 2);
    next += stride;
  }
};

// sum + a key's word times a query's, lane by lane.
inline Simd::Float add_words(Simd::Float sum, const uint32_t* words, const float* x) {
  return Simd::fma(Simd::load((const float*)words), Simd::set1(*x), sum);
}
inline Simd::Float add_words(Simd::Float sum, const uint32_t* words, const uint16_t* x) {
  return Simd::add_pairs(sum, Simd::load_pairs((const uint16_t*)words), load_word(x));
}

// Scores of `kRows` queries, interleaved step by step: some vectors of keys at a time, turned so that
// each lane adds up a key's. A vector's sums wait for each other; half as many words leave room for two.
template <int kRows, class T>
void score_rows(const Reading<T>& reading, const T* q, int64_t D, float* scores) {
  constexpr int64_t kLanes = Simd::kLanes, kUnit = 4 / sizeof(T), kVectors = kUnit;
  const int64_t num_words = D / kUnit, row_bytes = num_words * 4;
  alignas(64) uint32_t columns[kVectors][kLanes * kLanes];
  for (int64_t first = reading.begin; first < reading.end; first += kVectors * kLanes) {
    const uint32_t* rows[kVectors][kLanes];
    const char* next[kVectors];
    Simd::Float sums[kVectors][kRows];
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t key = first + v * kLanes;
      for (int64_t i = 0; i < kLanes; ++i) rows[v][i] = (const uint32_t*)reading.key(key + i);
      next[v] = (const char*)reading.after_key(key);
      for (Simd::Float& sum : sums[v]) sum = Simd::zero();
    }
    for (int64_t word = 0; word < num_words; word += kLanes) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) __builtin_prefetch(next[v] + i * row_bytes, 0, 2);
        next[v] += kLanes * 4;
        Simd::transpose(rows[v], columns[v], kLanes);
        for (const uint32_t*& row : rows[v]) row += kLanes;
      }
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
          for (int64_t v = 0; v < kVectors; ++v)
            sums[v][r] = add_words(sums[v][r], columns[v] + i * kLanes,
                                   q + ((word + i) * kRows + r) * kUnit);
    }
    for (int64_t v = 0; v < kVectors; ++v)
      for (int r = 0; r < kRows; ++r)
        Simd::store(scores + r * kKeys + first - reading.begin + v * kLanes, sums[v][r]);
  }
}

// Adds the values times their probabilities to the sums (kRows, D): float32 ones where they lie, a run
// of neighbours at a time.
template <int kRows>
void add_values(const Reading<float>& reading, const float* probabilities, int64_t D, float* sums,
                float*) {
  constexpr int64_t kWide = Simd::kTileVectors * Simd::kLanes;
  const int64_t block_size = reading.keys.call.block_size;
  for (int64_t first = reading.begin, run; first < reading.end; first += run, probabilities += run) {
    run = smaller(reading.end - first, block_size - first % block_size);
    const float* values = reading.keys.value<float>(first);
    const float* next = reading.after_value(first);
    int64_t column = 0;
    for (; column + kWide <= D; column += kWide)
      Exact::multiply<kRows, Simd::kTileVectors, false>(
          probabilities, kKeys, 1, values + column, D, sums + column, D, run,
          RowsAhead{(const char*)(next + column), D * 4});
    for (; column < D; column += Simd::kLanes)
      Exact::multiply<kRows, 1, false>(probabilities, kKeys, 1, values + column, D, sums + column,
                                       D, run, Nothing());
  }
}

// The same of bfloat16 ones, two keys' at a time, joined in `pairs` first.
template <int kRows>
void add_values(const Reading<uint16_t>& reading, const uint16_t* probabilities, int64_t D,
                float* sums, uint16_t* pairs) {
  constexpr int64_t kRun = 16;
  static const uint16_t zeros[2 * Simd::kLanes] = {};
  for (int64_t first = reading.begin; first < reading.end; first += kRun, probabilities += kRun) {
    const int64_t run = smaller(kRun, reading.end - first);
    const uint16_t* next = reading.after_value(first);
    uint32_t* both = (uint32_t*)pairs;
    for (int64_t key = first; key < first + run; key += 2, both += D) {
      const bool is_pair = key + 1 < first + run;
      const uint16_t* one = reading.keys.value<uint16_t>(key);
      const uint16_t* other = is_pair ? reading.keys.value<uint16_t>(key + 1) : zeros;
      for (int64_t d = 0; d < D; d += 2 * Simd::kLanes) {
        __builtin_prefetch(next + d, 0, 2);
        __builtin_prefetch(next + D + d, 0, 2);
        Simd::join_pairs(one + d, is_pair ? other + d : zeros, both + d);
      }
      next += 2 * D;
    }
    multiply_columns<Bfloat16Pairs, kRows, kKeys, 2, false>(probabilities, pairs, D * 2, sums, D, D,
                                                            (run + 1) / 2, Nothing());
  }
}

}  // namespace
}  // namespace visiongate
