// Linear layers over panels: one driver for every number of rows and every product.
//
//   1. `prepare` (rows.h) writes the rows as the product wants them, in tiles of at most 6 rows.
//   2. Each item of work is one panel and a block of tiles. For many rows, K is walked in chunks that
//      keep the panel in the cache; the sums wait in between, unrounded, so bits do not change.
//   3. `finish_rows` (finish.h) makes a tile's outputs of its sums and writes them.
#pragma once
#include <type_traits>

#include "finish.h"
#include "rows.h"
#include "tile.h"

namespace visiongate {
namespace {

constexpr int64_t kTilesPerBlock = 16;
// Of a panel: two chunks and a block's rows stay in the second cache, which beside AVX-512 has a
// megabyte or more.
constexpr int64_t kChunkBytes = (Simd::kLanes == 16 ? 128 : 64) << 10;

constexpr int64_t kStepBytes = kPanel * 4;
constexpr int64_t kNearBytes = 4096;  // how far ahead a lone tile reads; 2 to 4 KiB measured best

// The second of two chunks, of which tile `tile` of `num_tiles` fetches its part.
inline Ahead<2> part_of_next(const char* chunk, int64_t num_steps, int64_t tile,
                             int64_t num_tiles) {
  const int64_t part = num_steps * kStepBytes / num_tiles;
  return {chunk + num_steps * kStepBytes + tile * part, kStepBytes / num_tiles};
}

// Adds steps [begin, end) of one panel to the sums (rows, 64) of one tile, or to zero from the first.
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
      const auto multiply = [&](auto from_zero) {
        multiply_columns<Product, kRows, kUnit, kRows * kUnit, decltype(from_zero)::value>(
            x, w, kPanel * kUnit, sums, kPanel, kPanel, end - begin, ahead);
      };
      begin == 0 ? multiply(std::true_type()) : multiply(std::false_type());
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
            count, step == 0, ahead);
        for (int64_t column = kWide; column < kPanel; column += kWide)
          Int8Quads::multiply_group<kRows, Simd::kTileVectors>(
              tile + step * kRows * 4, 4, kRows * 4, w + column * 4, kPanel * 4, start + column,
              x_scale, 1, sums + column, kPanel, count, step == 0, Nothing());
      });
      ahead.next += (count + 1) * ahead.stride;
    }
  }
};

template <class Product>
void linear_as(const LinearCall& call) {
  const Rows rows(call.M);
  const Prepared prepared = prepare<Product>(call, rows);
  const int64_t num_steps = (call.K + Product::kUnit - 1) / Product::kUnit;
  const int64_t num_panels = round_up(call.N, kPanel) / kPanel;
  const int64_t num_blocks = (rows.num_tiles + kTilesPerBlock - 1) / kTilesPerBlock;
  constexpr int64_t chunk = kChunkBytes / kStepBytes;
  // A block's rows stay in the second cache while all weights pass by, out of the third; many more
  // weights than rows do not stay there, and pass once while all rows pass by each panel.
  const bool rows_first =
      2 * call.M * (int64_t)sizeof(typename Product::X) * Product::kUnit > num_panels * kStepBytes;
  parallel(num_panels * num_blocks, [&](int64_t item) {
    const int64_t panel = rows_first ? item % num_panels : item / num_blocks;
    const int64_t block = rows_first ? item / num_panels : item % num_blocks;
    const int64_t first_tile = rows.num_tiles * block / num_blocks;
    const int64_t end_tile = rows.num_tiles * (block + 1) / num_blocks;
    const int64_t first_row = rows.begin(first_tile);
    const int64_t num_rows = rows.begin(end_tile) - first_row;
    float* sums = (float*)scratch(kSums, num_rows * kPanel * sizeof(float));
    const PanelChunk<Product> weights{call, prepared, num_steps, panel};
    const char* start =
        (const char*)call.panels + panel * weights.place_of(num_steps) * kStepBytes;
    if (rows.num_tiles == 1) {
      weights.add(0, call.M, 0, num_steps, sums, Ahead<1>{start + kNearBytes, kStepBytes});
      finish_rows<Product>(call, sums, 0, call.M, panel);
    } else {
      for (int64_t begin = 0; begin < num_steps; begin += chunk) {
        const int64_t end = smaller(num_steps, begin + chunk);
        const int64_t place = weights.place_of(begin), length = weights.place_of(end) - place;
        for (int64_t tile = first_tile; tile < end_tile; ++tile) {
          const int64_t row = rows.begin(tile), count = rows.begin(tile + 1) - row;
          float* tile_sums = sums + (row - first_row) * kPanel;
          if (end == num_steps) expect_outputs(call, row, count, panel);
          weights.add(row, count, begin, end, tile_sums,
                      part_of_next(start + place * kStepBytes, length, tile - first_tile,
                                   end_tile - first_tile));
          if (end == num_steps) finish_rows<Product>(call, tile_sums, row, count, panel);
        }
      }
    }
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
