// What a picture is before the vision tower's first block: patches of its pixels, and their positions.
#pragma once
#include "common.h"

namespace visiongate {
namespace {

// Patch after patch, in which the numbers of a channel lie together. The patches of a block of
// merge x merge stand together, and blocks row by row.
inline void cut_patches(const PatchesCall& call) {
  const int64_t merge = call.merge, patch = call.patch, channels = call.channels;
  const int64_t blocks_across = call.width / (merge * patch), row_bytes = call.width * channels;
  const int64_t num_patches = (call.height / patch) * (call.width / patch);
  const int64_t size = channels * patch * patch;
  parallel_rows(num_patches, size, [&](int64_t n) {
    const int64_t block = n / (merge * merge), inner = n % (merge * merge);
    const int64_t down = block / blocks_across * merge + inner / merge;
    const int64_t across = block % blocks_across * merge + inner % merge;
    const uint8_t* from = call.pixels + down * patch * row_bytes + across * patch * channels;
    float* to = call.patches + n * size;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const float* levels = call.levels + channel * 256;
      for (int64_t y = 0; y < patch; ++y)
        for (int64_t x = 0; x < patch; ++x)
          *to++ = levels[from[y * row_bytes + x * channels + channel]];
    }
  });
}

template <class T>
void add_weighted_to_row(const WeightedRowsCall& call, const T* table, int64_t row) {
  const int64_t* ids = call.ids + row * call.num_taps;
  const float* weights = call.weights + row * call.num_taps;
  float* y = call.y + row * call.C;
  for (int64_t c = 0; c < call.C; c += Simd::kLanes) {
    const int64_t n = call.C - c;
    Simd::Float sum = load_part(y + c, n);
    for (int64_t tap = 0; tap < call.num_taps; ++tap)
      sum = Simd::fma(load_part(table + ids[tap] * call.C + c, n), Simd::set1(weights[tap]), sum);
    store_part(y + c, sum, n);
  }
}

inline void add_weighted_rows(const WeightedRowsCall& call) {
  parallel_rows(call.T, call.C * call.num_taps, [&](int64_t row) {
    with_type(call.type, call.table,
              [&](auto* table) { add_weighted_to_row(call, table, row); });
  });
}

}  // namespace
}  // namespace visiongate
