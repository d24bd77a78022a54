// Linear layers over panels: one driver for every number of rows and every product.
//
//   1. `prepare` writes the rows as the product wants them (float32, bfloat16, or quantised), in tiles
//      of at most 6 rows whose words lie interleaved: step 0 of each row, step 1 of each row, ...
//   2. Each item of work is one panel and a block of tiles. For many rows, K is walked in chunks that
//      keep the panel in the cache; the sums wait in between, unrounded, so bits do not change.
//   3. `finish` scales, adds the bias, takes the GELU or adds what y holds where that is asked for, and
//      rounds to the type of y.
#pragma once
#include "tile.h"

namespace visiongate {
namespace {

constexpr int64_t kTilesPerBlock = 16;
constexpr int64_t kChunkBytes = 64 << 10;  // of a panel

struct Rows {
  int64_t M, num_tiles;
  explicit Rows(int64_t M) : M(M), num_tiles((M + kMaxRows - 1) / kMaxRows) {}
  int64_t begin(int64_t tile) const { return M * tile / num_tiles; }  // tiles of nearly equal size
};

struct Prepared {
  void* x;       // tiles, one after another
  float* scale;  // int8: (groups, M) so that a tile's rows lie together
};

// Row converters: write K numbers and then zeros up to a whole step.
template <class T>
void convert_row(const T* x, float* row, int64_t K, int64_t padded_K) {
  for (int64_t k = 0; k < K; k += Simd::kLanes)
    store_part(row + k, load_part(x + k, K - k), K - k);
  for (int64_t k = K; k < padded_K; ++k) row[k] = 0;
}
template <class T>
void convert_row(const T* x, uint16_t* row, int64_t K, int64_t padded_K) {
  for (int64_t k = 0; k < K; k += Simd::kLanes)
    store_part(row + k, load_part(x + k, K - k), K - k);
  for (int64_t k = K; k < padded_K; ++k) row[k] = 0;
}

// `convert(x row, row index, buffer)` makes one row; words of Word are then interleaved.
template <class Word, class Convert>
void prepare_rows(const LinearCall& call, const Rows& rows, int64_t num_words, void* tiles,
                  const Convert& convert) {
  parallel_rows(rows.num_tiles, call.K * kMaxRows, [&](int64_t tile) {
    const int64_t begin = rows.begin(tile), count = rows.begin(tile + 1) - begin;
    Word* out = (Word*)tiles + begin * num_words;
    for (int64_t r = 0; r < count; ++r) {
      void* row = count == 1 ? (void*)out : scratch(kRow, num_words * sizeof(Word) + 64);
      const int64_t offset = (begin + r) * call.x_stride;
      with_type(call.x_type, call.x, [&](auto* x) { convert(x + offset, begin + r, row); });
      if (count > 1) interleave<Word>(row, out, r, count, num_words);
    }
  });
}

template <class Product>
Prepared prepare(const LinearCall& call, const Rows& rows) {
  constexpr int64_t kUnit = Product::kUnit;
  using X = typename Product::X;
  const int64_t num_steps = (call.K + kUnit - 1) / kUnit, padded_K = num_steps * kUnit;
  Prepared prepared{scratch(kActivations, call.M * padded_K * sizeof(X) + 64), nullptr};
  struct Word {
    X units[kUnit];
  };
  prepare_rows<Word>(call, rows, num_steps, prepared.x, [&](auto* x, int64_t, void* row) {
    convert_row(x, (X*)row, call.K, padded_K);
  });
  return prepared;
}

template <>
Prepared prepare<Int8Quads>(const LinearCall& call, const Rows& rows) {
  const int64_t num_steps = (call.K + 3) / 4, num_groups = (call.K + kGroup - 1) / kGroup;
  Prepared prepared{scratch(kActivations, call.M * num_steps * 4 + 64),
                    (float*)scratch(kActivationScales, call.M * num_groups * sizeof(float))};
  prepare_rows<uint32_t>(call, rows, num_steps, prepared.x, [&](auto* x, int64_t m, void* row) {
    uint8_t* bytes = (uint8_t*)row;
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t begin = g * kGroup, count = smaller(kGroup, call.K - begin);
      prepared.scale[g * call.M + m] = quantize_group(x + begin, bytes + begin, count);
    }
    for (int64_t k = call.K; k < num_steps * 4; ++k) bytes[k] = 0;
  });
  return prepared;
}

constexpr int64_t kStepBytes = kPanel * 4;
constexpr int64_t kNearBytes = 4096;  // how far ahead a lone tile reads; 2 to 4 KiB measured best

// The second of two chunks, of which tile `tile` of `num_tiles` fetches its part.
inline Ahead<2> part_of_next(const char* chunk, int64_t num_steps, int64_t tile,
                             int64_t num_tiles) {
  const int64_t part = num_steps * kStepBytes / num_tiles;
  return {chunk + num_steps * kStepBytes + tile * part, kStepBytes / num_tiles};
}

// Adds steps [begin, end) of one panel to the sums (rows, 64) of one tile.
template <class Product>
struct PanelChunk {
  const LinearCall& call;
  const Prepared& prepared;
  int64_t num_steps, panel;

  // Where a step lies, in steps from the start of the panel.
  static int64_t place_of(int64_t step) { return step; }

  template <class Fetch>
  void add(int64_t first_row, int64_t num_rows, int64_t begin, int64_t end, float* sums,
           Fetch ahead) const {
    constexpr int kUnit = Product::kUnit;
    const auto* w = (const typename Product::W*)call.panels +
                    (panel * num_steps + begin) * kPanel * kUnit;
    const auto* x = (const typename Product::X*)prepared.x +
                    (first_row * num_steps + begin * num_rows) * kUnit;
    with_rows(num_rows, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      multiply_columns<Product, kRows, kUnit, kRows * kUnit, false>(x, w, kPanel * kUnit, sums, kPanel,
                                                             kPanel, end - begin, ahead);
    });
  }
};

template <>
struct PanelChunk<Int8Quads> {
  const LinearCall& call;
  const Prepared& prepared;
  int64_t num_steps, panel;

  // Counts the steps that begin the groups, too.
  static int64_t place_of(int64_t step) {
    return step + (step + kGroupSteps - 1) / kGroupSteps;
  }

  template <class Fetch>
  void add(int64_t first_row, int64_t num_rows, int64_t begin, int64_t end, float* sums,
           Fetch ahead) const {
    constexpr int kWide = Simd::kTileVectors * Simd::kLanes;
    const uint8_t* tile = (const uint8_t*)prepared.x + first_row * num_steps * 4;
    for (int64_t step = begin; step < end; step += kGroupSteps) {
      const int64_t group = step / kGroupSteps;
      const int64_t count = smaller(kGroupSteps, end - step);
      const int64_t before = panel * place_of(num_steps) + place_of(step);
      const int32_t* start = (const int32_t*)call.panels + before * kPanel;
      const int8_t* w = (const int8_t*)(start + kPanel);
      const float* x_scale = prepared.scale + group * call.M + first_row;
      with_rows(num_rows, [&](auto rows) {
        constexpr int kRows = decltype(rows)::value;
        Int8Quads::multiply_group<kRows, Simd::kTileVectors>(
            tile + step * kRows * 4, 4, kRows * 4, w, kPanel * 4, start, x_scale, 1, sums, kPanel,
            count, ahead);
        for (int64_t column = kWide; column < kPanel; column += kWide)
          Int8Quads::multiply_group<kRows, Simd::kTileVectors>(
              tile + step * kRows * 4, 4, kRows * 4, w + column * 4, kPanel * 4, start + column,
              x_scale, 1, sums + column, kPanel, count, Nothing());
      });
      ahead.next += (count + 1) * ahead.stride;
    }
  }
};

// Writes the outputs of one panel for one row.
template <class T>
void finish_row(const LinearCall& call, const float* sums, int64_t panel, T* y) {
  const int64_t begin = panel * kPanel, count = smaller(kPanel, call.N - begin);
  for (int64_t n = 0; n < count; n += Simd::kLanes) {
    Simd::Float sum = Simd::load(sums + n);
    if (call.product == kInt8OverInt8) sum = Simd::mul(sum, Simd::load(call.scale + begin + n));
    if (call.bias) sum = Simd::add(sum, load_part(call.bias + begin + n, count - n));
    if (call.has_gelu) sum = gelu_of(sum);
    if (call.adds) sum = Simd::add(load_part(y + begin + n, count - n), sum);
    store_part(y + begin + n, sum, count - n);
  }
}

// Fetches the places of a tile's outputs before they are written: each row's lie in another page, and
// waiting for them took a seventh of a large product's time.
inline void expect_outputs(const LinearCall& call, int64_t first_row, int64_t num_rows,
                           int64_t panel) {
  const int64_t size = bytes_of(call.y_type), begin = panel * kPanel;
  const int64_t num_bytes = smaller(kPanel, call.N - begin) * size;
  for (int64_t r = 0; r < num_rows; ++r) {
    const char* y = (const char*)call.y + ((first_row + r) * call.N + begin) * size;
    for (int64_t place = 0; place < num_bytes; place += 64) __builtin_prefetch(y + place, 1, 3);
  }
}

template <class Product>
void linear_as(const LinearCall& call) {
  const Rows rows(call.M);
  const Prepared prepared = prepare<Product>(call, rows);
  const int64_t num_steps = (call.K + Product::kUnit - 1) / Product::kUnit;
  const int64_t num_panels = round_up(call.N, kPanel) / kPanel;
  const int64_t num_blocks = (rows.num_tiles + kTilesPerBlock - 1) / kTilesPerBlock;
  constexpr int64_t chunk = kChunkBytes / kStepBytes;
  // What is larger is read once and what is smaller again and again.
  const bool rows_first = call.M * (int64_t)sizeof(typename Product::X) * Product::kUnit >
                          num_panels * kStepBytes;
  parallel(num_panels * num_blocks, [&](int64_t item) {
    const int64_t panel = rows_first ? item % num_panels : item / num_blocks;
    const int64_t block = rows_first ? item / num_panels : item % num_blocks;
    const int64_t first_tile = rows.num_tiles * block / num_blocks;
    const int64_t end_tile = rows.num_tiles * (block + 1) / num_blocks;
    const int64_t first_row = rows.begin(first_tile);
    const int64_t num_rows = rows.begin(end_tile) - first_row;
    float* sums = (float*)scratch(kSums, num_rows * kPanel * sizeof(float));
    memset(sums, 0, num_rows * kPanel * sizeof(float));
    const PanelChunk<Product> weights{call, prepared, num_steps, panel};
    const char* start =
        (const char*)call.panels + panel * weights.place_of(num_steps) * kStepBytes;
    if (rows.num_tiles == 1)
      weights.add(0, call.M, 0, num_steps, sums, Ahead<1>{start + kNearBytes, kStepBytes});
    else
      for (int64_t begin = 0; begin < num_steps; begin += chunk) {
        const int64_t end = smaller(num_steps, begin + chunk);
        const int64_t place = weights.place_of(begin), length = weights.place_of(end) - place;
        for (int64_t tile = first_tile; tile < end_tile; ++tile) {
          const int64_t row = rows.begin(tile);
          if (end == num_steps) expect_outputs(call, row, rows.begin(tile + 1) - row, panel);
          weights.add(row, rows.begin(tile + 1) - row, begin, end,
                      sums + (row - first_row) * kPanel,
                      part_of_next(start + place * kStepBytes, length, tile - first_tile,
                                   end_tile - first_tile));
        }
      }
    with_type(call.y_type, call.y, [&](auto* y) {
      for (int64_t r = 0; r < num_rows; ++r)
        finish_row(call, sums + r * kPanel, panel, y + (first_row + r) * call.N);
    });
  });
}

inline void linear(const LinearCall& call) {
  if (call.M == 0 || call.N == 0) return;
  switch (call.product) {
    case kFloat32OverBfloat16: return linear_as<ExactPairs>(call);
    case kFloat32OverFloat32: return linear_as<Exact>(call);
    case kBfloat16OverBfloat16: return linear_as<Bfloat16Pairs>(call);
    case kInt8OverInt8: return linear_as<Int8Quads>(call);
  }
}

}  // namespace
}  // namespace visiongate
