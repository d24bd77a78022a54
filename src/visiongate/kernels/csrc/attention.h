// Attention, for pictures (every key) and for text over the paged cache (keys up to the row's own).
//
// Work is cut into (sequence, key head, block of query tokens). The query heads that share a key head
// are rows of one tile. Keys are taken in blocks of 256 that start at multiples of 256:
//
//     scores (rows, 256) = q . keys^T;  probabilities = 2 ** (scores * factor - shift)
//     sums (rows, D) = sums * 2 ** (old shift - new shift) + probabilities . values
//
// A row's shift is the highest score of the block that set it. Only a block that goes beyond it by
// more than `kRoom` sets it anew: nearly every block leaves the sums alone.
//
// A row meets the same blocks in the same order whether it comes alone (decoding) or among hundreds
// (a prompt), and keys that it may not see weigh exactly 0: its bits do not depend on the others.
#pragma once
#include "attention_int8.h"
#include "few_rows.h"

namespace visiongate {
namespace {

constexpr int64_t kBlockNumbers = 96 << 10;  // queries of a task, rows times D: half a cache

// Products of the cache's type: float32 keys and values, or bfloat16 ones in pairs.
template <class T>
struct ProductOf;
template <>
struct ProductOf<float> {
  using Type = Exact;
};
template <>
struct ProductOf<uint16_t> {
  using Type = Bfloat16Pairs;
};

// Rows of 32-bit words as panels of 64: `row(i)` gives row i of 256, or null for zeros.
template <class Row>
void pack_rows(int64_t num_steps, uint32_t* panels, const Row& row) {
  alignas(64) static const uint32_t zeros[Simd::kLanes] = {};
  for (int64_t first = 0; first < kKeys; first += Simd::kLanes) {
    const uint32_t* rows[Simd::kLanes];
    for (int64_t i = 0; i < Simd::kLanes; ++i) rows[i] = row(first + i);
    uint32_t* columns = panels + first / kPanel * kPanel * num_steps + first % kPanel;
    int64_t step = 0;
    for (; step + Simd::kLanes <= num_steps; step += Simd::kLanes) {
      const uint32_t* block[Simd::kLanes];
      for (int64_t i = 0; i < Simd::kLanes; ++i) block[i] = rows[i] ? rows[i] + step : zeros;
      Simd::transpose(block, columns + step * kPanel, kPanel);
    }
    for (; step < num_steps; ++step)
      for (int64_t i = 0; i < Simd::kLanes; ++i)
        columns[step * kPanel + i] = rows[i] ? rows[i][step] : 0;
  }
}

// Keys [begin, begin + count) in panels of 64; words along D are the steps.
template <class T>
void pack_keys(const Keys& keys, int64_t begin, int64_t count, T* panels) {
  pack_rows(keys.call.D * sizeof(T) / 4, (uint32_t*)panels, [&](int64_t key) {
    if (key >= count) return (const uint32_t*)nullptr;
    expect_row(keys.key<T>(begin + smaller(key + kRowsAhead, count - 1)), keys.call.D);
    return (const uint32_t*)keys.key<T>(begin + key);
  });
}

// Values of the same keys: key after key, each (padded D); of bfloat16, two keys interleaved.
inline void pack_values(const Keys& keys, int64_t begin, int64_t count, int64_t padded_D,
                        float* values) {
  for (int64_t key = 0; key < count; ++key) {
    expect_row(keys.value<float>(begin + smaller(key + kRowsAhead, count - 1)), keys.call.D);
    memcpy(values + key * padded_D, keys.value<float>(begin + key), keys.call.D * 4);
    for (int64_t d = keys.call.D; d < padded_D; ++d) values[key * padded_D + d] = 0;
  }
}
// A value as bfloat16, where it lies or in `row`; the one at `next` is read soon.
inline const uint16_t* bfloat16_value(const Keys& keys, int64_t position, int64_t next,
                                      uint16_t* row) {
  if (keys.call.v_type == kBfloat16) {
    expect_row(keys.value<uint16_t>(next), keys.call.D);
    return keys.value<uint16_t>(position);
  }
  expect_row(keys.value<float>(next), keys.call.D);
  const float* value = keys.value<float>(position);
  for (int64_t d = 0; d < keys.call.D; d += Simd::kLanes)
    Simd::store(row + d, load_part(value + d, keys.call.D - d));
  return row;
}
inline void pack_values(const Keys& keys, int64_t begin, int64_t count, int64_t padded_D,
                        uint16_t* values) {
  uint32_t* pairs = (uint32_t*)values;
  uint16_t* rows = (uint16_t*)scratch(kRow, 2 * padded_D * sizeof(uint16_t));
  const auto value = [&](int64_t key, uint16_t* row) {
    return bfloat16_value(keys, begin + key, begin + smaller(key + kRowsAhead, count - 1), row);
  };
  for (int64_t key = 0; key < count; key += 2, pairs += padded_D) {
    const uint16_t* first = value(key, rows);
    if (key + 1 < count) {
      const uint16_t* second = value(key + 1, rows + padded_D);
      for (int64_t d = 0; d < keys.call.D; ++d) pairs[d] = first[d] | (uint32_t)second[d] << 16;
    } else {
      for (int64_t d = 0; d < keys.call.D; ++d) pairs[d] = first[d];
    }
    for (int64_t d = keys.call.D; d < padded_D; ++d) pairs[d] = 0;
  }
}

// The running state of one query row.
struct RowState {
  float shift = -1e30f;  // of scores times the factor
  float sums[Simd::kLanes] = {};  // of the probabilities, lane by lane
};

// The part of a row of scores that may be seen: `part` in the first lanes, `other` in those after
// key `num_visible`.
template <bool kIsWhole>
inline __attribute__((always_inline)) Simd::Float visible_part(int64_t first, int64_t num_visible,
                                                               Simd::Float part,
                                                               Simd::Float other) {
  if (kIsWhole) return part;
  const int64_t left = larger(0, smaller(Simd::kLanes, num_visible - first));
  return Simd::first_lanes((int)left, part, other);
}

// The largest of a row's visible scores, lane by lane. `count` is a multiple of two vectors, and
// known to the compiler for a whole block.
template <bool kIsWhole>
inline __attribute__((always_inline)) Simd::Float highest_scores(const float* scores,
                                                                 int64_t count,
                                                                 int64_t num_visible) {
  const Simd::Float low = Simd::set1(-1e30f);
  Simd::Float tops[2] = {low, low};
#pragma GCC unroll 4
  for (int64_t first = 0; first < count; first += 2 * Simd::kLanes)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t key = first + v * Simd::kLanes;
      tops[v] = Simd::max(tops[v], visible_part<kIsWhole>(key, num_visible,
                                                          Simd::load(scores + key), low));
    }
  return Simd::max(tops[0], tops[1]);
}

// Writes 2 ** (scores * factor - shift) for the visible keys and zeros after them, and adds them to sums.
template <bool kIsWhole, class T>
inline __attribute__((always_inline)) void soften(const float* scores, T* probabilities,
                                                  int64_t count, int64_t num_visible,
                                                  float scale, RowState& row) {
  constexpr int kDegree = sizeof(T) == 4 ? 5 : 3;  // bfloat16 probabilities need fewer terms
  const Simd::Float shift = Simd::set1(-row.shift), factor = Simd::set1(scale);
  Simd::Float total = Simd::load(row.sums);
#pragma GCC unroll 4
  for (int64_t first = 0; first < count; first += 2 * Simd::kLanes) {
    Simd::Float p[2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t key = first + v * Simd::kLanes;
      p[v] = exp2<kDegree>(Simd::fma(Simd::load(scores + key), factor, shift));
      p[v] = visible_part<kIsWhole>(key, num_visible, p[v], Simd::zero());
      total = Simd::add(total, p[v]);
    }
    store_two(probabilities + first, p[0], p[1]);
  }
  Simd::store(row.sums, total);
}

// One item of work: rows of one sequence under one key head, and their running state. T is the
// caches' type, and that of queries and probabilities, too.
template <class T>
struct AttentionTask {
  using Product = typename ProductOf<T>::Type;
  static constexpr int kUnit = Product::kUnit;

  const AttentionCall& call;
  Keys keys;
  int64_t first_token, num_tokens;  // query rows of the call
  int64_t first_position;           // of first_token in its sequence
  int64_t num_keys;                 // visible to the last token
  int64_t group, padded_D;
  float factor;      // of scores, so that they are exponents of two
  T* q;              // tiles of 6 rows, interleaved step by step as in linear.h
  T* panels;         // (4, D, 64), the keys
  T* values;         // (256, padded D)
  float* sums;       // (rows, padded D)
  RowState* states;  // (rows)
  float* scores;     // (6, 256)
  T* softened;       // (6, 256)

  int64_t num_rows() const { return num_tokens * group; }

  // Keys visible to a row, counted from the start of its sequence.
  int64_t visible(int64_t row) const {
    return call.is_causal ? first_position + row / group + 1 : num_keys;
  }

  void take_memory() {
    const int64_t rows = num_rows(), D = call.D;
    const int64_t sizes[] = {
        rows * D * (int64_t)sizeof(T),
        kKeys * D * (int64_t)sizeof(T),
        kKeys * padded_D * (int64_t)sizeof(T),
        rows * padded_D * 4,
        rows * (int64_t)sizeof(RowState),
        kMaxRows * kKeys * 4,
        kMaxRows * kKeys * 4,
    };
    char* parts[7];
    scratch_parts(kAttention, sizes, parts);
    q = (T*)parts[0];
    panels = (T*)parts[1];
    values = (T*)parts[2];
    sums = (float*)parts[3];
    states = (RowState*)parts[4];
    scores = (float*)parts[5];
    softened = (T*)parts[6];
  }

  void read_queries() {
    const int64_t D = call.D, num_words = D * sizeof(T) / 4;
    T* one = (T*)scratch(kRow, round_up(D, Simd::kLanes) * sizeof(T));
    memset(sums, 0, num_rows() * padded_D * sizeof(float));
    with_type(call.q_type, call.q, [&](auto* from) {
      for (int64_t row = 0; row < num_rows(); ++row) {
        const int64_t token = first_token + row / group, head = keys.head * group + row % group;
        const auto* x = from + token * call.q_stride + head * D;
        if (row % group == 0) expect_row(x + kRowsAhead * call.q_stride, group * D);
        states[row] = RowState();
        for (int64_t d = 0; d < D; d += Simd::kLanes) Simd::store(one + d, load_part(x + d, D - d));
        const int64_t first = row / kMaxRows * kMaxRows;
        interleave<uint32_t>(one, q + first * D, row - first,
                             smaller(kMaxRows, num_rows() - first), num_words);
      }
    });
  }

  // Adds one block of keys to `kRows` rows. Keys that none of them sees are left out: they would
  // add exactly nothing.
  template <int kRows>
  void attend_tile(int64_t first_row, int64_t begin, int64_t count) {
    count = smaller(count, visible(first_row + kRows - 1) - begin);
    const int64_t num_panels = (count + kPanel - 1) / kPanel;
    for (int64_t panel = 0; panel < num_panels; ++panel)
      multiply_columns<Product, kRows, kUnit, kRows * kUnit, true>(
          q + first_row * call.D, panels + panel * kPanel * call.D, kPanel * kUnit,
          scores + panel * kPanel, kKeys, kPanel, call.D / kUnit, Nothing());
    soften_block<kRows>(first_row, begin, count);
    multiply_columns<Product, kRows, kKeys, kUnit, false>(
        softened, values, padded_D * kUnit, sums + first_row * padded_D, padded_D, padded_D,
        (count + kUnit - 1) / kUnit, Nothing());
  }

  template <int kRows>
  void soften_block(int64_t first_row, int64_t begin, int64_t count) {
    if (visible(first_row) - begin >= kKeys && count == kKeys)
      soften_tile<kRows, true>(first_row, begin, kKeys, kKeys);
    else
      soften_tile<kRows, false>(first_row, begin, count, round_up(count, 2 * Simd::kLanes));
  }

  // Scores to probabilities. Each stage is done for all rows before the next begins, because a
  // row's own stages wait for each other.
  template <int kRows, bool kIsWhole>
  inline __attribute__((always_inline)) void soften_tile(int64_t first_row, int64_t begin,
                                                         int64_t count, int64_t padded_count) {
    int64_t num_visible[kRows];
    Simd::Float highest[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      num_visible[r] = kIsWhole ? kKeys : smaller(count, visible(first_row + r) - begin);
      highest[r] = Simd::mul(
          Simd::set1(factor),
          highest_scores<kIsWhole>(scores + r * kKeys, padded_count, num_visible[r]));
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const RowState& row = states[first_row + r];
      if (__builtin_expect(Simd::any_greater(highest[r], Simd::set1(row.shift + kRoom)), false))
        move_shift(first_row + r, Simd::largest(highest[r]));
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
      soften<kIsWhole>(scores + r * kKeys, softened + r * kKeys, padded_count, num_visible[r],
                       factor, states[first_row + r]);
  }

  __attribute__((noinline)) void move_shift(int64_t row, float shift) {
    RowState& state = states[row];
    const float keep = exp2_of<5>(state.shift - shift);
    state.shift = shift;
    for (float& sum : state.sums) sum *= keep;
    scale_row(sums + row * padded_D, keep);
  }

  void scale_row(float* row, float factor) const {
    for (int64_t d = 0; d < padded_D; d += Simd::kLanes)
      Simd::store(row + d, Simd::mul(Simd::load(row + d), Simd::set1(factor)));
  }

  // `attend_tile` for rows that read keys and values where they lie (few_rows.h), to the same bits.
  template <int kRows>
  void attend_few(int64_t begin, int64_t count) {
    const Reading<T> reading{keys, begin, begin + count, num_keys};
    score_rows<kRows>(reading, q, call.D, scores);
    soften_block<kRows>(0, begin, count);
    add_values<kRows>(reading, softened, call.D, sums, values);
  }

  void attend_block(int64_t begin) {
    const int64_t count = smaller(kKeys, num_keys - begin);
    if (reads_in_place<T>(call, num_rows()))
      return with_rows(num_rows(), [&](auto n) { attend_few<decltype(n)::value>(begin, count); });
    pack_keys(keys, begin, count, panels);
    pack_values(keys, begin, count, padded_D, values);
    for (int64_t row = 0; row < num_rows(); row += kMaxRows) {
      const int64_t rows = smaller(kMaxRows, num_rows() - row);
      if (visible(row + rows - 1) <= begin) continue;  // all keys lie after these rows
      with_rows(rows, [&](auto n) { attend_tile<decltype(n)::value>(row, begin, count); });
    }
  }

  void write_rows() {
    with_type(call.q_type, call.out, [&](auto* out) {
      for (int64_t row = 0; row < num_rows(); ++row) {
        const int64_t token = first_token + row / group, head = keys.head * group + row % group;
        auto* to = out + (token * call.Hq + head) * call.D;
        const Simd::Float factor = Simd::set1(1.0f / Simd::sum(Simd::load(states[row].sums)));
        for (int64_t d = 0; d < call.D; d += Simd::kLanes)
          store_part(to + d, Simd::mul(Simd::load(sums + row * padded_D + d), factor),
                     call.D - d);
      }
    });
  }

  void run() {
    take_memory();
    read_queries();
    for (int64_t begin = 0; begin < num_keys; begin += kKeys) attend_block(begin);
    write_rows();
  }
};

template <class T>
void attention_as(const AttentionCall& call) {
  const int64_t group = call.Hq / call.Hkv;
  // Few enough rows that every thread gets some tasks, if there are as many.
  const int64_t share = call.bounds[call.num_sequences] * call.Hkv / (4 * num_threads());
  const int64_t most_tokens =
      larger(1, smaller(kBlockNumbers / (call.D * group), larger(kMaxRows * 8, share)));
  const auto rows_of = [&](int64_t b) { return call.bounds[b + 1] - call.bounds[b]; };
  // Blocks are numbered sequence by sequence; a block's index is found again by counting.
  const auto blocks_of = [&](int64_t b) { return (rows_of(b) + most_tokens - 1) / most_tokens; };
  int64_t num_blocks = 0;
  for (int64_t b = 0; b < call.num_sequences; ++b) num_blocks += blocks_of(b);
  parallel(num_blocks * call.Hkv, [&](int64_t item) {
    const int64_t head = item / num_blocks;
    int64_t block = num_blocks - 1 - item % num_blocks, b = 0;  // long rows first
    while (block >= blocks_of(b)) block -= blocks_of(b++);
    const int64_t num_rows = rows_of(b);
    const int64_t num_before = call.lengths ? call.lengths[b] - num_rows : 0;
    const int64_t begin = num_rows * block / blocks_of(b);
    const int64_t end = num_rows * (block + 1) / blocks_of(b);
    AttentionTask<T> task{call, Keys{call, b, head, call.bounds[b]}};
    task.first_token = call.bounds[b] + begin;
    task.num_tokens = end - begin;
    task.first_position = num_before + begin;
    task.num_keys = call.is_causal ? num_before + end : num_rows;
    task.group = group;
    task.factor = call.scale * 1.44269504f;
    task.padded_D = round_up(call.D, Simd::kLanes);
    task.run();
  });
}

inline void attention(const AttentionCall& call) {
  if (call.is_int8) return attention_int8(call);
  if (call.kv_type == kFloat32) return attention_as<float>(call);
  attention_as<uint16_t>(call);
}

}  // namespace
}  // namespace visiongate
