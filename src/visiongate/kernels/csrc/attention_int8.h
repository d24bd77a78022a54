// Attention within pictures in int8: queries times keys, and probabilities times values.
//
//   1. Each picture's keys and values are packed once, head by head (packed_heads.h).
//   2. Tasks of `kTaskRows` queries under one head meet the blocks of 256 keys in order (`RowsTask`):
//
//     scores (rows, 256) = q . keys^T
//     probabilities = 255 * 2 ** (scores * factor - the row's highest in this block), rounded
//     sums (rows, D) += 2 ** (that highest - shift) * (probabilities . values)
//
// Probabilities are quantised against their own block's highest, so that a block of many small ones
// counts in full; they are normalised by the sum of what they were rounded to. A block's sums are whole
// numbers below 2 ** 24. A row meets the same blocks in the same order in any task: its bits depend on
// its picture alone.
#pragma once
#include "packed_heads.h"
#include "tile.h"

namespace visiongate {
namespace {

constexpr int64_t kTaskRows = 96;  // queries of a task: as many share a block in the cache

// Whole sums before the first key.
alignas(64) const int32_t kNoKeys[Simd::kTileVectors * Simd::kLanes] = {};

// What is added to probabilities before their fractions are cut off, in 256ths, for each key of a
// block: all of 0 to 255, spread so that neighbours differ. Rounding to the nearest would lose the
// many small ones beside a large one.
struct Dither {
  alignas(64) uint16_t parts[kKeys] = {};
  alignas(64) float beyond_half[kKeys] = {};
  constexpr Dither() {
    for (int64_t key = 0; key < kKeys; ++key) {
      parts[key] = (uint16_t)(key * 159 % 256);
      beyond_half[key] = ((float)parts[key] + 0.5f) / 256 - 0.5f;
    }
  }
};
constexpr Dither kDither;

// Writes 255 * 2 ** (-x / 64) for keys [first, first + 4 * kLanes) as bytes; x is at least 0.
template <class S>
inline __attribute__((always_inline)) void store_powers(uint8_t* bytes, typename S::Float (&x)[4],
                                                        int64_t first) {
  if constexpr (S::kHasPowers) {
    S::store_powers(bytes, x, kDither.parts + first);
  } else {
    for (int v = 0; v < 4; ++v)
      x[v] = S::fma(exp2<3>(S::mul(x[v], S::set1(-1.0f / 64))), S::set1(255.0f),
                    S::load(kDither.beyond_half + first + v * S::kLanes));
    S::store_bytes(bytes, x);
  }
}

// Queries of one picture under one head. X is the type of queries and results.
template <class X>
struct RowsTask {
  static constexpr int kStates = (kMaxRows + Simd::kLanes - 1) / Simd::kLanes * Simd::kLanes;

  // The running state of a tile's rows.
  struct Tile {
    float factor[kStates];  // of scores, so that they are exponents of two
    float shift[kStates];
    float totals[kMaxRows][Simd::kLanes];  // of the probabilities, lane by lane
  };

  const X* q;
  X* out;
  int64_t q_stride, out_stride, num_rows, num_keys;
  float scale;
  PackedHead head;
  uint8_t* queries;  // tiles of 6 rows, interleaved step by step as in linear.h
  float* sums;       // (rows, padded D)
  Tile* tiles;
  float* scores;           // (6, 256)
  uint8_t* probabilities;  // (6, 256)

  void take_memory() {
    const int64_t num_tiles = (num_rows + kMaxRows - 1) / kMaxRows;
    const int64_t sizes[] = {
        num_rows * head.D,
        num_rows * head.padded_D * 4,
        num_tiles * (int64_t)sizeof(Tile),
        kMaxRows * kKeys * 4,
        kMaxRows * kKeys,
    };
    char* parts[5];
    scratch_parts(kAttention, sizes, parts);
    queries = (uint8_t*)parts[0];
    sums = (float*)parts[1];
    tiles = (Tile*)parts[2];
    scores = (float*)parts[3];
    probabilities = (uint8_t*)parts[4];
    memset(sums, 0, sizes[1]);
    memset(tiles, 0, sizes[2]);
  }

  void read_queries() {
    const int64_t D = head.D;
    uint8_t* one = (uint8_t*)scratch(kRow, round_up(D, Simd::kLanes));
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t d = 0; d < D; d += Simd::kLanes)
        __builtin_prefetch(q + (row + 8) * q_stride + d);
      const int64_t first = row / kMaxRows * kMaxRows;
      Tile& tile = tiles[row / kMaxRows];
      tile.factor[row - first] =
          scale * 1.44269504f * quantize_group(q + row * q_stride, one, D);
      tile.shift[row - first] = -1e30f;
      interleave<uint32_t>(one, queries + first * D, row - first,
                           smaller(kMaxRows, num_rows - first), D / 4);
    }
  }

  // Writes the scores of a block and finds each row's highest.
  template <int kRows>
  void multiply_keys(const uint8_t* x, const PackedHead::Block& block, float* highest) {
    constexpr int kVectors = Simd::kTileVectors;
    Simd::Float tops[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) tops[r] = Simd::set1(-3e38f);
    for (int64_t column = 0; column < kKeys; column += kVectors * Simd::kLanes) {
      Simd::Int whole[kRows][kVectors];
      Int8Quads::add_up(x, 4, kRows * 4,
                        block.keys + column / kPanel * kPanel * head.D + column % kPanel * 4,
                        kPanel * 4, block.start + column, head.D / 4, Nothing(), whole);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t key = column + v * Simd::kLanes;
          const Simd::Float score =
              Simd::mul(Simd::to_float(whole[r][v]), Simd::load(block.key_scale + key));
          Simd::store(scores + r * kKeys + key, score);
          tops[r] = Simd::max(tops[r], score);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) highest[r] = Simd::largest(tops[r]);
  }

  template <int kRows>
  void multiply_values(const PackedHead::Block& block, const float* weights, float* tile_sums) {
    constexpr int kVectors = Simd::kTileVectors;
    int64_t column = 0;
    for (; column + kVectors * Simd::kLanes <= head.padded_D; column += kVectors * Simd::kLanes)
      add_values<kRows, kVectors>(block, weights, tile_sums, column);
    for (; column < head.padded_D; column += Simd::kLanes)
      add_values<kRows, 1>(block, weights, tile_sums, column);
  }
  template <int kRows, int kVectors>
  inline __attribute__((always_inline)) void add_values(const PackedHead::Block& block,
                                                        const float* weights, float* tile_sums,
                                                        int64_t column) const {
    Simd::Int whole[kRows][kVectors];
    Int8Quads::add_up(probabilities, kKeys, 4, block.values + column * 4, head.padded_D * 4,
                      kNoKeys, kKeys / 4, Nothing(), whole);
    tile_sums += column;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r, tile_sums += head.padded_D) {
      const Simd::Float weight = Simd::set1(weights[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Simd::Float scale = Simd::load(block.value_scale + column + v * Simd::kLanes);
        float* sum = tile_sums + v * Simd::kLanes;
        Simd::store(sum, Simd::fma(Simd::mul(Simd::to_float(whole[r][v]), scale), weight,
                                   Simd::load(sum)));
      }
    }
  }

  // Writes a row's probabilities and adds them to its totals.
  inline __attribute__((always_inline)) void soften(int r, float factor, float highest,
                                                    float weight, float* totals) {
    const Simd::Float slope = Simd::set1(-64 * factor), base = Simd::set1(64 * factor * highest);
    const float* row = scores + r * kKeys;
    uint8_t* to = probabilities + r * kKeys;
    Simd::Int total = Simd::load_int(kNoKeys);
#pragma GCC unroll 4
    for (int64_t key = 0; key < kKeys; key += 4 * Simd::kLanes) {
      Simd::Float x[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        x[v] = Simd::fma(Simd::load(row + key + v * Simd::kLanes), slope, base);
      store_powers<Simd>(to + key, x, key);
      total = Simd::add_bytes(total, to + key);
    }
    Simd::store(totals, Simd::fma(Simd::to_float(total), Simd::set1(weight), Simd::load(totals)));
  }

  // Adds one block of keys to the rows of a tile.
  template <int kRows>
  void attend_tile(int64_t first_row, const PackedHead::Block& block) {
    Tile& tile = tiles[first_row / kMaxRows];
    float* tile_sums = sums + first_row * head.padded_D;
    float highest[kStates] = {}, weights[kStates];
    multiply_keys<kRows>(queries + first_row * head.D, block, highest);
    for (int r = 0; r < kRows; ++r) {
      const float top = highest[r] * tile.factor[r];
      if (__builtin_expect(top > tile.shift[r] + kRoom, false))
        move_shift(tile, r, top, tile_sums + r * head.padded_D);
    }
    for (int r = 0; r < kStates; r += Simd::kLanes) {
      const Simd::Float top = Simd::mul(Simd::load(highest + r), Simd::load(tile.factor + r));
      Simd::store(weights + r, exp2<5>(Simd::sub(top, Simd::load(tile.shift + r))));
    }
    for (int r = 0; r < kRows; ++r)
      soften(r, tile.factor[r], highest[r], weights[r], tile.totals[r]);
    multiply_values<kRows>(block, weights, tile_sums);
  }

  __attribute__((noinline)) void move_shift(Tile& tile, int r, float shift, float* row) const {
    const Simd::Float keep = Simd::set1(exp2_of<5>(tile.shift[r] - shift));
    tile.shift[r] = shift;
    Simd::store(tile.totals[r], Simd::mul(Simd::load(tile.totals[r]), keep));
    for (int64_t d = 0; d < head.padded_D; d += Simd::kLanes)
      Simd::store(row + d, Simd::mul(Simd::load(row + d), keep));
  }

  void write_rows() const {
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* totals = tiles[row / kMaxRows].totals[row % kMaxRows];
      const Simd::Float share = Simd::set1(1.0f / Simd::sum(Simd::load(totals)));
      for (int64_t d = 0; d < head.D; d += Simd::kLanes) {
        const Simd::Float sum = Simd::load(sums + row * head.padded_D + d);
        store_part(out + row * out_stride + d,
                   Simd::fma(sum, share, Simd::load(head.mean + d)), head.D - d);
      }
    }
  }

  void run() {
    take_memory();
    read_queries();
    for (int64_t begin = 0; begin < num_keys; begin += kKeys) {
      const PackedHead::Block block = head.block(begin / kKeys);
      for (int64_t row = 0; row < num_rows; row += kMaxRows)
        with_rows(smaller(kMaxRows, num_rows - row),
                  [&](auto n) { attend_tile<decltype(n)::value>(row, block); });
    }
    write_rows();
  }
};

// One call's pictures, and where each one's heads are packed.
struct Int8Attention {
  const AttentionCall& call;
  char* packed;

  int64_t length(int64_t picture) const {
    return call.bounds[picture + 1] - call.bounds[picture];
  }
  int64_t num_tasks(int64_t picture) const {
    return (length(picture) + kTaskRows - 1) / kTaskRows;
  }

  // The packed heads of all pictures before this one, in bytes.
  int64_t bytes_before(int64_t picture) const {
    int64_t total = 0;
    for (int64_t b = 0; b < picture; ++b)
      total += call.Hq * PackedHead::num_bytes(call.D, length(b));
    return total;
  }
  PackedHead packed_head(int64_t picture, int64_t head) const {
    return {packed + bytes_before(picture) + head * PackedHead::num_bytes(call.D, length(picture)),
            call.D};
  }

  void pack(int64_t picture, int64_t head) const {
    const int64_t first = call.bounds[picture];
    const uint16_t* k = (const uint16_t*)call.k + first * call.kv_stride + head * call.D;
    with_type(call.v_type, call.v, [&](auto* values) {
      using V = NumberAt<decltype(values)>;
      Packing<V>{k, values + first * call.v_stride + head * call.D, call.kv_stride,
                 call.v_stride, length(picture), packed_head(picture, head)}
          .run();
    });
  }

  void attend(int64_t picture, int64_t head, int64_t task) const {
    const int64_t count = num_tasks(picture), num_rows = length(picture);
    const int64_t begin = num_rows * task / count, end = num_rows * (task + 1) / count;
    const int64_t first = call.bounds[picture] + begin, out_stride = call.Hq * call.D;
    with_type(call.q_type, call.q, [&](auto* q) {
      using X = NumberAt<decltype(q)>;
      RowsTask<X>{q + first * call.q_stride + head * call.D,
                  (X*)call.out + first * out_stride + head * call.D, call.q_stride, out_stride,
                  end - begin, num_rows, call.scale, packed_head(picture, head)}
          .run();
    });
  }
};

inline void attention_int8(const AttentionCall& call) {
  Int8Attention pictures{call, nullptr};
  pictures.packed = (char*)scratch(kActivations, pictures.bytes_before(call.num_sequences));
  parallel(call.num_sequences * call.Hq, [&](int64_t item) {
    if (pictures.length(item / call.Hq) > 0) pictures.pack(item / call.Hq, item % call.Hq);
  });
  int64_t num_tasks = 0;
  for (int64_t b = 0; b < call.num_sequences; ++b) num_tasks += pictures.num_tasks(b);
  parallel(num_tasks * call.Hq, [&](int64_t item) {
    int64_t task = item % num_tasks, picture = 0;
    while (task >= pictures.num_tasks(picture)) task -= pictures.num_tasks(picture++);
    pictures.attend(picture, item / num_tasks, task);
  });
}

}  // namespace
}  // namespace visiongate
